"""How far can it be pruned for free? The largest compression whose accuracy stays within that of the dense runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rewound.experiment.series import Series
from rewound.experiment.summary import Summary


@dataclass(frozen=True)
class Matching:
    """``density``: the smallest that still matches, with all tried before it, by the median over seeds; ``by_seed``: the same
    for each seed alone. 1.0 where nothing pruned matches."""

    label: str
    density: float
    by_seed: Mapping[int, float]

    @property
    def ratio(self) -> float:
        """The compression ratio, 1 / density."""
        return 1 / self.density


def matching(
    series: Series, band: Summary, higher_is_better: bool = True, tolerance: float = 0.0
) -> Matching:
    """Return how far ``series`` goes within the dense ``band``: no worse than the worst dense run, less ``tolerance``.

    The first density that falls out ends it, even if a sparser one comes back by chance. "Matching" as in Frankle et al. 2020,
    with the seeds' range in place of a mean, as in the figures of Renda et al. 2020.
    """
    worst = band.smallest if higher_is_better else band.largest

    def within(value: float) -> bool:
        behind = worst - value if higher_is_better else value - worst
        return behind <= tolerance + 1e-12

    medians: dict[float, float] = {}
    for density in series.points:
        summary = series.summary(density)
        assert summary is not None  # a point has a seed
        medians[density] = summary.median
    by_seed = {
        seed: _last({d: values[seed] for d, values in series.points.items() if seed in values}, within)
        for seed in series.seeds
    }
    return Matching(series.label, _last(medians, within), by_seed)


def _last(curve: Mapping[float, float], within: Callable[[float], bool]) -> float:
    kept = 1.0
    for density in sorted(curve, reverse=True):
        if density < 1.0:
            if not within(curve[density]):
                break
            kept = density
    return kept
