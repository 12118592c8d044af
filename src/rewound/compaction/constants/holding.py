"""What a tensor holds: a float64 tensor with an axis of size 1 wherever all entries are alike, and NaN for what varies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from rewound.compaction.capture import place
from rewound.compaction.queries import short
from rewound.compaction.reading import whole_number

NAN = float("nan")
Rule = Callable[..., Any]
FORM = {
    "dtype",
    "device",
    "layout",
    "pin_memory",
    "memory_format",
    "non_blocking",
    "copy",
    "generator",
    "out_dtype",
}


def told(node: fx.Node) -> str:
    """Name an operator: the module that runs it."""
    return repr(place(node)) if place(node) else short(node)


def unknown(node: fx.Node) -> Any:
    """What an operator's result holds if nothing is known of it."""

    def of(value: Any) -> Any:
        return (
            torch.full([1] * value.ndim, NAN, dtype=torch.float64)
            if isinstance(value, Tensor)
            else whole_number(value)
        )

    value = node.meta.get("val")
    return [of(v) for v in value] if isinstance(value, (tuple, list)) else of(value)


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node, or of its first result."""
    value = node.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(int(whole_number(n)) for n in value.shape)


def along(held: Tensor, axis: int) -> Tensor:
    """What each slice along an axis holds; NaN where it is not one number."""
    rows = held.double().movedim(axis, -1).reshape(-1, held.shape[axis])
    return rows[0].masked_fill(~(rows == rows[:1]).all(0), NAN)


def zeros_along(*operands: tuple[Tensor, int], n: int) -> Tensor:
    """Zero where the slice of any operand [tensor, axis] is, else NaN: [n]."""
    found = torch.full((n,), NAN, dtype=torch.float64)
    for held, axis in operands:
        found = found.masked_fill((along(held, axis) == 0).expand(n), 0.0)
    return found


def along_kept(held: Tensor, axis: int) -> Tensor:
    """What is alike all along an axis, which stays with size 1; NaN elsewhere."""
    first = held.double().narrow(axis, 0, 1)
    return first.masked_fill(~(held == first).all(axis, keepdim=True), NAN)


def functional(node: fx.Node) -> Callable[..., Any]:
    """The operator; of one that works in place, its sister that does not."""
    target: Any = node.target
    name = short(node)
    if name.endswith("_") and not name.endswith("__"):
        target = getattr(getattr(torch.ops.aten, name[:-1]), target._overloadname)
    return target


def numbers(given: Any) -> list[int]:
    """Sizes that may be given as one number."""
    return [int(n) for n in given] if isinstance(given, (list, tuple)) else [int(given)]


def called(rule: Rule, names: str) -> dict[str, Rule]:
    """One rule for several operators."""
    return dict.fromkeys(names.split(), rule)
