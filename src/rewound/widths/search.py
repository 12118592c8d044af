"""The least loss within a budget where groups share costs: what a layer takes depends on what it reads and what it writes.

Around the present widths the cost is nearly a sum over groups: the change when one alone takes another width. Of that sum the
dynamic program finds the best choice exactly; the true cost of the choice tells by how much the sum was wrong, and the program
is asked again, in a smaller neighbourhood where it helps. At the end single steps and exchanges of two are tried on the true
cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rewound.widths.knapsack import least_loss

Floats = NDArray[np.float64]
Choice = NDArray[np.int64]  # [groups]: which of its widths each group takes

_CAP = 1024  # steps of cost that the dynamic program tells apart where there are so many choices: the sum is no exact cost
_TURNS = 60  # of the dynamic program
_STEPS = 400  # single steps and exchanges after it
_PAIRS = 32  # groups that are looked at for the other half of an exchange


@dataclass(frozen=True)
class Problem:
    """widths: for each group those it may have, rising. losses: what each loses. cost: widths [vectors, groups] -> cost
    [vectors], any function that is (almost) nowhere lower at more width."""

    widths: Sequence[NDArray[np.int64]]
    losses: Sequence[Floats]
    cost: Callable[[Floats], Floats]

    def at(self, choice: Choice) -> Floats:
        """Return the widths of a choice, or of many [..., groups]."""
        choice = np.asarray(choice)
        return np.stack([w[choice[..., g]] for g, w in enumerate(self.widths)], axis=-1).astype(np.float64)

    def costs(self, choices: Choice) -> Floats:
        """Return the true cost of each of the choices [vectors, groups]."""
        return self.cost(self.at(choices))

    def loss(self, choice: Choice) -> float:
        """Return the sum of the losses of a choice."""
        return float(sum(loss[i] for loss, i in zip(self.losses, choice)))

    @property
    def narrowest(self) -> Choice:
        return np.zeros(len(self.widths), dtype=np.int64)

    @property
    def widest(self) -> Choice:
        return np.array([len(w) - 1 for w in self.widths], dtype=np.int64)


def choose(problem: Problem, budget: float) -> Choice | None:
    """Return a choice of the least loss that was found with a cost of at most ``budget``; None if none fits.

    Exact where every group's cost is its own. Else as good as the neighbourhoods searched: no single step, no exchange of a
    step of one group for a step of another betters it.
    """
    if problem.costs(problem.widest[None])[0] <= budget:
        return problem.widest
    if problem.costs(problem.narrowest[None])[0] > budget:
        return None
    best = _uniform(problem, budget)
    radius = max(len(w) for w in problem.widths)
    for _ in range(_TURNS):
        found = _turn(problem, best, budget, radius)
        if found is not None and problem.loss(found) < problem.loss(best) - 1e-15:
            best = found
        elif radius > 1:
            radius = (radius + 1) // 2
        else:
            break
    return _stepped(problem, best, budget)


def _uniform(problem: Problem, budget: float) -> Choice:
    """The widest choice within the budget in which every group goes down its ladder alike."""
    shares = np.linspace(0, 1, 129)
    choices = np.floor(shares[:, None] * problem.widest + 1e-9).astype(np.int64)
    able = choices[problem.costs(choices) <= budget]
    if not len(able):
        return problem.narrowest
    return min(able, key=problem.loss)


def _turn(problem: Problem, now: Choice, budget: float, radius: int) -> Choice | None:
    """One dynamic program around ``now``, corrected by the true cost of what it finds."""
    base = problem.costs(now[None])[0]
    options = [
        np.arange(max(0, i - radius), min(len(w), i + radius + 1)) for i, w in zip(now, problem.widths)
    ]
    single = np.repeat(now[None], sum(map(len, options)), axis=0)
    ends = np.cumsum([0, *map(len, options)])
    for g, option in enumerate(options):
        single[ends[g] : ends[g + 1], g] = option
    changes = problem.costs(single) - base
    costs = [changes[a:b] for a, b in pairwise(ends)]
    lost = [loss[option] for loss, option in zip(problem.losses, options)]
    room = budget - base
    for _ in range(6):
        picked = least_loss(costs, lost, room, _CAP)
        if picked is None:
            return None
        found = np.array([option[i] for option, i in zip(options, picked)])
        over = problem.costs(found[None])[0] - budget
        if over <= 0:
            return found
        expected = sum(cost[i] for cost, i in zip(costs, picked))
        room = min(room, expected) - 1.1 * over
    return None


def _stepped(problem: Problem, choice: Choice, budget: float) -> Choice:
    """Take single steps up, and exchange a step down of one group for a step up of another, while that helps."""
    choice = choice.copy()
    for _ in range(_STEPS):
        gains = np.array(
            [
                loss[i] - loss[i + 1] if i + 1 < len(loss) else -np.inf
                for loss, i in zip(problem.losses, choice)
            ]
        )
        pains = np.array([loss[i - 1] - loss[i] if i else np.inf for loss, i in zip(problem.losses, choice)])
        ups = [int(g) for g in np.argsort(-gains, kind="stable") if gains[g] > 0]
        downs = [int(g) for g in np.argsort(pains, kind="stable") if np.isfinite(pains[g])][:_PAIRS]
        moves = [(g, -1) for g in ups] + [
            (g, h) for g in ups[:_PAIRS] for h in downs if g != h and gains[g] > pains[h] + 1e-15
        ]
        if not moves:
            break
        tried = np.repeat(choice[None], len(moves), axis=0)
        for row, (g, h) in zip(tried, moves):
            row[g] += 1
            if h >= 0:
                row[h] -= 1
        able = np.flatnonzero(problem.costs(tried) <= budget)
        if not len(able):
            break
        worth = [gains[moves[k][0]] - (pains[moves[k][1]] if moves[k][1] >= 0 else 0.0) for k in able]
        choice = tried[able[int(np.argmax(worth))]]
    return choice
