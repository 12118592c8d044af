"""Where the learning rate is rewound: each rule is a function from the recorded run to the rows of the retraining.

    rule(recorded, steps, damage) -> Trace of ``steps`` rows

``recorded`` is what the original run really used, S[0..T); ``steps`` is t; ``damage`` is what the pruning did. Other
hyper-parameters than lr are rewound with it by ``rewound``, and held at their last value by every other rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rewound.damage import Damage
from rewound.trace import Trace

WARM_UP = 0.1  # part of a restart spent rising from 0 to the start lr (Zimmer et al. 2023; Le and Hua 2021)
ALMOST_ZERO = 1e-4  # of the peak: below it a constant lr trains nothing (the paper's own lowest is 1e-3)


LrRule = Callable[[Trace, int, Damage], Trace]


def rewound(recorded: Trace, steps: int, damage: Damage) -> Trace:
    """S[T-t:T]: the schedule of the last t steps again (Renda et al. 2020, section 2).

    >>> recorded = Trace.from_schedule(lambda s: 1.0 / (1 + s), epochs=2, steps_per_epoch=2)
    >>> rewound(recorded, 3, Damage()).lr[:, 0].tolist() == recorded.lr[1:, 0].tolist()
    True
    """
    return recorded.last(steps)


def last(recorded: Trace, steps: int, damage: Damage) -> Trace:
    """The hyper-parameters of the last step, held (fine-tuning). Refuses a last lr that is almost zero."""
    final, peak = recorded.lr[-1].max(), recorded.lr.max()
    if final <= ALMOST_ZERO * peak:
        raise ValueError(
            f"fine-tuning uses the last learning rate of the original run, which is {final:.3g} "
            f"({final / peak if peak else 0:.1g} of its peak {peak:.3g}): nothing would be trained. Give one, as in "
            f"fine_tuning(lr={0.01 * peak:.3g}) or 'fine-tuning:lr={0.01 * peak:.3g}', or use learning-rate rewinding"
        )
    return _held(recorded, steps)


def scaled(recorded: Trace, steps: int, damage: Damage) -> Trace:
    """The whole schedule compressed into t steps, its own warm-up replaced by the peak (SLR, Le and Hua 2021)."""

    def body(n: int, group: int) -> np.ndarray:
        lr = recorded.lr[:, group].copy()
        lr[: int(lr.argmax())] = lr.max()
        return lr[(np.arange(n) * len(lr)) // max(n, 1)]

    return _restart(recorded, steps, body)


def cyclic(recorded: Trace, steps: int, damage: Damage) -> Trace:
    """A cosine from the peak to the lowest lr after warm-up (CLR, Le and Hua 2021)."""

    def body(n: int, group: int) -> np.ndarray:
        high, low = recorded.lr[:, group].max(), _lowest(recorded, group)
        return low + 0.5 * (high - low) * (1 + np.cos(math.pi * np.arange(n) / max(n - 1, 1)))

    return _restart(recorded, steps, body)


def linear(recorded: Trace, steps: int, damage: Damage) -> Trace:
    """A straight line from the peak to zero (LLR, Zimmer et al. 2023)."""
    return _restart(recorded, steps, lambda n, g: _line(recorded.lr[:, g].max(), n))


def adaptive_linear(recorded: Trace, steps: int, damage: Damage) -> Trace:
    """A straight line to zero whose start follows the damage and the budget (ALLR, Zimmer et al. 2023).

    start = clip(peak * d / sqrt(s), peak * min(1, t / T), peak), d and s being those of :class:`Damage`.
    """

    def body(n: int, group: int) -> np.ndarray:
        peak = recorded.lr[:, group].max()
        floor = peak * min(1.0, steps / recorded.steps)
        asked = peak * damage.relative_norm / math.sqrt(damage.pruned) if damage.pruned > 0 else 0.0
        return _line(min(max(asked, floor), peak), n)

    return _restart(recorded, steps, body)


LR_RULES: dict[str, LrRule] = {
    "last": last,
    "rewound": rewound,
    "scaled": scaled,
    "cyclic": cyclic,
    "linear": linear,
    "adaptive-linear": adaptive_linear,
}


def constant(recorded: Trace, steps: int, lr: float) -> Trace:
    """A learning rate given by the user, held, in every group; the rest as in the last step."""
    held = _held(recorded, steps)
    return held.with_lr(np.full(held.lr.shape, lr))


def _held(recorded: Trace, steps: int) -> Trace:
    """The hyper-parameters of the last step, in the epochs of the last ``steps``."""
    base = recorded.last(steps)
    values = np.repeat(recorded.values[-1:], steps, axis=0)
    return Trace(values, recorded.names, base.epoch_starts)


def _restart(recorded: Trace, steps: int, body: Callable[[int, int], np.ndarray]) -> Trace:
    """Put a linear warm-up before ``body(n, group)``, the learning rates of the n steps that remain."""
    held = _held(recorded, steps)
    warm = round(WARM_UP * steps)
    lr = np.empty(held.lr.shape)
    for group in range(recorded.values.shape[1]):
        rates = body(steps - warm, group)
        start = rates[0] if len(rates) else 0.0
        lr[:, group] = np.concatenate([start * np.arange(1, warm + 1) / max(warm, 1), rates])
    return held.with_lr(lr)


def _line(start: float, n: int) -> np.ndarray:
    return start * (1 - np.arange(n) / max(n, 1))


def _lowest(recorded: Trace, group: int) -> float:
    lr = recorded.lr[:, group]
    return float(lr[int(lr.argmax()) :].min())  # before the peak lies the warm-up, whose lr is lower still
