"""Numbers that a module keeps beside its tensors: ``out_features``, ``groups``, ``num_heads``, ``split_size``.

PyTorch's own layers say what theirs mean (``_TABLE``). For anybody else's, the graph says which sizes became which in the
module that runs the operator; an attribute that holds an old size gets the new one. Where an old size has several new ones (12
heads, and a sequence of 12), the alternatives are tried, and what is right is what computes the same function: the trial
is the proof itself (``surgery``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rewound.compaction.atoms import Cells
from rewound.compaction.attention import NarrowMultiheadAttention
from rewound.compaction.capture import place
from rewound.compaction.coupling import Coupling, kept_rows
from rewound.compaction.values import Value
from rewound.parameters import named_modules

Edits = dict[tuple[str, str], Any]  # (module path, attribute) -> its new value


@dataclass(frozen=True)
class Mending:
    """sure: edits that follow from the tensors. open_: for every attribute (of all modules of a class where it is in the same
    doubt) the alternatives, likeliest first."""

    sure: Edits
    open_: tuple[tuple[Edits, ...], ...]

    def edits(self, chosen: Sequence[int]) -> Edits:
        """Return the edits of one choice for each doubt."""
        edits = dict(self.sure)
        for alternatives, k in zip(self.open_, chosen):
            edits.update(alternatives[k])
        return edits


def mend(model: nn.Module, coupling: Coupling, dead: np.ndarray, shapes: Mapping[str, torch.Size]) -> Mending:
    """Return the attributes to change when the atoms flagged in ``dead`` leave; ``shapes``: name -> new shape."""
    facts = _facts(coupling, dead)
    groups = {
        place(node): (len(cells), int(kept_rows(coupling.atoms, cells, dead).sum()))
        for node, cells in coupling.groups.items()
    }
    for path, (old, new) in groups.items():
        sizes = facts.setdefault(path, {}).setdefault(old, [])
        if new not in sizes:
            sizes.insert(0, new)
    sure: Edits = {}
    doubts: dict[tuple[str, str, tuple[Any, ...]], list[tuple[str, str]]] = {}
    for path, module in named_modules(model):
        own = _of_table(path, module, shapes, facts.get(path, {}), groups.get(path, (0, None))[1])
        sure.update(own)
        known = {name for _, name in own}
        for name, old in integers(module):
            if name in known or (type(module).__module__.startswith("torch.nn.") and _in_table(module)):
                continue
            sizes = facts.get(path, {}).get(old, [])
            if sizes and sizes != [old]:
                choices = (*sizes, *([old] if old not in sizes else []))
                doubts.setdefault((type(module).__qualname__, name, choices), []).append((path, name))
    sure = {key: value for key, value in sure.items() if _get(model, *key) != value}
    alternatives = tuple(
        tuple(dict.fromkeys(places, choice) for choice in choices)
        for (_, _, choices), places in doubts.items()
    )
    return Mending(sure, alternatives)


def apply(model: nn.Module, edits: Edits) -> Edits:
    """Set the attributes in place; return what they were."""
    modules = dict(named_modules(model))
    before: Edits = {}
    for (path, name), value in edits.items():
        before[path, name] = read(modules[path], name)
        _write(modules[path], name, value)
    return before


# ---- what the graph says ---------------------------------------------------------------------------------------------------


def _facts(coupling: Coupling, dead: np.ndarray) -> dict[str, dict[int, list[int]]]:
    """Return module path -> old size -> new sizes that it takes there, changed ones first, by how often they occur."""
    counts: dict[str, dict[int, dict[int, int]]] = {}
    cache: dict[int, tuple[Cells, int]] = {}

    def new_size(cells: Cells) -> int:
        if not cells.size:
            return len(cells)
        found = cache.get(id(cells))
        if found is None:
            found = cache[id(cells)] = (cells, int(kept_rows(coupling.atoms, cells, dead).sum()))
        return found[1]

    for node, value in coupling.values.items():
        if node.op != "call_function":
            continue
        reads = [coupling.values.get(n) for n in node.all_input_nodes]
        sizes = [(len(d.cells), new_size(d.cells)) for v in (value, *reads) for x in _each(v) for d in x.dims]
        if all(old == new for old, new in sizes):
            continue
        path = place(node)
        for where in {path, path.rpartition(".")[0]}:
            there = counts.setdefault(where, {})
            for old, new in sizes:
                if old > 1:
                    into = there.setdefault(old, {})
                    into[new] = into.get(new, 0) + (1 if where == path else 0)
    return {
        path: {old: sorted(new, key=lambda n: (n == old, -new[n])) for old, new in sizes.items()}
        for path, sizes in counts.items()
    }


def _each(value: Any) -> list[Value]:
    return (
        [value]
        if isinstance(value, Value)
        else [v for v in value if isinstance(v, Value)]
        if isinstance(value, list)
        else []
    )


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the integers that a module keeps, and those in its short tuples (as ``name[i]``)."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, (tuple, list)) and 0 < len(value) <= 8 and all(type(v) is int for v in value):
            for i, v in enumerate(value):
                yield f"{name}[{i}]", v


class Absent:
    """What an attribute was that was not there (a config's ``head_dim``, the ``scale`` of an attention)."""


@dataclass(frozen=True)
class Added:
    """What an attribute is that was None, and is a parameter of so many numbers: the bias of a layer that had none."""

    size: int


def read(module: nn.Module, name: str) -> Any:
    """Return an attribute, an item of one (``name[i]``), or one of the module's configuration (``config.name``); ``Absent`` if
    there is none of that name."""
    owner, base, index = _found(module, name)
    value: Any = getattr(owner, base, Absent)
    return value[int(index)] if index else value


def _write(module: nn.Module, name: str, value: Any) -> None:
    owner, base, index = _found(module, name)
    if isinstance(value, Added):
        if getattr(owner, base) is None:
            like = owner.weight
            value = nn.Parameter(like.new_zeros(value.size), requires_grad=like.requires_grad)
            setattr(owner, base, value)
        return
    if value is Absent:
        if hasattr(owner, base):
            delattr(owner, base)
        return
    if index:
        items = list(getattr(owner, base))
        items[int(index)] = value
        value = type(getattr(owner, base))(items)
    setattr(owner, base, value)


def _found(module: nn.Module, name: str) -> tuple[Any, str, str]:
    """Return what holds an attribute, its name there, and which item of it."""
    path, _, index = name.rstrip("]").partition("[")
    parts, _, base = path.rpartition(".")
    return attrgetter(parts)(module) if parts else module, base, index


def _get(model: nn.Module, path: str, name: str) -> Any:
    return read(dict(named_modules(model))[path], name)


# ---- PyTorch's own layers ---------------------------------------------------------------------------------------------------


def _linear(w: torch.Size) -> dict[str, Any]:
    return {"out_features": w[0], "in_features": w[1]}


_TABLE: dict[type, Callable[[torch.Size], dict[str, Any]]] = {
    nn.Linear: _linear,
    nn.Bilinear: lambda w: {"out_features": w[0], "in1_features": w[1], "in2_features": w[2]},
    nn.modules.batchnorm._NormBase: lambda w: {"num_features": w[0]},
    nn.LayerNorm: lambda w: {"normalized_shape": tuple(w)},
    nn.RMSNorm: lambda w: {"normalized_shape": tuple(w)},
    nn.Embedding: lambda w: {"num_embeddings": w[0], "embedding_dim": w[1]},
    nn.PReLU: lambda w: {"num_parameters": w[0]},
}


def _in_table(module: nn.Module) -> bool:
    return isinstance(
        module,
        (*_TABLE, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.GroupNorm, nn.MultiheadAttention),
    )


def _of_table(
    path: str,
    module: nn.Module,
    shapes: Mapping[str, torch.Size],
    facts: Mapping[int, list[int]],
    groups: int | None,
) -> Edits:
    """Return the edits of a layer of PyTorch (or a subclass), from the new shapes of its tensors."""

    def shape(leaf: str) -> torch.Size | None:
        *inner, last = leaf.split(".")
        owner = module.get_submodule(".".join(inner))
        if parametrize.is_parametrized(
            owner, last
        ):  # to read it is to compute it, and that may change buffers
            leaf = ".".join([*inner, "parametrizations", last, "original"])
            own = getattr(owner.parametrizations[last], "original", None)
        else:
            own = getattr(owner, last, None)
        name = f"{path}.{leaf}" if path else leaf
        return shapes.get(name, own.shape if isinstance(own, Tensor) else None)

    found: dict[str, Any] = {}
    weight = shape("weight")
    if type(module) in (nn.MultiheadAttention, NarrowMultiheadAttention):
        return _of_attention(path, module, shape, facts)
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        groups = groups or module.groups
        out, into = (weight[1] * groups, weight[0]) if module.transposed else (weight[0], weight[1] * groups)
        found = {"groups": groups, "in_channels": into, "out_channels": out}
    elif isinstance(module, nn.RNNBase):
        rows, columns = shape("weight_hh_l0"), shape("weight_ih_l0")
        assert rows is not None and columns is not None
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        found = {"hidden_size": rows[0] // gates, "input_size": columns[1]}
        if module.proj_size:
            found["proj_size"] = rows[1]
    elif isinstance(module, nn.RNNCellBase):
        rows, columns = shape("weight_hh"), shape("weight_ih")
        assert rows is not None and columns is not None
        found = {"hidden_size": rows[1], "input_size": columns[1]}
    elif isinstance(module, nn.GroupNorm):
        found = {"num_groups": groups or module.num_groups}
        if weight is not None:
            found["num_channels"] = weight[0]
        elif (channels := next(iter(facts.get(module.num_channels, ())), None)) is not None:
            found["num_channels"] = channels
    elif weight is not None:
        for kind, numbers in _TABLE.items():
            if isinstance(module, kind) and not (kind is nn.PReLU and weight[0] == 1):
                found = numbers(weight)
    return {(path, name): value for name, value in found.items() if getattr(module, name) != value}


def _of_attention(
    path: str, module: Any, shape: Callable[[str], torch.Size | None], facts: Mapping[int, list[int]]
) -> Edits:
    """Heads that left; the width of the inputs (``embed_dim``) is what the output projection writes."""
    out = shape("out_proj.weight")
    assert out is not None
    if tuple(out) == tuple(module.out_proj.weight.shape):
        return {}
    heads = [n for n in (*facts.get(module.num_heads, ()), module.num_heads) if out[1] % n == 0]
    whole = [n for n in heads if out[1] // n == module.head_dim]
    new = (whole or heads)[0]
    return {
        (path, "__class__"): NarrowMultiheadAttention,
        (path, "num_heads"): new,
        (path, "head_dim"): out[1] // new,
        (path, "embed_dim"): out[0],
        (path, "scale"): getattr(module, "scale", module.head_dim**-0.5),
        (path, "_qkv_same_embed_dim"): False,  # PyTorch's fast path has sizes of its own
    }
