"""A study's runs as series: what is drawn as one line, averaged over its seeds, and compared.

A study is the plain dict that ``read_study`` gathers from folders. A series are the runs that agree in every key of their
``cell`` but the seed, and but ``until`` where a run prunes once: each such run gives one point, at its last density.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewound.experiment.statistics import curve
from rewound.experiment.summary import Summary, summarize

Study = Mapping[str, Any]
Run = Mapping[str, Any]
_SPEAKS_FOR_ITSELF = (
    "technique",
    "criterion",
    "pattern",
    "task",
    "task_options.model",
)  # their values need no name before them
_OF_PRUNING = ("criterion", "pattern", "allocation")  # nothing, where nothing is pruned
_TIME = re.compile(r"\d+ ?(ep|epochs?)")


@dataclass(frozen=True)
class Series:
    """One line of a picture. ``points``: density -> seed -> validation metric after retraining, densities falling.

    ``label`` names what sets it apart from the study's other series. Density 1 is the original run.
    """

    label: str
    cell: Mapping[str, Any]
    runs: tuple[Run, ...]
    points: Mapping[float, Mapping[int, float]]

    @property
    def technique(self) -> str:
        """The technique as the recipe spells it."""
        return str(self.cell.get("technique", ""))

    @property
    def family(self) -> str:
        """The technique without its retraining time."""
        name, _, options = self.technique.partition(":")
        kept = [option for option in options.split(",") if option and not _TIME.fullmatch(option.strip())]
        return name + (":" + ",".join(kept) if kept else "")

    @property
    def seeds(self) -> list[int]:
        """The seeds of its finished runs, rising."""
        return sorted(_seed(run) for run in self.runs)

    @property
    def is_control(self) -> bool:
        """Whether it prunes nothing: rounds of retraining at density 1."""
        return self.cell.get("rate") == 0

    @property
    def retrain_epochs(self) -> int | None:
        """t, in epochs a round, as it was trained; None before the first round."""
        return next((r["epochs"] for run in self.runs for r in run["rounds"] if r["index"] == 1), None)

    def summary(self, density: float) -> Summary | None:
        """Return what the seeds say at ``density``; None where none of them was there."""
        values = self.points.get(density)
        return summarize(values.values()) if values else None

    def tests(self, metric: str, density: float | None = None) -> dict[int, float]:
        """Return seed -> the metric on the test split of the runs that end at ``density``, or at the series' last.

        Test is read once a run, for the network at its end: a run has none for the densities it came through.
        """
        ends = {k: round(_end(run), 6) for k, run in enumerate(self.runs)}
        wanted = min(ends.values(), default=1.0) if density is None else round(density, 6)
        found = {
            _seed(run): (run.get("test") or {}).get(metric)
            for k, run in enumerate(self.runs)
            if ends[k] == wanted
        }
        return {s: v for s, v in sorted(found.items()) if v is not None and math.isfinite(v)}

    def costs(self, key: str) -> dict[int, float]:
        """Return seed -> search cost of all rounds, those discarded included: "epochs", "steps", "flops", "sparse_flops",
        "seconds". Runs that prune once to several densities are added up: so much was trained to draw the line."""
        found: dict[int, float] = {}
        for run in self.runs:
            value = (run.get("search_cost") or {}).get(key, run.get(key))
            if value is not None:
                found[_seed(run)] = found.get(_seed(run), 0) + value
        return found


def series_of(study: Study) -> list[Series]:
    """Return the series of a study's finished runs, in the order of the runs; a run that is there twice counts once."""
    metric = study["metric"]["name"]
    groups: dict[str, dict[str, Run]] = {}
    for run in study["runs"]:
        if run["status"] == "finished":
            group = groups.setdefault(_spelled(_fixed(run["cell"])), {})
            group.setdefault(_spelled(dict(run["cell"])), run)
    cells = [_fixed(next(iter(group.values()))["cell"]) for group in groups.values()]
    labels = _labels([_as_control(cell) for cell in cells])
    return [
        Series(label, cell, tuple(group.values()), _points(group.values(), metric))
        for label, cell, group in zip(labels, cells, groups.values())
    ]


