"""From atoms to units: collect what each free atom takes from every tensor, and put units that are alike into one group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from rewound.compaction.atoms import Atoms, Cells
from rewound.compaction.capture import place
from rewound.compaction.grids import settle_grids
from rewound.compaction.reading import Notes
from rewound.compaction.units import Certificate, Group, Slice, Structure, Work
from rewound.compaction.values import (
    CHANNEL,
    EMBEDDED,
    GROUPED,
    HEAD,
    HEAD_DIM,
    NORMED,
    RECURRENT,
    Value,
)


def grouped(
    atoms: Atoms, tensors: Mapping[str, Value], parameters: Iterable[str], notes: Notes
) -> tuple[Structure, dict[str, Cells]]:
    """Return the Structure of everything that was read, and the atom of every unit: group name -> [size]."""
    known = set(parameters)
    axes = [(name, axis) for name, value in tensors.items() for axis in range(len(value.dims))]
    grids = settle_grids(atoms, [tensors[name].dims[axis].cells for name, axis in axes])
    resolved = {(name, axis): atoms.resolve(tensors[name].dims[axis].cells) for name, axis in axes}
    fixed = {key: why for key, cells in resolved.items() if key[0] in known and (why := _fixed(atoms, cells))}
    groups, roots = _groups(atoms, axes, resolved, known, notes, grids)
    leaving = {(s.tensor, s.axis) for group in groups for s in group.slices}
    for key, cells in resolved.items():
        if key[0] in known and len(cells) > 1 and key not in leaving:
            fixed.setdefault(key, "all its entries leave together, so none can")
    shapes = {name: torch.Size(value.shape) for name, value in tensors.items()}
    work = tuple(_work(atoms, notes, resolved))
    return Structure(tuple(groups), shapes, frozenset(known & set(tensors)), fixed, work), roots


def _fixed(atoms: Atoms, cells: Cells) -> str:
    """Return why nothing along an axis can leave, or "" if something can."""
    if not cells.size or len(cells) < 2:
        return ""
    why = atoms.why(cells)
    whole = ((why > 0) | (cells == 0)).all(axis=1)
    return atoms.reasons[int(why.max())] if whole.all() else ""


def _groups(
    atoms: Atoms, axes: list[tuple[str, int]], resolved: Mapping[tuple[str, int], Cells], parameters: set[str], notes: Notes,
    grids: np.ndarray,
) -> tuple[list[Group], dict[str, Cells]]:  # fmt: skip
    unit, axis, position = _entries(atoms, axes, resolved)
    if not len(unit):
        return [], {}
    order = np.lexsort((position, axis, unit))
    unit, axis, position = unit[order], axis[order], position[order]
    starts = np.flatnonzero(np.r_[True, (unit[1:] != unit[:-1]) | (axis[1:] != axis[:-1])])
    counts = np.diff(np.r_[starts, len(unit)])
    # A unit's signature: how many entries of which axes, on which grid, and how exactly they leave. Hashed: there may be
    # millions.
    mix = np.random.default_rng(0).integers(1, 2**62, size=len(axes) + 1, dtype=np.int64)
    unit_of, axis_of = unit[starts], axis[starts]
    first = np.flatnonzero(np.r_[True, unit_of[1:] != unit_of[:-1]])
    units = unit_of[first]
    signature = np.add.reduceat(mix[axis_of] * (counts * 2 + 1), first)
    kind = np.where(atoms.kind(units) & HEAD, HEAD, atoms.kind(units))
    signature += mix[-1] * grids[units]
    signature ^= (
        (atoms.level(units).astype(np.int64) << 56) ^ (kind.astype(np.int64) << 40) ^ atoms.note(units)
    )
    _, members_of = np.unique(signature, return_inverse=True)
    parts = np.diff(np.r_[first, len(starts)])  # axes of each unit
    groups: list[tuple[Group, Cells]] = []
    by_group = np.argsort(members_of, kind="stable")
    for chosen in np.split(by_group, np.flatnonzero(np.diff(members_of[by_group])) + 1):
        slices = []
        for k in range(parts[chosen[0]]):
            at = first[chosen] + k
            n = counts[at[0]]
            rows = position[starts[at][:, None] + np.arange(n)]
            name, dimension = axes[axis_of[at[0]]]
            slices.append(
                Slice(name, dimension, torch.from_numpy(rows), _role(name, dimension, parameters, notes))
            )
        if len(chosen) < 2 or not any(s.tensor in parameters for s in slices):
            continue  # one unit of a kind is the whole axis: without it there is no network
        order = np.argsort(slices[0].positions[:, 0].numpy(), kind="stable")
        ordered = [Slice(s.tensor, s.axis, s.positions[torch.from_numpy(order)], s.role) for s in slices]
        roots = units[chosen][order]
        group = Group(
            "", _kind(int(atoms.kind(roots[:1])[0])), len(chosen), tuple(ordered),
            Certificate(int(atoms.level(roots[:1])[0])), atoms.reasons[int(atoms.note(roots[:1])[0])],
        )  # fmt: skip
        groups.append((group, roots))
    place_of = {key: i for i, key in enumerate(axes)}

    def order_of(pair: tuple[Group, Cells]) -> tuple[int, int, int]:
        of_writers = min(place_of[s.tensor, s.axis] for s in pair[0].writers or pair[0].slices)
        return of_writers, _KINDS.index(pair[0].kind), int(pair[1].min())

    groups.sort(key=order_of)
    named = _named([group for group, _ in groups])
    return named, {group.name: roots for group, (_, roots) in zip(named, groups)}


def _entries(
    atoms: Atoms, axes: list[tuple[str, int]], resolved: Mapping[tuple[str, int], Cells]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (unit, axis, position) of every entry that can leave."""
    found = []
    for i, key in enumerate(axes):
        cells = resolved[key]
        free = (cells > 0) & (atoms.why(cells) == 0)
        rows, columns = np.nonzero(free)
        if len(rows):
            found.append((cells[rows, columns], np.full(len(rows), i), rows))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    unit, axis, position = (np.concatenate(part) for part in zip(*found))
    return unit, axis, position


