"""Sizes that grow with the batch, and where the batch stands in a tensor.

torch may put the batch anywhere ([tokens, batch, features] inside its attention) and multiply it with other axes (batch x heads,
batch x windows). A tensor's *axes* say so: one tuple per axis of torch, of the factors that it is made of, ``None`` for the
batch: ((5,), (None,), (8,)) is [5, batch, 8], and ((None, 3), (4,)) is [batch * 3, 4]. The Graph's value always is [batch, and
the other factors in their order]: moving the batch about costs nothing, and no operator of a Graph can mix it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Axes = tuple[tuple["int | None", ...], ...]


@dataclass(frozen=True)
class Batch:
    """A size: ``factor`` times the batch."""

    factor: int = 1

    def at(self, images: int) -> int:
        return self.factor * images


Size = int | Batch


def plain(axes: Axes) -> bool:
    """Whether the batch is the first axis, alone, and every other axis one factor."""
    return (
        len(axes) > 0
        and axes[0] == (None,)
        and all(len(axis) == 1 and axis[0] is not None for axis in axes[1:])
    )


def flat(axes: Axes) -> tuple[int | None, ...]:
    """Return all factors in order."""
    return tuple(factor for axis in axes for factor in axis)


def inner(axes: Axes) -> tuple[int, ...]:
    """Return all factors but the batch: the value's shape behind its batch."""
    return tuple(factor for axis in axes for factor in axis if factor is not None)


def sizes(axes: Axes, images: int | None) -> tuple[Size, ...]:
    """Return torch's shape. images: the batch where it is fixed."""
    shape: list[Size] = []
    for axis in axes:
        rest = math.prod(factor for factor in axis if factor is not None)
        shape.append(rest if None not in axis else Batch(rest) if images is None else rest * images)
    return tuple(shape)


def axes_of(shape: Sequence[Size], images: int | None) -> Axes | None:
    """Return axes for a tensor that torch made: the batch is outermost in its axis. ``None`` if no axis has it."""
    if images is not None:
        return (
            ((None,), *((int(n),) for n in shape[1:] if isinstance(n, int)))
            if shape and shape[0] == images
            else None
        )
    holding = [i for i, n in enumerate(shape) if isinstance(n, Batch)]
    if len(holding) != 1:
        return None
    return tuple(
        ((None,) if n.factor == 1 else (None, n.factor)) if isinstance(n, Batch) else (n,) for n in shape
    )


def reshaped(axes: Axes, shape: Sequence[Size], images: int | None) -> Axes | None:
    """Return the axes of a view as ``shape``, or ``None`` where the view would mix the batch with other axes.

    >>> reshaped(((5,), (None,), (8,)), (5, Batch(2), 4), None)
    ((5,), (None, 2), (4,))
    >>> reshaped(((5,), (None,)), (Batch(1), 5), None) is None
    True
    """
    factors = flat(axes)
    if None not in factors:
        return None
    before = math.prod(f for f in factors[: factors.index(None)] if f is not None)
    after = math.prod(f for f in factors[factors.index(None) :] if f is not None)
    passed = 1  # product of the sizes in front
    made: list[tuple[int | None, ...]] = []
    found = False
    for size in shape:
        if found:
            if isinstance(size, Batch):
                return None
            made.append((size,))
            continue
        whole = size.factor * (images or 1) if isinstance(size, Batch) else size
        holds = isinstance(size, Batch) if images is None else passed * whole >= before * images
        if not holds:
            passed *= whole
            made.append((whole,))
            continue
        count = whole if images is None else whole // images if whole % images == 0 else 0
        if passed == 0 or count == 0 or before % passed or count % (before // passed):
            return None
        lead, tail = before // passed, count // (before // passed)
        made.append((*((lead,) if lead > 1 else ()), None, *((tail,) if tail > 1 else ())))
        found = True
    axes = tuple(made)
    return axes if found and math.prod(inner(axes)) == before * after else None
