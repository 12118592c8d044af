"""A study as the figures see it: its series in one order, with what all of them need beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewound.experiment.series import Series, Study, comparable, dense_band, series_of
from rewound.experiment.summary import Summary


@dataclass(frozen=True)
class View:
    """``series``: by number, which is theirs on the whole page; ``band``: the original runs over seeds, or None. ``name`` is
    that of a part of a study, and ``tag`` makes names of its figures unique on the page; both are empty for a whole one."""

    study: Study
    series: Mapping[int, Series]
    metric: str
    higher: bool
    band: Summary | None
    name: str = ""
    tag: str = ""

    @staticmethod
    def of(study: Study, first: int = 0, name: str = "", tag: str = "") -> View:
        """Look at a study whose series are numbered from ``first``."""
        metric, series = study["metric"], dict(enumerate(series_of(study), first))
        return View(study, series, metric["name"], metric["higher_is_better"], dense_band(study), name, tag)

    @staticmethod
    def parts_of(study: Study) -> list[View]:
        """Look at the parts of a study whose runs may be compared: of one task, pruned in one pattern."""
        found: list[View] = []
        for place, (name, part) in enumerate(comparable(study), 1):
            first = sum(len(view.series) for view in found)
            found.append(View.of(part, first, name, f"-{place}" if place > 1 else ""))
        return found

    @property
    def what(self) -> str:
        """What densities count: weights, or units."""
        rounds = (done for one in self.series.values() for run in one.runs for done in run["rounds"])
        return "units" if any("unit_density" in done for done in rounds) else "weights"

    @property
    def names(self) -> dict[int, str]:
        """Number -> label, with the name of the part before it."""
        before = f"{self.name}: " if self.name else ""
        return {k: before + one.label for k, one in self.series.items()}

    @property
    def pruned(self) -> dict[int, Series]:
        """Number -> series, of those that prune; the others are controls."""
        return {k: one for k, one in self.series.items() if not one.is_control}


@dataclass(frozen=True)
class Unit:
    """How a difference of the metric is told: of fractions, in percentage points."""

    fraction: bool
    factor: float
    points: str  # what an axis says

    @staticmethod
    def of(view: View) -> Unit:
        """Return it; a metric whose values all lie between -1 and 1 is a fraction."""
        values = [v for one in view.series.values() for seeds in one.points.values() for v in seeds.values()]
        fraction = bool(values) and max(map(abs, values)) <= 1
        return Unit(fraction, 100.0 if fraction else 1.0, " (percentage points)" if fraction else "")


def replicate_name(run: Mapping[str, Any]) -> str:
    """Return how a run is told from its fellows in a series."""
    return f"seed {run['cell'].get('seed', 0)}"


def kept_rounds(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rounds up to the one whose network was kept."""
    rounds = run["rounds"]
    return list(rounds[: run.get("best", len(rounds) - 1) + 1])