def _role(name: str, axis: int, parameters: set[str], notes: Notes) -> str:
    if name not in parameters:
        return "buffer"
    roles = notes.roles.get((name, axis), set())
    return next((role for role in ("writes", "reads", "affine") if role in roles), "affine")


_KINDS = ("channel", "group", "hidden unit", "width", "head", "query head", "head dim")


def _kind(bits: int) -> str:
    if bits & RECURRENT:
        return "hidden unit"
    if bits & HEAD:
        return "head"
    if bits & HEAD_DIM:
        return "head dim"
    if bits & EMBEDDED or (bits & NORMED and not bits & CHANNEL):
        return "width"
    if bits & GROUPED:
        return "group"
    return "channel" if bits & CHANNEL else "hidden unit"


def _query_heads(groups: list[Group]) -> list[Group]:
    """Where heads of keys and values have several query heads each, the second is a query head of every one of them: a group
    of heads that shares all its axes with another, which has more."""
    heads = [(group, {(s.tensor, s.axis) for s in group.slices}) for group in groups if group.kind == "head"]
    of_query = {id(group) for group, axes in heads if any(axes < other for _, other in heads)}
    return [replace(group, kind="query head") if id(group) in of_query else group for group in groups]


def _named(groups: list[Group]) -> list[Group]:
    """Give every group the name of the layer that writes it first; where several share it, the kind too, then a number."""
    named: list[Group] = []
    taken: set[str] = set()
    for group in _query_heads(groups):
        base = (group.writers or group.slices)[0].tensor
        layer = base.removesuffix(".weight")
        rnn = layer.rpartition(".")[0] if ".weight_ih" in base or ".weight_hh" in base else layer
        options = [
            rnn,
            f"{rnn} [{group.kind}]",
            *(f"{rnn} [{group.kind} {i}]" for i in range(2, len(groups) + 3)),
        ]
        name = next(option for option in options if option not in taken)
        taken.add(name)
        named.append(replace(group, name=name))
    return named


def _work(atoms: Atoms, notes: Notes, resolved: Mapping[tuple[str, int], Cells]) -> list[Work]:
    """Express the axes of the operators by axes of tensors of which the same share stays, whatever leaves."""
    by_share: dict[bytes, tuple[str, int]] = {}
    for key, cells in resolved.items():
        by_share.setdefault(_key(_share(atoms, cells)), key)
    work = []
    for node, count, dims in notes.work:
        shares = [share for cells in dims if (share := _share(atoms, atoms.resolve(cells)))[0].any()]
        work.append(Work(place(node), count, tuple(_axes(shares, by_share))))
    return work


# What stays of an axis: hashes of the sets of units that its entries depend on (0: on none), and how often each occurs.
Share = tuple[np.ndarray, np.ndarray]


def _axes(shares: list[Share], by_share: Mapping[bytes, tuple[str, int]]) -> list[tuple[str, int]]:
    """Return axes of tensors that shrink as all of these together do."""
    keys = [by_share.get(_key(share)) for share in shares]
    while (
        None in keys
    ):  # heads and head dimension: one axis of a weight has both, though another may have one of them alone
        sets = (chosen for n in range(len(keys), 1, -1) for chosen in combinations(range(len(keys)), n))
        able = [chosen for chosen in sets if any(keys[i] is None for i in chosen)]
        # those first that take most of what has no axis and least of what has one
        able.sort(key=lambda chosen: (-sum(keys[i] is None for i in chosen), len(chosen)))
        for chosen in able:
            key = by_share.get(_key(_product([shares[i] for i in chosen])))
            if key is not None:
                break
        else:
            break
        shares = [share for i, share in enumerate(shares) if i not in chosen] + [
            _product([shares[i] for i in chosen])
        ]
        keys = [key_ for i, key_ in enumerate(keys) if i not in chosen] + [key]
    return [key for key in keys if key is not None]


def _share(atoms: Atoms, cells: Cells) -> Share:
    free = np.where(atoms.why(cells) == 0, cells, 0).astype(np.uint64)
    mixed = free * np.uint64(0x9E3779B97F4A7C15)  # so that sums of several hashes tell the units (splitmix64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return _counted(mixed.sum(axis=1, dtype=np.uint64), np.ones(len(cells), dtype=np.int64))


def _counted(hashes: np.ndarray, counts: np.ndarray) -> Share:
    values, inverse = np.unique(hashes, return_inverse=True)
    sums = np.bincount(inverse.reshape(-1), counts.reshape(-1)).astype(np.int64)
    return values, sums // max(1, int(np.gcd.reduce(sums)))


def _product(shares: list[Share]) -> Share:
    """Of the axis that several axes make when they are flattened."""
    hashes, counts = shares[0]
    for more, times in shares[1:]:
        hashes, counts = _counted((hashes[:, None] + more).ravel(), (counts[:, None] * times).ravel())
    return hashes, counts


def _key(share: Share) -> bytes:
    return share[0].tobytes() + share[1].tobytes()
