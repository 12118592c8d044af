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


def halving_factor(step: int, steps: int, warmup: int = 200) -> float:
    """Return what the base lr is multiplied by in ``step`` of ``steps`` in the schedule of GNMT (Luong et al. 2017).

    From a hundredth exponentially to 1 in ``warmup`` steps; halved at 9, 10 and 11 twelfths of the training, so that
    the last third has four equal pieces at 1, 1/2, 1/4 and 1/8.

    >>> [round(halving_factor(s, 120, warmup=20), 3) for s in (0, 10, 20, 89, 90, 100, 110, 120)]
    [0.01, 0.1, 1.0, 1.0, 0.5, 0.25, 0.125, 0.125]
    """
    rise = 0.01 ** (1 - step / warmup) if step < warmup else 1.0
    return rise * step_factor(step, steps, at=(9 / 12, 10 / 12, 11 / 12), factor=0.5)


def halving_decay(optimizer: Optimizer, steps: int, warmup: int = 200) -> LambdaLR:
    """Return a scheduler, to be stepped after every optimizer step, that follows :func:`halving_factor`."""
    return LambdaLR(optimizer, lambda step: halving_factor(step, steps, warmup))
