"""The sections in words and tables: what was found, which runs there are, where they come from, what not to conclude."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rewound.experiment.findings import caution
from rewound.experiment.series import common_densities
from rewound.experiment.statistics import density_of, milestones
from rewound.experiment.summary import summarize
from rewound.experiment.table import counted, number, ratio
from rewound.experiment.verdict import verdict
from rewound.report.parts import Cell, Section, Table
from rewound.report.view import View, kept_rounds


def verdict_section(study: Mapping[str, Any], views: Sequence[View]) -> Section:
    """Return the answer: sentences with their uncertainty, and the tables they rest on, one a part."""
    says = verdict(study) or ["No run has finished yet, so there is nothing to say."]
    tables = tuple(_main_table(view).tagged(view.tag) for view in views if view.series)
    return Section("verdict", "What was found", tuple(says), tables=tables)


def runs_section(view: View) -> Section:
    """Return every run with its state: what finished, what failed and why, what still waits."""
    states = Counter(run["status"] for run in view.study["runs"])
    total = counted(len(view.study["runs"]), "run")
    says = [f"{total}: {', '.join(f'{count} {state}' for state, count in states.items())}."]
    errors = Counter(run["error"] for run in view.study["runs"] if run.get("error"))
    says += [f"{counted(count, 'run')} failed: {error}" for error, count in errors.most_common(5)]
    rows = tuple(_run_row(view, run) for run in view.study["runs"])
    head = (
        "run",
        "state",
        "density at the end",
        f"validation {view.metric}",
        f"test {view.metric}",
        "epochs",
        "seconds",
    )
    return Section("runs", "Runs", tuple(says), tables=(Table("runs", "Every run", head, rows),))


def provenance_section(study: Mapping[str, Any]) -> Section:
    """Return what one needs to do it again: recipe, command, versions, machine, threads, fingerprint of the data."""
    rows: list[tuple[Cell, ...]] = [("experiment", study["name"]), ("task", study["task"]["name"])]
    for title in ("machine", "versions", "data"):
        for key, value in (study.get(title) or {}).items():
            rows.append((f"{title}: {key}", value if isinstance(value, str) else json.dumps(value)))
    keys = sorted({str(run["key"]) for run in study["runs"] if run.get("key")})
    rows.append(
        ("keys", f"{counted(len(keys), 'key')}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}")
    )
    rows.append(("page made with", f"rewound {_version()}, Python {platform.python_version()}"))
    texts = [("Command to repeat it", study.get("command") or ""), ("Recipe", study.get("recipe") or "")]
    return Section(
        "provenance", "Where it comes from",
        tables=(Table("provenance", "Provenance", ("what", "value"), tuple(rows)),),
        texts=tuple((title, text) for title, text in texts if text.strip()),
    )  # fmt: skip


def caveats_section(view: View, absent: Sequence[str]) -> Section:
    """Return what a reader should not conclude, and which sections had nothing to show."""
    says = [
        "All choices are made on validation; the test split was read once, on the network at the end of each run.",
        "Original runs, medians and ranges are of the seeds shown; other seeds, data and networks may differ.",
        *caution({"task": view.study["task"]}),
    ]
    pruned = view.pruned.values()
    if pruned and min(len(set(one.seeds)) for one in pruned) < 3:
        says.append(
            "Fewer than three seeds: a range of two, or of one, says little of what another seed would bring."
        )
    if view.what == "units":
        says.append("Densities count units; of the parameters more or fewer go with them.")
    collapsed = [
        run
        for one in view.series.values()
        for run in one.runs
        if any(r.get("collapsed") for r in run["rounds"])
    ]
    if collapsed:
        first = max(density_of(r) for run in collapsed for r in run["rounds"] if r.get("collapsed"))
        says.append(
            f"In {counted(len(collapsed), 'run')} nothing survived of some tensor (layer collapse), from density {first:.3g} on; "
            "other allocations (uniform, erk, lamp) spread the pruning more evenly."
        )
    stopped = sum(bool(run.get("stopped")) for one in view.series.values() for run in one.runs)
    if stopped:
        says.append(f"{counted(stopped, 'run')} stopped by a metric: the round that fell short is left out.")
    unfinished = sum(run["status"] in ("running", "waiting") for run in view.study["runs"])
    if unfinished:
        says.append(f"{counted(unfinished, 'run')} not finished yet: the numbers will change.")
    if absent:
        says.append(f"Nothing to show of: {'; '.join(absent)}.")
    return Section("caveats", "What not to conclude", tuple(says))


def _main_table(view: View) -> Table:
    """A row a series: median and range at a few densities, the test metric, and what a seed cost."""
    densities = [d for d in milestones(common_densities(list(view.series.values())), 5) if d < 1]
    rows = []
    for one in view.series.values():
        at = [one.summary(density) for density in (1.0, *densities)]
        tests = one.tests(view.metric)
        epochs = one.costs("epochs")
        rows.append(
            (
                one.label,
                len(set(one.seeds)),
                *(None if s is None else _spread(s) for s in at),
                _spread(summarize(tests.values())) if tests else None,
                summarize(epochs.values()).median if epochs else None,
            )
        )
    heads = (f"at {d:.3g} ({ratio(d)})" for d in densities)
    head = ("series", "seeds", "original", *heads, "test, at the end", "epochs of search")
    part = f"{view.name}: validation" if view.name else "Validation"
    caption = f"{part} {view.metric}, median over seeds (smallest-largest)"
    return Table("results", caption, head, tuple(rows))


def _spread(summary: Any) -> str:
    if summary.smallest == summary.largest:
        return number(summary.median)
    dash = "-" if summary.smallest >= 0 else " to "
    return f"{number(summary.median)} ({number(summary.smallest)}{dash}{number(summary.largest)})"


def _run_row(view: View, run: Mapping[str, Any]) -> tuple[Cell, ...]:
    rounds = kept_rounds(run) if run.get("rounds") else []
    last: Mapping[str, Any] = rounds[-1] if rounds else {}
    return (
        run.get("label") or json.dumps(run["cell"]),
        run["status"],
        density_of(last) if last else None,
        last.get("metrics", {}).get(view.metric),
        (run.get("test") or {}).get(view.metric),
        (run.get("search_cost") or {}).get("epochs"),
        run.get("seconds"),
    )


def _version() -> str:
    from importlib.metadata import version

    return version("rewound")
