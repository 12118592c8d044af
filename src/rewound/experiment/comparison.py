"""Is the one better than the other? Differences by seed, their interval, and what three to five seeds can show.

A seed fixes fresh weights, data order and (where runs share it) the original network, so what a seed does to both of two
techniques cancels in their difference. The test is the paired t-test: with n seeds an exact sign-flip test has no p value
below 2 / 2^n, 0.25 for three and 0.0625 for five, and so could never show anything at 5 %. It needs no assumption about how
differences scatter, and stands beside the t-test from six seeds on. Where several series are compared with one baseline, p
values are adjusted by Holm's step-down rule (Holm 1979), which holds whatever the dependence between them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TypeVar

from rewound.experiment.series import Series
from rewound.experiment.students_t import MOST_SEEDS, p_value, pairs_needed
from rewound.experiment.summary import summarize

LEVEL = 0.05
Name = TypeVar("Name", bound=Hashable)
FEWEST_FOR_SIGN_FLIPS = 6  # with fewer seeds its smallest p value is above LEVEL
_SMALLEST_P = 1e-6  # said as it is; below, the assumption of the test is worth less than the number
_EXACT_UP_TO = 16  # seeds: 65,536 sign patterns


@dataclass(frozen=True)
class Difference:
    """``series`` - ``baseline`` at one density, seed by seed, in the metric's own units.

    low, high: 95 % interval of the mean, of this comparison alone. p: paired t-test; adjusted: by Holm, over the comparisons
    made together; None where there is no telling (one seed, or differences without any scatter). sign_flip: the exact test's
    p, from six seeds on. comparisons: how many were made together.
    """

    series: str
    baseline: str
    density: float
    by_seed: Mapping[int, float]
    higher_is_better: bool
    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    sign_flip: float | None
    comparisons: int

    @property
    def needed(self) -> int | None:
        """Seeds that would show, four times in five, a difference as large as this one seems to be.

        None where it is shown, where there is no telling, or for more than 1,000. The level is divided by the number of
        comparisons. It is as uncertain as the difference itself: an order of magnitude, not a promise.
        """
        if self.shown or self.p is None or not self.deviation:
            return None
        return pairs_needed(self.mean / self.deviation, LEVEL / self.comparisons)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at the 5 % level, all comparisons taken together."""
        return self.adjusted is not None and self.adjusted < LEVEL

    @property
    def better(self) -> bool:
        """Whether the mean lies on the better side of the baseline."""
        return self.mean > 0 if self.higher_is_better else self.mean < 0

    def to_dict(self) -> dict[str, object]:
        """Return the numbers as JSON-able values."""
        return {**self.__dict__, "by_seed": dict(self.by_seed), "shown": self.shown, "needed": self.needed}


def compare(
    series: Sequence[Series], baseline: str, density: float, higher_is_better: bool = True
) -> list[Difference]:
    """Compare every other series with the one labelled ``baseline``, at ``density``, over the seeds they share.

    A series without a shared seed at that density is left out. Say before looking at which density: choosing the one where
    it looks best makes every p value too small. Raises ``ValueError`` for an unknown baseline.
    """
    if baseline not in {one.label for one in series}:
        known = ", ".join(one.label for one in series)
        raise ValueError(f"there is no series {baseline!r} to compare with; there are {known}")
    base = next(one for one in series if one.label == baseline)
    return _compared([(one, base) for one in series if one is not base], density, higher_is_better)


