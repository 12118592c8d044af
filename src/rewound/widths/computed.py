"""Goals that are computed exactly: a share of the multiply-adds, or of the parameters."""

from __future__ import annotations

import math

from rewound.widths.densities import Densities
from rewound.widths.goal import Goal
from rewound.widths.multipliers import Counts, at_density, least_multiply_adds, within
from rewound.widths.plan import Plan
from rewound.widths.report import Widths
from rewound.widths.search import Choice, choose

MOST = 64  # widths of a group to choose from


class _Computed(Goal):
    """A share of something that is computed exactly."""

    what = ""

    def _choose(self, plan: Plan) -> tuple[Choice, Widths]:
        cost = plan.multiply_adds if self.what == "multiply-adds" else plan.parameters
        problem = plan.problem(MOST, cost)
        before = plan.computed(problem.widest)[0 if self.what == "multiply-adds" else 1][0]
        choice = choose(problem, self.asked * before * (1 + 1e-12))
        if choice is None:
            least = float(problem.costs(problem.narrowest[None])[0]) / before
            raise ValueError(
                f"{self.asked:g} of the {self.what} cannot be reached: with every group as narrow as it may be, "
                f"{least:.4g} remain. Ask for at least that, lower 'floor' or 'multiple', or widen the pattern ('unit')"
            )
        return choice, Widths(self.what, self.asked, plan.rows(choice), *plan.computed(choice))


class MultiplyAdds(_Computed):
    """See :func:`rewound.for_multiply_adds`."""

    called, what = "for_multiply_adds", "multiply-adds"

    def at(self, density: float, last: float) -> MultiplyAdds:
        """The goal of a round that goes to ``density``, where this one is met at density ``last``: on the way there the share of
        multiply-adds falls as a power of the density.

        >>> MultiplyAdds(0.01).at(0.5, 0.25).asked, MultiplyAdds(0.01).at(0.25, 0.25).asked
        (0.1, 0.01)
        """
        if density <= last:
            return self
        return MultiplyAdds(self.asked ** (math.log(density) / math.log(last)), self.sensitivity)

    def _thin(self, plan: Densities) -> tuple[Counts, Widths]:
        kept, room = plan.budget.kept, self.asked * plan.before * (1 + 1e-12) - plan.elsewhere
        counts = within(plan.tensors, room) if kept is None else at_density(plan.tensors, kept, room)
        if counts is None:
            least = (plan.elsewhere + least_multiply_adds(plan.tensors, kept)) / plan.before
            so = "" if kept is None else f", with {kept:,} {plan.units.what} kept"
            raise ValueError(
                f"{self.asked:g} of the multiply-adds cannot be reached{so}: at the least {least:.4g} remain, "
                f"{plan.elsewhere / plan.before:.4g} outside of the scope. Ask for at least that, lower 'floor'"
                + (", widen the scope" if kept is None else " or the density, or widen the scope")
            )
        return counts, Widths(self.what, self.asked, plan.rows(counts), *plan.computed(counts))


class Parameters(_Computed):
    """See :func:`rewound.for_parameters`."""

    called, what = "for_parameters", "parameters"

    def _thin(self, plan: Densities) -> tuple[Counts, Widths]:
        raise ValueError(
            f"allocation {self} plans the widths of units, and this pattern prunes {plan.units.what}: say density= instead, or "
            "take pattern='channel' or 'unit'"
        )
