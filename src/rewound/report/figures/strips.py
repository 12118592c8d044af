"""Strips: one under the other, a series each, along the epochs that its first replicate trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewound.report.figures.canvas import FAINT, INK, Canvas, colour
from rewound.report.figures.scales import log_numbers, plain_numbers
from rewound.report.parts import Figure, clean

MOST = 8  # strips in a figure
Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Strip:
    """One series' curves: name -> (epochs trained, values). ``rounds``: where, in epochs, each round began."""

    k: int
    label: str
    curves: dict[str, Curve]
    rounds: tuple[float, ...]


def draw_strips(
    name: str, strips: Sequence[Strip], ylabel: str, log: bool, title: str, described: str
) -> Figure:
    """Draw strips that share both scales; the first curve of a strip is solid, the others are dashed."""
    canvas = Canvas(name, height=70 + 110 * len(strips), rows=len(strips))
    dashes: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))
    for axes, strip in zip(canvas.axes, strips):
        for place, (x, y) in enumerate(strip.curves.values()):
            axes.plot(x, y, color=colour(strip.k), linewidth=1.4, linestyle=dashes[place % 3])
        for start in strip.rounds[1:]:
            axes.axvline(start, color=FAINT, linewidth=0.6, linestyle=(0, (1, 3)), zorder=1)
        axes.set_title(clean(strip.label)[:90], loc="left", fontsize=12, color=INK)
        axes.set_ylabel(ylabel, color=INK, fontsize=11)
        axes.margins(x=0.01)
        if log:
            axes.set_yscale("log")
    bounds = [axes.get_ylim() for axes in canvas.axes]
    for axes in canvas.axes:
        axes.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
        if log:
            log_numbers(axes)
        else:
            plain_numbers(axes.yaxis)
    canvas.axes[-1].set_xlabel("epochs trained, rounds one after the other", color=INK)
    return canvas.finish(title, described)
