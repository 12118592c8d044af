"""How many weights survive in which tensor: global, uniform, erk, lamp, cost, or given tensor by tensor.

An allocation is a function from a Budget to the number of weights each tensor keeps (a mapping name ->
count that sums to ``budget.kept``), or to Groups of tensors that compete among themselves. Where a pattern prunes blocks,
channels or heads, it is their number: then "tensor" below means a group of such units, and "weight" a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from rewound.spelling import closest, unknown


@dataclass(frozen=True)
class Budget:
    """What an allocation decides on.

    kept: weights to keep in all tensors together (None: the allocation itself says). shapes: name ->
    shape, in scope order. survivors: name -> weights not pruned yet: no tensor can keep more. scores:
    name -> scores (higher = keep). among: name -> bool tensor of the survivors, or None if nothing is
    pruned yet.

    what: what is counted: "weights", "blocks", "units". least: name -> the fewest that it may keep. tensors: where a unit
    is not one weight, name -> shape of the weight tensor that its units are parts of; an empty mapping where they are parts
    of several. aliases: name -> what else a mapping may call it. counting: counts the network's multiply-adds, for ``costs``.
    """

    kept: int | None
    shapes: Mapping[str, torch.Size]
    survivors: Mapping[str, int]
    scores: Mapping[str, Tensor]
    among: Mapping[str, Tensor] | None = None
    what: str = "weights"
    least: Mapping[str, int] | None = None
    tensors: Mapping[str, torch.Size] | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counting: Callable[[], Mapping[str, float]] | None = None

    @cached_property
    def costs(self) -> Mapping[str, float]:
        """Name of a weight -> multiply-adds that each single entry of it takes part in; none for what is not named.

        The network is run (on shapes alone, where it can) when this is first read; ValueError where the pruning has no example.
        """
        if self.counting is None:
            raise ValueError(
                "multiply-adds are counted by running the network once: pass example=one input (a tensor, a tuple of "
                "positional or a dict of keyword arguments)"
            )
        return self.counting()

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> number of weights, pruned ones included."""
        return {name: shape.numel() for name, shape in self.shapes.items()}

    def least_of(self, names: Iterable[str]) -> int:
        """The fewest weights that ``names`` may keep together."""
        return sum(self.least[name] for name in names) if self.least else 0


@dataclass(frozen=True)
class Group:
    """Tensors that compete for ``kept`` places; ``ranking`` decides how many each one gets (None: the
    scores do)."""

    names: tuple[str, ...]
    kept: int
    ranking: Mapping[str, Tensor] | None = None


Allocation: TypeAlias = Callable[[Budget], "Mapping[str, int] | list[Group]"]


def global_(budget: Budget) -> list[Group]:
    """All tensors compete with their scores as they are: the paper's rule (Renda et al. 2020).

    Scores are compared across tensors, so that a tensor of small weights may be emptied; a network with batch
    norm can be rescaled without changing its function, which changes this allocation.
    """
    return [Group(tuple(budget.shapes), _kept(budget))]


def uniform(budget: Budget) -> dict[str, int]:
    """Every tensor keeps the same share of its weights, to the nearest weight.

    Where a tensor has fewer survivors than that, the others share what it cannot hold.
    """
    return _share(budget, budget.sizes)


def erk(budget: Budget) -> dict[str, int]:
    """Erdos-Renyi-Kernel (Evci et al. 2020, RigL, section 3): density in proportion to sum(shape) /
    prod(shape).

    For a matrix that is (n_in + n_out) / (n_in * n_out). A tensor whose density would exceed 1 stays
    dense and the others are rescaled, so that the total is exact. Blocks are shared out as their weights are. ValueError
    for units that span tensors (channels, heads): the rule speaks of the connections of one tensor.
    """
    shapes = budget.shapes if budget.tensors is None else budget.tensors
    if not shapes:
        raise ValueError(
            "allocation 'erk' says how dense one weight tensor is, and channels, heads and hidden units lie in several; "
            "take 'global', 'uniform', 'lamp' or a mapping name -> density"
        )
    return _share(budget, {name: sum(shapes[name]) for name in budget.shapes})


