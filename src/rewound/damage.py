"""What one pruning took away: the restart of Zimmer et al. (2023) follows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rewound.mask import Mask
from rewound.parameters import parameters_by_name, whole


@dataclass(frozen=True)
class Damage:
    """``relative_norm`` = ||W - W_pruned|| / ||W|| over all parameters; ``pruned`` = part of the surviving weights removed
    in this step (Zimmer et al. 2023, section 3).
    """

    relative_norm: float = 0.0
    pruned: float = 0.0


def damage_of(model: nn.Module, before: Mask, after: Mask) -> Damage:
    """Return what going from mask ``before`` to ``after`` will take from ``model``, whose weights are as trained."""
    total = removed = 0.0
    for name, p in parameters_by_name(model).items():
        weights = whole(p).detach()
        weights = (weights.abs() if weights.is_complex() else weights).double()
        total += float(weights.square().sum())
        if name in after:
            removed += float(weights[~after[name].to(weights.device)].square().sum())
    return Damage(
        (removed / total) ** 0.5 if total else 0.0, (before.kept - after.kept) / max(before.kept, 1)
    )
