"""The lottery ticket: Frankle and Carbin 2019, and its sequel on instability, Frankle et al. 2020.

Finding tickets is a run: ``Run(technique="lottery-ticket")`` rewinds to step 0, ``weight_rewinding(T - k)`` to epoch k (late
rewinding). Here is what is asked of a ticket afterwards: is it better than the same mask on other weights, or the same weights
under another mask; when does it stop getting better; and do two trainings of it end in one valley?
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewound.mask import Mask
from rewound.parameters import unwrap_model
from rewound.reinitialize import reinitialize_

Weights = Mapping[str, Tensor]


# ---- a ticket, and its controls ------------------------------------------------------------------------------------------


def winning_ticket_(model: nn.Module, mask: Mask, initial: Weights) -> None:
    """Give ``model`` the ``initial`` weights (a state dict, of step 0 or of a later one) under ``mask``, in place.

    >>> layer = nn.Linear(2, 1)
    >>> initial = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    >>> layer.weight.data.fill_(7.0)
    tensor([[7., 7.]])
    >>> winning_ticket_(layer, Mask({"weight": torch.tensor([[True, False]])}), initial)
    >>> bool(layer.weight[0, 0] == initial["weight"][0, 0]), float(layer.weight[0, 1].detach())
    (True, 0.0)
    """
    unwrap_model(model).load_state_dict(initial)
    mask.apply_(model)


def random_reinitialization_(model: nn.Module, mask: Mask, seed: int) -> None:
    """Draw fresh weights under the ticket's mask, in place: the control that says whether the initial weights matter."""
    reinitialize_(model, seed)
    mask.apply_(model)


def random_ticket(mask: Mask, seed: int) -> Mask:
    """Return a mask with as many weights in each tensor as ``mask``, at random places: the control that says whether the mask
    matters, beyond how many weights each layer keeps.

    >>> mask = Mask({"weight": torch.tensor([[True, False, False], [True, True, False]])})
    >>> random_ticket(mask, seed=1).counts == mask.counts, random_ticket(mask, 1) == random_ticket(mask, 1)
    (True, True)
    """

    def drawn(name: str, kept: Tensor) -> Tensor:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        order = torch.randperm(kept.numel(), generator=generator).to(kept.device)
        return kept.reshape(-1)[order].reshape(kept.shape)

    return Mask((name, drawn(name, kept)) for name, kept in mask.items())


# ---- when it is best -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EarlyStop:
    """``iteration``: that of the smallest validation loss, the first of equal ones. ``metrics``: what was logged there."""

    iteration: int
    loss: float
    metrics: Mapping[str, float]


def early_stop(
    log: Sequence[Mapping[str, float]], *, every: int = 1, loss: str = "loss", start: int = 0
) -> EarlyStop:
    """Return the early-stopping iteration of a training: where the validation loss is smallest.

    log: what was logged, in order (``result.rounds[k].log`` has an entry an epoch). every: iterations between two entries.
    start: iterations before the first one was counted (those of the rewinding point, in late rewinding). A loss that is not a
    number counts as infinite.

    >>> early_stop([{"loss": 0.9}, {"loss": 0.5}, {"loss": 0.5}], every=100).iteration
    200

    Raises ``ValueError`` where there is no entry, an entry lacks ``loss``, or no loss is a number.
    """
    if missing := [k for k, entry in enumerate(log) if loss not in entry]:
        raise ValueError(
            f"entry {missing[0]} of the log has no {loss!r} (it has {', '.join(log[missing[0]]) or 'nothing'}); log the "
            "validation loss in every epoch"
        )
    losses = [entry[loss] if math.isfinite(entry[loss]) else math.inf for entry in log]
    if not losses or min(losses) == math.inf:
        raise ValueError(f"there is no finite {loss!r} in a log of {len(losses)} entries")
    best = losses.index(min(losses))
    return EarlyStop(start + every * (best + 1), losses[best], log[best])


# ---- one valley or two ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instability:
    """``errors`` at ``alphas`` on the line from one network to the other. ``instability``: how far the line rises above the
    mean of its ends. A network is stable below 0.02, if errors are fractions: two points of error (Frankle et al. 2020)."""

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def instability(self) -> float:
        """max over alpha of the error, less the mean error of the two ends."""
        return max(self.errors) - 0.5 * (self.errors[0] + self.errors[-1])


def instability(
    model: nn.Module,
    one: Weights,
    other: Weights,
    error: Callable[[nn.Module], float],
    *,
    points: int = 30,
    recalibrate: Callable[[nn.Module], nn.Module] | None = None,
) -> Instability:
    """Return the error along the straight line between two networks, as state dicts, that were trained from one start with
    different SGD noise. The model is left as found.

    error: of a model, smaller is better (1 - accuracy). points: how many lie on the line, both ends among them. recalibrate: for
    networks with batch-norm, returns the model with its running statistics measured anew; without it statistics are interpolated
    like weights, which measures something else. The ends are the networks as they are, never recalibrated.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ends = [{"weight": torch.tensor([[w]])} for w in (-1.0, 1.0)]
    >>> instability(model, *ends, lambda m: 1 - abs(float(m.weight.detach())), points=3).errors
    (0.0, 1.0, 0.0)

    Raises ``ValueError`` where the two do not fit each other, or fewer than two points are asked for.
    """
    if points < 2:
        raise ValueError(f"a line has two ends: 'points' must be at least 2 (got {points})")
    if one.keys() != other.keys() or any(one[k].shape != other[k].shape for k in one):
        apart = sorted(set(one) ^ set(other)) or [k for k in one if one[k].shape != other[k].shape]
        raise ValueError(f"the two networks are not of one model: they differ in {apart[0]!r}")
    inner = unwrap_model(model)
    before = {name: tensor.detach().clone() for name, tensor in inner.state_dict().items()}
    alphas = tuple(k / (points - 1) for k in range(points))
    errors = []
    try:
        for alpha in alphas:
            inner.load_state_dict({name: _between(one[name], other[name], alpha) for name in one})
            inside = 0 < alpha < 1 and recalibrate is not None
            errors.append(float(error(recalibrate(model) if inside and recalibrate else model)))
    finally:
        inner.load_state_dict(before)
    return Instability(alphas, tuple(errors))


def _between(one: Tensor, other: Tensor, alpha: float) -> Tensor:
    if alpha == 0 or not (one.is_floating_point() or one.is_complex()):  # counters are no coordinates
        return one
    return other if alpha == 1 else torch.lerp(one, other.to(one), alpha)
