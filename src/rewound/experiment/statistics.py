"""What the seeds of an experiment say together: medians and ranges, over plain dicts as in ``results.json``.

Three seeds carry no standard error worth printing; the median with smallest and largest is all they know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Results = Mapping[str, Any]
Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """The seeds' values at one point.

    >>> Spread.of([0.91, 0.93, 0.92])
    Spread(median=0.92, low=0.91, high=0.93, count=3)
    """

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        found = list(values)
        return Spread(median(found), min(found), max(found), len(found))


def finished(results: Results) -> list[Arm]:
    """Return the arms that ran to their end, in the recipe's order."""
    return [arm for arm in results["arms"] if arm["status"] == "finished"]


def techniques(results: Results) -> list[str]:
    """Return the techniques that have a finished arm, in the recipe's order."""
    return list(dict.fromkeys(arm["technique"] for arm in finished(results)))


def density_of(done: Mapping[str, Any]) -> float:
    """Return the density of a round in what its run prunes: weights, or units where it prunes units."""
    return done.get("unit_density") or done["density"]


def in_units(results: Results) -> bool:
    """Return whether densities count units."""
    return any("unit_density" in done for arm in finished(results) for done in arm["rounds"])


def curve(arm: Arm, metric: str) -> dict[float, float]:
    """Return density -> validation metric after retraining; the original run stands at density 1.

    Where a metric stopped the run, it ends with the round whose network was kept. The rounds of a dense control
    (rate 0) are no points of it: see :func:`controls`. Nor are networks in the middle of gradual pruning, which is one training.
    """
    points: dict[float, float] = {}
    for done in arm["rounds"][: arm.get("best", len(arm["rounds"])) + 1]:
        value = done["metrics"].get(metric)
        if value is not None and math.isfinite(value) and not done.get("partial"):
            points.setdefault(round(density_of(done), 6), value)
    return points


def controls(results: Results) -> dict[str, Spread]:
    """Return technique -> spread of the metric after the last round of dense controls, which pruned nothing."""
    name = results["metric"]["name"]
    found: dict[str, list[float]] = {}
    for arm in finished(results):
        last = arm["rounds"][arm.get("best", len(arm["rounds"]) - 1)]
        value = last["metrics"].get(name)
        if density_of(last) == 1 and last["index"] > 0 and value is not None and math.isfinite(value):
            found.setdefault(arm["technique"], []).append(value)
    return {technique: Spread.of(values) for technique, values in found.items()}


def last_densities(results: Results) -> dict[str, Spread]:
    """Return technique -> spread over seeds of the density of the network at the end of the run."""
    found: dict[str, list[float]] = {}
    for arm in finished(results):
        last = arm["rounds"][arm.get("best", len(arm["rounds"]) - 1)]
        found.setdefault(arm["technique"], []).append(density_of(last))
    return {technique: Spread.of(values) for technique, values in found.items()}


def last_parameters(results: Results) -> dict[str, Spread]:
    """Return technique -> spread over seeds of the share of all parameters that the network at the end has."""
    found: dict[str, list[float]] = {}
    for arm in finished(results):
        last = arm["rounds"][arm.get("best", len(arm["rounds"]) - 1)]
        found.setdefault(arm["technique"], []).append(last["density_total"])
    return {technique: Spread.of(values) for technique, values in found.items()}


def spreads(results: Results) -> dict[str, dict[float, Spread]]:
    """Return technique -> density -> spread over seeds, densities falling."""
    name = results["metric"]["name"]
    found: dict[str, dict[float, list[float]]] = {technique: {} for technique in techniques(results)}
    for arm in finished(results):
        for density, value in curve(arm, name).items():
            found[arm["technique"]].setdefault(density, []).append(value)
    return {t: {d: Spread.of(v) for d, v in sorted(at.items(), reverse=True)} for t, at in found.items()}


def original(results: Results) -> Spread | None:
    """Return the spread of the original (unpruned) runs' metric over seeds; every technique shares them."""
    first: dict[int, float] = {}
    for arm in finished(results):
        points = curve(arm, results["metric"]["name"])
        if points and max(points) == 1.0:
            first.setdefault(arm["seed"], points[1.0])
    return Spread.of(first.values()) if first else None


def common_densities(results: Results) -> list[float]:
    """Return the densities that every finished arm reached, falling (or any reached, if none is common)."""
    name = results["metric"]["name"]
    reached = [set(curve(arm, name)) for arm in finished(results)]
    if not reached:
        return []
    shared = set.intersection(*reached) or set.union(*reached)
    return sorted(shared, reverse=True)


def milestones(densities: Sequence[float], count: int = 6) -> list[float]:
    """Return at most ``count`` of the densities: the ends, and between them about evenly in log density.

    >>> milestones([0.8 ** k for k in range(11)], 4)[1:3]
    [0.5120000000000001, 0.20971520000000007]
    """
    if len(densities) <= count:
        return list(densities)
    top, bottom = math.log(densities[0]), math.log(densities[-1])
    wanted = [top + (bottom - top) * k / (count - 1) for k in range(count)]
    nearest = {min(densities, key=lambda d: abs(math.log(d) - w)) for w in wanted}
    return sorted(nearest, reverse=True)
