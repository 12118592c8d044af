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

    Returns for every atom (by number) the grid it is on: atoms of different grids are never alike, though they may look
    so. 0: none.

    >>> atoms = Atoms()
    >>> features, other = atoms.fresh(6)[:, None], atoms.fresh(6)[:, None]
    >>> heads, dims = atoms.split(features, 2, 3)
    >>> grids = settle_grids(atoms, [features, other])
    >>> len({int(grids[atom]) for atom in [*heads.ravel(), *dims.ravel()]}), int(grids[other].max())
    (1, 0)
    """
    while _tie_off_grid(atoms, axes):
        pass
    for cells in axes:
        found = atoms.resolve(cells)
        if len(found) > 1 and found.any():
            everywhere = found[0][[bool((found == atom).any(axis=1).all()) for atom in found[0]]]
            atoms.fix(everywhere[everywhere > 0][None], "all its entries leave together, so none can")
    grids = np.zeros(len(atoms.none()), dtype=np.int64)
    several = [rows for cells in axes if (rows := each_once(atoms.resolve(cells))).shape[1] > 1]
    members = _connected(several, len(grids))
    for rows in several:
        on = rows[:, 1] > 0
        grids[rows[on]] = members[rows[on]]
    grids[0] = 0
    return grids


def _tie_off_grid(atoms: Atoms, axes: list[Cells]) -> bool:
    """Unite the atoms of rows that are on no grid; return whether there were any."""
    tied = False
    for cells in axes:
        rows = each_once(atoms.resolve(cells))
        if rows.shape[1] > 1 and (off := _off_grid(rows)).any():
            atoms.tie_rows(rows[off])
            tied = True
    return tied


def _off_grid(rows: Cells) -> NDArray[np.bool_]:
    """Return which rows share atoms with others without being a grid with them. rows: [n, k], zeros at the end."""
    grid = _connected([rows], int(rows.max()) + 1)[rows[:, 0]]
    names, grid = np.unique(grid, return_inverse=True)
    many = len(names)
    size = np.ones(many)
    on_it = np.zeros(many, dtype=np.int64)
    for column in rows.T:
        of = np.unique(np.stack([grid, column], axis=1), axis=0)
        distinct = np.bincount(of[:, 0], minlength=many)
        size *= distinct
        on_it += np.bincount(of[of[:, 1] > 0, 0], minlength=many)
    every = np.unique(np.stack([np.repeat(grid, rows.shape[1]), rows.ravel()], axis=1), axis=0)
    atoms_of = np.bincount(every[every[:, 1] > 0, 0], minlength=many)
    unique = np.unique(np.concatenate([grid[:, None], rows], axis=1), axis=0)
    count = np.bincount(unique[:, 0], minlength=many)
    wide = np.count_nonzero(rows, axis=1)
    widest, least = np.zeros(many, dtype=np.int64), np.full(many, rows.shape[1])
    np.maximum.at(widest, grid, wide)
    np.minimum.at(least, grid, wide)
    # every combination occurs; no atom stands in two columns; all rows have as many atoms
    right = (size == count) & (on_it == atoms_of) & (widest == least)
    return ~right[grid] & (widest[grid] > 1)


def _connected(several: list[Cells], n: int) -> NDArray[np.int64]:
    """Return for each of ``n`` atoms the least of those that it shares rows with, directly or through others."""
    least = np.arange(n)
    changed = True
    while changed:
        changed = False
        for rows in several:
            there = rows > 0
            lowest = np.where(there, least[rows], n).min(axis=1)
            before = least[rows]
            np.minimum.at(least, rows[there], np.repeat(lowest, there.sum(axis=1)))
            changed = changed or bool((least[rows] != before)[there].any())
    return least
