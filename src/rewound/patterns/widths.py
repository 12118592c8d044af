"""Caps against collapse, and widths rounded to a multiple: from the counts an allocation wants to those that may be."""

from __future__ import annotations

import math
from collections.abc import Mapping


def floors(sizes: Mapping[str, int], survivors: Mapping[str, int], share: float) -> dict[str, int]:
    """Return the fewest units each group keeps: ``share`` of its size rounded up and at least one, where it has so many.

    >>> floors({"a": 64, "b": 3}, {"a": 64, "b": 3}, 0.05)
    {'a': 4, 'b': 1}
    """
    return {
        name: min(survivors[name], max(1, math.ceil(share * size - 1e-9))) for name, size in sizes.items()
    }


def to_multiples(
    wanted: Mapping[str, int],
    sizes: Mapping[str, int],
    survivors: Mapping[str, int],
    least: Mapping[str, int],
    multiple: int,
) -> dict[str, int]:
    """Return counts that are multiples of ``multiple`` (or a group's whole size), each near what is wanted and their sum as
    near to that of ``wanted`` as one further step of any of them could bring it.

    A group that has fewer survivors than the multiple, and is not whole, keeps what it has.

    >>> sizes = {"a": 16, "b": 32}
    >>> to_multiples({"a": 5, "b": 19}, sizes, sizes, {"a": 1, "b": 1}, 8)
    {'a': 8, 'b': 16}
    """
    if multiple == 1:
        return dict(wanted)
    may = {name: allowed(sizes[name], survivors[name], least[name], multiple) for name in wanted}
    # where in its list each count stands: the nearest, of two the smaller
    at = {
        name: min(range(len(may[name])), key=lambda k, n=name: (abs(may[n][k] - count), k))  # type: ignore[misc]
        for name, count in wanted.items()
    }
    target = sum(wanted.values())
    over = sum(may[name][k] for name, k in at.items()) - target
    while over:
        steps = []
        for order, (name, k) in enumerate(at.items()):
            to = k + (1 if over < 0 else -1)
            if 0 <= to < len(may[name]):
                change = may[name][to] - may[name][k]
                if abs(over + change) < abs(over):
                    further = abs(may[name][to] - wanted[name]) - abs(may[name][k] - wanted[name])
                    steps.append((further / abs(change), order, name, to, change))
        if not steps:
            break
        _, _, name, to, change = min(steps)
        at[name], over = to, over + change
    return {name: may[name][k] for name, k in at.items()}


def allowed(size: int, survivors: int, least: int, multiple: int) -> list[int]:
    """The counts a group may keep, rising."""
    counts = [count for count in range(multiple, survivors + 1, multiple) if count >= least]
    if survivors == size and size % multiple:
        counts.append(size)
    if not counts:  # the floor lies above the last multiple, or the survivors below the first
        below = survivors - survivors % multiple
        counts = [below if below and survivors != size else survivors]
    return counts
