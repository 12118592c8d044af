"""Loss curves: what was logged in every epoch, round after round, of each series' first replicate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewound.report.figures.rates import folder_of
from rewound.report.figures.strips import MOST, Strip, draw_strips
from rewound.report.parts import Panel, Section, Table
from rewound.report.view import View, replicate_name

Log = list[list[dict[str, float]]]  # round -> epoch -> what was logged


def losses_section(view: View) -> Section | None:
    """Return the section, or None where no run kept its log."""
    logs = {k: log for k, one in list(view.series.items())[:MOST] if (log := _log(view, one.runs[0]))}
    names = _names(logs, view.metric)
    strips = [_strip(view, k, log, names) for k, log in logs.items()]
    strips = [strip for strip in strips if strip.curves]
    if not strips:
        return None
    values = [v for strip in strips for _, y in strip.curves.values() for v in y if v == v]
    log_scale = min(values) > 0 and max(values) / min(values) > 20
    told = " and ".join(f"{name} ({how})" for name, how in zip(names, ("solid", "dashed", "dotted")))
    says = [f"{told}, epoch by epoch; dotted lines part the rounds."]
    if len(view.series) > MOST:
        says.append(f"The first {MOST} of {len(view.series)} series are drawn.")
    figure = draw_strips(
        f"losses{view.tag}", strips, names[0] if len(names) == 1 else "loss", log_scale, "Loss by epoch",
        f"{told}, of {len(strips)} series. Every epoch's numbers can be downloaded below.",
    )  # fmt: skip
    rows = tuple(
        (
            view.series[k].label,
            replicate_name(view.series[k].runs[0]),
            index,
            epoch,
            *(entry.get(n) for n in names),
        )
        for k, log in logs.items()
        for index, entries in enumerate(log)
        for epoch, entry in enumerate(entries)
    )
    head = ("series", "replicate", "round", "epoch of the round", *names)
    table = Table("losses", "What was logged, epoch by epoch", head, rows, shown=False)
    return Section("losses", "Loss curves", tuple(says), (Panel("", figure, table),))


def _log(view: View, run: Mapping[str, Any]) -> Log:
    """Return a run's log; it is with the rounds, or in the folder of its run."""
    rounds: Sequence[Mapping[str, Any]] = run["rounds"]
    if not any(done.get("log") for done in rounds):
        folder = folder_of(view, run)
        file = None if folder is None else folder / "result.json"
        if file is None or not file.is_file():
            return []
        rounds = json.loads(file.read_text(encoding="utf-8")).get("rounds", [])
    log = [[dict(entry) for entry in done.get("log") or []] for done in rounds]
    return log if any(log) else []


def _names(logs: Mapping[int, Log], metric: str) -> list[str]:
    """What is drawn: everything that is called a loss, three at most; where nothing is, the metric."""
    found = dict.fromkeys(
        name for log in logs.values() for entries in log for entry in entries for name in entry
    )
    return [name for name in found if "loss" in name.lower()][:3] or [metric]


def _strip(view: View, k: int, log: Log, names: Sequence[str]) -> Strip:
    one = view.series[k]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    starts: list[float] = []
    done = 0
    for entries in log:
        starts.append(done)
        for entry in entries:
            done += 1
            for name in names:
                value = entry.get(name)
                if value is not None and math.isfinite(value):
                    x, y = curves.setdefault(name, ([], []))
                    x.append(done)
                    y.append(value)
        for x, y in curves.values():  # a line runs on where rounds are one training, an epoch each
            if len(entries) > 1:
                x.append(done)
                y.append(math.nan)
    ordered = {name: curves[name] for name in names if name in curves}
    return Strip(k, f"{one.label}, {replicate_name(one.runs[0])}", dict(ordered), tuple(starts))
