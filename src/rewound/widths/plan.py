"""One network whose widths are to be chosen: its candidates, what they lose, what it costs, and the network of a choice."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rewound.allocation import Budget, asked_for
from rewound.compaction.budget import multiply_adds_at, parameters_at
from rewound.compaction.units import Group
from rewound.measure.cost import parameters
from rewound.patterns.units import EachUnit
from rewound.selection import select_best
from rewound.spelling import unknown
from rewound.widths.report import Width
from rewound.widths.rungs import losses, lost_shares, widths_allowed
from rewound.widths.search import Choice, Problem

if TYPE_CHECKING:
    from rewound.compaction.coupling import Coupling

Floats = NDArray[np.float64]

_RUNGS = 4096  # of all groups together, but at least 8 of each


class Plan:
    """What an allocation that plans widths is given by the pruner, made ready."""

    def __init__(
        self,
        model: nn.Module,
        budget: Budget,
        units: EachUnit,
        mask: Mapping[str, Tensor] | None,
        example: Any,
        multiple: int,
        sensitivity: Mapping[str, float],
    ) -> None:
        self.model, self.budget, self.units, self.mask, self.example = model, budget, units, mask, example
        self.multiple = multiple
        self.groups: list[Group] = list(units.structure)
        self.names = [group.name for group in self.groups]
        self.sizes = np.array([group.size for group in self.groups], dtype=np.float64)
        among = budget.among or {}
        self.lost = {name: lost_shares(budget.scores[name], among.get(name)) for name in self.names}
        self.sensitivity = sensitivities(self.groups, sensitivity, budget)
        met = sum(units.structure.shapes[name].numel() for name in units.structure.parameters)
        self.multiply_adds = multiply_adds_at(units.structure, mask)
        self.parameters = parameters_at(units.structure, mask, besides=parameters(model) - met)
        self._rungs: list[NDArray[np.int64]] = []

    def problem(self, most: int, cost: Callable[[Floats], Floats]) -> Problem:
        """The widths to choose from (about ``most`` a group), what each loses, and ``cost``."""
        least = self.budget.least or {}
        most = max(8, min(most, _RUNGS // len(self.names)))
        rungs = {
            g.name: widths_allowed(
                g.size, self.budget.survivors[g.name], least.get(g.name, 1), self.multiple, most
            )
            for g in self.groups
        }
        self._rungs = [rungs[name] for name in self.names]
        lost = losses(rungs, self.lost, self.sensitivity)
        return Problem(self._rungs, [lost[name] for name in self.names], cost)

    def counts(self, choice: Choice) -> dict[str, int]:
        """Name of a group -> units kept."""
        return {name: int(rung[i]) for name, rung, i in zip(self.names, self._rungs, choice)}

    def network(self, choice: Choice, example: Any, coupling: Coupling) -> nn.Module:
        """The real network of these widths: the best units of every group. ``coupling``: of the model and ``example``."""
        from rewound.compaction.shrinking import shrink_
        from rewound.compaction.surgery import compact

        scores, among = self.budget.scores, self.budget.among
        counts = self.counts(choice)
        decided = dict(
            next(iter(select_best(scores, n, among=among, names=(name,)))) for name, n in counts.items()
        )
        if self.mask is None and all(bool(units.all()) for units in decided.values()):
            return self.model
        masks = dict(self.units.masks(decided.items(), self.mask))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said of the network, the user's own compact says
            small = copy.deepcopy(self.model)
            try:
                shrink_(small, masks, example, coupling=coupling)
            except RuntimeError:  # its code has a size written into it
                return compact(self.model, masks, example)
            return small

    def computed(self, choice: Choice) -> tuple[tuple[int, int], tuple[int, int]]:
        """Multiply-adds and parameters, each (before, after); before: of the whole network."""
        counts = np.array([list(self.counts(choice).values())], dtype=np.float64)
        work = sum(work.count for work in self.units.structure.work)
        return (
            (work, round(float(self.multiply_adds(counts)[0]))),
            (parameters(self.model), round(float(self.parameters(counts)[0]))),
        )

    def rows(
        self, choice: Choice, before: Sequence[float] | None = None, after: Sequence[float] | None = None
    ) -> tuple[Width, ...]:
        """The report on each group; before, after: seconds."""
        counts = self.counts(choice)
        return tuple(
            Width(
                group.name,
                group.kind,
                counts[group.name],
                group.size,
                float(self.lost[group.name][counts[group.name]]),
                None if before is None else float(before[i]),
                None if after is None else float(after[i]),
            )
            for i, group in enumerate(self.groups)
        )


def sensitivities(groups: Sequence[Group], asked: Mapping[str, float], budget: Budget) -> dict[str, float]:
    """Return name of a group -> how much its loss counts: as often as weights write it (a residual stream is written by many
    layers), times what is ``asked``.
    """
    factors = asked_factors(asked, [g.name for g in groups], budget)
    return {g.name: len({s.tensor for s in g.writers}) * factors[g.name] for g in groups}


def asked_factors(asked: Mapping[str, float], names: Sequence[str], budget: Budget) -> dict[str, float]:
    """Return each of ``names`` -> the factor that is ``asked`` for it, or for a glob that matches it; else 1."""
    given, unmatched = asked_for(asked, names, budget.aliases)
    if unmatched:
        raise ValueError(unknown("group in 'sensitivity'", unmatched[0], list(names)))
    found = {}
    for name in names:
        factors = set(given.get(name, {"": 1.0}).values())
        factor = factors.pop()
        if factors or isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 0:
            raise ValueError(f"the sensitivity of {name!r} must be one number from 0 (got {given[name]})")
        found[name] = float(factor)
    return found
