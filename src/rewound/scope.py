"""Which tensors may be pruned, and for every other one the reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rewound.parameters import local, named_modules, parameters_by_name, tied_names
from rewound.spelling import closest

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_WHOLE_WEIGHT = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,  # Conv1d/2d/3d and ConvTranspose1d/2d/3d
)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

ScopeLike: TypeAlias = "Scope | str | Iterable[str] | Callable[[str, nn.Module, nn.Parameter], bool] | None"


@dataclass(frozen=True)
class Scope:
    """The tensors that may be pruned, in the model's order; and why the others may not.

    names: parameter names in scope. sizes: name -> number of weights. reasons: name of a parameter left
    out -> why. aliases: name (in scope or left out) -> all names of that shared tensor, where it has more
    than one.

    >>> import torch
    >>> print(find_scope(torch.nn.Linear(3, 2)))
    in scope: 1 tensor, 6 weights
      weight  2x3  6
    left out: 1 tensor, 2 weights
      bias    2    2  a bias: biases are never pruned
    """

    names: tuple[str, ...]
    sizes: dict[str, int]
    reasons: dict[str, str]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of all parameters, for printing

    @property
    def size(self) -> int:
        """Number of weights in scope, a shared tensor counted once."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        def row(name: str) -> tuple[str, ...]:
            shape = self.shapes.get(name, ())
            also = [alias for alias in self.aliases.get(name, ()) if alias != name]
            why = "; ".join(
                part for part in (self.reasons.get(name), also and f"also named {', '.join(also)}") if part
            )
            return name, "x".join(map(str, shape)), f"{_numel(shape):,}", why

        kept, out = [row(name) for name in self.names], [row(name) for name in self.reasons]
        widths = [max(len(r[column]) for r in kept + out) for column in range(3)]

        def block(title: str, rows: list[tuple[str, ...]]) -> list[str]:
            weights = sum(int(r[2].replace(",", "")) for r in rows)
            head = f"{title}: {len(rows)} tensor{'' if len(rows) == 1 else 's'}, {weights:,} weights"
            line = "  {:<{w[0]}}  {:<{w[1]}}  {:>{w[2]}}  {}"
            return [head, *(line.format(*r, w=widths).rstrip() for r in rows)]

        return "\n".join(block("in scope", kept) + (block("left out", out) if out else []))


def find_scope(
    model: nn.Module,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    embeddings: bool = False,
) -> Scope:
    """Return the tensors of ``model`` that may be pruned.

    By default: the weights of linear, bilinear and (transposed) convolution layers, recurrent layers and
    cells, multi-head attention and Hugging Face's Conv1D; embeddings with ``embeddings=True``. A tensor
    shared between an embedding and another layer follows the rule for embeddings. Never biases, norms or
    frozen parameters.

    ``include`` and ``exclude`` are parameter names or glob patterns (``"encoder.*"``). Given ``include``,
    only what it matches is in scope. A full name in ``include`` brings in an embedding or the weight of a
    class that is not known; so does a pattern that matches nothing else, while a pattern that also
    matches ordinary weights leaves those out: no pattern widens the scope unsaid.

    Raises ValueError if a pattern matches no parameter, if ``include`` asks for what cannot be pruned,
    and if nothing is left to prune (with the reasons).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    >>> find_scope(model, exclude=["2.*"]).names
    ('0.weight',)
    """
    found = _classify(model, embeddings)
    chosen = _included(found, None if include is None else _patterns("include", include), model)
    if exclude is not None:
        for pattern in _patterns("exclude", exclude):
            for name in _matches(found, pattern, model):
                if chosen.get(name) is None:
                    chosen[name] = f"excluded by {pattern!r}"
    return _scope(model, chosen)


def as_scope(model: nn.Module, scope: ScopeLike) -> Scope:
    """Return ``scope`` as a Scope of ``model``.

    None: the default of ``find_scope``. A Scope: checked against the model. Names and patterns: what
    ``find_scope`` includes, those after a ``"!"`` excluded. A function (name, module, parameter) -> bool:
    asked about every tensor that can be pruned at all, embeddings and unknown classes included.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    >>> as_scope(model, ["!1.*"]).names, as_scope(model, lambda name, module, p: p.numel() < 10).names
    (('0.weight',), ('1.weight',))
    """
    if scope is None:
        return find_scope(model)
    if isinstance(scope, Scope):
        return _checked(model, scope)
    if callable(scope):
        return _by_function(model, scope)
    patterns = _patterns("scope", scope)
    include = [p for p in patterns if not p.startswith("!")]
    exclude = [p[1:] for p in patterns if p.startswith("!")]
    return find_scope(model, include=include or None, exclude=exclude or None)


