"""Times of operators over their widths: measured at a ladder of sizes, in between interpolated.

An operator with one variable is measured at up to ``ONE`` shares of it, one with two on a grid of ``TWO`` x ``TWO``, one with
more along the diagonal, by how many numbers it reads. Operators that are alike are measured once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rewound.compaction.budget import Extents
from rewound.compaction.operators import Operator, OperatorAt

Floats = NDArray[np.float64]

ONE, TWO, MORE = 9, 6, 6  # shares at which a variable is measured


class Timer(Protocol):
    """What measures: ``rewound.measure.latency.Stopwatch``, or anything that does the same. known: times of operators
    measured so far."""

    known: dict[Any, float]

    def models(self, models: Any, example: Any) -> list[Any]:
        """Return a Timing of each model, taken in turn."""

    def operations(
        self, operations: Sequence[OperatorAt], progress: Callable[[float], None] | None = None
    ) -> list[float]:
        """Return seconds of each operator at its sizes; NaN for one that cannot be called."""


class Table:
    """Seconds of a network's operators as a function of its widths."""

    def __init__(self, extents: Extents, operators: Sequence[Operator]) -> None:
        self.extents, self.operators = extents, operators
        self._kinds = {operator.key: operator for operator in operators}
        self._levels: dict[str, list[Floats]] = {}
        self._times: dict[str, Floats] = {}
        self._alike: list[tuple[Operator, Floats]] = []

    def measure(
        self,
        timer: Timer,
        narrowest: Floats,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Measure every operator from the ``narrowest`` width of each group up to the whole; none that the timer has
        measured before."""
        known = timer.known
        self._lay_out(self.extents.at(narrowest)[0])
        points = [
            operator.at(shares) for key, operator in self._kinds.items() for shares in self._shares(key)
        ]
        missing = [p for p in points if (p.operator.key, p.shares) not in known]
        if missing:
            for point, seconds in zip(missing, timer.operations(missing, progress)):
                known[point.operator.key, point.shares] = seconds
        times = iter(known[p.operator.key, p.shares] for p in points)
        for key in self._kinds:
            found = np.array([next(times) for _ in self._shares(key)])
            self._times[key] = self._complete(key, found)
        self._alike = self._together()

    def _lay_out(self, least: Floats) -> None:
        """Choose the shares to measure at; least: of each axis."""
        shares: dict[str, list[float]] = {}
        for operator in self.operators:
            own = [float(least[axis] / whole) for axis, whole in operator.variables]
            before = shares.setdefault(operator.key, own)
            shares[operator.key] = [min(a, b) for a, b in zip(before, own)]
        for key, operator in self._kinds.items():
            count = ONE if len(shares[key]) == 1 else TWO if len(shares[key]) == 2 else MORE
            self._levels[key] = [levels(n, share, count) for n, share in zip(operator.units, shares[key])]

    def each(self, widths: Any) -> Floats:
        """Return [vectors, operators]: seconds of every operator at widths [vectors, groups]."""
        axes = self.extents.at(widths)
        return (
            np.stack([self._one(o, axes) for o in self.operators], axis=1)
            if self.operators
            else np.zeros((len(axes), 0))
        )

    def seconds(self, widths: Any) -> Floats:
        """Return [vectors]: the sum over the operators."""
        axes = self.extents.at(widths)
        total = np.zeros(len(axes))
        for operator, times in self._alike:
            total += self._one(operator, axes, times)
        return total

    def _together(self) -> list[tuple[Operator, Floats]]:
        """Operators over the same axes that were measured at the same shares as one, which takes the sum of their times."""
        found: dict[Any, tuple[Operator, Floats]] = {}
        for operator in self.operators:
            key, times = operator.key, self._times[operator.key]
            shares = tuple(x.tobytes() for x in self._levels[key])
            of = (operator.variables, shares, key if len(shares) > 2 else "")
            found[of] = (operator, times + found[of][1]) if of in found else (operator, times)
        return list(found.values())

    def _one(self, operator: Operator, axes: Floats, times: Floats | None = None) -> Floats:
        times = self._times[operator.key] if times is None else times
        shares = [axes[:, axis] / whole for axis, whole in operator.variables]
        grid = self._levels[operator.key]
        if len(grid) == 1:
            return np.interp(shares[0], grid[0], times)
        if len(grid) == 2:
            return _bilinear(grid[0], grid[1], times.reshape(len(grid[0]), -1), shares[0], shares[1])
        volumes = operator.volumes(np.array(self._shares(operator.key)))
        return np.interp(operator.volumes(np.stack(shares, axis=1)), volumes, times)

    def _shares(self, key: str) -> list[tuple[float, ...]]:
        grid = self._levels[key]
        if len(grid) == 1:
            return [(float(a),) for a in grid[0]]
        if len(grid) == 2:
            return [(float(a), float(b)) for a in grid[0] for b in grid[1]]
        least = max(float(g[0]) for g in grid)
        return [(float(s),) * len(grid) for s in np.linspace(least, 1.0, MORE)]

    def _complete(self, key: str, times: Floats) -> Floats:
        """Where an operator could not be called: its whole time by what it reads; nothing, if that is unknown too."""
        operator, whole = self._kinds[key], float(times[-1])
        if math.isnan(whole):
            return np.zeros(len(times))
        guess = whole * operator.volumes(np.array(self._shares(key)))
        return np.where(np.isnan(times), guess, times)


def levels(units: int, least: float, count: int) -> Floats:
    """Return at most ``count`` shares from about ``least`` to 1, each a whole number of ``units``, in between round ones.

    >>> (levels(64, 0.1, 6) * 64).tolist()
    [7.0, 16.0, 32.0, 40.0, 56.0, 64.0]
    """
    first = min(units, max(1, math.ceil(least * units - 1e-9)))
    step = 8 if units >= 64 else 4 if units >= 32 else 1
    wanted = np.linspace(first, units, count)
    inner = np.round(wanted[1:-1] / step) * step
    counts = {first, units, *(int(n) for n in inner if first < n < units)}
    return np.array(sorted(counts)) / units


def by_group(table: Table, widths: Floats, groups: int) -> Floats:
    """Return [groups]: seconds at these widths (a vector), each operator's with the groups along its result, or those it
    reads where its result has none."""
    found = np.zeros(groups)
    for operator, seconds in zip(table.operators, table.each(widths)[0]):
        reads = {g for axis, _ in operator.variables for g in table.extents.groups_of(axis)}
        of = sorted(operator.writes or reads)
        found[of] += seconds / len(of)
    return found


def all_widths(candidates: Sequence[int], fixed: Floats) -> Callable[[Floats], Floats]:
    """Return the function from widths of the candidates [vectors, candidates] to those of all groups [vectors, groups], the
    others ``fixed``; ``candidates``: their numbers among all.
    """

    def spread(widths: Floats) -> Floats:
        whole = np.repeat(fixed[None], len(widths), axis=0)
        whole[:, list(candidates)] = widths
        return whole

    return spread


def _bilinear(rows: Floats, columns: Floats, values: Floats, x: Floats, y: Floats) -> Floats:
    i, u = _between(rows, x)
    j, v = _between(columns, y)
    k, m = np.minimum(i + 1, len(rows) - 1), np.minimum(j + 1, len(columns) - 1)
    low = values[i, j] * (1 - v) + values[i, m] * v
    high = values[k, j] * (1 - v) + values[k, m] * v
    return low * (1 - u) + high * u


def _between(levels: Floats, x: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The level below, and how far towards the next."""
    if len(levels) == 1:
        return np.zeros(len(x), dtype=np.int64), np.zeros(len(x))
    i = np.clip(np.searchsorted(levels, x, side="right") - 1, 0, len(levels) - 2)
    return i, np.clip((x - levels[i]) / (levels[i + 1] - levels[i]), 0, 1)
