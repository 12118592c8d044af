"""Student's t for few seeds: its distribution, quantiles, and the power of a paired test. No dependency.

For a whole number of degrees of freedom the distribution is a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), so
the few lines below are exact; the tests compare them with scipy.
"""

from __future__ import annotations

import math
from statistics import NormalDist

MOST_SEEDS = 1000  # more would never be run: "more than 1000"
_POINTS = 400  # of Simpson's rule over the standard deviation; power is then right to six digits


def cdf(t: float, degrees: int) -> float:
    """Return P(T <= t) for T with ``degrees`` degrees of freedom, at least 1.

    >>> round(cdf(2.776, 4), 4)
    0.975
    """
    if degrees < 1:
        raise ValueError(f"Student's t has at least 1 degree of freedom (got {degrees})")
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(odd + 1, degrees, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    between = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + 0.5 * between


def p_value(t: float, degrees: int) -> float:
    """Return P(|T| >= |t|): the two-sided p value.

    >>> round(p_value(4.303, 2), 3)
    0.05
    """
    return max(0.0, 2 * (1 - cdf(abs(t), degrees)))


def quantile(probability: float, degrees: int) -> float:
    """Return the t below which ``probability``, in (0, 1), lies.

    >>> round(quantile(0.975, 2), 3)
    4.303
    """
    if not 0 < probability < 1:
        raise ValueError(f"a probability between 0 and 1 is wanted (got {probability!r})")
    if probability < 0.5:
        return -quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(200):  # bisection to the last bit; the tails of one degree of freedom are far out
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if cdf(middle, degrees) < probability else (low, middle)
    return high


def power(effect: float, count: int, level: float = 0.05) -> float:
    """Return the chance that a two-sided paired t-test of ``count`` pairs shows a true difference.

    effect: the mean difference in units of the standard deviation of the differences. The integral of the normal
    distribution over that of the sample's standard deviation: the noncentral t.

    >>> round(power(1.0, 10), 2)
    0.8
    """
    if count < 2:
        return 0.0
    degrees, shift = count - 1, abs(effect) * math.sqrt(count)
    critical, normal = quantile(1 - level / 2, degrees), NormalDist()
    middle, width = math.sqrt(degrees), 8.0  # of chi, whose standard deviation is below 0.71
    low, high = max(0.0, middle - width), middle + width
    scale = (1 - degrees / 2) * math.log(2) - math.lgamma(degrees / 2)
    total, step = 0.0, (high - low) / _POINTS
    for k in range(_POINTS + 1):
        chi = low + k * step
        if chi == 0:
            density = math.sqrt(2 / math.pi) if degrees == 1 else 0.0
        else:
            density = math.exp(scale + (degrees - 1) * math.log(chi) - chi * chi / 2)
        bound = critical * chi / math.sqrt(degrees)
        shown = normal.cdf(shift - bound) + normal.cdf(-shift - bound)
        total += (1 if k in (0, _POINTS) else 4 if k % 2 else 2) * density * shown
    return min(1.0, total * step / 3)


def pairs_needed(effect: float, level: float = 0.05, wanted: float = 0.8) -> int | None:
    """Return how many pairs a two-sided paired t-test needs to show ``effect`` with probability ``wanted``.

    None for more than ``MOST_SEEDS``, or for no effect at all.

    >>> pairs_needed(1.0), pairs_needed(0.0)
    (10, None)
    """
    if power(effect, MOST_SEEDS, level) < wanted:
        return None
    low, high = 1, MOST_SEEDS  # power grows with the count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, level) >= wanted else (middle, high)
    return high
