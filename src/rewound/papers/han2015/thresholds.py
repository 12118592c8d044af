"""A layer's threshold: a quality parameter times the standard deviation of its weights. Han et al. 2015, section 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewound.mask import Mask
from rewound.parameters import parameters_by_name
from rewound.scope import ScopeLike, as_scope

QUALITIES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)


@dataclass(frozen=True)
class Tried:
    """One tensor pruned alone, without retraining: its ``quality``, the ``density`` it left, and the ``metric`` then."""

    quality: float
    density: float
    metric: float


def threshold_mask(
    model: nn.Module,
    quality: float | Mapping[str, float],
    *,
    scope: ScopeLike = None,
    mask: Mask | None = None,
) -> Mask:
    """Return the mask that keeps weights above ``quality`` x the standard deviation of their own tensor, in magnitude.

    quality: one for all tensors in scope, or by name; a tensor that is not named stays as it is. mask: what is pruned already;
    it stays so, and the deviation is that of the survivors, so that the same quality prunes on, round after round (the paper
    does not say whether zeros count; with them the threshold would fall). The largest weight of a tensor always stays.

    Raises ``ValueError`` for a quality below 0, an unknown name, or a mask that lacks a tensor in scope.

    >>> layer = nn.Linear(4, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -1.0, 0.5, -3.0]])
    >>> threshold_mask(layer, 0.5)["weight"]                    # the deviation is 2.19
    tensor([[ True, False, False,  True]])
    """
    names = as_scope(model, scope).names
    qualities = dict.fromkeys(names, quality) if not isinstance(quality, Mapping) else dict(quality)
    if unknown := [name for name in qualities if name not in names]:
        raise ValueError(f"{unknown[0]!r} is not in scope; in scope: {', '.join(names)}")
    if mask is not None and (missing := [name for name in names if name not in mask]):
        raise ValueError(f"'mask' lacks {missing[0]!r}, which is in scope; pass it the same scope")
    parameters = parameters_by_name(model)
    return Mask(
        (
            name,
            _kept(parameters[name].detach(), qualities.get(name, 0.0), None if mask is None else mask[name]),
        )
        for name in names
    )


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    qualities: Sequence[float] = QUALITIES,
    scope: ScopeLike = None,
    mask: Mask | None = None,
) -> dict[str, list[Tried]]:
    """Return tensor name -> what pruning it alone does to ``evaluate(model)``, quality by quality, without retraining.

    The paper's figure 6. The model is left as found. ``mask``: where this is done between two rounds.
    """
    found: dict[str, list[Tried]] = {}
    parameters = parameters_by_name(model)
    for name in as_scope(model, scope).names:
        weight, before = parameters[name], parameters[name].detach().clone()
        for quality in qualities:
            kept = _kept(before, quality, None if mask is None else mask[name])
            try:
                with torch.no_grad():
                    weight.masked_fill_(~kept.to(weight.device), 0)
                metric = float(evaluate(model))
            finally:
                with torch.no_grad():
                    weight.copy_(before)
            found.setdefault(name, []).append(Tried(quality, float(kept.sum()) / kept.numel(), metric))
    return found


def choose_qualities(
    scan: Mapping[str, Sequence[Tried]], original: float, within: float, higher_is_better: bool = True
) -> dict[str, float]:
    """Return for each tensor the largest quality up to which its metric stays ``within`` of ``original``; 0 where none does.

    >>> scan = {"w": [Tried(0.5, 0.7, 0.90), Tried(1.0, 0.4, 0.89), Tried(1.5, 0.2, 0.70)]}
    >>> choose_qualities(scan, 0.9, within=0.02)
    {'w': 1.0}
    """
    chosen = {}
    for name, tried in scan.items():
        chosen[name] = 0.0
        for one in sorted(tried, key=lambda one: one.quality):
            lost = original - one.metric if higher_is_better else one.metric - original
            if not (math.isfinite(lost) and lost <= within):
                break
            chosen[name] = one.quality
    return chosen


def _kept(weights: Tensor, quality: float, before: Tensor | None) -> Tensor:
    if not 0 <= quality < math.inf:
        raise ValueError(f"a quality parameter is at least 0, and finite (got {quality!r})")
    alive = torch.ones_like(weights, dtype=torch.bool) if before is None else before.to(weights.device)
    size = weights.abs().masked_fill(~alive, -1.0)
    if quality == 0:  # a survivor that is 0 by itself is not pruned for that
        return alive
    survivors = weights[alive].double()
    threshold = quality * float(survivors.std(correction=0)) if survivors.numel() else 0.0
    kept = alive & (size > threshold)
    if not kept.any() and alive.any():
        kept.view(-1)[size.view(-1).argmax()] = True
    return kept