def compare_all(series: Sequence[Series], density: float, higher_is_better: bool = True) -> list[Difference]:
    """Compare every series with every one before it, as :func:`compare` does; Holm's rule counts all pairs."""
    pairs = [(one, base) for k, one in enumerate(series) for base in series[:k]]
    return _compared(pairs, density, higher_is_better)


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the paired t-test; None for one pair, or for equal differences that are not zero.

    Those have no scatter to test against: with a small validation set they come about by rounding.

    >>> round(paired_p([0.5, 0.7, 0.6]), 4)
    0.0091
    """
    if len(differences) < 2:
        return None
    found = summarize(differences)
    assert found.deviation is not None
    if found.deviation <= 1e-9 * max(map(abs, differences)):
        return 1.0 if not any(differences) else None
    return p_value(found.mean / (found.deviation / math.sqrt(found.count)), found.count - 1)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p value over all 2^n ways of giving the differences signs; None beyond 16 of them.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    if not differences or len(differences) > _EXACT_UP_TO:
        return None
    seen = abs(fmean(differences)) * (1 - 1e-12)  # the same sum in another order is still as extreme
    means = [
        abs(fmean(s * d for s, d in zip(signs, differences)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(mean >= seen for mean in means) / len(means)


def holm(p_values: Mapping[Name, float | None]) -> dict[Name, float | None]:
    """Return p values adjusted by Holm's step-down rule; None stays None and counts as a comparison.

    >>> holm({"a": 0.01, "b": 0.04, "c": None})
    {'a': 0.03, 'b': 0.08, 'c': None}
    """
    adjusted: dict[Name, float | None] = dict.fromkeys(p_values)
    known = [(p, name) for name, p in p_values.items() if p is not None]
    largest = 0.0
    for rank, (p, name) in enumerate(sorted(known, key=lambda pair: pair[0])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def told(difference: Difference, metric: str) -> str:
    """Return one sentence on a difference: shown, or not shown and how many seeds it would take."""
    a, b, count = difference.series, difference.baseline, len(difference.by_seed)
    mean = f"{difference.mean:+.3g}"
    if count < 2:
        return f"{a} against {b}: {mean} {metric} with one seed, which tells no difference from chance."
    if difference.deviation == 0 and difference.mean == 0:
        return f"{a} and {b} are equal in all {count} seeds."
    interval = f"95 % interval {difference.low:+.3g} to {difference.high:+.3g}, {count} seeds"
    if difference.adjusted is None:
        return f"{a} against {b}: {mean} {metric} in each of {count} seeds alike, so there is no scatter to test against."
    family = (
        f" after Holm's rule for {difference.comparisons} comparisons" if difference.comparisons > 1 else ""
    )
    p = (
        f"p = {difference.adjusted:.2g}" if difference.adjusted >= _SMALLEST_P else f"p < {_SMALLEST_P:.0e}"
    ) + family
    if difference.shown:
        word = "better" if difference.better else "worse"
        return f"{a} is {word} than {b}: {mean} {metric} ({interval}, {p})."
    if difference.needed is None:
        more = f"more than {MOST_SEEDS:,} seeds"
    else:
        more = f"about {difference.needed} seeds"
    return (
        f"No difference shown between {a} and {b}: {mean} {metric} ({interval}, {p}). If it is as large as it seems, "
        f"{more} would be needed to show it."
    )


def _compared(
    pairs: Sequence[tuple[Series, Series]], density: float, higher_is_better: bool
) -> list[Difference]:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for one, base in pairs:
        values, others = one.points.get(density, {}), base.points.get(density, {})
        if shared := sorted(values.keys() & others.keys()):
            found[one.label, base.label] = {seed: values[seed] - others[seed] for seed in shared}
    raw = {pair: paired_p(list(by_seed.values())) for pair, by_seed in found.items()}
    adjusted = holm(raw)
    return [
        _difference(pair, density, by_seed, higher_is_better, raw[pair], adjusted[pair], len(found))
        for pair, by_seed in found.items()
    ]


def _difference(
    pair: tuple[str, str],
    density: float,
    by_seed: Mapping[int, float],
    higher: bool,
    p: float | None,
    adjusted: float | None,
    comparisons: int,
) -> Difference:
    values = list(by_seed.values())
    found = summarize(values)
    enough = len(values) >= FEWEST_FOR_SIGN_FLIPS
    return Difference(
        *pair, density, by_seed, higher, found.mean, found.deviation, found.low, found.high, p, adjusted,
        sign_flip_p(values) if enough else None, comparisons,
    )  # fmt: skip
