"""What a network costs at given widths, exactly and without building it: parameters and multiply-adds.

A width is the number of units that a group keeps. Along every axis of a tensor the number of entries that stay is a sum over
groups, and a product where an entry belongs to units of several (a row of an attention belongs to a head and to a place in
it). A tensor's size is the product of its axes, an operator's work is in proportion to the product of its own. So the costs
of thousands of width vectors are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rewound.compaction.units import Structure

Widths = NDArray[np.float64]  # [..., groups]: units kept of each group, in the order of the structure


class Extents:
    """How many entries of axes stay, as functions of the widths of groups of ``sizes`` units.

    >>> extents = Extents([4, 8])
    >>> flattened = extents.add(10, [np.repeat([0, -1], [8, 2])])  # 8 entries of group 0, two that always stay
    >>> product = extents.add(32, [np.repeat(0, 32), np.repeat(1, 32)])  # each entry belongs to a unit of both
    >>> extents.at([[4, 8], [2, 2]])[:, [flattened, product]].tolist()
    [[10.0, 32.0], [6.0, 4.0]]
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = np.asarray(sizes, dtype=np.float64)
        self._known: dict[tuple[Any, ...], int] = {}
        self._rows: list[
            tuple[float, dict[tuple[int, ...], float]]
        ] = []  # what always stays, groups -> entries
        self._ready: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, size: int, columns: Iterable[NDArray[Any]]) -> int:
        """Return the number of the axis with ``size`` entries; ``columns``: int [size] each, a group that the entry belongs
        to, or -1. Axes that shrink alike have one number."""
        columns = list(columns)
        together = np.stack(columns, axis=1) if columns else np.full((size, 1), -1)
        belongs, counts = np.unique(np.sort(together, axis=1), axis=0, return_counts=True)
        entries: dict[tuple[int, ...], float] = {}
        for row, count in zip(belongs.tolist(), counts.tolist()):
            of = tuple(dict.fromkeys(group for group in row if group >= 0))
            entries[of] = entries.get(of, 0) + count
        always = float(entries.pop((), 0))
        key = (always, *sorted(entries.items()))
        if key not in self._known:
            self._known[key] = len(self._rows)
            self._rows.append((always, entries))
            self._ready = None
        return self._known[key]

    def groups_of(self, axis: int) -> set[int]:
        """The groups that make this axis shorter."""
        return {group for of in self._rows[axis][1] for group in of}

    def whole(self, axis: int) -> float:
        """How many entries there are with nothing removed."""
        always, entries = self._rows[axis]
        return always + sum(entries.values())

    def share(self, axis: int) -> tuple[Any, ...]:
        """What two axes have in common if the same share of both stays, at any widths."""
        (always, entries), whole = self._rows[axis], self.whole(axis)
        return (round(always / whole, 12), *sorted((of, round(n / whole, 12)) for of, n in entries.items()))

    def at(self, widths: Any) -> NDArray[np.float64]:
        """Return [vectors, axes] for widths [vectors, groups]."""
        widths = np.atleast_2d(np.asarray(widths, dtype=np.float64))
        always, linear, products = self._ready or self._prepared()
        found = widths @ linear + always
        shares = widths / self.sizes
        for axis, count, of in products:
            found[:, axis] += count * np.prod(shares[:, of], axis=1)
        return found

    def _prepared(self) -> tuple[Any, ...]:
        always = np.array([row[0] for row in self._rows])
        linear = np.zeros((len(self.sizes), len(self._rows)))
        products = []
        for axis, (_, entries) in enumerate(self._rows):
            for of, count in entries.items():
                if len(of) == 1:
                    linear[of[0], axis] = count / self.sizes[of[0]]
                else:
                    products.append((axis, count, list(of)))
        self._ready = (always, linear, products)
        return self._ready


