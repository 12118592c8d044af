"""What a study answers, in sentences with their uncertainty, and what it leaves open.

Techniques are compared at the last density that every seed of all of them reached, decided before looking: never at the one
where one of them looks best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewound.experiment.comparison import Difference, compare, compare_all, told
from rewound.experiment.matching import matching
from rewound.experiment.retraining_time import choose, sweeps
from rewound.experiment.series import Series, Study, common_densities, comparable, dense_band, series_of
from rewound.experiment.summary import Summary, summarize
from rewound.experiment.table import counted, number, ratio

_NAMED_AT_ONCE = 5
_ALL_PAIRS_UP_TO = 4  # series: six pairs; more are compared with one baseline


def verdict(study: Study, baseline: str | None = None) -> list[str]:
    """Return the sentences; an empty list where nothing finished.

    Only what may be compared is: one task, one pattern (:func:`rewound.experiment.series.comparable`).

    baseline: label of the series that the others are compared with, where it is there. Left out, up to four series are
    compared pair by pair, and more with learning-rate rewinding, fine-tuning or the first. Of more than four, a technique with
    several retraining times stands for itself with the one that validation chooses, as in Renda et al. 2020.
    """
    says = []
    for name, part in comparable(study):
        says += [f"{name}: {sentence}" if name else sentence for sentence in _verdict(part, baseline)]
    failed = sum(run["status"] == "failed" for run in study["runs"])
    if failed:
        says.append(f"{failed} of {len(study['runs'])} runs failed and are left out.")
    return says


def _verdict(study: Study, baseline: str | None) -> list[str]:
    metric, higher = study["metric"]["name"], study["metric"]["higher_is_better"]
    series = series_of(study)
    pruned = [one for one in series if not one.is_control]
    densities = [d for d in common_densities(series) if d < 1]
    says = []
    if densities:
        at = densities[-1]
        pruned, chosen = _with_best_times(pruned, at, metric, higher, baseline)
        says += chosen
        says.append(_values(pruned, at, metric, higher))
        says += [told(d, metric) for d in _compared(pruned, baseline, at, higher)]
    elif pruned:
        says.append("No density below 1 was reached by every run, so there is none to compare at.")
    band = dense_band(study)
    if band is not None and densities:
        says.append(_how_far(pruned, band, metric, higher))
    return says + _controls(series, metric)


def _with_best_times(
    series: list[Series], density: float, metric: str, higher: bool, baseline: str | None
) -> tuple[list[Series], list[str]]:
    """Return the series without the retraining times that validation does not choose at ``density``, and a sentence on that."""
    if len(series) <= _ALL_PAIRS_UP_TO:
        return series, []
    left_out, told_times = set[int](), []
    for sweep in sweeps(series):
        best = choose(sweep, density, metric, higher).epochs
        left_out |= {id(one) for t, one in sweep.series if t != best and one.label != baseline}
        told_times.append(f"{sweep.family} t = {best}")
    if not told_times:
        return series, []
    sentence = (
        f"Of several retraining times each technique stands with the one that validation chooses at density {density:.3g} "
        f"({', '.join(told_times)}); what a choice was made by is a little too good."
    )
    return [one for one in series if id(one) not in left_out], [sentence]


def control_values(series: Series, metric: str) -> dict[int, float]:
    """Return seed -> the metric at the end of a control: the network after its last round."""
    found: dict[int, float] = {}
    for run in series.runs:
        values = [r["metrics"].get(metric) for r in run["rounds"]]
        values = [v for v in values if v is not None and math.isfinite(v)]
        if values:
            found[int(run["cell"].get("seed", 0))] = values[-1]
    return found


def _compared(
    series: Sequence[Series], baseline: str | None, density: float, higher: bool
) -> list[Difference]:
    if baseline is None and len(series) <= _ALL_PAIRS_UP_TO:
        return compare_all(series, density, higher)
    labels = [one.label for one in series]
    baseline = baseline if baseline in labels else None
    for family in () if baseline else ("lr-rewinding", "fine-tuning"):
        baseline = baseline or next((one.label for one in series if one.family == family), None)
    return compare(series, baseline or labels[0], density, higher)


def _values(series: Sequence[Series], density: float, metric: str, higher: bool) -> str:
    at: dict[str, Summary] = {}
    for one in series:
        summary = one.summary(density)
        if summary is not None:
            at[one.label] = summary
    order = sorted(at, key=lambda label: at[label].mean, reverse=higher)
    seeds = max(summary.count for summary in at.values())
    over = "one seed" if seeds == 1 else f"mean of {seeds} seeds, 95 % interval"
    shown = order if len(order) <= _NAMED_AT_ONCE + 2 else order[:_NAMED_AT_ONCE]
    rest = len(order) - len(shown)
    return (
        f"At density {density:.3g} ({ratio(density)}) the validation {metric} ({over}) is "
        + ", ".join(f"{label} {interval(at[label])}" for label in shown)
        + (
            f", and less good for {rest} more, down to {interval(at[order[-1]])} for {order[-1]}."
            if rest
            else "."
        )
    )


def interval(summary: Summary) -> str:
    """Return the mean with its interval.

    >>> interval(summarize([0.91, 0.93, 0.92]))
    '0.920 (0.895 to 0.945)'
    """
    if summary.low is None or summary.high is None:
        return number(summary.mean)
    return f"{number(summary.mean)} ({number(summary.low)} to {number(summary.high)})"


def _how_far(series: Sequence[Series], band: Summary, metric: str, higher: bool) -> str:
    parts = []
    for one in series:
        reached = matching(one, band, higher)
        parts.append(f"{one.label} at no density" if reached.density == 1 else
                     f"{one.label} down to {reached.density:.3g} ({ratio(reached.density)})")  # fmt: skip
    dense = f"{number(band.smallest)} to {number(band.largest)}, {counted(band.count, 'seed')}"
    return f"Within the range of the dense runs' {metric} ({dense}), by the median: {'; '.join(parts)}."


def _controls(series: Sequence[Series], metric: str) -> list[str]:
    says = []
    for one in series:
        values = control_values(one, metric) if one.is_control else {}
        if values:
            epochs = max(one.costs("epochs").values(), default=0)
            says.append(
                f"Control {one.label}: after {epochs:,.0f} epochs in all, nothing pruned, the validation {metric} is "
                f"{interval(summarize(values.values()))}."
            )
    if not says and any(not one.is_control for one in series):
        says.append(
            "No dense network trained for as many epochs is in this study, so a gain over the original run may be its longer "
            'training; controls = ["dense", "cyclic"] in [grid] adds such runs.'
        )
    return says
