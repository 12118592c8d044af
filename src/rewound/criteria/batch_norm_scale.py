"""|gamma|: what batch norm multiplies a channel by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rewound.compaction.units import Group, Slice
from rewound.evidence import Evidence, of_units
from rewound.parameters import named_modules, parameters_by_name, whole

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)


@of_units
def batch_norm_scale(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score of a channel = |gamma| of the norm after the layer that writes it. Network Slimming (Liu et al. 2017, sec. 3).

    The paper trains with an L1 penalty on gamma first; without it the scores say less. The norm of a writer is the first
    one after it, in the order in which the model holds its modules, that scales the same units: of all the norms of a
    densely connected channel it is the nearest. Where several layers write the unit (a residual sum), the mean of |gamma|
    over their norms. Raises ValueError for units that no batch, instance or group norm scales. Needs nothing but the model.

    >>> from rewound.compaction.units import Structure
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    >>> net[1].weight.data = torch.tensor([0.5, -2.0])
    >>> unit = torch.tensor([[0], [1]])
    >>> group = Group("0", "channel", 2, (Slice("0.weight", 0, unit, "writes"), Slice("1.weight", 0, unit, "affine")))
    >>> batch_norm_scale(Evidence(net).with_structure(Structure((group,), {}, frozenset())))
    {'0': tensor([0.5000, 2.0000], dtype=torch.float64)}
    """
    modules = dict(named_modules(evidence.model))
    order = {name: place for place, name in enumerate(modules)}
    parameters = parameters_by_name(evidence.model)
    scores = {}
    for group in evidence.units:
        norms = _norms(group, modules, order)
        scales = [
            s.entries(whole(parameters[s.tensor].detach())).double().abs().mean(dim=1) for s in norms.values()
        ]
        scores[group.name] = torch.stack([scale.to(scales[0].device) for scale in scales]).mean(dim=0)
    return scores


def _norms(group: Group, modules: dict[str, nn.Module], order: dict[str, int]) -> dict[str, Slice]:
    """Return norm -> its scale's slice, for the norms right after the group's writers."""
    scales = {}
    for part in group.slices:
        owner, _, leaf = part.tensor.rpartition(".")
        if part.role == "affine" and leaf == "weight" and isinstance(modules.get(owner), _NORMS):
            scales[owner] = part
    if not scales:
        raise ValueError(
            f"'batch-norm scale' has nothing to go by for {group.name!r}: no batch, instance or group norm with a scale "
            "stands after the layers that write it; leave it out of the scope or pattern, or take another criterion ('l1')"
        )
    found = {}
    for part in group.writers:
        place = order.get(part.tensor.rpartition(".")[0], -1)
        after = sorted((order[name], name) for name in scales if order[name] > place)
        if after:
            found[after[0][1]] = scales[after[0][1]]
    return found or scales