def lamp(budget: Budget) -> list[Group]:
    """LAMP (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", section 3).

    score^2 / (sum of the squares of the scores in the same tensor that are at least as high), compared
    globally, decides how many each tensor keeps; which ones, the scores decide. Needs scores >= 0; an
    all-zero tensor ranks 0. Holds 8 bytes a weight and sorts each tensor.
    """
    ranking = {name: _lamp(name, budget) for name in budget.shapes}
    return [Group(tuple(budget.shapes), _kept(budget), ranking)]


def cost(budget: Budget) -> list[Group]:
    """All tensors compete with score^2 / multiply-adds of one weight: of all masks that need as many multiply-adds, the one
    that loses the least sum of squared scores, at the density asked for.

    A weight of a convolution works once for every position of its output, so that one global threshold saves far fewer
    multiply-adds than weights. Here a weight must be worth the multiply-adds it causes; ``for_multiply_adds`` asks for their
    number instead of the density. What causes none (embeddings) counts as the cheapest that there is. Needs an example.
    """
    return [Group(tuple(budget.shapes), _kept(budget), _Worth(budget))]


ALLOCATIONS: dict[str, Allocation] = {
    "global": global_,
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "cost": cost,
}


class _Worth(Mapping[str, Tensor]):
    """Scores over the square root of what one weight costs, in float64: as score^2 / cost orders them; computed when read.

    Scores below zero are multiplied by it: the costlier, the sooner they go.
    """

    def __init__(self, budget: Budget) -> None:
        if budget.tensors is not None and not budget.tensors:
            raise ValueError(
                "allocation 'cost' says what one weight is worth, and channels, heads and hidden units lie in several tensors; "
                "take for_multiply_adds(share) or for_speedup(times), which plan their widths"
            )
        found = {name: budget.costs.get(name, 0.0) for name in budget.shapes}
        cheapest = min((c for c in found.values() if c > 0), default=1.0)
        self._scores = budget.scores
        self._roots = {name: (c or cheapest) ** 0.5 for name, c in found.items()}

    def __getitem__(self, name: str) -> Tensor:
        shape, read = self.open(name)
        return read(slice(None)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._roots)

    def __len__(self) -> int:
        return len(self._roots)

    def open(self, name: str) -> tuple[torch.Size, Callable[[slice | Tensor], Tensor]]:
        """Return the tensor's shape and a function from a slice (or indices) of it, flattened, to the values there."""
        opener = getattr(self._scores, "open", None)
        root = self._roots[name]
        if opener is not None:
            shape, read = opener(name)
        else:
            flat = self._scores[name].detach().reshape(-1)
            shape, read = self._scores[name].shape, flat.__getitem__

        def worth_of(where: slice | Tensor) -> Tensor:
            values = read(where).double()
            return torch.where(values < 0, values * root, values / root)

        return shape, worth_of


def by_density(densities: Mapping[str, float]) -> Allocation:
    """Return an allocation: tensors named here (or matched by a pattern) keep that density, the others
    compete globally.

    A full name goes before a pattern; a tensor matched by patterns of different densities is an error. If
    the budget has no total, the others stay as they are. ValueError, with the range that can be reached,
    if the total does not fit.
    """

    def allocation(budget: Budget) -> list[Group]:
        given = _given(densities, budget)
        rest = tuple(name for name in budget.shapes if name not in given)
        fixed, room = sum(given.values()), sum(budget.survivors[name] for name in rest)
        low, high = fixed + budget.least_of(rest), fixed + room
        kept = high if budget.kept is None else budget.kept
        if not low <= kept <= high:
            size = sum(budget.sizes.values())
            raise ValueError(
                f"{kept:,} of {size:,} {budget.what} cannot be kept: the densities given keep {fixed:,} and the "
                f"other {len(rest)} tensors hold {room:,}, so that the density can be {low / size:.6g} to "
                f"{high / size:.6g}"
            )
        groups = [Group((name,), count) for name, count in given.items()]
        return groups + [Group(rest, kept - fixed)] if rest else groups

    return allocation


def as_allocation(allocation: str | Mapping[str, float] | Allocation) -> Allocation:
    """Return the allocation of that name, mapping (name or pattern -> density) or function.

    >>> as_allocation("erk") is erk
    True
    """
    if isinstance(allocation, Mapping):
        return by_density(allocation)
    if callable(allocation):
        return allocation
    if allocation not in ALLOCATIONS:
        also = "for_multiply_adds(0.1) or for_speedup(4.0); a mapping name -> density; or a function"
        raise ValueError(unknown("allocation", allocation, ALLOCATIONS, also))
    return ALLOCATIONS[allocation]