class Products:
    """A sum of terms, each a factor times a product of axes, for many width vectors at once."""

    def __init__(self, extents: Extents, terms: Iterable[tuple[float, Sequence[int]]]) -> None:
        self._extents = extents
        terms = list(terms)
        depth = max((len(axes) for _, axes in terms), default=0)
        self._factors = np.array([factor for factor, _ in terms], dtype=np.float64)
        self._axes = np.full((len(terms), depth), -1)  # -1: one more axis, of ones
        for i, (_, axes) in enumerate(terms):
            self._axes[i, : len(axes)] = axes

    def __call__(self, widths: Any) -> NDArray[np.float64]:
        """Return the sum for each of the width vectors [vectors, groups]."""
        widths = np.atleast_2d(np.asarray(widths, dtype=np.float64))
        if not len(self._factors):
            return np.zeros(len(widths))
        found = np.empty(len(widths))
        for start in range(0, len(widths), 512):  # what lies in memory at a time
            part = slice(start, start + 512)
            axes = self._extents.at(widths[part])
            axes = np.concatenate([axes, np.ones((len(axes), 1))], axis=1)
            found[part] = axes[:, self._axes].prod(axis=2) @ self._factors
        return found


def parameters_at(
    structure: Structure, mask: Mapping[str, Tensor] | None = None, besides: int = 0
) -> Products:
    """Return the function from widths to the number of parameters that are left.

    mask: what is pruned already; lines of a tensor that it leaves nothing of count as gone where no group of ``structure``
    has them. besides: parameters that the structure has not met.

    >>> import torch
    >>> from rewound.compaction.coupling import find_units
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> structure = find_units(model, torch.zeros(1, 3))
    >>> parameters_at(structure)([[8], [2]]).tolist()
    [50.0, 14.0]
    """
    lines = _Lines(structure, mask)
    terms = [
        (1.0, [lines.axis(name, k) for k in range(len(shape))])
        for name, shape in structure.shapes.items()
        if name in structure.parameters
    ]
    return Products(lines.extents, [*terms, (float(besides), [])])


def multiply_adds_at(structure: Structure, mask: Mapping[str, Tensor] | None = None) -> Products:
    """Return the function from widths to the multiply-adds of the example that the structure was found with.

    >>> import torch
    >>> from rewound.compaction.coupling import find_units
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    >>> structure = find_units(model, torch.zeros(1, 3, 6, 6))
    >>> multiply_adds_at(structure)([[8], [4]]).tolist()  # 16 places, (27 + 2) x width
    [3712.0, 1856.0]
    """
    lines = _Lines(structure, mask)
    terms = []
    for work in structure.work:
        whole = float(np.prod([structure.shapes[name][axis] for name, axis in work.axes], dtype=np.float64))
        terms.append(
            (work.count / whole if whole else 0.0, [lines.axis(name, axis) for name, axis in work.axes])
        )
    return Products(lines.extents, terms)


def widths_of(structure: Structure, kept: Mapping[str, int | Tensor]) -> Widths:
    """Return the width vector [groups] of counts or of bool tensors by name; a group that is not named is whole."""
    found = [
        group.size
        if (units := kept.get(group.name)) is None
        else int(units.sum())
        if isinstance(units, Tensor)
        else units
        for group in structure
    ]
    return np.array(found, dtype=np.float64)


class _Lines:
    """The axes of a structure's tensors as Extents."""

    def __init__(self, structure: Structure, mask: Mapping[str, Tensor] | None) -> None:
        self.extents = Extents([group.size for group in structure])
        self._structure, self._mask = structure, mask or {}
        self._columns: dict[tuple[str, int], list[NDArray[Any]]] = {}
        for number, group in enumerate(structure):
            for s in group.slices:
                column = np.full(structure.shapes[s.tensor][s.axis], -1)
                column[s.positions.reshape(-1).numpy()] = number
                self._columns.setdefault((s.tensor, s.axis), []).append(column)
        self._found: dict[tuple[str, int], int] = {}

    def axis(self, name: str, axis: int) -> int:
        if (name, axis) not in self._found:
            size, columns = self._structure.shapes[name][axis], self._columns.get((name, axis), [])
            if name in self._mask:
                kept = self._mask[name]
                others = tuple(k for k in range(kept.ndim) if k != axis)
                line = (kept.any(others) if others else kept).cpu().numpy()
                stays = line | np.any([column >= 0 for column in columns], axis=0) if columns else line
                size, columns = int(stays.sum()), [column[stays] for column in columns]
            self._found[name, axis] = self.extents.add(size, columns)
        return self._found[name, axis]
