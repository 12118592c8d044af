"""One option a group, the least loss in all within a budget: the multiple-choice knapsack, by dynamic programming.

SPDY (Frantar and Alistarh 2022, section 3) solves it on a grid of times. Here the sets of (cost, loss) that no other choice
betters are kept as they are, so that the answer is exact; only where a set outgrows ``CAP`` it is thinned to the best of each of
so many steps of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CAP = 8192


def least_loss(
    costs: Sequence[Floats], losses: Sequence[Floats], budget: float, cap: int = CAP
) -> list[int] | None:
    """Return which option of each group to take, so that costs sum to at most ``budget`` and losses to the least; None if
    even the cheapest options exceed it. Of equal losses the cheaper choice.

    costs, losses: for each group one number an option; any real numbers. O(groups x options x cap).

    >>> least_loss([np.array([1.0, 3.0]), np.array([1.0, 2.0])], [np.array([5.0, 0.0]), np.array([1.0, 0.0])], 4.0)
    [1, 0]
    """
    if not costs:
        return [] if budget >= 0 else None
    cheapest = [float(c.min()) for c in costs]
    after = np.concatenate(
        [np.cumsum(cheapest[::-1])[::-1][1:], [0.0]]
    )  # what the groups still to come cost at least
    slack = 1e-12 * (
        abs(budget) + sum(float(np.abs(c).max()) for c in costs)
    )  # sums in another order differ by rounding
    front_cost, front_loss = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for cost, loss, rest in zip(costs, losses, after):
        total = (front_cost[:, None] + cost).ravel()
        lost = (front_loss[:, None] + loss).ravel()
        able = np.flatnonzero(total + rest <= budget + slack)
        if not len(able):
            return None
        order = able[np.lexsort((lost[able], total[able]))]
        best = np.minimum.accumulate(lost[order])
        better = np.r_[True, best[1:] < best[:-1]]
        chosen = _thinned(order[better], total, cap)
        front_cost, front_loss = total[chosen], lost[chosen]
        steps.append(tuple(np.divmod(chosen, len(cost))))  # type: ignore[arg-type]
    at = len(front_loss) - 1  # along a front, more cost is less loss
    picked = []
    for before, option in reversed(steps):
        picked.append(int(option[at]))
        at = int(before[at])
    return picked[::-1]


def _thinned(front: NDArray[np.int64], total: Floats, cap: int) -> NDArray[np.int64]:
    """The last (least loss) of each of ``cap`` equal steps of cost."""
    if len(front) <= cap:
        return front
    costs = total[front]
    step = np.floor((costs - costs[0]) / (costs[-1] - costs[0]) * (cap - 1))
    last = np.r_[step[1:] != step[:-1], True]
    last[0] = True  # the cheapest of all: without it a budget that can be met might not be
    return front[last]
