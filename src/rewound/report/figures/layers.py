"""Which layers kept their weights: density by tensor, where all of them together have one density."""

from __future__ import annotations

from statistics import median
from typing import Any

from rewound.experiment.series import Series
from rewound.experiment.statistics import density_of, milestones
from rewound.report.figures.canvas import FAINT, INK, Canvas
from rewound.report.figures.scales import log_numbers
from rewound.report.parts import Panel, Section, Table, clean
from rewound.report.view import View, kept_rounds

By_tensor = dict[str, float]


def layers_section(view: View) -> Section | None:
    """Return the section, or None where no densities by tensor were noted."""
    found = {k: _by_density(one) for k, one in view.pruned.items()}
    densities = sorted({d for by_density in found.values() for d in by_density if d < 1}, reverse=True)
    panels = []
    for n, density in enumerate(sorted(milestones(densities, 5))):
        here = {k: by_density[density] for k, by_density in found.items() if density in by_density}
        tensors = list(dict.fromkeys(name for by_tensor in here.values() for name in by_tensor))
        if len(tensors) > 1:
            panels.append(
                Panel(
                    f"density {density:.3g}",
                    _figure(view, here, tensors, density, n),
                    _table(view, here, tensors, density),
                )
            )
    if not panels:
        return None
    says = (
        "Density of each tensor, median over seeds, in the order of the network; the dashed line is the density of all.",
    )
    return Section("layers", "Density by layer", says, tuple(panels), "Where all have")


def _by_density(one: Series) -> dict[float, By_tensor]:
    """Return overall density -> tensor -> median density over seeds."""
    found: dict[float, dict[str, list[float]]] = {}
    for run in one.runs:
        for done in kept_rounds(run):
            tensors = found.setdefault(round(density_of(done), 6), {})
            for name, density in done.get("densities", {}).items():
                tensors.setdefault(name, []).append(density)
    return {d: {name: median(v) for name, v in tensors.items()} for d, tensors in found.items() if tensors}


def _figure(view: View, here: dict[int, By_tensor], tensors: list[str], density: float, n: int) -> Any:
    canvas = Canvas(f"layers-{n}{view.tag}", height=420 if len(tensors) > 6 else 380)
    axes = canvas.axes[0]
    axes.axhline(density, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    empty = False
    for k, by_tensor in here.items():
        points = [(x, by_tensor[name]) for x, name in enumerate(tensors) if by_tensor.get(name)]
        empty = empty or any(by_tensor.get(name) == 0 for name in tensors)
        tips = [f"{view.series[k].label}, {tensors[x]}: {y:.3g}" for x, y in points]
        canvas.line(axes, k, [x for x, _ in points], [y for _, y in points], tips)
    log_numbers(axes)
    few = len(tensors) <= 24
    places = range(len(tensors)) if few else range(0, len(tensors), -(-len(tensors) // 16))
    axes.set_xticks(list(places), [_tail(tensors[p]) for p in places])
    if len(tensors) > 6:
        axes.tick_params(axis="x", labelrotation=60)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_ylabel("density", color=INK)
    canvas.legend({k: view.series[k].label for k in here})
    missing = "; tensors of which nothing is left are not drawn" if empty else ""
    return canvas.finish(
        f"Density by layer where the network has density {density:.3g}",
        f"{len(tensors)} tensors, {len(here)} series{missing}. All numbers are in the table below.",
    )


def _table(view: View, here: dict[int, By_tensor], tensors: list[str], density: float) -> Table:
    rows = tuple((clean(name), *(by_tensor.get(name) for by_tensor in here.values())) for name in tensors)
    head = ("tensor", *(view.series[k].label for k in here))
    caption = f"Density by tensor at density {density:.3g}, median over seeds"
    return Table(f"layers-{density:.3g}", caption, head, rows)


def _tail(name: str, most: int = 24) -> str:
    name = clean(name)
    return name if len(name) <= most else "\u2026" + name[1 - most :]