def allocate(allocation: Allocation, budget: Budget) -> list[Group]:
    """Ask ``allocation`` and check its answer: every tensor once, counts whole, within the survivors, the
    total exact.

    >>> import torch
    >>> shapes = {"a": torch.Size([10]), "b": torch.Size([5])}
    >>> budget = Budget(kept=3, shapes=shapes, survivors={"a": 10, "b": 5}, scores={})
    >>> [(group.names, group.kept) for group in allocate(uniform, budget)]
    [(('a',), 2), (('b',), 1)]
    """
    answer = allocation(budget)
    groups = [Group((n,), c) for n, c in answer.items()] if isinstance(answer, Mapping) else list(answer)
    title = getattr(allocation, "__name__", type(allocation).__name__)
    named = [name for group in groups for name in group.names]
    odd = sorted(set(named) ^ set(budget.shapes))
    if odd or len(named) != len(set(named)):
        raise ValueError(
            f"allocation {title!r} must name every tensor in scope once (look at {(odd or named)[0]!r})"
        )
    for group in groups:
        if isinstance(group.kept, bool) or not isinstance(group.kept, int):
            raise TypeError(
                f"allocation {title!r} must give counts as int (got {group.kept!r} for {group.names[0]!r})"
            )
        room = sum(budget.survivors[name] for name in group.names)
        if not 0 <= group.kept <= room:
            raise ValueError(
                f"allocation {title!r} keeps {group.kept:,} of the {room:,} survivors of {group.names[0]!r}"
            )
    total = sum(group.kept for group in groups)
    if budget.kept is not None and total != budget.kept:
        raise ValueError(
            f"allocation {title!r} keeps {total:,} {budget.what}; {budget.kept:,} were asked for"
        )
    return groups


