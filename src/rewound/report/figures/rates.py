"""The learning rate that was really used, as the runs' traces have it: no schedule's formula is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewound.report.figures.strips import MOST, Strip, draw_strips
from rewound.report.parts import Cell, Panel, Section, Table
from rewound.report.view import View, replicate_name

_ROUNDS = 4  # the original run and three retrainings: the rest repeat them
_POINTS = 600  # of a curve


def rates_section(view: View) -> Section | None:
    """Return the section, or None where no run left a trace."""
    strips: list[Strip] = []
    rows: list[tuple[Cell, ...]] = []
    groups = 1
    for k, one in list(view.series.items())[:MOST]:
        run = one.runs[0]
        traces = _traces(view, run)
        if not traces:
            continue
        x: list[float] = []
        y: list[float] = []
        starts: list[float] = []
        epochs = 0.0
        for index, trace in traces.items():
            groups = max(groups, trace.values.shape[1])
            lr = trace.lr[:, 0]
            starts.append(epochs)
            rows.append(
                (
                    one.label,
                    replicate_name(run),
                    index,
                    trace.steps,
                    float(lr[0]),
                    float(lr.max()),
                    float(lr[-1]),
                )
            )
            for step in _telling(lr):
                x.append(epochs + trace.epochs * step / trace.steps)
                y.append(float(lr[step]))
            epochs += trace.epochs
        strips.append(Strip(k, f"{one.label}, {replicate_name(run)}", {"lr": (x, y)}, tuple(starts)))
    if not strips:
        return None
    low = min(v for strip in strips for v in strip.curves["lr"][1])
    high = max(v for strip in strips for v in strip.curves["lr"][1])
    figure = draw_strips(
        f"rates{view.tag}", strips, "lr", low > 0 and high / low > 20, "Learning rate by epoch",
        "Learning rates that optimizer steps really used. First, largest and last of each round are in the table below.",
    )  # fmt: skip
    says = [
        "What the optimizer's steps really used: the original run, then up to three retrainings, parted by dotted lines."
    ]
    if groups > 1:
        says.append("Of several parameter groups the first is drawn.")
    if len(view.series) > MOST:
        says.append(f"The first {MOST} of {len(view.series)} series are drawn.")
    head = ("series", "replicate", "round", "steps", "first lr", "largest lr", "last lr")
    table = Table("learning-rates", "Learning rates used, by round", head, tuple(rows))
    return Section("rates", "Learning rate as it was used", tuple(says), (Panel("", figure, table),))


def folder_of(view: View, run: Mapping[str, Any]) -> Path | None:
    """Return a run's folder, or None where it is gone."""
    if not run.get("folder"):
        return None
    places = Path(run["folder"]), Path(view.study.get("folder") or ".") / run["folder"]
    return next((place for place in places if place.is_dir()), None)


def _traces(view: View, run: Mapping[str, Any]) -> dict[int, Any]:
    """Return round -> Trace of a run's first rounds, those that trained."""
    import torch

    from rewound.trace import Trace

    folder = folder_of(view, run)
    found: dict[int, Any] = {}
    if folder is None:
        return found
    whole = 0
    for index, done in enumerate(run["rounds"]):
        whole += not done.get("partial")  # rounds in the middle of gradual pruning are one training
        if whole > _ROUNDS:
            break
        files = sorted((folder / "rounds" / f"{index:02d}").glob("trace-*.pt"))
        if files:
            trace = Trace.from_plain(torch.load(files[-1], weights_only=True))
            if trace.steps:
                found[index] = trace
    return found


def _telling(lr: Any) -> list[int]:
    """Return the steps that draw the curve: both ends of every plateau, thinned out where that is too many."""
    last = len(lr) - 1
    steps = [s for s in range(last + 1) if s in (0, last) or lr[s] != lr[s - 1] or lr[s] != lr[s + 1]]
    every = -(-len(steps) // _POINTS)
    return sorted({*steps[::every], last})
