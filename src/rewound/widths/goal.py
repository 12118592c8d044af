"""What allocations that ask for a result have in common: they are given the whole network, and say how much of it stays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rewound.allocation import Budget
from rewound.parameters import unwrap_model
from rewound.patterns.units import EachUnit, Units
from rewound.widths.densities import Densities
from rewound.widths.multipliers import Counts
from rewound.widths.plan import Plan
from rewound.widths.report import Widths
from rewound.widths.search import Choice


@dataclass
class Goal(ABC):
    """An allocation that asks for a result: pass it to :func:`rewound.prune` with ``density=None``.

    With a pattern of units it plans how wide every group is, with single weights or blocks how dense every tensor is. After a
    pruning, ``widths`` says what was asked and what was met. sensitivity: name of a group (or of a weight that writes it, or
    a glob) -> factor on what its units are worth; by default a group is worth as much as weights write it, and all tensors of
    weights are worth alike.
    """

    asked: float
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    _widths: Widths | None = field(default=None, init=False, repr=False, compare=False)

    called = ""  # the function that makes it
    plans_network = True  # what rewound.prune asks of an allocation that plans whole networks

    def __str__(self) -> str:
        more = f", sensitivity={dict(self.sensitivity)}" if self.sensitivity else ""
        return f"{self.called}({self.asked:g}{more})"

    @property
    def widths(self) -> Widths:
        """The report on the last network that this chose widths or densities for; ValueError before the first."""
        if self._widths is None:
            raise ValueError(
                f"{self} has chosen no widths yet: pass it to rewound.prune(..., allocation=...) first"
            )
        return self._widths

    def __call__(self, budget: Budget) -> dict[str, int]:
        """ValueError: it needs the network."""
        raise ValueError(
            f"allocation {self} plans a whole network, and a budget alone does not tell: pass it to rewound.prune"
        )

    def plan(
        self, budget: Budget, *, model: nn.Module, units: Units, mask: Mapping[str, Tensor] | None, example: Any, multiple: int
    ) -> dict[str, int]:  # fmt: skip
        """Return name of a group or tensor -> how many units (weights, blocks) it keeps."""
        if isinstance(units, EachUnit):
            if budget.kept is not None:
                raise ValueError(f"allocation {self} says itself how much is kept: pass density=None")
            plan = Plan(unwrap_model(model), budget, units, mask, example, multiple, self.sensitivity)
            choice, self._widths = self._choose(plan)
            return plan.counts(choice)
        own = getattr(self, "example", None)
        example = example if own is None else own
        if example is None:
            raise ValueError(f"allocation {self} runs the network: pass example=one input")
        thin = Densities(unwrap_model(model), budget, units, mask, example, self.sensitivity)
        counts, self._widths = self._thin(thin)
        return dict(zip(thin.names, counts))

    @abstractmethod
    def _choose(self, plan: Plan) -> tuple[Choice, Widths]:
        """Return the widths chosen, and what is to be told of them."""

    @abstractmethod
    def _thin(self, plan: Densities) -> tuple[Counts, Widths]:
        """Return how much each tensor of single weights or blocks keeps, and what is to be told of it."""
