"""Times of a network's layers in the sparse engine over their densities: measured at a ladder of them, between interpolated.

A layer's time in the engine depends on its own density alone, so that one network with every layer at the same density tells a
rung of all layers at once: a table of so many layers takes as many compilations as the ladder has rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rewound.measure.latency import CLOCKS, Stopwatch, Timing, in_turn
from rewound.untouched import call_of
from rewound.widths.densities import Densities

Floats = NDArray[np.float64]

LADDER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03, 0.015, 0.005)


class LayerTimer(Protocol):
    """What measures sparse networks: :class:`Compiled`, or anything that does the same."""

    def models(self, models: Sequence[nn.Module], example: Any) -> list[Timing]:
        """Return a Timing of each model (zeros and all), taken in turn."""

    def layers(self, model: nn.Module, example: Any) -> Mapping[str, float]:
        """Return name of a weight -> seconds of the layer that reads it; what is left out counts as nothing."""


class Compiled(Stopwatch):
    """Measures what ``rewound.runtime.compile`` makes of a model, on this machine."""

    def models(self, models: Sequence[nn.Module], example: Any) -> list[Timing]:
        """Return the timing of each engine on ``example``, taking turns; a model is compiled for one measurement."""
        engines = [self._engine(model, example) for model in models]
        clock = self.clock or ("cpu" if self._threads == 1 else "wall")
        arguments, keywords = call_of(example)
        calls = [lambda engine=engine: engine(*arguments, **keywords) for engine in engines]
        return [
            Timing(tuple(row), clock, self._threads) for row in in_turn(calls, CLOCKS[clock], self.seconds)
        ]

    def layers(self, model: nn.Module, example: Any) -> Mapping[str, float]:
        """Return name of a weight -> seconds of its layer, as the engine reports them."""
        found: dict[str, float] = {}
        for layer in self._engine(model, example).report().layers:
            if layer.weight:
                found[layer.weight] = found.get(layer.weight, 0.0) + layer.milliseconds / 1e3
        return found

    @property
    def _threads(self) -> int:
        return self.threads or 1

    def _engine(self, model: nn.Module, example: Any) -> Any:
        from rewound import runtime  # only where an engine is wanted

        return runtime.compile(model, example, threads=self._threads)


def as_layer_timer(timer: Any) -> LayerTimer:
    """Return the timer; in place of a stopwatch for torch one with the same settings for the engine."""
    if hasattr(timer, "layers"):
        return timer
    if type(timer) is Stopwatch:
        return Compiled(timer.threads, timer.clock, timer.seconds)
    raise ValueError(
        "to thin out weights or blocks, a 'timer' must tell the seconds of each layer: it needs a method layers(model, example) "
        "-> {name of a weight: seconds} beside models(models, example)"
    )


class LayerTimes:
    """Seconds of a network's layers as a function of how many units each of its tensors keeps."""

    def __init__(self, plan: Densities, timer: LayerTimer, example: Any) -> None:
        self._plan, self._timer, self._example = plan, timer, example
        self._counts = np.zeros((0, len(plan.names)))  # [rungs, tensors], rising
        self._times = np.zeros((0, len(plan.names)))

    @property
    def whole(self) -> float:
        """Seconds of all layers with nothing pruned."""
        return float(self.seconds(self._plan.sizes[None])[0])

    def measure(self, progress: Callable[[float], None] | None = None) -> None:
        """Measure every layer at the ladder's densities; at 1 the network as it is. ValueError where no layer is timed."""
        plan, counts, times = self._plan, [], []
        for done, density in enumerate(LADDER, start=1):
            if density == 1.0:
                kept, model = plan.sizes, plan.model
            else:
                at = [
                    min(len(t.scores), max(1, t.least, round(density * n)))
                    for t, n in zip(plan.tensors, plan.sizes)
                ]
                kept, model = np.array(at, dtype=np.float64), plan.network(at)
            seconds = self._timer.layers(model, self._example)
            if not set(plan.names) & set(seconds):
                raise ValueError(
                    f"no layer that was timed reads a weight in scope; timed: {', '.join(list(seconds)[:3]) or 'none'}, in "
                    f"scope: {', '.join(plan.names[:3])}"
                )
            counts.append(kept)
            times.append([seconds.get(name, 0.0) for name in plan.names])
            if progress is not None:
                progress(done / len(LADDER))
        self._counts = np.array(counts)[::-1]
        # Fewer weights take no longer: where they seem to, it is noise.
        self._times = np.minimum.accumulate(np.array(times))[::-1]

    def each(self, counts: Any) -> Floats:
        """Return [vectors, tensors]: seconds of every layer at counts [vectors, tensors]."""
        kept = np.asarray(counts, dtype=np.float64)
        columns = [np.interp(kept[:, i], self._counts[:, i], self._times[:, i]) for i in range(kept.shape[1])]
        return np.stack(columns, axis=1)

    def seconds(self, counts: Any) -> Floats:
        """Return [vectors]: the sum over the layers."""
        return self.each(counts).sum(axis=1)
