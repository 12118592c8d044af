"""Atoms: what can leave a network, and which atoms leave together. A union-find whose members may also be products.

Every entry along an axis of a parameter begins as an atom of its own. An operator that ties two axes unites their atoms,
index by index. A reshape that splits one axis into two (768 features into 12 heads of 64) makes *products*: feature (h, d)
leaves when head h leaves or when dimension d leaves, so its atom is bound to the pair (h, d). An axis is described by its
*cells*: an integer array [n, k], where row i holds the atoms any one of which takes entry i with it; 0 stands for nothing, and a
row of zeros for an entry that never leaves. Everything here works on whole arrays, so that a 7-billion-parameter model is
a matter of seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]  # [n, k]

NOTHING: Cells = np.zeros((1, 0), dtype=np.int64)


class Atoms:
    """The atoms of one network: unions, products, what is fixed and why, how exact a removal is, what kind of unit.

    >>> atoms = Atoms()
    >>> features, heads = atoms.fresh(6)[:, None], None
    >>> heads, dims = atoms.split(features, 2, 3)             # 2 heads of 3 dimensions
    >>> atoms.resolve(features)[:2].tolist() == [[heads[0, 0], dims[0, 0]], [heads[0, 0], dims[1, 0]]]
    True
    """

    def __init__(self) -> None:
        self._used = 1  # atom 0 is no atom
        self._parent = np.zeros(1, dtype=np.int64)
        self._left = np.zeros(1, dtype=np.int64)
        self._right = np.zeros(1, dtype=np.int64)
        self._why = np.zeros(1, dtype=np.int32)
        self._level = np.zeros(1, dtype=np.int8)
        self._note = np.zeros(1, dtype=np.int32)
        self._kind = np.zeros(1, dtype=np.int32)
        self.reasons: list[str] = [""]
        self._reason_numbers: dict[str, int] = {"": 0}

    def fresh(self, n: int, kind: int = 0) -> Cells:
        """Return ``n`` new atoms [n]."""
        first, self._used = self._used, self._used + n
        if self._used > len(self._parent):
            room = max(self._used, 2 * len(self._parent))
            for name in ("_left", "_right", "_why", "_level", "_note", "_kind"):
                old = getattr(self, name)
                grown = np.zeros(room, dtype=old.dtype)
                grown[: len(old)] = old
                setattr(self, name, grown)
            grown = np.arange(room, dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        new = np.arange(first, self._used, dtype=np.int64)
        self._kind[new] = kind
        return new

    def none(self) -> NDArray[np.bool_]:
        """Return a flag for every atom, all false."""
        return np.zeros(self._used, dtype=bool)

    # ---- reading ---------------------------------------------------------------------------------------------------

    def find(self, atoms: Cells) -> Cells:
        """Return the present representative of each atom."""
        found = self._parent[atoms]
        while True:
            further = self._parent[found]
            self._parent[atoms] = further  # each turn jumps twice as far, so that a long chain takes few
            if np.array_equal(further, found):
                return found
            found = further

    def resolve(self, cells: Cells) -> Cells:
        """Return the cells in terms of representatives that are no products themselves."""
        cells = self.find(cells)
        while cells.size and self._left[cells].any():
            left = self._left[cells]
            bound = left > 0
            pairs = np.stack([np.where(bound, left, cells), np.where(bound, self._right[cells], 0)], axis=-1)
            flat = pairs.reshape(len(cells), -1)
            cells = self.find(flat[:, flat.any(axis=0)])
        return cells[:, cells.any(axis=0)] if cells.size else cells[:, :0]

    def why(self, atoms: Cells) -> NDArray[np.int32]:
        """Return the number of the reason why each (resolved) atom is fixed; 0 = it is free."""
        return self._why[atoms]

    def level(self, atoms: Cells) -> NDArray[np.int8]:
        """Return how exact the removal of each (resolved) atom is: the values of ``Certificate``."""
        return self._level[atoms]

    def note(self, atoms: Cells) -> NDArray[np.int32]:
        """Return the number of the reason for ``level``."""
        return self._note[atoms]

    def kind(self, atoms: Cells) -> NDArray[np.int32]:
        """Return the kind bits of each (resolved) atom."""
        return self._kind[atoms]

    # ---- deciding --------------------------------------------------------------------------------------------------

    def fix(self, cells: Cells, reason: str) -> None:
        """Nothing of these cells may leave."""
        members = self._members(cells)
        members = members[self._why[members] == 0]
        self._why[members] = self._number(reason)

    def mark(self, cells: Cells, level: int, reason: str) -> None:
        """Removing any of these cells is at best ``level``."""
        members = self._members(cells)
        members = members[self._level[members] < level]
        self._level[members] = level
        self._note[members] = self._number(reason)

    def be(self, cells: Cells, kind: int) -> None:
        """Add a bit to the kind of these cells."""
        self._kind[self._members(cells)] |= kind

    def unify(self, a: Cells, b: Cells, reason: str | Callable[[], str]) -> None:
        """Entry i of ``a`` and entry i of ``b`` leave together; where one of them never leaves, neither does the other,
        for ``reason``."""
        for _ in range(10_000):  # a few turns; more only where products overlap
            a, b = self.resolve(a), self.resolve(b)
            here, there = a.any(axis=1), b.any(axis=1)
            if not here.all() or not there.all():
                text = reason if isinstance(reason, str) else reason()
                self.fix(a[here & ~there], text)
                self.fix(b[there & ~here], text)
                a, b = a[here & there], b[here & there]
            if not len(a):
                return
            if a.shape[1] == b.shape[1] == 1:
                self._union(a[:, 0], b[:, 0])
                return
            both = each_once(joined([a, b]))
            a, b = both[: len(a)], both[len(a) :]
            differ = (np.sort(a, axis=1) != np.sort(b, axis=1)).any(axis=1)
            if not differ.any():
                return
            self._unify_products(a[differ], b[differ])
        raise AssertionError("the atoms of two axes did not settle")

    def tie_rows(self, cells: Cells) -> None:
        """All atoms of a row leave together: coarse, and always right."""
        self._merge(self.resolve(cells), self.resolve(cells))

    def split(self, cells: Cells, outer: int, inner: int) -> tuple[Cells, Cells]:
        """Split an axis of ``outer * inner`` entries into two; where its atoms vary along both, they become products."""
        cells = self.resolve(cells)
        outers, inners = [], []
        for column in cells.T:
            grid = column.reshape(outer, inner)
            if (grid == grid[:, :1]).all():
                outers.append(grid[:, 0])
            elif (grid == grid[:1]).all():
                inners.append(grid[0])
            else:
                of_outer, of_inner = self.fresh(outer), self.fresh(inner)
                pairs = np.stack([np.repeat(of_outer, inner), np.tile(of_inner, outer)], axis=1)
                self.unify(column[:, None], pairs, "split into an axis part of which cannot leave")
                outers.append(of_outer)
                inners.append(of_inner)
        return _columns(outers, outer), _columns(inners, inner)

    # ---- within ----------------------------------------------------------------------------------------------------

    def _number(self, reason: str) -> int:
        number = self._reason_numbers.get(reason)
        if number is None:
            number = self._reason_numbers[reason] = len(self.reasons)
            self.reasons.append(reason)
        return number

    def _members(self, cells: Cells) -> Cells:
        members = np.unique(self.resolve(cells)) if cells.size else np.zeros(0, dtype=np.int64)
        return members[members > 0]

    def _union(self, a: Cells, b: Cells) -> None:
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            # Where one atom meets several in one go, one of them wins now and the others in the next turn.
            self._parent[high] = low
            gone = np.unique(high)
            self._inherit(self.find(gone), gone)

    def _inherit(self, to: Cells, of: Cells) -> None:
        """What held for ``of`` holds for ``to``."""
        fixed = (self._why[of] > 0) & (self._why[to] == 0)
        self._why[to[fixed]] = self._why[of[fixed]]
        order = np.argsort(
            self._level[of], kind="stable"
        )  # the last writer wins, so the highest level comes last
        to, of = to[order], of[order]
        worse = self._level[of] > self._level[to]
        self._level[to[worse]], self._note[to[worse]] = self._level[of[worse]], self._note[of[worse]]
        np.bitwise_or.at(self._kind, to, self._kind[of])

    def _unify_products(self, a: Cells, b: Cells) -> None:
        """One turn of uniting rows of which at least one is a product."""
        of_a, of_b = np.count_nonzero(a, axis=1), np.count_nonzero(b, axis=1)
        same = (of_a == of_b) & (of_a > 1)
        for column in range(min(a.shape[1], b.shape[1])):
            rows = same & (a[:, column] > 0)
            self._union(a[rows, column], b[rows, column])
        single = (of_a == 1) & (of_b == 1)
        self._union(a[single, 0], b[single, 0])
        uneven = (of_a != of_b) & (of_a > 1) & (of_b > 1)
        self._merge(a[uneven], b[uneven])
        # Last, since these rows are stale once an atom is bound; one direction a turn, for the same reason.
        to_bind = (of_a == 1) & (of_b > 1)
        if to_bind.any():
            self._bind(a[to_bind, 0], b[to_bind])
        else:
            to_bind = (of_b == 1) & (of_a > 1)
            self._bind(b[to_bind, 0], a[to_bind])

    def _bind(self, atoms: Cells, products: Cells) -> None:
        """Make each atom the product of a row; an atom that occurs several times is bound once, the rest waits a turn."""
        atoms, products = self.find(atoms), self.find(products)
        able = self._left[atoms] == 0
        atoms, first = np.unique(atoms[able], return_index=True)
        products = products[able][first]
        if not len(atoms):
            return
        inside = (products == atoms[:, None]).any(axis=1)  # a = a or b: they leave together
        if inside.any():
            self._merge(atoms[inside, None], products[inside])
            return  # other rows may name what was merged, and wait a turn
        # An atom that is a part of another row's product must not become a product of that row's atom in the same turn.
        clear = ~np.isin(atoms, products)
        if not clear.any():
            clear[0] = True
        atoms, products = atoms[clear], products[clear]
        if not len(atoms):
            return
        rest = products[:, -1]
        for column in range(
            products.shape[1] - 2, 0, -1
        ):  # (a, (b, (c, d))); rows may be shorter: zeros come last
            nested = self.fresh(len(atoms))
            alone = rest == 0
            self._left[nested], self._right[nested] = products[:, column], rest
            rest = np.where(alone, products[:, column], nested)
        self._left[atoms], self._right[atoms] = products[:, 0], rest
        for column in products.T:
            has = column > 0
            self._inherit_all(column[has], atoms[has])

    def _inherit_all(self, to: Cells, of: Cells) -> None:
        """As ``_inherit`` where several may give to one."""
        order = np.argsort(self._why[of] > 0, kind="stable")
        self._inherit(to[order], of[order])

    def _merge(self, a: Cells, b: Cells) -> None:
        """Unite all atoms of row i of both: coarse, and always right."""
        together = np.concatenate([a, b], axis=1)
        if not together.size:
            return
        first = together[np.arange(len(together)), (together > 0).argmax(axis=1)]
        for column in together.T:
            has = column > 0
            self._union(first[has], column[has])


def each_once(cells: Cells) -> Cells:
    """Name every atom once a row, and move zeros to its end, keeping the order of the others."""
    cells = cells.copy()
    for column in range(1, cells.shape[1]):
        cells[(cells[:, :column] == cells[:, column : column + 1]).any(axis=1), column] = 0
    order = np.argsort(cells == 0, axis=1, kind="stable")
    aligned = np.take_along_axis(cells, order, axis=1)
    return aligned[:, aligned.any(axis=0)]


def _columns(columns: list[Cells], n: int) -> Cells:
    return np.stack(columns, axis=1) if columns else np.zeros((n, 0), dtype=np.int64)


def joined(parts: list[Cells]) -> Cells:
    """Cells one after the other along an axis (concatenation)."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def merged(outer: Cells, inner: Cells) -> Cells:
    """Cells of the axis that two axes make when they are flattened."""
    n, m = len(outer), len(inner)
    return np.concatenate([np.repeat(outer, m, axis=0), np.tile(inner, (n, 1))], axis=1)


def untracked(n: int) -> Cells:
    """Cells of an axis nothing of which ever leaves (batch, time, space)."""
    return np.zeros((n, 0), dtype=np.int64)
