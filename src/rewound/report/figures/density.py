"""The metric against density: a line a series, every seed faint, the original runs as a band, published points behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewound.experiment.series import Series
from rewound.experiment.table import number, ratio
from rewound.report.figures.canvas import FAINT, INK, ORIGINAL, PUBLISHED, SHADE, Canvas, colour
from rewound.report.figures.scales import density_axis, most_of, plain_numbers
from rewound.report.overlay import Overlay
from rewound.report.parts import Panel, Section, Table, clean
from rewound.report.view import Unit, View, kept_rounds


def density_section(view: View, overlays: Sequence[Overlay] = ()) -> Section | None:
    """Return the section, or None where nothing was pruned and measured."""
    if not any(density < 1 for one in view.pruned.values() for density in one.points):
        return None
    says = ["Lines are medians over seeds, faint lines single seeds; the band holds the original runs."]
    table = _table(view)
    panels = [Panel(f"validation {view.metric}", _figure(view, overlays, change=False), table)]
    if view.band is not None and not math.isclose(view.band.median, 0):
        panels.append(
            Panel("change against the original run", _figure(view, overlays, change=True), _changes(view))
        )
    if overlays:
        says.append(
            f"Published points lie behind in grey, as {overlays[0].source} gives them: another task or network than "
            "this one's, unless its names say otherwise; the change against the original run compares better than the value."
        )
        panels.reverse()
    return Section(
        "density", f"{view.metric.capitalize()} against density", tuple(says), tuple(panels), "Show"
    )


def _figure(view: View, overlays: Sequence[Overlay], change: bool) -> Any:
    canvas = Canvas(("density-change" if change else "density") + view.tag, height=430)
    axes = canvas.axes[0]
    unit = Unit.of(view)
    base = view.band.median if change and view.band is not None else 0.0
    factor = unit.factor if change else 1.0
    _band(axes, view, base, factor)
    lows, drawn = [], []
    among = sum(len(one.seeds) for one in view.pruned.values())
    for k, one in view.pruned.items():
        lines = [
            [(d, (seeds[seed] - base) * factor) for d, seeds in one.points.items() if seed in seeds]
            for seed in one.seeds
        ]
        canvas.threads(axes, k, [line for line in lines if line], among)
        points = _medians(one)
        values = [(v - base) * factor for v in points.values()]
        canvas.line(axes, k, list(points), values, [_tip(one, d, view.metric) for d in points])
        lows += list(points)
        drawn += values
    for k, value in _controls(view).items():
        axes.axhline(
            (value - base) * factor, gid=f"series:{k}:control", color=colour(k), linestyle=":", linewidth=2
        )
    density_axis(axes, min(lows), view.what)
    _behind(axes, overlays, unit, change)
    most_of(axes, drawn)
    plain_numbers(axes.yaxis)
    label = f"change of validation {view.metric}{unit.points}" if change else f"validation {view.metric}"
    axes.set_ylabel(label, color=INK)
    canvas.legend({k: one.label for k, one in view.series.items()}, _controls(view))
    ends = "; ".join(
        f"{one.label} ends at density {min(one.points):.3g} with {number(_medians(one)[min(one.points)])}"
        for one in list(view.pruned.values())[:10]
        if one.points
    )
    return canvas.finish(f"{label} against density", f"{ends}. All numbers are in the table below.")


def _behind(axes: Any, overlays: Sequence[Overlay], unit: Unit, change: bool) -> None:
    """Draw what was published, with limits that follow one's own; the page shows one overlay at a time."""
    low, high = axes.get_ylim()
    room = high - low
    if overlays:
        low, high = low - 0.35 * room, high + 0.1 * room
    left, right = axes.get_xlim()
    for n, overlay in enumerate(overlays):
        gid = f"overlay:{n}"
        axes.text(
            0.012, 0.02, f"grey: {clean(overlay.label)}", gid=gid, transform=axes.transAxes, color=FAINT, fontsize=11
        )  # fmt: skip
        for line in overlay.lines:
            points = line.changes(unit.fraction) if change else line.values(unit.fraction)
            axes.plot(
                [x for x, _ in points], [y for _, y in points], gid=gid, color=PUBLISHED, linewidth=1.2,
                marker=line.marker, markersize=4, zorder=1,
            )  # fmt: skip
            inside = [
                (x, y) for x, y in points if min(left, right) <= x <= max(left, right) and low < y < high
            ]
            if inside:
                axes.annotate(
                    clean(line.method), inside[-1], gid=gid, xytext=(5, 0), textcoords="offset points",
                    color=FAINT, fontsize=10.5, va="center",
                )  # fmt: skip
    axes.set_ylim(low, high)


def _band(axes: Any, view: View, base: float, factor: float) -> None:
    band = view.band
    if band is None:
        return
    low, high = ((value - base) * factor for value in (band.smallest, band.largest))
    axes.axhspan(low, high, color=SHADE, linewidth=0, zorder=0)
    middle = (band.median - base) * factor
    axes.axhline(middle, color=ORIGINAL, linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def _controls(view: View) -> dict[int, float]:
    """Series number -> median of the metric at the end of a control's run."""
    found: dict[int, float] = {}
    for k, one in view.series.items():
        if one.is_control:
            last = [kept_rounds(run)[-1]["metrics"].get(view.metric) for run in one.runs]
            values = sorted(v for v in last if v is not None and math.isfinite(v))
            if values:
                found[k] = values[len(values) // 2]
    return found


def _medians(one: Series) -> Mapping[float, float]:
    found = {density: one.summary(density) for density in one.points}
    return {density: summary.median for density, summary in found.items() if summary is not None}


def _tip(one: Series, density: float, metric: str) -> str:
    found = one.summary(density)
    assert found is not None
    spread = f" ({number(found.smallest)} to {number(found.largest)}, {found.count} seeds)"
    return f"{one.label}: {metric} {number(found.median)}{spread * (found.count > 1)} at density {density:.3g}, {ratio(density)}"


def _table(view: View) -> Table:
    head = (
        "series",
        "density",
        "ratio",
        "seeds",
        "median",
        "smallest",
        "largest",
        "mean",
        "95 % low",
        "95 % high",
    )
    rows = []
    for one in view.series.values():
        for density in one.points:
            s = one.summary(density)
            assert s is not None
            rows.append(
                (
                    one.label,
                    density,
                    ratio(density),
                    s.count,
                    s.median,
                    s.smallest,
                    s.largest,
                    s.mean,
                    s.low,
                    s.high,
                )
            )
    return Table("density", f"Validation {view.metric} by density, over seeds", head, tuple(rows))


def _changes(view: View) -> Table:
    assert view.band is not None
    unit = Unit.of(view)
    rows = [
        (one.label, density, ratio(density), (median - view.band.median) * unit.factor)
        for one in view.pruned.values()
        for density, median in _medians(one).items()
    ]
    head = ("series", "density", "ratio", f"change{unit.points}")
    title = f"Median validation {view.metric} less that of the original runs"
    return Table("density-change", title, head, tuple(rows))
