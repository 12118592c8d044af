"""Rosenfeld et al. 2021, "On the Predictability of Pruning Across Scales": the error of a pruned network, from four numbers.

    error(d) = e_np | (d - i p (e_up / e_np)^(1/gamma)) / (d - i p) |^gamma              d: density, i: the imaginary unit

At high density a plateau, the error e_np of the network as trained; then a power law of slope gamma; then saturation at e_up.
p is the density of the knee. Depth and width of one network are fixed, so they are part of p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScalingLaw:
    """``dense_error`` e_np, ``saturation`` e_up, ``slope`` gamma, ``knee`` p; ``deviations``: density -> (estimated - seen)
    / seen."""

    dense_error: float
    saturation: float
    slope: float
    knee: float
    deviations: Mapping[float, float]

    def error(self, density: float) -> float:
        """Return the error at a density in (0, 1].

        >>> round(ScalingLaw(0.05, 0.9, 1.0, 0.02, {}).error(1.0), 3), round(ScalingLaw(0.05, 0.9, 1.0, 0.02, {}).error(1e-9), 3)
        (0.053, 0.9)
        """
        return float(_law(np.array([density]), self.dense_error, self.saturation, self.slope, self.knee)[0])

    def density(self, error: float) -> float:
        """Return the density at which the law reaches ``error``; 1 where it is there already, ``ValueError`` for one beyond
        saturation: the largest pruning that a budget of error allows."""
        if error >= self.saturation:
            raise ValueError(f"the error saturates at {self.saturation:.3g}; no density has {error:.3g}")
        if error <= self.error(1.0):
            return 1.0
        low, high = math.log(1e-12), 0.0
        for _ in range(200):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.error(math.exp(middle)) < error else (middle, high)
        return math.exp(high)

    @property
    def mean_deviation(self) -> float:
        """Mean of the relative deviations: the paper reports below 2 %."""
        return float(np.mean(list(self.deviations.values())))


def fit_scaling_law(errors: Mapping[float, float], dense_error: float) -> ScalingLaw:
    """Fit the law to ``errors``, density -> error (1 - accuracy; mean over seeds), by least squares of the log error.

    dense_error: that of the network before pruning. At least four densities, and some must be well beyond the knee, or slope and
    saturation are guesses. Where nothing saturates, e_up is no more than a bound. Needs scipy: ``pip install 'rewound[tasks]'``.

    Raises ``ValueError`` for fewer densities, or errors and densities that are not in (0, 1].
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise ImportError("fitting needs scipy: pip install 'rewound[tasks]'") from error
    if len(errors) < 4:
        raise ValueError(f"three numbers are fitted, to at least 4 densities (got {len(errors)})")
    wrong = [v for v in (*errors, *errors.values(), dense_error) if not 0 < v <= 1]
    if wrong:
        raise ValueError(f"densities and errors must be in (0, 1] (got {wrong[0]!r})")
    densities = np.array(sorted(errors))
    seen = np.array([errors[d] for d in densities])

    # saturation = dense_error + something positive; slope and knee are positive: in logarithms nothing is forbidden
    def unpacked(x: np.ndarray) -> tuple[float, float, float]:
        return float(dense_error + np.exp(x[0])), float(np.exp(x[1])), float(np.exp(x[2]))

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(_law(densities, dense_error, *unpacked(x))) - np.log(seen)

    low, high = np.log([1e-6, 1e-2, 1e-8]), np.log([1.0, 1e2, 10.0])
    starts = [
        np.log([max(seen.max() - dense_error, 1e-3), slope, knee])
        for slope in (0.5, 1.0, 2.0)
        for knee in densities[[0, len(densities) // 2, -1]]
    ]
    fits = [least_squares(residuals, np.clip(x, low + 1e-9, high - 1e-9), bounds=(low, high)) for x in starts]
    best = min(fits, key=lambda fit: fit.cost)
    saturation, slope, knee = unpacked(best.x)
    estimated = _law(densities, dense_error, saturation, slope, knee)
    deviations = {float(d): float(e / s - 1) for d, e, s in zip(densities, estimated, seen)}
    return ScalingLaw(dense_error, saturation, slope, knee, deviations)


def _law(
    densities: np.ndarray, dense_error: float, saturation: float, slope: float, knee: float
) -> np.ndarray:
    ratio = (saturation / dense_error) ** (1 / slope)
    # |d - i a| is the hypotenuse; in logarithms, since the ratio overflows for a small slope
    with np.errstate(over="ignore"):
        above, below = np.log(np.hypot(densities, knee * ratio)), np.log(np.hypot(densities, knee))
    return dense_error * np.exp(np.clip(slope * (above - below), -700, 700))
