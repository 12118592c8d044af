"""The picture: the metric against density, a line a technique, every seed faint, the original a band."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewound.experiment.statistics import Results, curve, finished, in_units, original, spreads
from rewound.experiment.table import counted, ratio

# Okabe and Ito's palette, in an order that keeps neighbours apart for colour-blind eyes and on light paper
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A6A00",
    "#5B3A8E",
    "#8C2D04",
    "#444444",
)
MARKERS = "osD^vP*Xh<"
INK, FAINT = "#222222", "#8a8a8a"
TICKS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
DECADES = tuple(10.0**-k for k in range(8))  # where those would crowd


def draw(results: Results, path: str | Path) -> Path:
    """Draw an experiment's results into a PNG or SVG file (by its ending) and return the path.

    Raises ImportError where matplotlib is missing, ValueError where no arm finished with a pruned network.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'rewound[tasks]'") from error
    by_density = spreads(results)
    if not any(density < 1 for points in by_density.values() for density in points):
        raise ValueError(
            "there is nothing to draw: no arm finished with a pruned network and a metric for it"
        )
    figure = Figure(figsize=(8.4, 5.0), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    metric = results["metric"]["name"]
    _band(axes, results)
    for arm in finished(results):
        points = curve(arm, metric)
        colour = COLOURS[list(by_density).index(arm["technique"]) % len(COLOURS)]
        axes.plot(list(points), list(points.values()), color=colour, alpha=0.25, linewidth=0.8, zorder=2)
    ends = []
    for k, (name, over_seeds) in enumerate(by_density.items()):
        x, y = list(over_seeds), [spread.median for spread in over_seeds.values()]
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(
            x, y, color=colour, linewidth=2.0, marker=MARKERS[k % 10], markersize=4.5,
            markeredgecolor="white", markeredgewidth=0.6, zorder=3, label=name,
        )  # fmt: skip
        if x:
            ends.append((x[-1], y[-1], name, colour))
    low = min(min(points) for points in by_density.values() if points)
    _dress(axes, results, low)
    _label(axes, ends)
    path = Path(path)
    figure.savefig(path)
    return path


def _band(axes: Any, results: Results) -> None:
    dense = original(results)
    if dense is None:
        return
    axes.axhspan(dense.low, dense.high, color="#000000", alpha=0.07, linewidth=0, zorder=0)
    axes.axhline(dense.median, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def _dress(axes: Any, results: Results, low: float) -> None:
    """Axes, ticks and words: dense on the left, the compression ratio along the top."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    metric = results["metric"]["name"]
    seeds = len({arm["seed"] for arm in finished(results)})
    axes.set_xscale("log")
    axes.set_xlim(1.08, low / 1.06)
    ticks = [t for t in (TICKS if low > 5e-4 else DECADES) if t >= low * 0.98]
    if low < ticks[-1] / 1.25:
        ticks.append(float(f"{low:.2g}"))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{d:g}"))
    what = "units" if in_units(results) else "weights"
    axes.set_xlabel(f"density (kept / prunable {what})", color=INK)
    axes.set_ylabel(f"validation {metric}", color=INK)
    top = axes.secondary_xaxis("top")
    top.xaxis.set_major_locator(FixedLocator(ticks))
    top.xaxis.set_minor_locator(NullLocator())
    top.xaxis.set_major_formatter(FuncFormatter(lambda d, _: ratio(d)))
    top.set_xlabel("compression ratio", color=FAINT, fontsize=9)
    for side in (axes, top):
        side.tick_params(colors=FAINT, labelsize=9, length=3, which="both")
    for edge in ("right", "top"):
        axes.spines[edge].set_visible(False)
    for spine in (*axes.spines.values(), *top.spines.values()):
        spine.set_color("#cccccc")
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(
        f"{results['name']}: median of {counted(seeds, 'seed')}, each seed faint, original runs as a band",
        loc="left", fontsize=10.5, color=INK, pad=12,
    )  # fmt: skip


def _label(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each technique's name at the end of its line, names pushed apart where lines end together."""
    low, high = axes.get_ylim()
    height = high - low
    ends = sorted(ends, key=lambda end: end[1])
    at = [(y - low) / height for _, y, _, _ in ends]
    gap = 0.052
    for k in range(1, len(at)):
        at[k] = max(at[k], at[k - 1] + gap)
    if at and at[-1] > 1:
        at[-1] = 1.0
        for k in range(len(at) - 2, -1, -1):
            at[k] = min(at[k], at[k + 1] - gap)
    for (_, _, name, colour), y in zip(ends, at):
        axes.annotate(
            name, (1.0, y), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points",
            color=colour, fontsize=9.5, fontweight="bold", va="center", annotation_clip=False,
        )  # fmt: skip