# -- what each parameter is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finding:
    names: tuple[str, ...]  # the first is the parameter's own, the others its aliases
    module: nn.Module
    parameter: nn.Parameter
    never: str | None = None  # why it cannot be pruned, whatever is asked
    unless_asked: str | None = None  # why it is not pruned unless it is named


def _classify(model: nn.Module, embeddings: bool) -> dict[str, _Finding]:
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for _, module in named_modules(model):
        for leaf, p in module._parameters.items():
            if p is not None:
                owners.setdefault(id(p), []).append((leaf, module))
    parameters, tied = parameters_by_name(model), tied_names(model)
    shared = _shared_memory(parameters)
    found = {}
    for name, p in parameters.items():
        places = owners[id(p)]
        names = tied.get(name, (name,))
        nevers = [_never(name, leaf, module, p) for leaf, module in places]
        if name in shared:
            nevers.append(
                f"shares its memory with {shared[name]!r} but is another Parameter: make them one "
                "(module_b.weight = module_a.weight)"
            )
        soft = [_unless_asked(name, leaf, module, embeddings) for leaf, module in places]
        # of several places the embedding decides: its rule is the one a user would not expect to be bent
        soft.sort(
            key=lambda reason: 0 if reason and reason.startswith("an embedding") else 1 if reason else 2
        )
        why = soft[0]
        if why is not None and len(names) > 1:
            why = f"shared by {' and '.join(names)}: {why}"
        never = next((reason for reason in nevers if reason), None)
        found[name] = _Finding(names, places[0][1], p, never, why)
    return found


def _never(name: str, leaf: str, module: nn.Module, p: nn.Parameter) -> str | None:
    """Why a parameter cannot be pruned at all, or None."""
    if ".parametrizations." in f".{name}":
        tensor = name.split("parametrizations.")[-1].split(".")[0]
        return (
            "parametrized: call torch.nn.utils.parametrize.remove_parametrizations"
            f"(module, {tensor!r}) before pruning"
        )
    if leaf.endswith("_orig"):
        tensor = leaf[: -len("_orig")]
        if f"{tensor}_mask" in module._buffers:
            return (
                f"pruned by torch.nn.utils.prune: call torch.nn.utils.prune.remove(module, {tensor!r}) first"
            )
        if f"{tensor}_u" in module._buffers:
            return "under torch.nn.utils.spectral_norm: call remove_spectral_norm(module) before pruning"
    if leaf.endswith(("_g", "_v")) and {f"{leaf[:-2]}_g", f"{leaf[:-2]}_v"} <= module._parameters.keys():
        return "under torch.nn.utils.weight_norm: call remove_weight_norm(module) before pruning"
    if leaf.startswith("bias") or leaf.endswith("bias"):
        return "a bias: biases are never pruned"
    if isinstance(module, _NORMS) or re.search(r"Norm(\dd)?$", type(module).__name__):
        return "a norm's parameter: norms are never pruned"
    if isinstance(p, nn.parameter.UninitializedParameter):
        return "not initialised yet (lazy module): run one batch through the model first"
    return _unfit(p)


def _unfit(p: nn.Parameter) -> str | None:
    if p.is_meta:
        return "on the meta device, without values: load the weights first"
    if p.layout is not torch.strided:
        return f"stored as {str(p.layout).removeprefix('torch.')}: convert it with .to_dense() first"
    if p.is_complex():
        return "complex: only real weights are pruned; split it into real and imaginary part"
    if p.dtype not in _DTYPES:
        return f"of dtype {str(p.dtype).removeprefix('torch.')} (quantised?): prune first, quantise after"
    if p.numel() == 0:
        return "empty: it has no weights"
    if p.ndim < 2:
        return "a vector or scalar: only tensors of two or more dimensions are pruned"
    if not p.requires_grad:
        return "frozen (requires_grad is False): call .requires_grad_(True) to prune and retrain it"
    return None


def _unless_asked(name: str, leaf: str, module: nn.Module, embeddings: bool) -> str | None:
    """Why a parameter is pruned only if it is asked for, or None if it is pruned by default."""
    if isinstance(module, _EMBEDDINGS) and leaf == "weight":
        if embeddings:
            return None
        return f"an embedding: embeddings=True or scope=[{name!r}] includes it"
    known = (
        (isinstance(module, _WHOLE_WEIGHT) and leaf == "weight")
        or (isinstance(module, nn.RNNBase | nn.RNNCellBase) and re.match(r"weight_(ih|hh|hr)", leaf))
        or (isinstance(module, nn.MultiheadAttention) and leaf in _ATTENTION)
        or (leaf == "weight" and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__))
    )
    if known:
        return None
    return f"its class {type(module).__name__} is not known: scope=[{name!r}] includes it"


