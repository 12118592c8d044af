"""The learning-rate schedules of the bundled recipes: a step decay, scaled to any length of training."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def step_factor(
    step: int, steps: int, at: Sequence[float], factor: float = 0.1, warmup: float = 0.0
) -> float:
    """Return what the base lr is multiplied by in ``step`` of ``steps``.

    ``at`` and ``warmup`` are fractions of the whole training: times ``factor`` at each of ``at``; linear from
    0 while warming up. Beyond the end the last value stays.

    >>> [round(step_factor(s, 4, at=(0.5, 0.75)), 3) for s in range(5)]
    [1.0, 1.0, 0.1, 0.01, 0.01]
    """
    rise = round(warmup * steps)
    if step < rise:
        return step / rise
    return factor ** sum(step >= round(fraction * steps) for fraction in at)


def step_decay(
    optimizer: Optimizer,
    steps: int,
    at: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
    warmup: float = 0.0,
) -> LambdaLR:
    """Return a scheduler, to be stepped after every optimizer step, that follows :func:`step_factor`."""
    return LambdaLR(optimizer, lambda step: step_factor(step, steps, at, factor, warmup))