def comparable(study: Study) -> list[tuple[str, Study]]:
    """Return (name, study) of the parts whose runs may be compared: one task with its options, and one pattern, since a density
    of channels is no density of weights. What prunes nothing belongs to every part of its task. The name is empty where there
    is one part.
    """
    groups: dict[str, list[Run]] = {}
    cells: dict[str, dict[str, Any]] = {}
    for run in study["runs"]:
        if run["cell"].get("rate") != 0:
            cell = {key: run["cell"].get(key) for key in ("task", "task_options", "pattern")}
            cells.setdefault(_spelled(cell), cell)
            groups.setdefault(_spelled(cell), []).append(run)
    for run in study["runs"]:
        if run["cell"].get("rate") == 0:
            cell = {key: run["cell"].get(key) for key in ("task", "task_options")}
            fitting = [key for key, one in cells.items() if cell.items() <= one.items()]
            for key in fitting:
                groups[key].append(run)
            if not fitting:
                cells.setdefault(_spelled(cell), cell)
                groups.setdefault(_spelled(cell), []).append(run)
    names = _labels(list(cells.values()), always=()) if len(cells) > 1 else [""]
    return [(name, {**study, "runs": groups[key]}) for name, key in zip(names, cells)]


def common_densities(series: Sequence[Series]) -> list[float]:
    """Return the densities that every seed of every series reached, falling; controls, which prune nothing, left out."""
    reached = [set(_reached_by_all(one)) for one in series if not one.is_control]
    return sorted(set.intersection(*reached), reverse=True) if reached else []


def dense_band(study: Study) -> Summary | None:
    """Return the original runs' metric over seeds (each seed once: techniques share them), or None.

    Controls count only where there is nothing else: a dense control may have been trained for longer.
    """
    found: dict[int, float] = {}
    for run in sorted(study["runs"], key=lambda run: run["cell"].get("rate") == 0):
        if run["status"] == "finished" and not run.get("pretrained"):
            value = curve(run, study["metric"]["name"]).get(1.0)
            if value is not None and not (found and run["cell"].get("rate") == 0):
                found.setdefault(_seed(run), value)
    return summarize(found.values()) if found else None


def _fixed(cell: Mapping[str, Any]) -> dict[str, Any]:
    free = {"seed", "until"} if cell.get("rate") == "one-shot" else {"seed"}
    return {key: value for key, value in cell.items() if key not in free}


def _as_control(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cell of a dense or cyclic control (:mod:`rewound.experiment.controls`) as people call it, any other as it is."""
    name, colon, time = str(cell.get("technique")).partition(":")
    if cell.get("rate") != 0 or name != "lr-rewinding":
        return dict(cell)
    named = {key: value for key, value in cell.items() if key not in ("rate", *_OF_PRUNING)}
    if cell.get("until") != "0 rounds":
        return {**named, "technique": f"dense, cyclic{colon}{time}"}
    return {**{key: value for key, value in named.items() if key != "until"}, "technique": "dense"}


def _seed(run: Run) -> int:
    return int(run["cell"].get("seed", 0))


def _end(run: Run) -> float:
    rounds = run["rounds"]
    done = rounds[run.get("best", len(rounds) - 1)]
    return float(done.get("unit_density") or done["density"])


def _points(runs: Iterable[Run], metric: str) -> dict[float, dict[int, float]]:
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        for density, value in curve(run, metric).items():
            found.setdefault(density, {}).setdefault(_seed(run), value)
    return {density: dict(sorted(found[density].items())) for density in sorted(found, reverse=True)}


def _reached_by_all(series: Series) -> list[float]:
    everyone = set(series.seeds)
    return [density for density, values in series.points.items() if set(values) == everyone]


def _labels(cells: Sequence[Mapping[str, Any]], always: Sequence[str] = ("technique",)) -> list[str]:
    """Return a name for each cell from the keys in which they differ, and from those that are named always.

    Beside a key that is always there, what more than half of the cells have goes without saying.
    """
    cells = [dict(_flat(cell)) for cell in cells]
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    keys = [k for k in keys if k in always or len({_spelled(cell.get(k)) for cell in cells}) > 1]
    keys = [*always, *(key for key in keys if key not in always)]
    usual = {key: value for key in keys if key not in always and always and (value := _usual(cells, key))}
    return [
        ", ".join(
            part
            for key in keys
            if key in cell and usual.get(key) != _spelled(cell[key]) and (part := _part(key, cell[key]))
        )
        for cell in cells
    ]


def _usual(cells: Sequence[Mapping[str, Any]], key: str) -> str | None:
    """Return what more than half of the cells have under ``key``, spelled."""
    (value, count), *_ = Counter(_spelled(cell.get(key)) for cell in cells).most_common(1)
    return value if 2 * count > len(cells) else None


def _flat(cell: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in cell.items():
        if isinstance(value, Mapping) and key in ("task_options", "scope"):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value


def _part(key: str, value: Any) -> str:
    if value is None:
        return "" if key in _SPEAKS_FOR_ITSELF else f"{key.rpartition('.')[2]} as the task has it"
    if key == "rate" and value in (0, "one-shot"):
        return "nothing pruned" if value == 0 else "one-shot"
    text = (
        f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )
    return text if key in _SPEAKS_FOR_ITSELF else f"{key.rpartition('.')[2]} {text}"


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
