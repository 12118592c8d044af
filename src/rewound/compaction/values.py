"""What is known of a tensor in the graph: for every axis its cells, and what a removed slice of it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor

from rewound.compaction.atoms import Cells, untracked


class Dead(IntEnum):
    """What the slice of a unit holds in the masked network: zeros, one constant, or anything."""

    ZERO = 0
    CONSTANT = 1
    ANYTHING = 2


# bits of an atom's kind
CHANNEL, LINEAR, HEAD, HEAD_DIM, GROUPED, RECURRENT, EMBEDDED, NORMED, QUERY = (1 << i for i in range(9))


@dataclass(frozen=True)
class Dim:
    """One axis: cells [n, k] and what a dead slice along it holds."""

    cells: Cells
    dead: Dead = Dead.ANYTHING

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def tracked(self) -> bool:
        """Whether anything along this axis may leave."""
        return bool(self.cells.any())

    def be(self, dead: Dead) -> Dim:
        """The same axis with another state of its dead slices."""
        return Dim(self.cells, dead)

    def rows(self, where: Any) -> Dim:
        """The entries at ``where`` (a slice or an integer array)."""
        return Dim(self.cells[where], self.dead)


@dataclass(frozen=True)
class Value:
    """A tensor in the graph.

    origin: the parameter this is (possibly transposed or cast), and for every axis which axis of it; None for anything
    computed. constant: its values, where they are known and few.
    """

    dims: tuple[Dim, ...]
    origin: str | None = None
    axes: tuple[int | None, ...] = ()
    constant: Tensor | None = field(default=None, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(dim) for dim in self.dims)

    @property
    def tracked(self) -> bool:
        """Whether any axis is."""
        return any(dim.tracked for dim in self.dims)


def plain(size: int) -> Dim:
    """An axis of which nothing ever leaves."""
    return Dim(untracked(size))


def plain_value(shape: tuple[int, ...]) -> Value:
    """A tensor no axis of which is tracked."""
    return Value(tuple(plain(int(n)) for n in shape))
