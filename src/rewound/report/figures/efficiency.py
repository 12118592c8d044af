"""Efficiency: the work that is left, as computed, and beside it what a clock said of the same network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rewound.experiment.series import Series
from rewound.experiment.statistics import curve, density_of
from rewound.experiment.table import number
from rewound.report.figures.canvas import FAINT, INK, ORIGINAL, SHADE, Canvas, colour
from rewound.report.figures.scales import most_of, plain_numbers
from rewound.report.parts import Panel, Section, Table
from rewound.report.view import View, kept_rounds

Bench = Mapping[str, Any]
NOT_MEASURED = (
    "Speed was not measured here: what follows is computed, and no clock has seen it. A dense kernel multiplies zeros like "
    "other numbers, so with zeros alone expect no speed from it. 'rewound bench FOLDER --out bench.json' measures, and "
    "'rewound report FOLDER --bench bench.json' shows it here."
)


def efficiency_section(view: View, benches: Sequence[Bench] = ()) -> Section | None:
    """Return the section; None where nothing was computed or measured. ``benches``: what ``rewound bench --out`` wrote."""
    panels = [_measured(bench, n) for n, bench in enumerate(benches)]
    computed = _computed(view)
    if not panels and computed is None:
        return None
    says = [f"{bench['name']}: {bench['verdict']}" for bench in benches] or [NOT_MEASURED]
    if benches:
        says.append(
            "Computed: how many times fewer multiply-adds are left if none is spent on a zero. Measured: how many times "
            "faster than torch on the same network without zeros, on the machine named."
        )
    return Section("efficiency", "Efficiency", tuple(says), (*panels, *filter(None, [computed])), "Show")


def _computed(view: View) -> Panel | None:
    curves = {k: points for k, one in view.pruned.items() if (points := _points(one, view.metric))}
    if not curves:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    canvas = Canvas(f"computed{view.tag}")
    axes = canvas.axes[0]
    if view.band is not None:
        axes.axhspan(view.band.smallest, view.band.largest, color=SHADE, linewidth=0, zorder=0)
    for k, points in curves.items():
        label = view.series[k].label
        tips = [f"{label}, density {d:.3g}: {gain:.3g}x fewer, {number(v)}" for gain, v, d in points]
        canvas.line(axes, k, [gain for gain, _, _ in points], [v for _, v, _ in points], tips)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(lambda gain, _: f"{gain:g}x")
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.yaxis)
    most_of(axes, [value for points in curves.values() for _, value, _ in points])
    axes.set_xlabel("multiply-adds, dense / surviving (computed)", color=INK)
    axes.set_ylabel(f"validation {view.metric}", color=INK)
    canvas.legend({k: view.series[k].label for k in curves})
    title = f"Validation {view.metric} against the computed saving of work"
    figure = canvas.finish(title, "Computed, not measured. All numbers are in the table below.")
    rows = tuple((view.series[k].label, d, gain, v) for k, points in curves.items() for gain, v, d in points)
    head = ("series", "density", "multiply-adds, dense / surviving", f"median {view.metric}")
    return Panel("computed saving", figure, Table("computed", title, head, rows))


def _points(one: Series, metric: str) -> list[tuple[float, float, float]]:
    """Return (dense / surviving multiply-adds, metric, density), medians over seeds."""
    found: dict[float, list[tuple[float, float]]] = {}
    for run in one.runs:
        points = curve(run, metric)
        for done in kept_rounds(run):
            surviving, dense = done.get("multiply_adds") or (0, 0)
            density = round(density_of(done), 6)
            if surviving and density in points and not done.get("partial"):
                found.setdefault(density, []).append((dense / surviving, points[density]))
    return [
        (median(gain for gain, _ in both), median(value for _, value in both), density)
        for density, both in sorted(found.items(), reverse=True)
    ]


def _measured(bench: Bench, n: int) -> Panel:
    """Bars: measured speed of each runtime, and above them the computed saving as a line."""
    rows = [row for row in bench["rows"] if row["network"] == "model" and row.get("right", True)]
    gains = _gains(bench)
    saving = 1 / (1 - bench["zeros"]) if bench["zeros"] < 1 else None
    bars = [(row, gain) for row in rows if (gain := gains[id(row)]) is not None]
    canvas = Canvas(f"measured-{n}", height=150 + 36 * len(bars))
    axes = canvas.axes[0]
    several = len({row["batch"] for row, _ in bars}) > 1
    labels = [row["runtime"] + f", batch {row['batch']}" * several for row, _ in bars]
    axes.grid(visible=False)
    axes.barh(range(len(bars)), [gain for _, gain in bars], height=0.6, color=colour(0), alpha=0.85)
    for place, (_, gain) in enumerate(bars):
        axes.annotate(
            f"{gain:.2f}x", (gain, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK
        )
    axes.axvline(1, color=ORIGINAL, linewidth=1)
    if saving is not None and bench["zeros"] > 0:
        axes.axvline(saving, color=colour(1), linewidth=1.6, linestyle=(0, (5, 2)))
        axes.annotate(
            f"computed: {saving:.3g}x", (saving, -0.6), xytext=(-5, 0), textcoords="offset points", ha="right",
            va="center", color=colour(1),
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), labels, color=INK)
    axes.set_ylim(len(bars) - 0.4, -1)
    clock = "CPU" if bench["threads"] == 1 else "wall-clock"
    longest = max([gain for _, gain in bars] + [saving or 1, 1])
    axes.set_xlim(0, longest * 1.12)
    axes.set_xlabel(f"times as fast as torch, dense ({clock} time)", color=FAINT)
    title = f"Measured speed beside computed saving: {bench['name']}"
    told = "; ".join(f"{label} {gain:.2f}x" for label, (_, gain) in zip(labels, bars))
    figure = canvas.finish(
        title, f"Measured: {told}. Computed: {saving or 1:.3g}x fewer weights to multiply by."
    )
    head = ("runtime", "network", "batch", "ms", "ms low", "ms high", "measured, x", "computed, x")
    table = tuple(
        (
            row["runtime"],
            row["network"],
            row["batch"],
            *(1e3 * row["wall_seconds"][key] for key in ("median", "low", "high")),
            gains[id(row)],
            saving if row["network"] == "model" else 1.0,
        )
        for row in bench["rows"]
    )
    machine = bench.get("machine", {}).get("cpu", "this machine")
    caption = f"{bench['name']}: times of a call on {machine}, threads: {bench['threads']}"
    return Panel(f"measured{f' {n + 1}' * (n > 0)}", figure, Table(f"measured-{n + 1}", caption, head, table))


def _gains(bench: Bench) -> dict[int, float | None]:
    """Return id of a row -> how many times as fast as torch on the dense network it is, turn by turn; None without that row.

    By the clock that decides in the measurement's own verdict: CPU time on one thread, else wall time.
    """
    from rewound.measure.latency import Timing, ratio

    clock = "cpu_seconds" if bench["threads"] == 1 else "wall_seconds"

    def timing(row: Mapping[str, Any]) -> Timing:
        return Timing(tuple(row[clock]["samples"]), clock, bench["threads"])

    base = {
        row["batch"]: timing(row)
        for row in sorted(bench["rows"], key=lambda row: row["network"] == "dense twin")
        if row["runtime"] == "torch"  # the dense twin's time comes last, and stays
    }
    return {
        id(row): ratio(base[row["batch"]], timing(row)).median if row["batch"] in base else None
        for row in bench["rows"]
    }
