"""What a comparison means, in sentences; also where zeros do not help."""

from __future__ import annotations

from collections.abc import Mapping

from rewound.measure.bench.runtimes import TITLES
from rewound.measure.latency import Ratio, Timing, ratio

_NEARLY = 0.03  # ratios as near to 1 as this are none


def verdict(share: float, times: Mapping[str, Timing], twins: Mapping[str, Timing]) -> str:
    """Return it. share: of the weights that are zero. times: runtime -> timing, all taken in turn; those with a wrong result
    left out. twins: the same of dense runtimes on the dense twin.

    >>> dense, engine = Timing((8.0, 8.1, 8.0), "cpu", 1), Timing((2.0, 2.0, 2.0), "cpu", 1)
    >>> print(verdict(0.9, {"torch": dense, "engine": engine}, {"torch": dense}).replace(". ", ".\\n"))
    90 % of the weights are zero.
    Torch is not faster for it (1.00x against the same network dense).
    The engine is 4.0 times as fast as torch (the only dense runtime measured).
    """
    parts = [zeros_in_words(share)]
    dense = {name: timing for name, timing in times.items() if name != "engine"}
    best = min(dense, key=lambda name: dense[name].median) if dense else None
    asked = best if best in twins else next((name for name in dense if name in twins), None)
    if asked is not None:
        parts.append(_of_zeros(title(asked), ratio(twins[asked], dense[asked])))
    if "engine" in times:
        if best is None:
            parts.append("No dense runtime was measured beside the engine.")
        else:
            parts.append(_of_engine(ratio(dense[best], times["engine"]), title(best), len(dense), share))
    elif len(dense) > 1 and best is not None:
        parts.append(f"{title(best)} is the fastest here.")
    return " ".join(part[0].upper() + part[1:] for part in parts)


def at_batch(batch: int, times: Mapping[str, Timing]) -> str:
    """Return how the engine does at another batch size; nothing where it or all others are missing.

    >>> at_batch(16, {"torch": Timing((8.0, 8.0), "cpu", 1), "engine": Timing((2.0, 2.0), "cpu", 1)})
    'At batch 16 the engine takes 1/4.0 of the time of torch.'
    """
    dense = {name: timing for name, timing in times.items() if name != "engine"}
    if not dense or "engine" not in times:
        return ""
    best = min(dense, key=lambda name: dense[name].median)
    gain = ratio(dense[best], times["engine"]).median
    share = f"1/{gain:.1f} of" if gain >= 2 else f"{1 / gain:.2f} times"
    return f"At batch {batch} the engine takes {share} the time of {title(best)}."


def zeros_in_words(share: float) -> str:
    """Return how many weights are zero.

    >>> zeros_in_words(0.9), zeros_in_words(0.0), zeros_in_words(0.00004)
    ('90 % of the weights are zero.', 'No weight is zero.', 'Hardly any weight is zero.')
    """
    if share == 0:
        return "No weight is zero."
    if share < 5e-4:
        return "Hardly any weight is zero."
    digits = f"{100 * share:.1f}".removesuffix(".0")
    return f"{digits} % of the weights are zero."


def title(runtime: str) -> str:
    """Return a runtime's name as sentences have it."""
    return TITLES.get(runtime, runtime)


def _of_zeros(name: str, gain: Ratio) -> str:
    if gain.median > 1 + 2 * _NEARLY and gain.spread[0] > 1:
        return f"{name} is {gain.median:.2f}x faster than on the same network dense."
    return f"{name} is not faster for it ({gain.median:.2f}x against the same network dense)."


def _of_engine(gain: Ratio, best: str, rivals: int, share: float) -> str:
    fastest = f"{best}, the fastest dense runtime here" if rivals > 1 else best
    factor = gain.median
    if abs(factor - 1) <= _NEARLY or gain.spread[0] < 1 < gain.spread[1]:
        return f"The engine brings nothing here: it is as fast as {fastest} ({gain})."
    if factor < 1:
        why = " for want of zeros" if share < 0.5 else ""
        return f"The engine brings nothing here{why}: use {best}, which is {1 / factor:.2f} times as fast."
    only = "" if rivals > 1 else " (the only dense runtime measured)"
    return f"The engine is {factor:.{1 if factor >= 2 else 2}f} times as fast as {fastest}{only}."
