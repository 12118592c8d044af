"""Dropout that follows the connections: D_r = D_o sqrt(C_r / C_o). Han et al. 2015, equations 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from rewound.mask import Mask
from rewound.parameters import named_modules, parameters_by_name


def adjust_dropout_(
    model: nn.Module, mask: Mask, before: Mask | None = None, *, connections: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Set every dropout's rate for the connections that ``mask`` leaves, in place; return module name -> new rate.

    C is the number of weights of the layer whose outputs are dropped: the last one in ``mask`` that stands before the dropout
    in the model, or the one that ``connections`` (dropout's name -> weight's name) gives. before: the mask whose rates the
    model has now; None, all connections were there. A dropout with no such layer before it stays as it is. A capacity of half
    the connections on both sides of a layer is a quarter of them, and the rate halves.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))
    >>> adjust_dropout_(model, Mask({"0.weight": torch.tensor([[True, False], [False, False]])}))
    {'1': 0.25}
    """
    asked = dict(connections or {})
    dropouts = {name: module for name, module in named_modules(model) if isinstance(module, _DropoutNd)}
    if wrong := [name for name in asked if name not in dropouts]:
        raise ValueError(f"{wrong[0]!r} is no dropout; there are {', '.join(dropouts) or 'none'}")
    layer_before = _layers_before(model, mask)
    rates = {}
    for name, dropout in dropouts.items():
        weight = asked.get(name, layer_before.get(name))
        if weight is None:
            continue
        if weight not in mask:
            raise ValueError(
                f"the connections of {name!r} are to be those of {weight!r}, which is not in the mask"
            )
        were = mask[weight].numel() if before is None else before.counts[weight]
        dropout.p = rates[name] = dropout.p * math.sqrt(mask.counts[weight] / were) if were else 0.0
    return rates


def _layers_before(model: nn.Module, mask: Mask) -> dict[str, str]:
    """Return dropout's name -> the last weight of the mask that stands before it."""
    known, found, last = {id(p): name for name, p in parameters_by_name(model).items()}, {}, None
    for name, module in named_modules(model):
        if isinstance(module, _DropoutNd) and last is not None:
            found[name] = last
        for parameter in module.parameters(recurse=False):
            if known.get(id(parameter)) in mask:
                last = known[id(parameter)]
    return found
