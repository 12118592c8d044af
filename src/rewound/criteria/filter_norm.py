"""The norm of a unit's filter: what Li et al. prune by."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rewound.evidence import Evidence, of_units


@of_units
def l1(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score of a unit = mean |w| over the weights that write it. Li et al. 2017, section 3.1: the sum of |w| of a filter.

    The mean instead of the sum, so that layers of different fan-in can compete; within a layer that is the paper's order.
    Over a residual sum several filters write one unit: the mean is over all of them. Needs nothing but the model.

    >>> import torch
    >>> from rewound.compaction.units import Group, Slice, Structure
    >>> layer = torch.nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[-3.0, 2.0], [1.0, 0.0]])
    >>> unit = Group("fc", "hidden unit", 2, (Slice("weight", 0, torch.tensor([[0], [1]]), "writes"),))
    >>> l1(Evidence(layer).with_structure(Structure((unit,), {}, frozenset({"weight"}))))
    {'fc': tensor([2.5000, 0.5000], dtype=torch.float64)}
    """
    return {group.name: _wide(evidence.filters(group)).abs().mean(dim=1) for group in evidence.units}


@of_units
def l2(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score of a unit = root mean square of the weights that write it; within a layer the order of their L2 norms.

    He Y. et al. 2018 ("Soft filter pruning", section 3.2) rank by this norm. Otherwise as ``l1``.
    """
    return {
        group.name: _wide(evidence.filters(group)).square().mean(dim=1).sqrt() for group in evidence.units
    }


def _wide(weights: Tensor) -> Tensor:
    # the square of a half-precision weight may overflow, and a sum of many loses digits
    return weights.double()
