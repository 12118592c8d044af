"""How long to retrain: series that differ only in t, the choice among them on validation, and the safe zone.

Choices are made on the validation split; the test split is read for what was chosen, and for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rewound.experiment.series import Series
from rewound.experiment.summary import Summary, summarize

PAPER_SAFE_ZONE = (0.25, 0.9)  # of T: the rewinding safe zone as Renda et al. 2020 shade it


@dataclass(frozen=True)
class Sweep:
    """One technique with several retraining times: ``series`` by t, in epochs a round, rising."""

    family: str
    series: tuple[tuple[int, Series], ...]

    @property
    def densities(self) -> list[float]:
        """Densities below 1 that every t reached, falling."""
        reached = [set(series.points) for _, series in self.series]
        return sorted((d for d in set.intersection(*reached) if d < 1), reverse=True)

    def at(self, density: float) -> dict[int, Summary]:
        """Return t -> what the seeds say at ``density``; a t that did not reach it is left out."""
        found = {t: series.summary(density) for t, series in self.series}
        return {t: summary for t, summary in found.items() if summary is not None}


@dataclass(frozen=True)
class Choice:
    """The retraining time chosen on validation, and the test metric of that choice (None where it was not measured there)."""

    family: str
    density: float
    epochs: int
    validation: Summary
    test: Summary | None


def sweeps(series: Sequence[Series]) -> list[Sweep]:
    """Return the techniques that were run with more than one retraining time, all else equal."""
    groups: dict[str, dict[int, Series]] = {}
    names: dict[str, str] = {}
    for one in series:
        t = one.retrain_epochs
        if t is None or one.is_control:
            continue
        key = json.dumps({**one.cell, "technique": one.family}, sort_keys=True)
        groups.setdefault(key, {}).setdefault(t, one)
        names[key] = one.label.replace(one.technique, one.family)
    return [Sweep(names[key], tuple(sorted(by_t.items()))) for key, by_t in groups.items() if len(by_t) > 1]


def choose(sweep: Sweep, density: float, metric: str, higher_is_better: bool = True) -> Choice:
    """Choose t by the median validation metric over seeds (as Renda et al. 2020); of equal ones, the shortest.

    The test metric is given where the chosen runs end at ``density``: only there is it measured. Raises ``ValueError``
    where no t reached the density.
    """
    found = sweep.at(density)
    if not found:
        raise ValueError(f"no retraining time of {sweep.family} reached density {density:g}")
    sign = 1 if higher_is_better else -1
    t = max(found, key=lambda t: (sign * found[t].median, -t))
    chosen = dict(sweep.series)[t]
    tests = chosen.tests(metric, density)
    return Choice(sweep.family, density, t, found[t], summarize(tests.values()) if tests else None)


def safe_zone(sweep: Sweep, density: float, higher_is_better: bool = True) -> tuple[int, int]:
    """Return the range of neighbouring t around the best one that are no worse than the best one's worst seed, by the median.

    Within it the choice of t is no more than a choice of seed. Raises ``ValueError`` where no t reached the density.
    """
    found = sweep.at(density)
    if not found:
        raise ValueError(f"no retraining time of {sweep.family} reached density {density:g}")
    sign = 1 if higher_is_better else -1
    tried = sorted(found)
    best = max(tried, key=lambda t: (sign * found[t].median, -t))
    bound = found[best].smallest if higher_is_better else found[best].largest
    safe = [sign * (found[t].median - bound) >= 0 for t in tried]
    low = high = tried.index(best)
    while low > 0 and safe[low - 1]:
        low -= 1
    while high + 1 < len(tried) and safe[high + 1]:
        high += 1
    return tried[low], tried[high]
