"""The metric against search cost: what had been trained when a network of that quality was there, in four currencies."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from rewound.experiment.series import Series
from rewound.experiment.statistics import curve, density_of
from rewound.experiment.table import number
from rewound.report.figures.canvas import INK, ORIGINAL, SHADE, Canvas
from rewound.report.figures.scales import most_of, plain_numbers
from rewound.report.parts import Panel, Section, Table
from rewound.report.view import View, kept_rounds

# key of a round -> (what a switch calls it, what an axis does)
CURRENCIES = {
    "epochs": ("epochs", "epochs trained until then"),
    "steps": ("steps", "optimizer steps until then"),
    "flops": ("FLOPs, dense", "training FLOPs until then, zeros counted"),
    "sparse_flops": ("FLOPs, sparse", "training FLOPs of surviving weights"),
    "seconds": ("seconds", "seconds of wall-clock time until then"),
}
Points = list[tuple[float, float, float]]  # cost, metric, density


def cost_section(view: View) -> Section | None:
    """Return the section, or None where no cost was counted."""
    panels = [panel for key in CURRENCIES if (panel := _panel(view, key)) is not None]
    if not panels:
        return None
    says = [
        "The cost of a network is everything trained until it was there: the original run and all rounds before it. "
        "Medians over seeds; density falls along a line. FLOPs are two a multiply-add."
    ]
    if any(
        run.get("search_cost", {}).get("shared_epochs") for one in view.series.values() for run in one.runs
    ):
        says.append("Original runs that several techniques share are charged to each of them in full.")
    return Section(
        "cost", f"{view.metric.capitalize()} against search cost", tuple(says), tuple(panels), "Cost in",
        tables=(_totals(view),),
    )  # fmt: skip


def _panel(view: View, key: str) -> Panel | None:
    curves = {k: points for k, one in view.pruned.items() if (points := _points(one, view.metric, key))}
    if not curves:
        return None
    name, axis = CURRENCIES[key]
    canvas = Canvas(f"cost-{key.replace('_', '-')}{view.tag}")
    axes = canvas.axes[0]
    if view.band is not None:
        axes.axhspan(view.band.smallest, view.band.largest, color=SHADE, linewidth=0, zorder=0)
        axes.axhline(view.band.median, color=ORIGINAL, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for k, points in curves.items():
        tips = [f"{view.series[k].label}, density {d:.3g}: {number(v)} after {c:,.4g}" for c, v, d in points]
        canvas.line(axes, k, [c for c, _, _ in points], [v for _, v, _ in points], tips)
    axes.set_xlim(left=0)
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    most_of(axes, [value for points in curves.values() for _, value, _ in points])
    axes.set_xlabel(axis, color=INK)
    axes.set_ylabel(f"validation {view.metric}", color=INK)
    canvas.legend({k: view.series[k].label for k in curves})
    title = f"Validation {view.metric} against search cost in {name}"
    figure = canvas.finish(title, f"{len(curves)} series. All numbers are in the table below.")
    rows = tuple((view.series[k].label, d, c, v) for k, points in curves.items() for c, v, d in points)
    head = ("series", "density", name, f"median {view.metric}")
    return Panel(name, figure, Table(f"cost-{key.replace('_', '-')}", title, head, rows))


def _points(one: Series, metric: str, key: str) -> Points:
    """Return medians over seeds, density by density."""
    found: dict[float, list[tuple[float, float]]] = {}
    for run in one.runs:
        for density, point in _of_run(run, metric, key).items():
            found.setdefault(density, []).append(point)
    return [
        (median(cost for cost, _ in points), median(value for _, value in points), density)
        for density, points in sorted(found.items(), reverse=True)
    ]


def _of_run(run: Mapping[str, Any], metric: str, key: str) -> dict[float, tuple[float, float]]:
    """Return density -> (cost until then, metric) of a run, at the densities of its curve."""
    points = curve(run, metric)
    found: dict[float, tuple[float, float]] = {}
    total = 0.0
    for done in kept_rounds(run):
        if done.get(key) is None:
            break
        total += done[key]
        density = round(density_of(done), 6)
        if density in points and not done.get("partial"):  # of gradual pruning: not yet a network of its own
            found.setdefault(density, (total, points[density]))
    whole = (run.get("search_cost") or {}).get(key, run.get(key))
    if not found and points and whole is not None:  # known of all rounds together only
        found[min(points)] = (whole, points[min(points)])
    return found


def _totals(view: View) -> Table:
    """What each series cost a seed, discarded rounds included."""
    keys = [key for key in CURRENCIES if any(one.costs(key) for one in view.series.values())]
    rows = []
    for one in view.series.values():
        costs = (one.costs(key).values() for key in keys)
        rows.append((one.label, len(one.seeds), *(median(c) if c else None for c in costs)))
    head = ("series", "runs", *(CURRENCIES[key][0] for key in keys))
    caption = "Search cost of a seed, median: all rounds, those discarded and the original run included"
    return Table("search-cost", caption, head, tuple(rows))
