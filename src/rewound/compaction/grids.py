"""Entries that belong to two units (a head and a dimension) lie on a grid of them, so that whatever leaves, something stays.

A group keeps at least one of its units. On a grid of heads x dimensions that is enough for every axis to keep an entry; where two
kinds of units overlap in any other way, one unit of each may already be all of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rewound.compaction.atoms import Atoms, Cells, each_once


def settle_grids(atoms: Atoms, axes: list[Cells]) -> NDArray[np.int64]:
    """Unite atoms until all rows that share atoms are grids; fix what would take a whole axis with it.

    Returns for every atom (by number) the grid it is on, 0 where it is on none: atoms of different grids are never alike.

    >>> atoms = Atoms()
    >>> features, other = atoms.fresh(6)[:, None], atoms.fresh(6)[:, None]
    >>> heads, dims = atoms.split(features, 2, 3)
    >>> grids = settle_grids(atoms, [features, other])
    >>> len({int(grids[atom]) for atom in [*heads.ravel(), *dims.ravel()]}), int(grids[other].max())
    (1, 0)
    """
    while True:
        several = [rows for cells in axes if (rows := each_once(atoms.resolve(cells))).shape[1] > 1]
        grids = _connected(several, len(atoms.none()))
        off = next((rows[bad] for rows in several if (bad := _off_grid(rows, grids)).any()), None)
        if off is None:
            break
        atoms.tie_rows(off)
    for cells in axes:
        found = atoms.resolve(cells)
        if len(found) > 1 and found.any():
            everywhere = [atom for atom in found[0] if atom and bool((found == atom).any(axis=1).all())]
            atoms.fix(np.array([everywhere], dtype=np.int64), "all its entries leave together, so none can")
    return grids


def _off_grid(rows: Cells, grids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows to tie: none where some of them are a grid, whatever the others are (heads x dimensions, and beside
    them a number a head); all that name several atoms where none are. rows: [n, k], zeros at the end."""
    wide = np.count_nonzero(rows, axis=1)
    names, part = np.unique(grids[rows[:, 0]] * (rows.shape[1] + 1) + wide, return_inverse=True)
    many = len(names)
    size, in_columns = np.ones(many), np.zeros(many, dtype=np.int64)
    for column in rows.T:
        found = _each(part, column)
        size *= np.bincount(found[:, 0], minlength=many)
        in_columns += np.bincount(found[found[:, 1] > 0, 0], minlength=many)
    every = _each(np.repeat(part, rows.shape[1]), rows.ravel())
    atoms = np.bincount(every[every[:, 1] > 0, 0], minlength=many)
    count = np.bincount(np.unique(np.column_stack([part, rows]), axis=0)[:, 0], minlength=many)
    # every combination occurs, and no atom stands in two columns
    right = (size == count) & (in_columns == atoms)
    return (wide > 1) & (not right.any())


def _each(grid: NDArray[np.int64], atoms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the different pairs of a grid and an atom."""
    return np.unique(np.stack([grid, atoms], axis=1), axis=0)


def _connected(several: list[Cells], n: int) -> NDArray[np.int64]:
    """Return for each of ``n`` atoms the least of those that it shares rows with, directly or through others; 0 for an atom
    that is alone in all its rows."""
    least = np.arange(n)
    changed = True
    while changed:
        changed = False
        for rows in several:
            there = rows > 0
            before = least[rows]
            lowest = np.where(there, before, n).min(axis=1)
            np.minimum.at(least, rows[there], np.repeat(lowest, there.sum(axis=1)))
            changed = changed or bool((least[rows] != before)[there].any())
    shared = np.zeros(n, dtype=bool)
    for rows in several:
        shared[rows[rows[:, 1] > 0]] = True
    shared[0] = False
    return np.where(shared, least, 0)
