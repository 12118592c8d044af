"""The ``config`` of a Hugging Face model tells the sizes of its layers a second time, and caches and ``save_pretrained`` read it.

Which number is right is not guessed from its name: the class is asked. It builds itself from a changed config on the meta device,
which costs nothing, and a number is taken if every tensor that follows it comes out as in the smaller network. Where layers
were cut to different sizes no number is right for all of them, and the old one stays. Some classes have no number for what was
cut (BERT divides its width by the heads): then the config tells the heads and their dimension to whoever reads it, but the class
would build something else. ``rewound.save`` keeps every network; ``save_pretrained`` those that their class builds.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from rewound.compaction import mending
from rewound.parameters import named_modules

# A tensor's axis or a module's attribute -> its size: (name, axis) or (path, attribute), and which of both it is.
_Sizes = dict[tuple[str, str, Any], int]
_Values = dict[str, int]  # field of a config ("text_config.hidden_size", "num_heads[0]") -> value

_NO_SIZE = re.compile(
    r"(^|_)(ids?|layers?|depths?|vocab|positions?|labels|kernel|stride|patch|image|version)(_|$|\[)"
)
_MAY_BE_NONE = re.compile(r"inner|ffn|intermediate|key_value_heads|mlp_dim")
_OF_HEAD = ("head_dim", "head_size", "attention_head_size", "d_kv", "key_value_proj_dim")


def config_edits(small: nn.Module) -> mending.Edits:
    """Return the entries of configs that all layers of a smaller network agree on: (module path, "config.NAME") -> value. Empty
    for a network that is not of transformers."""
    edits: mending.Edits = {}
    done: list[str] = []
    for path, module in named_modules(small):
        if not _has_config(module) or any(path.startswith(outer) for outer in done):
            continue
        done.append(f"{path}." if path else "")
        for (inner, name), value in _of_model(module).items():
            edits[f"{path}.{inner}".strip("."), name] = value
    return edits


def own_config_(model: nn.Module) -> None:
    """Give a model copies of its configs, in place: others may have been built from the same."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if _is_config(value):
                vars(module)[name] = copy.deepcopy(value, memo)


def _has_config(module: nn.Module) -> bool:
    return hasattr(type(module), "config_class") and _is_config(vars(module).get("config"))


def _is_config(value: Any) -> bool:
    return any(
        c.__name__.lower() == "pretrainedconfig" and c.__module__.startswith("transformers.")
        for c in type(value).__mro__
    )


def _of_model(module: nn.Module) -> mending.Edits:
    config: Any = module.config
    target = _sizes(module)
    with _quiet():
        now, _ = _built(module, {})
        if {k for k in now if k[0] == "tensor"} != {k for k in target if k[0] == "tensor"} or now == target:
            return {}
        values: _Values = {}
        progress = True
        while progress:
            progress = False
            for field, value in _fields(config):
                for move in [] if field in values else _moves(config, field, value, values, now, target):
                    then, _ = _built(module, {**values, **move})
                    if _is_right(now, then, target, (value, move[field])):
                        values, now, progress = {**values, **move}, then, True
                        break
        values |= _head_dims(config, values, target)
        final, built = _built(module, values)
        if not final:  # it cannot be built with the head dimension told
            return {}
    edits: mending.Edits = {("", f"config.{field}"): value for field, value in values.items()}
    return edits | _of_copies(module, built, config, values)


def _moves(
    config: Any, field: str, value: int | None, values: _Values, now: _Sizes, target: _Sizes
) -> Iterator[_Values]:
    """Yield what a field may have become: as much less as the axes that are a multiple of it. With the head dimension told, where
    it was the width divided by the heads: it stays when one of them changes."""
    ratios: Counter[Fraction] = Counter()
    for key, size in now.items():
        new = target.get(key, size)
        if new == size or size < 2:
            continue
        if value is None:
            ratios[Fraction(new)] += 1
        elif size % value == 0 and value * new % size == 0:
            ratios[Fraction(new, size)] += 1
    for ratio, _ in ratios.most_common(3):
        move = {field: int((value or 1) * ratio)}
        yield move
        path, _, _ = field.rpartition(".")
        name = f"{path}.head_dim".strip(".")
        head_dim = _derived_head_dim(_part(config, path), {})
        if head_dim is not None and name not in values:
            yield {**move, name: head_dim}


