"""From a table of operators to a real network that is as fast as asked: choose, build, measure, correct.

The table tells which layers pay; what the network as a whole takes is measured. Each network that was measured is a point
(time by the table, true time); between two of them the true time is nearly a line in the table's, so a few tries suffice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rewound.measure.latency import Ratio
from rewound.widths.search import Choice, Problem, choose

TRIES = 10
EARLY = 5  # of these must come nearer than asked, so that the network is still near at the next measurement


@dataclass(frozen=True)
class Try:
    """A network that was measured: seconds by the table, and how many times faster it is than the whole one."""

    choice: Choice
    seconds: float
    speedup: Ratio

    @property
    def time(self) -> float:
        """As a share of the whole network's."""
        return 1.0 / self.speedup.median


def meet(
    asked: float,
    problem: Problem,
    whole: float,
    measured: float,
    measure: Callable[[Choice, bool], Ratio],
    tolerance: float,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Try, list[Try]]:
    """Return the network whose measured speed-up is nearest to ``asked``, and all that were tried.

    problem: with seconds by the table as the cost. whole: those of the whole network, nothing removed; measured: its true
    seconds. measure: builds a choice and returns its speed-up; True: once more, with what was measured before. Ends when a
    speed-up within ``tolerance`` (a share) is confirmed by a second measurement, or when there is nothing left to try.

    ValueError, with the largest speed-up there is, where even the narrowest network is slower than asked.
    """
    narrowest = float(problem.costs(problem.narrowest[None])[0]) * (1 + 1e-9)
    target = 1.0 / asked
    # what the table does not know of (calls, operators without units) stays; a table of more than there is, is too dear
    budget = whole - (1 - target) * measured if whole <= measured else whole * target
    tries: list[Try] = []
    seen: set[bytes] = set()
    last = False  # whether the narrowest network is all that is left to try
    while len(tries) < TRIES:
        choice = problem.narrowest if last else choose(problem, max(budget, narrowest))
        if choice is None or choice.tobytes() in seen:
            choice = _between(problem, tries, target, seen)
            if choice is None:
                break
        seconds = float(problem.costs(choice[None])[0])
        found = Try(choice, seconds, measure(choice, False))
        within = tolerance * (0.6 if len(tries) < EARLY else 1.0)
        if _near(found, asked, within):
            found = Try(choice, seconds, measure(choice, True))
        tries.append(found)
        seen.add(choice.tobytes())
        tell(f"asked {asked:.3g}x: try {len(tries)} is {found.speedup.median:.3g}x")
        if _near(found, asked, within):
            return found, tries
        if seconds <= narrowest and found.speedup.median < asked * (1 - tolerance):
            if last or np.array_equal(choice, problem.narrowest):
                raise ValueError(_unreachable(asked, max(tries, key=lambda t: t.speedup.median)))
            last = True  # by the table it takes as long, but not in truth, perhaps
        if np.array_equal(choice, problem.widest) and found.speedup.median > asked:
            return found, tries  # it is that fast already
        budget = _next(tries, whole, target, narrowest)
    best = min(tries, key=lambda t: abs(np.log(t.speedup.median / asked)))
    return Try(best.choice, best.seconds, measure(best.choice, True)), tries


def _near(found: Try, asked: float, tolerance: float) -> bool:
    return abs(found.speedup.median / asked - 1) <= tolerance


def _next(tries: list[Try], whole: float, target: float, narrowest: float) -> float:
    """Return the table's seconds at which a line through what was measured gives the target."""
    points = [(whole, 1.0), *((t.seconds, t.time) for t in tries)]
    if len(tries) >= EARLY:  # two measurements do not agree: take all, those near the target before others
        x, y = (np.array(column) for column in zip(*points))
        near = 1 / (1 + (10 * (y / target - 1)) ** 2)
        slope, level = np.polyfit(x, y, 1, w=np.sqrt(near))
        if slope > 0:
            return float(np.clip((target - level) / slope, min(x), max(x)))
    slow = [p for p in points if p[1] >= target]
    fast = [p for p in points if p[1] < target]
    if fast:
        a, b = min(slow), max(fast)  # the nearest on either side
        if b[0] >= a[0]:  # noise: the faster of two takes longer by the table
            a, b = max(slow), min(fast)
    else:
        a, b = (whole, 1.0), min(points)
    if b[0] >= a[0] or b[1] >= a[1]:
        return (narrowest + b[0]) / 2
    return b[0] + (target - b[1]) * (a[0] - b[0]) / (a[1] - b[1])


def _between(problem: Problem, tries: list[Try], target: float, seen: set[bytes]) -> Choice | None:
    """Return a choice that was not measured yet, with a budget between the nearest that are too slow and too fast."""
    slow = min(
        (t.seconds for t in tries if t.time >= target), default=float(problem.costs(problem.widest[None])[0])
    )
    fast = max(
        (t.seconds for t in tries if t.time < target),
        default=float(problem.costs(problem.narrowest[None])[0]),
    )
    low, high = min(slow, fast), max(slow, fast)
    for share in (0.5, 0.25, 0.75, 0.125, 0.875, 0.0, 1.0):
        choice = choose(problem, low + share * (high - low))
        if choice is not None and choice.tobytes() not in seen:
            return choice
    return None


def _unreachable(asked: float, narrowest: Try) -> str:
    return (
        f"{asked:.3g}x faster cannot be reached: with every group as narrow as it may be, the network is measured "
        f"{narrowest.speedup} faster. What remains is the cost of calls and of layers whose units cannot leave (small networks "
        "on small batches are mostly that). Ask for at most that, lower 'floor' or 'multiple', widen the pattern ('unit'), "
        "or measure a larger 'batch'"
    )
