"""The metric against the retraining budget t: a technique's runs that differ only in t, with the paper's safe zone."""

from __future__ import annotations

from typing import Any

from rewound.experiment.retraining_time import PAPER_SAFE_ZONE, Sweep, choose, safe_zone, sweeps
from rewound.experiment.statistics import milestones
from rewound.experiment.table import number
from rewound.report.figures.canvas import FAINT, INK, ORIGINAL, SHADE, Canvas
from rewound.report.figures.scales import most_of, plain_numbers
from rewound.report.parts import Panel, Section, Table
from rewound.report.view import View


def budget_section(view: View) -> Section | None:
    """Return the section, or None where no technique was run with two retraining times."""
    found = sweeps(list(view.series.values()))
    densities = _shared(found)
    if not densities:
        return None
    low, high = PAPER_SAFE_ZONE
    says = (
        "Each line is one technique, retrained for t epochs in every round; the shaded part is where the paper found rewinding "
        f"safe, t from {low:g} T to {high:g} T (T: epochs of the original run).",
        *(_chosen(view, sweep, densities[0]) for sweep in found if sweep.at(densities[0])),
    )
    panels = tuple(
        Panel(f"density {density:.3g}", _figure(view, found, density, n), _table(view, found, density))
        for n, density in enumerate(densities)
    )
    return Section("budget", f"{view.metric.capitalize()} against retraining time", says, panels, "At")


def _chosen(view: View, sweep: Sweep, density: float) -> str:
    """What validation chooses, and the range in which that is a choice of seed rather than of t."""
    choice = choose(sweep, density, view.metric, view.higher)
    low, high = safe_zone(sweep, density, view.higher)
    test = f"; test {number(choice.test.median)}" if choice.test else ""
    zone = f"; t from {low} to {high} is no worse than its worst seed" if low < high else ""
    return (
        f"At density {density:.3g} validation chooses t = {choice.epochs} for {sweep.family} "
        f"({number(choice.validation.median)}{test}){zone}."
    )


def _shared(found: list[Sweep]) -> list[float]:
    """The densities at which a technique has all of its t, a few of them, the sparsest first."""
    densities = {density for sweep in found for density in sweep.densities}
    return sorted(milestones(sorted(densities, reverse=True), 5))


def _figure(view: View, found: list[Sweep], density: float, n: int) -> Any:
    canvas = Canvas(f"budget-{n}{view.tag}")
    axes = canvas.axes[0]
    length = _original_length(view)
    if length:
        axes.axvspan(*(part * length for part in PAPER_SAFE_ZONE), color=SHADE, linewidth=0, zorder=0)
    if view.band is not None:
        axes.axhline(view.band.median, color=ORIGINAL, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    numbers = {id(one): k for k, one in view.pruned.items()}
    first: dict[int, str] = {}
    drawn: list[float] = []
    among = sum(len(sweep.series[0][1].seeds) for sweep in found)
    for sweep in found:
        name, here = sweep.family, {t: one for t, one in sweep.series if density in one.points}
        if not here:
            continue
        k = numbers[id(sweep.series[0][1])]
        first[k] = name
        seeds = {seed for one in here.values() for seed in one.points[density]}
        lines = [
            [(t, one.points[density][s]) for t, one in here.items() if s in one.points[density]]
            for s in sorted(seeds)
        ]
        canvas.threads(axes, k, lines, among)
        medians = {t: summary.median for t, summary in sweep.at(density).items()}
        tips = [f"{name}, t = {t}: {view.metric} {number(v)}" for t, v in medians.items()]
        canvas.line(axes, k, list(medians), list(medians.values()), tips)
        drawn += medians.values()
    axes.set_xlim(left=0)
    plain_numbers(axes.yaxis)
    most_of(axes, drawn)
    axes.set_xlabel("t, epochs of retraining a round" + (f" (T = {length})" if length else ""), color=INK)
    axes.set_ylabel(f"validation {view.metric}", color=INK)
    if length:
        _share_of_length(axes, length)
    canvas.legend(first)
    title = f"Validation {view.metric} against retraining time at density {density:.3g}"
    return canvas.finish(title, f"{len(first)} techniques. All numbers are in the table below.")


def _share_of_length(axes: Any, length: int) -> None:
    top = axes.secondary_xaxis("top", functions=(lambda t: t / length, lambda share: share * length))
    top.set_xlabel("t / T", color=FAINT, fontsize=11)
    top.tick_params(length=3, labelsize=11, colors=FAINT)
    top.spines["top"].set_visible(False)


def _original_length(view: View) -> int | None:
    """T, where all runs share it."""
    found = {run["rounds"][0]["epochs"] for one in view.series.values() for run in one.runs if run["rounds"]}
    return found.pop() if len(found) == 1 and 0 not in found else None


def _table(view: View, found: list[Sweep], density: float) -> Table:
    rows = []
    for sweep in found:
        for t, s in sweep.at(density).items():
            rows.append((sweep.family, t, s.count, s.median, s.smallest, s.largest, s.mean, s.low, s.high))
    head = ("technique", "t", "seeds", "median", "smallest", "largest", "mean", "95 % low", "95 % high")
    caption = f"Validation {view.metric} by retraining time at density {density:.3g}"
    return Table(f"budget-{density:.3g}", caption, head, tuple(rows))
