"""What each round of a run prunes: the arguments of ``prune``, resolved once, tried before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rewound.allocation import as_allocation
from rewound.criteria import as_criterion
from rewound.evidence import Evidence
from rewound.mask import Mask
from rewound.parameters import local, parameters_by_name
from rewound.patterns.binding import bind, find_pattern, narrowed, warn_of_misfits
from rewound.patterns.n_of_m import NofM
from rewound.patterns.units import EachUnit, EachWeight, Units, Weights
from rewound.plan import Plan, Until
from rewound.pruning import prune
from rewound.scope import as_scope
from rewound.widths.computed import MultiplyAdds
from rewound.widths.goals import read_goal

_CAPS = {"multiple": 1, "floor": None, "allow": "exact after fold"}  # of prune, by default


class Rounds:
    """Criterion, pattern, allocation and caps of a run; the structure of its model is found once, when this is made.

    scope: the weights that may be pruned. units: what is counted (weights, blocks, units), and what a mask of them covers.
    whole: the mask of round 0. told: what tells this way of pruning from another, for the configuration.

    Raises what :func:`rewound.prune` raises for such arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        scope: Any,
        criterion: Any,
        pattern: Any,
        allocation: Any,
        example: Any,
        caps: Mapping[str, Any],
    ) -> None:
        scoring, allocation = as_criterion(criterion), read_goal(allocation)
        as_allocation(allocation)
        self._asked, self._how = as_scope(model, scope), find_pattern(model, pattern, example)
        self.scope = narrowed(self._how, self._asked, model)
        self.units = bind(model, self._how, self.scope, caps["allow"])
        self._by_cost = allocation == "cost" or getattr(allocation, "plans_network", False)
        if self._by_cost:
            _require_density(allocation, self.units)
            if example is None:
                raise ValueError(
                    f"allocation {str(allocation)!r} counts multiply-adds: pass example=what one optimizer step consumes"
                )
        if getattr(scoring, "of_units", False) and not isinstance(self.units, EachUnit):
            raise ValueError(
                f"criterion {criterion!r} scores units such as channels, and pattern '{self._how}' prunes {self.units.what}; "
                "give pattern='channel' (or 'unit') and an example"
            )
        self.sizes = {name: shape.numel() for name, shape in self.units.shapes.items()}
        self.whole = self._whole(model)
        self.allocation, self._criterion, self._caps = allocation, criterion, dict(caps)
        self._example = None if isinstance(self.units, EachUnit) else example
        self.told: dict[str, Any] = {
            "criterion": criterion,
            "pattern": str(self._how),
            "allocation": allocation,
            **{key: value for key, value in caps.items() if value != _CAPS[key]},
        }
        if isinstance(self.units, EachUnit):  # another capture of another model is another run
            self.told["units"] = self.sizes

    def schedule(self, rate: float | None, until: Until | None) -> tuple[float | None, Until | None]:
        """Return ``rate`` and ``until`` as they are, or what n:m, which prunes once and to n/m, makes of them; ValueError where a
        goal is shared out over rounds whose last density is not known."""
        if self._by_cost and self.allocation != "cost" and (until is None or until.density is None):
            raise ValueError(
                f"allocation {self.allocation} is met at the density of the last round: give 'until' a density, as in until=0.1 "
                f"(got {until})"
            )
        if not isinstance(self._how, NofM):
            return rate, until
        if until is not None and until.density is None:
            raise ValueError(
                f"pattern '{self._how}' prunes once, to density {self._how.density:g}; leave 'until' out (got {until})"
            )
        self._how.check_density(None if until is None else until.density, "until")
        return None, Until(density=self._how.density)

    def try_out(self, model: nn.Module, plan: Plan) -> None:
        """Refuse now what the first pruning would refuse, where more than the plain pattern "weight" is at stake."""
        if not plan.rounds:
            return
        plain = isinstance(self._how, Weights) and not self._by_cost
        if plain and all(self._caps[key] == _CAPS[key] for key in _CAPS):
            return
        self.mask(model, plan, 1, self.whole, None, criterion="magnitude")
        if isinstance(self.allocation, MultiplyAdds):  # a goal out of reach is out of reach at the end
            self.mask(model, plan, plan.rounds, self.whole, None, criterion="magnitude")
        warn_of_misfits(self._how, self._asked, self.scope)

    def mask(
        self,
        model: nn.Module,
        plan: Plan,
        index: int,
        before: Mask,
        evidence: Evidence | None,
        criterion: Any = None,
    ) -> Mask:
        """Return the mask of round ``index``, nested in ``before``."""
        allocation, kept = self.allocation, plan.kept[index - 1]
        density: float | None = kept / plan.size
        if before.units_kept is not None:  # multiples may have taken a little more than was planned
            density = min(kept, before.units_kept) / plan.size
        if isinstance(allocation, MultiplyAdds):  # the rounds come near it as they come near the last density
            allocation = allocation.at(kept / plan.size, plan.kept[-1] / plan.size)
        if plan.by_tensor:
            density, allocation = None, self._own(plan.by_tensor[index - 1], before)
        pattern = self.units.structure if isinstance(self.units, EachUnit) else self._how
        return prune(
            model,
            density,
            criterion=self._criterion if criterion is None else criterion,
            pattern=pattern,  # type: ignore[arg-type]
            allocation=allocation,
            scope=self.scope,
            mask=before,
            evidence=evidence,
            example=self._example,
            **self._caps,
        )

    def _own(self, densities: Mapping[str, float], before: Mask) -> dict[str, float]:
        if before.units is None:
            return dict(densities)
        left = {name: kept / size for name, (kept, size) in before.units.items()}
        return {name: min(density, left[name]) for name, density in densities.items()}

    def _whole(self, model: nn.Module) -> Mask:
        parameters = parameters_by_name(model)
        ones = (
            (
                name,
                torch.ones(parameters[name].shape, dtype=torch.bool, device=local(parameters[name]).device),
            )
            for name in self.units.covers
        )
        single = isinstance(self.units, EachWeight)
        return Mask(ones, units=None if single else {name: (n, n) for name, n in self.sizes.items()})


def _require_density(allocation: Any, units: Units) -> None:
    """Refuse a goal that says itself how much is kept: a run prunes to a density, round by round."""
    takes = allocation == "cost" or isinstance(allocation, MultiplyAdds)
    if takes and not isinstance(units, EachUnit):
        return
    if isinstance(units, EachUnit):
        so = (
            "take another allocation, or prune once with rewound.prune and train what rewound.compact returns"
        )
    else:
        so = "take for_multiply_adds(share) or 'cost', or prune once with rewound.prune, and train under rewound.guard"
    raise ValueError(
        f"allocation {allocation} says itself how much is kept, and a run prunes to a density round by round: {so}"
        if allocation != "cost"
        else "allocation 'cost' is for single weights and blocks: take 'global', 'uniform' or 'lamp'"
    )