def apportion(
    weights: Mapping[str, int],
    room: Mapping[str, int],
    total: int,
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Split ``total`` in proportion to ``weights``, never more than ``room`` nor less than ``least``: largest
    remainders, ties to the earlier.

    What does not fit into one is shared by the others in proportion. Exact (rational arithmetic).

    >>> apportion({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 9, "c": 9}, 6)
    {'a': 1, 'b': 3, 'c': 2}
    >>> apportion({"a": 1, "b": 8}, {"a": 9, "b": 72}, 9, least={"a": 2, "b": 2})
    {'a': 2, 'b': 7}
    """
    low = dict.fromkeys(weights, 0) if least is None else least
    if not sum(low.values()) <= total <= sum(room.values()):
        at_least = f" and at least {sum(low.values()):,}" if least else ""
        raise ValueError(f"cannot split {total:,} over room for {sum(room.values()):,}{at_least}")
    ideal: dict[str, Fraction] = {}
    open_ = [name for name in weights if room[name] > 0]
    left = total
    while open_:
        rate = Fraction(left, sum(weights[name] for name in open_))
        cut = {n: min(max(rate * weights[n], Fraction(low[n])), Fraction(room[n])) for n in open_}
        surplus = sum(cut.values()) - left
        if surplus == 0:
            ideal.update(cut)
            break
        # Too much is held by those that must have their least, or too little by those that are full: they are settled,
        # since what the others share moves the rate further that way.
        bound = low if surplus > 0 else room
        settled = [name for name in open_ if cut[name] == bound[name]]
        ideal.update((name, Fraction(bound[name])) for name in settled)
        left -= sum(bound[name] for name in settled)
        open_ = [name for name in open_ if name not in settled]
    counts = {name: int(ideal.get(name, 0)) for name in weights}
    spare = total - sum(counts.values())
    by_remainder = sorted(ideal, key=lambda name: counts[name] - ideal[name])  # stable
    for name in by_remainder[:spare]:
        counts[name] += 1
    return counts


def _share(budget: Budget, weights: Mapping[str, int]) -> dict[str, int]:
    return apportion(weights, budget.survivors, _kept(budget), budget.least)


def _kept(budget: Budget) -> int:
    if budget.kept is None:
        raise ValueError("'density' may be None only where the allocation is a mapping name -> density")
    return budget.kept


def _given(densities: Mapping[str, float], budget: Budget) -> dict[str, int]:
    """Return name -> count for the tensors whose density is given, in scope order."""
    for pattern, density in densities.items():
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 <= density <= 1:
            raise ValueError(f"the density of {pattern!r} must be in [0, 1] (got {density!r})")
    found, unmatched = asked_for(densities, budget.shapes, budget.aliases)
    if unmatched:
        known = [*budget.shapes, *(alias for called in budget.aliases.values() for alias in called)]
        near = closest(unmatched[0], known, count=3) or known[:3]
        raise ValueError(
            f"allocation: no tensor in scope matches {unmatched[0]!r}; nearest: {', '.join(map(repr, near))}"
        )
    counts = {}
    for name, asked in found.items():
        size = budget.sizes[name]
        if len(set(asked.values())) > 1:
            both = " and ".join(f"{d} by {pattern!r}" for pattern, d in asked.items())
            raise ValueError(f"{name!r} is given density {both}: give it a density under its full name")
        for density in set(asked.values()):
            least = budget.least_of((name,))  # no layer is emptied, whatever is asked
            counts[name] = max(round(density * size), least)
            if counts[name] > budget.survivors[name]:
                raise ValueError(
                    f"{name!r} cannot have density {density}: that keeps {counts[name]:,}, and only "
                    f"{budget.survivors[name]:,} of {size:,} are not pruned yet"
                )
    return counts


def asked_for(
    densities: Mapping[str, float], names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return each of ``names`` that is asked for -> {pattern: density}, and the patterns that match nothing.

    A full name goes before patterns, and a name before another's alias (a layer may write several kinds of units).

    >>> asked_for({"*": 0.5, "a": 0.1, "c": 1.0}, ["a", "b"], {"b": ("b.weight", "a")})
    ({'a': {'a': 0.1}, 'b': {'*': 0.5}}, ['c'])
    """
    own = tuple(names)
    unmatched = dict.fromkeys(densities)
    found: dict[str, dict[str, float]] = {}
    for name in own:
        called = (name, *(alias for alias in aliases.get(name, ()) if alias not in own))
        asked = {p: d for p, d in densities.items() if any(p == c or fnmatchcase(c, p) for c in called)}
        exact = next((c for c in called if c in densities), None)
        if exact is not None:
            found[name] = {exact: densities[exact]}
        elif asked:
            found[name] = asked
        for pattern in asked:
            unmatched.pop(pattern, None)
    return found, list(unmatched)


def _lamp(name: str, budget: Budget) -> Tensor:
    """LAMP of one tensor's scores, in float64 and in the tensor's shape; 0 where already pruned."""
    scores = budget.scores[name].detach().reshape(-1).double()
    able = None if budget.among is None else budget.among[name].to(scores.device).reshape(-1)
    chosen = scores if able is None else scores[able]
    if chosen.numel() == 0:
        return torch.zeros_like(scores).reshape(budget.shapes[name])
    if bool(chosen.isnan().any()):
        raise ValueError(f"{int(chosen.isnan().sum()):,} of {chosen.numel():,} scores of {name!r} are NaN")
    if bool((chosen < 0).any()):
        raise ValueError(
            f"allocation 'lamp' squares the scores and needs them >= 0 ({name!r} has negative ones)"
        )
    values, inverse, counts = chosen.unique(return_inverse=True, return_counts=True)
    finite = values.isfinite()
    top = values[finite].max() if bool(finite.any()) else values.new_zeros(())
    squares = torch.where(
        finite & (top > 0), values / top.clamp_min(torch.finfo(torch.float64).tiny), 0.0
    ).square()
    at_least = (squares * counts).flip(0).cumsum(0).flip(0)
    ranks = torch.where(at_least > 0, squares / at_least, 0.0)
    ranks[~finite] = torch.inf  # an infinite score is kept before all others
    ranks = ranks.cummax(0).values[inverse]  # rounding must not turn the order of two scores around
    if able is None:
        return ranks.reshape(budget.shapes[name])
    return torch.zeros_like(scores).masked_scatter_(able, ranks).reshape(budget.shapes[name])
