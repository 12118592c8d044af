"""The reader of one operator: what a contract may ask and decide (see ``contracts``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from rewound.compaction.atoms import Atoms, Cells
from rewound.compaction.capture import source
from rewound.compaction.units import Certificate
from rewound.compaction.values import Dead, Dim, Value, plain


class Reading:
    """One operator being read. Contracts unite, fix and mark through this, so that every decision carries the operator's name
    and source line."""

    def __init__(self, atoms: Atoms, node: fx.Node, operator: str, note: Notes) -> None:
        self.atoms, self.node, self.operator = atoms, node, operator
        self._note = note

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        value = self.node.meta.get("val")
        many = value if isinstance(value, (tuple, list)) else [value]
        return [tuple(whole_number(n) for n in v.shape) if isinstance(v, Tensor) else () for v in many]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        return self.shapes[0]

    def because(self, what: str) -> Callable[[], str]:
        """A reason with the operator and the source line; made only when it is needed."""
        return lambda: f"{what} ({self.operator} at {source(self.node)})"

    def tie(
        self, a: Dim | Cells, b: Dim | Cells, what: str = "meets an axis nothing of which can leave"
    ) -> None:
        """Entry i of one and entry i of the other leave together."""
        left, right = (d.cells if isinstance(d, Dim) else d for d in (a, b))
        if left.size or right.size:
            self.atoms.unify(left, right, self.because(what))

    def fix(self, dim: Dim | Cells, what: str) -> None:
        """Nothing along this axis can leave."""
        cells = dim.cells if isinstance(dim, Dim) else dim
        if cells.any():
            self.atoms.fix(cells, self.because(what)())

    def mark(self, dim: Dim, level: Certificate, what: str) -> None:
        """Removing anything along this axis is at best ``level``."""
        if dim.tracked:
            self.atoms.mark(dim.cells, int(level), self.because(what)())

    def rescaled(self, dim: Dim, what: str) -> None:
        """Note an operator whose result depends on how long this axis is, by a factor: a mean of squares, a default scale."""
        if dim.tracked:
            self._note.rescales.append(Rescale(self.node, dim.cells, what))

    def be(self, dim: Dim | Cells, kind: int) -> None:
        """Add to what kind of unit the entries of an axis are."""
        cells = dim.cells if isinstance(dim, Dim) else dim
        if cells.any():
            self.atoms.be(cells, kind)

    def split(self, dim: Dim, outer: int, inner: int) -> tuple[Dim, Dim]:
        """Two axes from one of ``outer * inner`` entries."""
        first, second = self.atoms.split(dim.cells, outer, inner)
        return Dim(first, dim.dead), Dim(second, dim.dead)

    def free(self, n: int, dead: Dead = Dead.ANYTHING) -> Dim:
        """An axis all of whose slices are alike (of a constant, of an expanded axis): any of them may leave with what they
        are tied to."""
        return Dim(self.atoms.fresh(n)[:, None], dead) if 1 < n <= 1 << 20 else plain(n)

    def role(self, value: Value, axis: int, role: str) -> None:
        """Note that along ``axis`` a weight writes or reads."""
        if value.origin is not None and value.axes[axis] is not None:
            self._note.roles.setdefault((value.origin, value.axes[axis]), set()).add(role)  # type: ignore[arg-type]

    def work(self, count: int, *dims: Dim) -> None:
        """Note ``count`` multiply-adds in proportion to what is kept of each of ``dims``."""
        self._note.work.append((self.node, count, [dim.cells for dim in dims]))

    def grouped(self, groups: Dim) -> None:
        """Note the groups into which a convolution or a norm cuts its channels: a number that is no size of any axis."""
        self._note.groups[self.node] = groups.cells

    def untouched(self, *values: Value, what: str) -> None:
        """Fix every axis of these."""
        for value in values:
            for dim in value.dims:
                self.fix(dim, what)


@dataclass(frozen=True)
class Rescale:
    """An operator that divides by the length of an axis: "mean" (of squares), "rms_norm", "attention" (by its root);
    "product": of two activations, which the code around may divide by the root of that length."""

    node: fx.Node
    cells: Cells
    what: str


class Notes:
    """What the contracts leave behind besides the atoms."""

    def __init__(self) -> None:
        self.roles: dict[tuple[str, int], set[str]] = {}
        self.work: list[tuple[fx.Node, int, list[Cells]]] = []
        self.rescales: list[Rescale] = []
        self.groups: dict[
            fx.Node, Cells
        ] = {}  # operators that cut channels into groups: the cells of the groups


def positive(axis: int, ndim: int) -> int:
    """Return an axis counted from the front."""
    return axis + ndim if axis < 0 else axis


def whole_number(n: Any) -> Any:
    """Return a size as a number: a symbolic one (any batch) as that of the example."""
    return n.node.hint if isinstance(n, torch.SymInt) else n


def values_in(arguments: Sequence[Any]) -> list[Value]:
    """Return the tensors among (nested) arguments."""
    found: list[Value] = []
    for argument in arguments:
        if isinstance(argument, Value):
            found.append(argument)
        elif isinstance(argument, (tuple, list)):
            found += values_in(argument)
        elif isinstance(argument, dict):
            found += values_in(list(argument.values()))
    return found


def product(numbers: Sequence[int]) -> int:
    """Return the product as a Python integer."""
    return int(np.prod(numbers, dtype=object)) if len(numbers) else 1
