"""One network whose weights (or blocks) are to be thinned out: what each tensor's best are worth, what they cost, and the
network of a choice. What ``plan`` is for widths.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewound.allocation import Budget
from rewound.mask import Mask
from rewound.measure.cost import flops_by_weight, parameters
from rewound.patterns.units import EachBlock, EachWeight
from rewound.selection import select_best
from rewound.widths.multipliers import Counts, Ranked, multiply_adds
from rewound.widths.plan import asked_factors
from rewound.widths.report import Width
from rewound.widths.search import Choice, Problem

Floats = NDArray[np.float64]

_HIGHEST = 1e30  # its square, and the sum of many, is still a number


class Densities:
    """What an allocation that plans densities is given by the pruner, made ready. Holds the scores once more, sorted.

    ``tensors`` are in the order of ``names``; ``elsewhere``: multiply-adds of what is not pruned; ``before``: of the whole
    network, nothing pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: Budget,
        units: EachWeight | EachBlock,
        mask: Mapping[str, Tensor] | None,
        example: Any,
        sensitivity: Mapping[str, float],
    ) -> None:
        self.model, self.budget, self.units, self.mask, self.example = model, budget, units, mask, example
        self.names = list(budget.shapes)
        self.sizes = np.array([shape.numel() for shape in budget.shapes.values()], dtype=np.float64)
        factors = asked_factors(sensitivity, self.names, budget)
        counts = flops_by_weight(model, example)
        weights = {name: shape.numel() for name, shape in units.covers.items()}
        self.tensors = [
            self._ranked(name, counts.get(name, 0) / (2 * weights[name]), factors[name])
            for name in self.names
        ]
        self.before = sum(counts.values()) // 2
        self.elsewhere = self.before - sum(counts.get(name, 0) for name in self.names) // 2
        self._rungs: list[NDArray[np.int64]] = []

    def _ranked(self, name: str, cost: float, factor: float) -> Ranked:
        scores = self.budget.scores[name].detach().reshape(-1)
        alive = None if self.budget.among is None else self.budget.among[name].reshape(-1).to(scores.device)
        values = scores if alive is None else scores[alive]
        if bool(values.isnan().any()):
            raise ValueError(
                f"{int(values.isnan().sum()):,} of {values.numel():,} scores of {name!r} are NaN"
            )
        values = values if values.dtype is torch.float64 else values.float()
        values = values * math.sqrt(factor)
        values = values.clamp(-_HIGHEST, _HIGHEST).cpu()  # an infinite one is the highest number
        least = (self.budget.least or {}).get(name, 0)
        weights = self.units.weights(name, self.mask)
        if weights is None:
            return Ranked(np.sort(values.numpy()), cost, least)
        held = weights.reshape(-1).cpu() if alive is None else weights.reshape(-1).cpu()[alive.cpu()]
        order = values.argsort(descending=True, stable=True)
        best = np.concatenate([[0], np.cumsum(held[order].numpy())])
        return Ranked(values[order].flip(0).numpy(), cost, least, best)

    def problem(self, most: int, cost: Callable[[Floats], Floats]) -> Problem:
        """Counts to choose from (about ``most`` a tensor, their densities a geometric row), the squared scores that each loses,
        and ``cost``."""
        self._rungs = [_rungs(len(t.scores), t.least, most) for t in self.tensors]
        return Problem(self._rungs, [_lost(t, r) for t, r in zip(self.tensors, self._rungs)], cost)

    def chosen(self, choice: Choice) -> Counts:
        """Units that each tensor keeps in a choice of the ``problem``."""
        return [int(rung[i]) for rung, i in zip(self._rungs, choice)]

    def network(self, counts: Counts) -> nn.Module:
        """A copy with the best of every tensor, the rest zeros."""
        thin = copy.deepcopy(self.model)
        Mask(self.units.masks(self._decided(counts), self.mask)).apply_(thin)
        return thin

    def _decided(self, counts: Counts) -> Iterator[tuple[str, Tensor]]:
        scores, among = self.budget.scores, self.budget.among
        for name, count in zip(self.names, counts):
            yield from select_best(scores, count, among=among, names=(name,))

    def computed(self, counts: Counts) -> tuple[tuple[int, int], tuple[int, int]]:
        """Multiply-adds and parameters, each (before, after)."""
        whole = parameters(self.model)
        covered = sum(shape.numel() for shape in self.units.covers.values())
        held = sum(n if t.weights is None else int(t.weights[n]) for t, n in zip(self.tensors, counts))
        after = round(self.elsewhere + multiply_adds(self.tensors, counts))
        return (self.before, after), (whole, whole - covered + held)

    def rows(
        self,
        counts: Counts,
        before: Sequence[float | None] | None = None,
        after: Sequence[float | None] | None = None,
    ) -> tuple[Width, ...]:
        """The report on each tensor; before, after: seconds. What is lost is a share of the sum of squared scores."""
        found = []
        for i, (name, tensor, kept) in enumerate(zip(self.names, self.tensors, counts)):
            lost = _lost(tensor, np.array([0, kept]))
            found.append(
                Width(
                    name,
                    self.units.what,
                    kept,
                    self.budget.shapes[name].numel(),
                    float(lost[1] / lost[0]) if lost[0] else 0.0,
                    None if before is None else before[i],
                    None if after is None else after[i],
                )
            )
        return tuple(found)


def _rungs(survivors: int, least: int, most: int) -> NDArray[np.int64]:
    """Counts from the least (never none) to all, rising, in about equal ratios.

    >>> _rungs(1000, 10, 5).tolist()
    [10, 32, 100, 316, 1000]
    """
    first = max(1, least)
    if first >= survivors:
        return np.array([survivors], dtype=np.int64)
    return np.unique(np.round(np.geomspace(first, survivors, most)).astype(np.int64))


def _lost(tensor: Ranked, counts: NDArray[np.int64]) -> Floats:
    """The sum of the squared scores that go when so many stay; scores below zero are no loss."""
    squares = np.square(np.maximum(tensor.scores, 0), dtype=np.float64)
    gone = np.concatenate([[0.0], np.cumsum(squares)])  # the lowest go first
    return gone[len(tensor.scores) - counts]
