"""The goal that is measured: so many times as fast, as a compact network in torch or as a sparse one in the engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from rewound.compaction.budget import widths_of
from rewound.compaction.units import alive
from rewound.measure.latency import Ratio, Stopwatch, Timing, joined, of_batch, ratio, rows_of
from rewound.widths import progress
from rewound.widths.densities import Densities
from rewound.widths.engine import LayerTimer, LayerTimes, as_layer_timer
from rewound.widths.goal import Goal
from rewound.widths.multipliers import Counts
from rewound.widths.plan import Plan
from rewound.widths.report import Widths
from rewound.widths.search import Choice, Problem
from rewound.widths.speedup import Try, meet
from rewound.widths.table import Table, Timer, all_widths, by_group

TIMED = 24  # widths of a group to choose from: between round widths nothing was measured
DENSE = 48  # densities of a tensor to choose from


@dataclass
class Speedup(Goal):
    """See :func:`rewound.for_speedup`."""

    example: Any = None
    batch: int | None = None
    tolerance: float = 0.05
    timer: Timer | LayerTimer = field(default_factory=Stopwatch)

    called = "for_speedup"

    def _choose(self, plan: Plan) -> tuple[Choice, Widths]:
        from rewound.compaction.coupling import couple  # torch.export is slow to import
        from rewound.compaction.operators import operators_of

        timer: Any = self.timer
        example = self._example(plan.example)
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
        table.measure(timer, narrowest, lambda done: progress.tell(f"timing operators: {done:.0%}"))
        seconds = float(table.seconds(whole[None])[0])
        found, tries, before, after = self._met(
            problem,
            plan.model,
            example,
            seconds,
            lambda choice: plan.network(choice, example, coupling),
            timer,
        )
        now = spread(problem.at(found.choice)[None])[0]
        was, is_ = (by_group(table, widths, len(groups))[own].tolist() for widths in (whole, now))
        where = f"{after.how}, batch {rows_of(example)}"
        return found.choice, Widths(
            "speed-up", self.asked, plan.rows(found.choice, was, is_), *plan.computed(found.choice),
            found.speedup, before, after, where, len(tries),
        )  # fmt: skip

    def _thin(self, plan: Densities) -> tuple[Counts, Widths]:
        if plan.budget.kept is not None:
            raise ValueError(f"allocation {self} says itself how much is kept: pass density=None")
        example, timer = self._example(plan.example), as_layer_timer(self.timer)
        table = LayerTimes(plan, timer, example)
        table.measure(lambda done: progress.tell(f"timing layers: {done:.0%}"))
        problem = plan.problem(DENSE, table.seconds)
        found, tries, before, after = self._met(
            problem,
            plan.model,
            example,
            table.whole,
            lambda choice: plan.network(plan.chosen(choice)),
            timer,
        )
        counts = plan.chosen(found.choice)
        rows = plan.rows(counts, table.each(plan.sizes[None])[0].tolist(), table.each([counts])[0].tolist())
        where = f"{after.how}, batch {rows_of(example)}"
        return counts, Widths(
            "speed-up", self.asked, rows, *plan.computed(counts), found.speedup, before, after, where, len(tries)
        )  # fmt: skip

    def _met(
        self,
        problem: Problem,
        model: nn.Module,
        example: Any,
        seconds: float,
        build: Callable[[Choice], nn.Module],
        timer: Any,
    ) -> tuple[Try, list[Try], Timing, Timing]:
        """Choose, build, measure and correct; seconds: of the whole network by the table. Return what came nearest, all that
        was tried, and the times before and after."""
        taken: dict[bytes, tuple[Timing, Timing]] = {}

        def measure(choice: Choice, again: bool) -> Ratio:
            before, after = timer.models([model, build(choice)], example)
            if again:
                first = taken[choice.tobytes()]
                before, after = joined(first[0], before), joined(first[1], after)
            taken[choice.tobytes()] = (before, after)
            return ratio(before, after)

        measured = timer.models([model], example)[0].median
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
                "widths or densities to choose from are coarse, or the machine is busy (look at the quartiles)",
                stacklevel=5,
            )
        return found, tries, *taken[found.choice.tobytes()]

    def _example(self, given: Any) -> Any:
        example = self.example if self.example is not None else given
        if example is None:
            raise ValueError(f"allocation {self} runs the network: pass example=one input")
        return example if self.batch is None else of_batch(example, self.batch)