def _is_right(now: _Sizes, then: _Sizes, target: _Sizes, change: tuple[int | None, int]) -> bool:
    """Whether everything that follows a change comes out as it is in the smaller network, and something does."""
    old, new = change
    right = []
    for key in now.keys() | then.keys():
        before, after = now.get(key), then.get(key)
        if before == after:
            continue
        if key[0] == "tensor" or (before, after) == change:
            right.append(after == target.get(key))
        elif key[2] in _OF_HEAD and old and before and after and after // before == old // new:
            # Fewer heads made the head dimension larger: then it is the axis of all heads that must tell how many there are.
            _, path, _ = key
            own = [
                k
                for k, size in now.items()
                if k[0] == "tensor" and k[1].startswith(path) and size == old * before
            ]
            right.append(any(target.get(k) == new * before for k in own))
        # Other attributes are computed of several numbers (heads per key head) and may wait for the others.
    return bool(then) and bool(right) and all(right)


def _head_dims(config: Any, values: _Values, target: _Sizes) -> _Values:
    """Return the head dimensions to be told, because what was the width divided by the heads is it no more."""
    found = {}
    for path in {field.rpartition(".")[0] for field in values}:
        part, name = _part(config, path), f"{path}.head_dim".strip(".")
        before = _derived_head_dim(part, {})
        if before is None or name in values:
            continue
        own = {f.rpartition(".")[2]: v for f, v in values.items() if f.rpartition(".")[0] == path}
        if _derived_head_dim(part, own) != before:
            sizes = {
                size for (kind, _, leaf), size in target.items() if kind == "attribute" and leaf in _OF_HEAD
            }
            found[name] = sizes.pop() if len(sizes) == 1 and not path else before
    return found


def _derived_head_dim(part: Any, values: Mapping[str, int]) -> int | None:
    """Return what code takes that finds no head dimension in a config (None where there is one): width / heads."""
    if any(isinstance(getattr(part, name, None), int) for name in _OF_HEAD):
        return None
    aliases = getattr(part, "attribute_map", {})
    width, heads = (
        values.get(aliases.get(name, name), getattr(part, name, None))
        for name in ("hidden_size", "num_attention_heads")
    )
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _of_copies(module: nn.Module, built: nn.Module, config: Any, values: _Values) -> mending.Edits:
    """Some models give their halves changed copies of the config (T5's decoder): these follow the one they were built from."""
    seen = {id(part) for part in _parts(config)}
    names = {field.rpartition(".")[2] for field in values}
    others = dict(named_modules(built))
    edits: mending.Edits = {}
    for path, inner in named_modules(module):
        own = vars(inner).get("config")
        if path not in others or not _is_config(own) or id(own) in seen:
            continue
        seen.add(id(own))
        for name in names:
            new = mending.read(others[path], f"config.{name}")
            if new is not mending.Absent and mending.read(inner, f"config.{name}") != new:
                edits[path, f"config.{name}"] = new
    return edits


# ---- configs and what is built from them ---------------------------------------------------------------------------------


def _built(module: nn.Module, values: _Values) -> tuple[_Sizes, nn.Module]:
    """Return the sizes of what a model's class builds from its config with these values; nothing where it refuses them."""
    try:
        config = copy.deepcopy(module.config)
        holder = nn.Module()
        holder.config = config
        mending.apply(holder, {("", f"config.{field}"): value for field, value in values.items()})
        for part in _parts(config):
            getattr(part, "validate", lambda: None)()
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built: nn.Module = type(module)(config)
    except Exception:  # whatever a constructor raises for sizes that it cannot build
        return {}, module
    return _sizes(built), built


def _sizes(module: nn.Module) -> _Sizes:
    found: _Sizes = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found.update({("tensor", name, axis): size for axis, size in enumerate(tensor.shape)})
    for path, inner in named_modules(module):
        if not type(inner).__module__.startswith("torch.nn."):
            found.update({("attribute", path, name): size for name, size in mending.integers(inner)})
    return found


def _fields(config: Any, path: str = "") -> Iterator[tuple[str, int | None]]:
    for name, value in vars(config).items():
        if name.startswith("_") or _NO_SIZE.search(name):
            continue
        if _is_config(value):
            yield from _fields(value, f"{path}{name}.")
        elif (type(value) is int and value > 1) or (value is None and _MAY_BE_NONE.search(name)):
            yield f"{path}{name}", value
        elif isinstance(value, (list, tuple)) and len(value) <= 8 and all(type(v) is int for v in value):
            yield from ((f"{path}{name}[{i}]", v) for i, v in enumerate(value) if v > 1)


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if _is_config(value):
            yield from _parts(value)


def _part(config: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        config = getattr(config, name)
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
