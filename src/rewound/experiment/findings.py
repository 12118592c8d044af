"""Two or three sentences on what an experiment showed, computed from its numbers and no wider than they are.

The comparison is made at the last density that all arms reached, never at the one where it looks best. Two
techniques are told apart where every seed of the one lies beyond every seed of the other; anything less is
called an overlap.
"""

from __future__ import annotations

from itertools import combinations

from rewound.experiment.statistics import (
    Results,
    Spread,
    common_densities,
    controls,
    last_densities,
    original,
    spreads,
)
from rewound.experiment.table import number, ratio

TOLERANCE = 0.01  # "as good as the original run": within one hundredth of it


def findings(results: Results) -> list[str]:
    """Return the sentences; an empty list where nothing finished."""
    densities, by_density = common_densities(results), spreads(results)
    metric, higher = results["metric"]["name"], results["metric"]["higher_is_better"]
    if not densities:
        silent = f"The validation {metric} was no number in any round, so nothing can be said."
        return [silent] if by_density else []
    last = densities[-1]
    if last == 1:
        return [_dense(results, metric)]
    at = {name: curve[last] for name, curve in by_density.items() if last in curve}
    order = sorted(at, key=lambda name: at[name].median, reverse=higher)
    values = ", ".join(f"{name} {number(at[name].median)}" for name in order)
    dense = original(results)
    against = f" (original run: {number(dense.median)})" if dense else ""
    middle = "the median" if max(spread.count for spread in at.values()) > 1 else "the"
    says = [f"At density {last:.3g} ({ratio(last)}) {middle} validation {metric} is {values}{against}."]
    if len(order) > 1:
        says.append(_separation(order, at, higher))
    if dense:
        says.append(_how_far(by_density, dense, metric, higher))
        best = at[order[0]].median
        if (best > dense.median) if higher else (best < dense.median):
            says.append(
                f"That {order[0]} ends better than the original run may be its longer training: "
                "there is no dense run of as many epochs to compare with."
            )
    return says


def caution(results: Results) -> list[str]:
    """Return what a reader of a small experiment should not conclude from it."""
    if not results["task"]["name"].startswith("digits"):
        return []
    return ["Small images and a small network: this shows how the techniques work, not how yours will fare."]


def _dense(results: Results, metric: str) -> str:
    """What can be said where no density below 1 is common to all runs."""
    retrained, dense = controls(results), original(results)
    if retrained:
        values = ", ".join(f"{name} {number(spread.median)}" for name, spread in retrained.items())
        against = f" (original run: {number(dense.median)})" if dense else ""
        return (
            f"Nothing was pruned: this is a dense control. After its last round the validation {metric} is "
            f"{values}{against}."
        )
    ends = ", ".join(f"{name} {spread.median:.3g}" for name, spread in last_densities(results).items())
    return (
        f"No density below 1 was reached by every run, so there is none to compare at; they ended at: {ends}."
    )


def _separation(order: list[str], at: dict[str, Spread], higher: bool) -> str:
    if min(spread.count for spread in at.values()) < 2:
        return "With one seed there is no telling a difference from chance."
    clear: list[tuple[str, str]] = []
    overlap: list[tuple[str, str]] = []
    for better, worse in combinations(order, 2):
        a, b = at[better], at[worse]
        apart = a.low > b.high if higher else a.high < b.low
        (clear if apart else overlap).append((better, worse))
    if not clear:
        return "There the seeds of all techniques overlap: this run does not tell them apart."
    if len(order) == 2 and not overlap:
        return f"There every seed of {order[0]} beats every seed of {order[1]}."
    if not overlap:
        return "There every seed of the better lies beyond every seed of the worse, for each pair of them."
    if len(order) > 3:  # a sentence about every pair would be no sentence
        best = order[0]
        worse = _and([w for b, w in clear if b == best])
        level = _and([w for b, w in overlap if b == best])
        beats = f"every seed of {best} beats every seed of {worse}" if worse else ""
        meets = f"the seeds of {best} overlap those of {level}" if level else ""
        return f"There {'; '.join(filter(None, (beats, meets)))}."
    says = []
    if clear:
        says.append(
            " and ".join(f"every seed of {_and(b)} beats every seed of {w}" for w, b in _by_worse(clear))
        )
    if overlap:
        says.append(" and ".join(f"the seeds of {_and([*b, w])} overlap" for w, b in _by_worse(overlap)))
    return f"There {'; '.join(says)}."


def _by_worse(pairs: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Bring pairs with the same worse one together."""
    groups: dict[str, list[str]] = {}
    for better, worse in pairs:
        groups.setdefault(worse, []).append(better)
    return list(groups.items())


def _how_far(by_density: dict[str, dict[float, Spread]], dense: Spread, metric: str, higher: bool) -> str:
    """How sparse each gets before its median first falls behind the original run."""
    slack = TOLERANCE if abs(dense.median) <= 1 else TOLERANCE * abs(dense.median)
    reached: dict[float, list[str]] = {}
    for name, curve in by_density.items():
        kept = 1.0
        for density, spread in curve.items():  # falling
            behind = dense.median - spread.median if higher else spread.median - dense.median
            if behind > slack + 1e-9:
                break
            kept = density
        reached.setdefault(kept, []).append(name)
    never = reached.pop(1.0, [])
    within = f"within {slack:.3g} of the original run's {metric}"
    many = max(spread.count for curve in by_density.values() for spread in curve.values()) > 1
    if not reached:
        whose = "No technique's median" if many else "No technique"
        return f"{whose} stays {within} at any density tried."
    parts = [f"{density:.3g} with {_and(names)}" for density, names in sorted(reached.items())]
    nowhere = f", and at no density with {_and(never)}" if never else ""
    return f"{'The median' if many else 'It'} stays {within} down to density {', '.join(parts)}{nowhere}."


def _and(names: list[str]) -> str:
    """Write names as a list in a sentence.

    >>> _and(["a"]), _and(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