_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _shared_memory(parameters: dict[str, nn.Parameter]) -> dict[str, str]:
    """Return name -> other name, for different Parameters that begin at the same address: updates to one
    revive the other."""
    first: dict[tuple[torch.device, int], str] = {}
    shared: dict[str, str] = {}
    for name, p in parameters.items():
        if isinstance(p, nn.parameter.UninitializedParameter) or p.layout is not torch.strided or p.is_meta:
            continue
        part: Tensor = local(p.detach())
        if part.numel() == 0:
            continue
        other = first.setdefault((part.device, part.data_ptr()), name)
        if other != name:
            shared[name], shared[other] = other, name
    return shared


# -- what is asked for -----------------------------------------------------------------------------------


def _patterns(what: str, patterns: Iterable[str]) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    odd = [p for p in listed if not isinstance(p, str)]
    if odd:
        raise TypeError(f"{what!r} must hold names or glob patterns (got {type(odd[0]).__name__})")
    if not listed:
        raise ValueError(f"{what!r} holds no name or pattern; leave it out for the default")
    return listed


def _included(
    found: dict[str, _Finding], patterns: list[str] | None, model: nn.Module
) -> dict[str, str | None]:
    """Return name -> why left out (None = in scope)."""
    if patterns is None:
        return {name: f.never or f.unless_asked for name, f in found.items()}
    chosen: dict[str, str | None] = {
        name: f.never or "not matched by scope=[" + ", ".join(map(repr, patterns)) + "]"
        for name, f in found.items()
    }
    for pattern in patterns:
        matched = [found[name] for name in _matches(found, pattern, model)]
        able = [f for f in matched if f.never is None]
        if not able:
            whys = "; ".join(f"{f.names[0]!r} is {f.never}" for f in matched[:3])
            raise ValueError(f"scope asks for {pattern!r}, which cannot be pruned: {whys}")
        ordinary = [f for f in able if f.unless_asked is None]
        for f in able:
            taken = f in ordinary or not ordinary
            if taken:
                chosen[f.names[0]] = None
            elif chosen[f.names[0]] is not None:
                chosen[f.names[0]] = f.unless_asked
    return chosen


def _matches(found: dict[str, _Finding], pattern: str, model: nn.Module) -> list[str]:
    """Return the parameters that go by a name which fits; a full name is itself even if it looks like a
    pattern."""
    matched = [name for name, f in found.items() if pattern in f.names]
    matched = matched or [name for name, f in found.items() if any(fnmatchcase(n, pattern) for n in f.names)]
    if matched:
        return matched
    if any(name == pattern for name, _ in named_modules(model)):
        hint = f"; it is a module: write {pattern + '.*'!r}"
    else:
        near = closest(pattern, found, count=3)
        hint = f"; nearest: {', '.join(map(repr, near or list(found)[:3]))}"
    raise ValueError(f"scope: no parameter matches {pattern!r}{hint}")


def _by_function(model: nn.Module, wanted: Callable[[str, nn.Module, nn.Parameter], bool]) -> Scope:
    chosen: dict[str, str | None] = {}
    for name, f in _classify(model, embeddings=False).items():
        if f.never is None:
            answer = wanted(name, f.module, f.parameter)
            chosen[name] = None if answer else "not wanted by the scope function"
        else:
            chosen[name] = f.never
    return _scope(model, chosen)


def _checked(model: nn.Module, scope: Scope) -> Scope:
    parameters = parameters_by_name(model)
    for name in scope.names:
        if name not in parameters:
            raise ValueError(
                f"the scope has {name!r}, the model has no such parameter: find the scope of this model"
            )
        if parameters[name].numel() != scope.sizes[name]:
            sizes = f"{scope.sizes[name]:,} weights in the scope, {parameters[name].numel():,} in the model"
            raise ValueError(f"{name!r} has {sizes}: find the scope of this model")
    return scope


def _scope(model: nn.Module, chosen: dict[str, str | None]) -> Scope:
    parameters = parameters_by_name(model)
    names = tuple(name for name, why in chosen.items() if why is None)
    reasons = {name: why for name, why in chosen.items() if why is not None}
    if not names:
        raise ValueError(f"nothing to prune in {type(model).__name__}: {_grouped(reasons)}")
    lazy = nn.parameter.UninitializedParameter
    shapes = {name: () if isinstance(p, lazy) else tuple(p.shape) for name, p in parameters.items()}
    return Scope(names, {name: _numel(shapes[name]) for name in names}, reasons, tied_names(model), shapes)


def _grouped(reasons: dict[str, str]) -> str:
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why.replace(repr(name), "'...'"), []).append(name)
    parts = []
    for why, names in groups.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[:3])}{more}: {why}")
    return "\n  ".join(["", *parts]) if parts else "it has no parameters"


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
