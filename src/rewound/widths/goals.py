"""Allocations that ask for a result instead of a density: multiply-adds, parameters, or measured latency."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from rewound.allocation import Budget
from rewound.compaction.budget import widths_of
from rewound.compaction.units import alive
from rewound.measure.latency import Ratio, Stopwatch, Timing, joined, of_batch, ratio, rows_of
from rewound.parameters import unwrap_model
from rewound.patterns.units import EachUnit
from rewound.widths import progress
from rewound.widths.plan import Plan
from rewound.widths.report import Widths
from rewound.widths.search import Choice, choose
from rewound.widths.speedup import meet
from rewound.widths.table import Table, Timer, all_widths, by_group

MOST = 64  # widths of a group to choose from
TIMED = 24  # the same where they are timed: between round widths nothing was measured


@dataclass
class Goal(ABC):
    """An allocation for patterns of units: pass it to :func:`rewound.prune` with ``density=None``.

    After a pruning, ``widths`` says what was asked and what was met. sensitivity: name of a group (or of a weight that
    writes it, or a glob) -> factor on what its units are worth; by default a group is worth as much as weights write it.
    """

    asked: float
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    _widths: Widths | None = field(default=None, init=False, repr=False, compare=False)

    plans_units = True  # what rewound.prune asks of an allocation that plans whole networks

    @property
    def widths(self) -> Widths:
        """The report on the last network that this chose widths for; ValueError before the first."""
        if self._widths is None:
            raise ValueError(
                f"{self} has chosen no widths yet: pass it to rewound.prune(..., allocation=...) first"
            )
        return self._widths

    def __call__(self, budget: Budget) -> dict[str, int]:
        """ValueError: it decides about units."""
        raise ValueError(
            f"allocation {self} plans the widths of a network: it needs a pattern of units, such as pattern='channel' or 'unit' "
            f"(this one prunes {budget.what})"
        )

    def plan(
        self, budget: Budget, *, model: nn.Module, units: EachUnit, mask: Mapping[str, Tensor] | None, example: Any, multiple: int
    ) -> dict[str, int]:  # fmt: skip
        """Return name of a group -> how many units it keeps."""
        if budget.kept is not None:
            raise ValueError(f"allocation {self} says itself how much is kept: pass density=None")
        plan = Plan(unwrap_model(model), budget, units, mask, example, multiple, self.sensitivity)
        choice, self._widths = self._choose(plan)
        return plan.counts(choice)

    @abstractmethod
    def _choose(self, plan: Plan) -> tuple[Choice, Widths]:
        """Return the widths chosen, and what is to be told of them."""


class _Computed(Goal):
    """A share of something that is computed exactly."""

    what = ""

    def __str__(self) -> str:
        return f"for_{self.what.replace('-', '_')}({self.asked:g})"

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
    """See :func:`for_multiply_adds`."""

    what = "multiply-adds"


class Parameters(_Computed):
    """See :func:`for_parameters`."""

    what = "parameters"


@dataclass
class Speedup(Goal):
    """See :func:`for_speedup`."""

    example: Any = None
    batch: int | None = None
    tolerance: float = 0.05
    timer: Timer = field(default_factory=Stopwatch)

    def __str__(self) -> str:
        return f"for_speedup({self.asked:g})"

    def _choose(self, plan: Plan) -> tuple[Choice, Widths]:
        from rewound.compaction.coupling import couple  # torch.export is slow to import
        from rewound.compaction.operators import operators_of

        example = self._example(plan)
        coupling = couple(plan.model, example)
        groups = list(coupling.structure)
        number = {group.name: i for i, group in enumerate(groups)}
        if unknown := [name for name in plan.names if name not in number]:
            raise ValueError(
                f"the example of {self} takes another way through the network than that of the pruning, and meets no units "
                f"{unknown[0]!r} on it: pass the same to both"
            )
        own = [number[name] for name in plan.names]
        whole = widths_of(coupling.structure, {})
        spread = all_widths(own, widths_of(coupling.structure, alive(coupling.structure, plan.mask or {})))
        table = Table(*operators_of(coupling))
        problem = plan.problem(TIMED, lambda widths: table.seconds(spread(widths)))
        narrowest = spread(problem.at(problem.narrowest)[None])[0]
        table.measure(self.timer, narrowest, lambda done: progress.tell(f"timing operators: {done:.0%}"))
        taken: dict[bytes, tuple[Timing, Timing]] = {}

        def measure(choice: Choice, again: bool) -> Ratio:
            small = plan.network(choice, example, coupling)
            before, after = self.timer.models([plan.model, small], example)
            if again:
                first = taken[choice.tobytes()]
                before, after = joined(first[0], before), joined(first[1], after)
            taken[choice.tobytes()] = (before, after)
            return ratio(before, after)

        seconds = float(table.seconds(whole[None])[0])
        measured = self.timer.models([plan.model], example)[0].median
        try:
            found, tries = meet(
                self.asked, problem, seconds, measured, measure, self.tolerance, progress.tell
            )
        finally:
            progress.tell("")
        missed = abs(found.speedup.median / self.asked - 1) > self.tolerance
        if missed and not np.array_equal(found.choice, problem.widest):
            warnings.warn(
                f"asked {self.asked:g}x faster, met {found.speedup}: nearer than that none of {len(tries)} networks came. The "
                "widths to choose from are coarse, or the machine is busy (look at the quartiles)",
                stacklevel=4,
            )
        before, after = taken[found.choice.tobytes()]
        now = spread(problem.at(found.choice)[None])[0]
        was, is_ = (by_group(table, widths, len(groups))[own].tolist() for widths in (whole, now))
        where = f"{after.how}, batch {rows_of(example)}"
        return found.choice, Widths(
            "speed-up", self.asked, plan.rows(found.choice, was, is_), *plan.computed(found.choice),
            found.speedup, before, after, where, len(tries),
        )  # fmt: skip

    def _example(self, plan: Plan) -> Any:
        example = self.example if self.example is not None else plan.example
        if example is None:
            raise ValueError(f"allocation {self} runs the network: pass example=one input")
        return example if self.batch is None else of_batch(example, self.batch)


def for_speedup(
    times: float,
    *,
    example: Any = None,
    batch: int | None = None,
    threads: int | None = None,
    clock: str | None = None,
    tolerance: float = 0.05,
    seconds: float = 2.0,
    sensitivity: Mapping[str, float] | None = None,
    timer: Timer | None = None,
) -> Speedup:
    """Return an allocation with which the compact network is ``times`` as fast on this machine, measured.

    Times of the network's operators are measured at a ladder of widths; of all widths that promise the time asked for, those
    are chosen that lose the least importance (scores of the criterion; dynamic programming, after SPDY, Frantar and Alistarh
    2022); then the network is built (:func:`rewound.compact`) and measured in turn with the whole one, and the choice
    corrected until the measured speed-up is within ``tolerance`` of ``times``. This takes seconds for a ResNet-20. "As fast"
    is against the whole network as it is passed to :func:`rewound.prune`, whatever an earlier mask prunes.

    example: what is timed (default: the pruning's). batch: repeat or cut it to so many rows. threads: of torch while timing
    (default: as they are). clock: "cpu", "wall", or None: CPU time on one CPU thread, else wall-clock time. seconds: about
    how long one comparison lasts. sensitivity: see :class:`Goal`. timer: what measures, if not a new
    ``rewound.measure.latency.Stopwatch`` of these; one that several allocations share measures each operator once.

    In ``prune``, ValueError with the largest speed-up there is where ``times`` cannot be reached; a warning where
    nothing came within ``tolerance``. ``print(goal.widths)`` tells what was met.

    >>> import torch, rewound
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256))
    >>> goal = for_speedup(1.5, threads=1, tolerance=0.5, seconds=0.1)
    >>> mask = rewound.prune(model, None, pattern="unit", allocation=goal, example=torch.ones(64, 256))
    >>> mask.units_kept < 1024 and goal.widths.met > 1
    True
    """
    if not _number(times) or not 1 < times < float("inf"):
        raise ValueError(f"for_speedup takes a number above 1: 2.0 is twice as fast (got {times!r})")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ValueError(
            f"'batch' must be a whole number from 1, or None: the example as it is (got {batch!r})"
        )
    if not _number(tolerance) or not 0 < tolerance < 1:
        raise ValueError(f"'tolerance' must be a share between 0 and 1 (got {tolerance!r})")
    if timer is None:
        timer = Stopwatch(threads, clock, seconds)
    elif (threads, clock) != (None, None):
        raise ValueError("a 'timer' has its own threads and clock: leave those out")
    return Speedup(float(times), dict(sensitivity or {}), example, batch, float(tolerance), timer)


def for_multiply_adds(share: float, *, sensitivity: Mapping[str, float] | None = None) -> MultiplyAdds:
    """Return an allocation that leaves at most ``share`` of the multiply-adds, and of that as much as the units allow.

    Computed exactly, on the example of the pruning; which layers pay is decided as in :func:`for_speedup`. ValueError, with
    the least there is, where so little cannot be reached.

    >>> import torch, rewound
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3),
    ...     torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
    >>> goal = for_multiply_adds(0.5)
    >>> mask = rewound.prune(model, None, pattern="channel", allocation=goal, example=torch.ones(1, 3, 16, 16))
    >>> 0.45 < goal.widths.met <= 0.5
    True
    """
    return MultiplyAdds(_share(share, "for_multiply_adds"), dict(sensitivity or {}))


def for_parameters(share: float, *, sensitivity: Mapping[str, float] | None = None) -> Parameters:
    """Return an allocation that leaves at most ``share`` of the model's parameters, and of that as much as the units allow.

    >>> import torch, rewound
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    >>> goal = for_parameters(0.25)
    >>> mask = rewound.prune(model, None, pattern="unit", allocation=goal, example=torch.ones(1, 8))
    >>> print(goal.widths.parameters)
    (836, 199)
    """
    return Parameters(_share(share, "for_parameters"), dict(sensitivity or {}))


def _share(share: Any, name: str) -> float:
    if not _number(share) or not 0 < share <= 1:
        raise ValueError(f"{name} takes the share that is left, in (0, 1] (got {share!r})")
    return float(share)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
