"""A study as the figures see it: its series in one order, with what all of them need beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewound.experiment.series import Series, Study, dense_band, series_of
from rewound.experiment.summary import Summary


@dataclass(frozen=True)
class View:
    """``band``: the original runs over seeds, or None. A series' number is its place in ``series``."""

    study: Study
    series: tuple[Series, ...]
    metric: str
    higher: bool
    band: Summary | None

    @staticmethod
    def of(study: Study) -> View:
        """Look at a study."""
        metric = study["metric"]
        return View(
            study, tuple(series_of(study)), metric["name"], metric["higher_is_better"], dense_band(study)
        )

    @property
    def what(self) -> str:
        """What densities count: weights, or units."""
        rounds = (done for one in self.series for run in one.runs for done in run["rounds"])
        return "units" if any("unit_density" in done for done in rounds) else "weights"

    @property
    def names(self) -> dict[int, str]:
        """Number -> label."""
        return {k: one.label for k, one in enumerate(self.series)}

    @property
    def pruned(self) -> dict[int, Series]:
        """Number -> series, of those that prune; the others are controls."""
        return {k: one for k, one in enumerate(self.series) if not one.is_control}


@dataclass(frozen=True)
class Unit:
    """How a difference of the metric is told: of fractions, in percentage points."""

    fraction: bool
    factor: float
    points: str  # what an axis says

    @staticmethod
    def of(view: View) -> Unit:
        """Return it; a metric whose values all lie between -1 and 1 is a fraction."""
        values = [v for one in view.series for seeds in one.points.values() for v in seeds.values()]
        fraction = bool(values) and max(map(abs, values)) <= 1
        return Unit(fraction, 100.0 if fraction else 1.0, " (percentage points)" if fraction else "")


def replicate_name(run: Mapping[str, Any]) -> str:
    """Return how a run is told from its fellows in a series."""
    return f"seed {run['cell'].get('seed', 0)}"


def kept_rounds(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rounds up to the one whose network was kept."""
    rounds = run["rounds"]
    return list(rounds[: run.get("best", len(rounds) - 1) + 1])
