"""Replicates of one number: median with range, mean with its interval.

Of three to five seeds the median with smallest and largest is what was seen; the mean with its interval is what may be
concluded, if seeds scatter about normally. Both are given, and neither is drawn for the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median, stdev

from rewound.experiment.students_t import quantile


@dataclass(frozen=True)
class Summary:
    """``low`` and ``high`` bound the mean (Student's t); they and the ``deviation`` are None for a single value."""

    count: int
    median: float
    smallest: float
    largest: float
    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers as JSON-able values."""
        return dict(self.__dict__)


def summarize(values: Iterable[float], level: float = 0.95) -> Summary:
    """Return what ``values``, one a seed, say together; ``level`` is that of the interval of the mean.

    >>> s = summarize([0.91, 0.93, 0.92])
    >>> s.median, s.smallest, s.largest, round(s.low, 3), round(s.high, 3)
    (0.92, 0.91, 0.93, 0.895, 0.945)

    Raises ``ValueError`` for no value, or one that is not finite.
    """
    found = list(values)
    if not found or not all(math.isfinite(v) for v in found):
        raise ValueError(f"finite numbers are wanted, at least one (got {found})")
    mean, deviation = fmean(found), stdev(found) if len(found) > 1 else None
    half = None
    if deviation is not None:
        half = quantile(0.5 + level / 2, len(found) - 1) * deviation / math.sqrt(len(found))
    return Summary(
        count=len(found),
        median=median(found),
        smallest=min(found),
        largest=max(found),
        mean=mean,
        deviation=deviation,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
    )
