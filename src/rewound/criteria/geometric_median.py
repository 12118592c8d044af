"""FPGM: the filters nearest to the middle of their layer are what the others can stand in for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewound.evidence import Evidence, of_units


@of_units
def fpgm(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score of a filter = its mean distance to the other filters of its layer. He Y. et al. 2019 (FPGM), section 3.3.

    The paper removes the filters whose sum of distances is the least: they lie nearest to the geometric median. Here each
    distance is divided by the square root of the number of weights, and the sum by the number of filters, so that layers can
    compete; within a layer that is the paper's order. Filters that are all zero (pruned already) are nobody's neighbours.
    Where several filters write one unit, they are compared side by side as one long filter. Needs nothing but the model;
    costs units^2 x weights of a filter.

    >>> from rewound.compaction.units import Group, Slice, Structure
    >>> layer = torch.nn.Linear(1, 3)
    >>> layer.weight.data = torch.tensor([[0.5], [1.0], [4.5]])
    >>> unit = Group("fc", "hidden unit", 3, (Slice("weight", 0, torch.tensor([[0], [1], [2]]), "writes"),))
    >>> fpgm(Evidence(layer).with_structure(Structure((unit,), {}, frozenset({"weight"}))))["fc"].tolist()
    [2.25, 2.0, 3.75]
    """
    return {group.name: _mean_distances(evidence.filters(group).double()) for group in evidence.units}


def _mean_distances(filters: Tensor) -> Tensor:
    there = filters[filters.any(dim=1)]
    # by way of a matrix product equal filters would be a little apart
    apart = torch.cdist(filters, there, compute_mode="donot_use_mm_for_euclid_dist")
    others = len(there) - filters.any(dim=1).to(filters.dtype)
    return apart.sum(dim=1) / (others.clamp_min(1) * filters.shape[1] ** 0.5)
