"""What axes have in common: densities in a logarithm, dense on the left, with the compression ratio above."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles
from typing import Any

from rewound.experiment.table import counted, ratio
from rewound.report.figures.canvas import FAINT, INK

_TICKS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_DECADES = tuple(10.0**-k for k in range(8))
_BEYOND = 5  # times the range of the middle half, on either side of it: what lies further out is not drawn


def density_axis(axes: Any, low: float, what: str) -> None:
    """Make the first axis one of densities from 1 down to ``low``; ``what`` is counted: weights or units."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low = min(low, 0.95)
    axes.set_xscale("log")
    axes.set_xlim(1.06, low / 1.06)
    ticks = [t for t in (_TICKS if low > 5e-4 else _DECADES) if t >= low * 0.98]
    if low < ticks[-1] / 1.35:
        ticks.append(float(f"{low:.2g}"))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{d:g}"))
    axes.set_xlabel(f"density (kept / prunable {what})", color=INK)
    top = axes.secondary_xaxis("top")
    top.xaxis.set_major_locator(FixedLocator(ticks))
    top.xaxis.set_minor_locator(NullLocator())
    top.xaxis.set_major_formatter(FuncFormatter(lambda d, _: ratio(d)))
    top.set_xlabel("compression ratio", color=FAINT, fontsize=11)
    top.tick_params(length=3, labelsize=11, colors=FAINT)
    top.spines["top"].set_visible(False)


def plain_numbers(axis: Any) -> None:
    """Write numbers as they are: no offset that would have to be added in one's head."""
    from matplotlib.ticker import ScalarFormatter

    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-4, 5))
    axis.set_major_formatter(formatter)


def most_of(axes: Any, values: Sequence[float]) -> None:
    """End the second axis where only a few of the ``values`` drawn lie beyond, and say in the figure that they do.

    One line that collapses must not press all others into one.
    """
    if len(values) < 10:
        return
    low, _, high = quantiles(values, n=4)
    room = high - low
    low, high = low - _BEYOND * room, high + _BEYOND * room
    below, above = sum(v < low for v in values), sum(v > high for v in values)
    if not room or not below + above:
        return
    margin = 0.04 * (min(max(values), high) - max(min(values), low))
    if below:
        axes.set_ylim(bottom=low - margin)
    if above:
        axes.set_ylim(top=high + margin)
    for count, where, y in ((below, "lower", 0.02), (above, "higher", 0.98)):
        if count:
            axes.text(
                0.99, y, f"{counted(count, 'median')} further {where}: see the numbers", transform=axes.transAxes,
                color=FAINT, fontsize=11, ha="right", va="bottom" if where == "lower" else "top",
            )  # fmt: skip


def log_numbers(axes: Any) -> None:
    """Make the second axis logarithmic, and write numbers as they are."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
