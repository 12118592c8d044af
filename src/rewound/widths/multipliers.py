"""How many of its best weights each tensor keeps so that the least is lost: Lagrange's multipliers, found to the last bit.

What is lost is the sum of the squared scores of what goes. With a budget of multiply-adds alone the best mask keeps a weight
where score^2 >= l * (multiply-adds that it causes); with a density as well, where score^2 >= m + l * (...). Within one tensor
all weights cost the same, so that each tensor keeps its best, and the multipliers are found by halving the floating-point
numbers: what two neighbours among them decide differently are ties, which fall by the order of the tensors and the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = list[int]  # kept of each tensor


@dataclass(frozen=True)
class Ranked:
    """One tensor: the scores of its survivors, rising; multiply-adds that one weight takes part in; the fewest units it keeps;
    and, where a unit is a block, weights in the best n: [survivors + 1] (None: n).
    """

    scores: NDArray[Any]
    cost: float
    least: int = 0
    weights: NDArray[np.int64] | None = None

    def at_least(self, value: float) -> int:
        """How many units score as high as ``value``, the fewest at the least."""
        with np.errstate(over="ignore"):
            bound = self.scores.dtype.type(value)
        if float(bound) < value:  # one of the scores' own floats: for another, all of them would be converted
            bound = np.nextafter(bound, self.scores.dtype.type(np.inf))
        found = len(self.scores) - int(np.searchsorted(self.scores, bound, side="left"))
        return max(self.least, found)

    def multiply_adds(self, kept: int) -> float:
        """Of the best ``kept`` units."""
        return self.cost * (kept if self.weights is None else int(self.weights[kept]))

    def most(self, room: float) -> int:
        """How many units fit into so many multiply-adds."""
        if not self.cost:
            return len(self.scores)
        fitting = math.floor(room / self.cost)
        if self.weights is None:
            return min(len(self.scores), fitting)
        return int(np.searchsorted(self.weights, fitting, side="right")) - 1


def multiply_adds(tensors: Sequence[Ranked], counts: Counts) -> float:
    """Return those of all tensors together."""
    return sum(t.multiply_adds(n) for t, n in zip(tensors, counts))


def within(tensors: Sequence[Ranked], room: float) -> Counts | None:
    """Return how many units each tensor keeps: in the order of score^2 / cost, as many as fit into ``room`` multiply-adds.

    No mask of as few multiply-adds loses less. None where not even the fewest fit. What costs nothing stays.

    >>> a, b = Ranked(np.array([1.0, 2.0, 3.0]), cost=4.0), Ranked(np.array([1.0, 2.0, 3.0]), cost=1.0)
    >>> within([a, b], 6.0)     # score^2 / cost: 9 4 1 of b, 2.25 1 .25 of a; the ties of 1 fall to a, which no longer fits
    [1, 2]
    """
    few, whole = [t.least for t in tensors], [len(t.scores) for t in tensors]
    if multiply_adds(tensors, few) > room:
        return None
    if multiply_adds(tensors, whole) <= room:
        return whole

    def kept(worth: float) -> Counts:
        return [t.at_least(_score(worth, t.cost) if t.cost else -math.inf) for t in tensors]

    def fits(worth: float) -> bool:
        return multiply_adds(tensors, kept(worth)) <= room

    below, above = _neighbours(fits, -math.inf, math.inf)
    counts = kept(above)
    for i, (tensor, more) in enumerate(zip(tensors, kept(below))):
        spare = room - multiply_adds(tensors, counts)
        held = tensor.multiply_adds(counts[i])
        counts[i] = min(more, max(counts[i], tensor.most(held + spare)))
        if counts[i] < more:
            break
    return counts


def at_density(tensors: Sequence[Ranked], kept: int, room: float) -> Counts | None:
    """Return how many units each tensor keeps: ``kept`` in all, and at most ``room`` multiply-adds; None where the cheapest
    ``kept`` exceed it.

    No such mask loses less, up to the last exchange of a costly unit for a cheap one.

    >>> a, b = Ranked(np.array([2.0, 3.0]), cost=4.0), Ranked(np.array([0.5, 1.0]), cost=1.0)
    >>> [at_density([a, b], 2, room) for room in (8.0, 5.0, 2.0, 1.0)]
    [[2, 0], [1, 1], [0, 2], None]
    """
    free = _best(tensors, kept, 0.0)
    if multiply_adds(tensors, free) <= room:
        return free
    cheapest = _cheapest(tensors, kept)
    if multiply_adds(tensors, cheapest) > room:
        return None

    def fits(price: float) -> bool:
        return multiply_adds(tensors, _best(tensors, kept, price)) <= room

    highest = _highest_price(tensors)
    if not fits(highest):
        return _exchanged(tensors, _best(tensors, kept, highest), cheapest, room)
    below, above = _neighbours(fits, 0.0, highest)
    return _exchanged(tensors, _best(tensors, kept, below), _best(tensors, kept, above), room)


def least_multiply_adds(tensors: Sequence[Ranked], kept: int | None) -> float:
    """Return the fewest multiply-adds that can remain, with ``kept`` units in all (None: with as few as may be)."""
    counts = [t.least for t in tensors] if kept is None else _cheapest(tensors, kept)
    return multiply_adds(tensors, counts)


def _best(tensors: Sequence[Ranked], kept: int, price: float) -> Counts:
    """The ``kept`` units of the highest score^2 - price * cost."""

    def counts(level: float) -> Counts:
        return [t.at_least(_signed_root(level + price * t.cost)) for t in tensors]

    below, above = _neighbours(lambda level: sum(counts(level)) <= kept, -math.inf, math.inf)
    found = counts(above)
    for i, more in enumerate(counts(below)):
        found[i] += min(kept - sum(found), more - found[i])
    return found


def _cheapest(tensors: Sequence[Ranked], kept: int) -> Counts:
    counts = [t.least for t in tensors]
    for i in sorted(range(len(tensors)), key=lambda i: tensors[i].cost):  # stable
        counts[i] += min(kept - sum(counts), len(tensors[i].scores) - counts[i])
    return counts


def _exchanged(tensors: Sequence[Ranked], dear: Counts, cheap: Counts, room: float) -> Counts:
    """On the way from ``dear`` to ``cheap``, of equal number, costly units first, the first counts that fit."""
    by_cost = sorted(range(len(tensors)), key=lambda i: tensors[i].cost)

    def after(exchanges: int) -> Counts:
        counts = list(dear)
        for order, sign in ((by_cost, 1), (by_cost[::-1], -1)):
            left = exchanges
            for i in order:
                step = min(left, max(0, sign * (cheap[i] - dear[i])))
                counts[i] += sign * step
                left -= step
        return counts

    low, high = 0, sum(max(0, c - d) for c, d in zip(cheap, dear))
    while low < high:
        middle = (low + high) // 2
        if multiply_adds(tensors, after(middle)) <= room:
            high = middle
        else:
            low = middle + 1
    return after(high)


def _highest_price(tensors: Sequence[Ranked]) -> float:
    """A price at which no score outweighs a difference in cost."""
    costs = sorted({t.cost for t in tensors})
    gaps = [b - a for a, b in zip(costs, costs[1:])]
    largest = max((float(np.abs(t.scores[[0, -1]]).max()) for t in tensors if len(t.scores)), default=0.0)
    return 4 * largest**2 / min(gaps, default=1.0) + 1.0


def _score(worth: float, cost: float) -> float:
    """The score at which a weight of this cost is worth so much; below zero the costlier are worth less."""
    root = math.sqrt(cost)
    return worth * root if worth >= 0 else worth / root


def _signed_root(x: float) -> float:
    return math.copysign(math.sqrt(abs(x)), x)


def _neighbours(able: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Return neighbouring floats of which the higher is able and the lower is not; ``able`` is monotone, and neither end asked.

    >>> _neighbours(lambda x: x >= 0.1, 0.0, 1.0) == (math.nextafter(0.1, 0.0), 0.1)
    True
    """
    bottom, top = _number(low), _number(high)
    while top - bottom > 1:
        middle = (bottom + top) // 2
        if able(_float(middle)):
            top = middle
        else:
            bottom = middle
    return _float(bottom), _float(top)


def _number(value: float) -> int:
    """The place of a float in the order of all floats."""
    magnitude = int(np.float64(abs(value)).view(np.int64))
    return -magnitude if value < 0 else magnitude


def _float(number: int) -> float:
    value = float(np.int64(abs(number)).view(np.float64))
    return -value if number < 0 else value
