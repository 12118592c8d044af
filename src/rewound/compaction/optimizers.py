"""Optimizer state goes with the weights: momentum and moments of what is left, in the same parameter groups."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rewound.compaction.coordinates import Coordinates, coordinates
from rewound.parameters import canonical, parameters_by_name, unwrap_model, unwrap_optimizer


def carry_over(optimizer: Optimizer, model: nn.Module, small: nn.Module) -> Optimizer:
    """Return an optimizer for ``small`` that goes on where that of ``model`` is: same class, groups, hyper-parameters, and the
    state (momentum, moments, step counts) of every entry that is left.

    small: what :func:`rewound.compact` made of ``model``. Hooks (a guard's) are not carried. ``ValueError`` for a
    parameter of the
    optimizer that is not of ``model``, or a state whose shape is neither the weight's nor a number's. Where weights were
    multiplied by a factor (an RMSNorm's width), a warning: no state makes their training go on exactly.

    Without this, an optimizer built before the compaction trains tensors that are in no network any more.

    >>> import rewound
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> mask = rewound.prune(model, density=0.5, pattern="hidden unit", example=torch.ones(1, 4))
    >>> small = rewound.compact(model, mask, torch.ones(1, 4))
    >>> [p.shape[0] for p in rewound.carry_over(optimizer, model, small).param_groups[0]["params"]]
    [4, 4, 2, 2]
    """
    optimizer = unwrap_optimizer(optimizer)
    old = parameters_by_name(model)
    new = dict(unwrap_model(small).named_parameters(remove_duplicate=False))
    new = {canonical(name): p for name, p in new.items()}
    names = {id(p): name for name, p in old.items()}
    memo: dict[int, Any] = {id(p): new[name] for name, p in old.items()}
    for i, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) not in names:
                raise ValueError(
                    f"group {i} of this {type(optimizer).__name__} holds a tensor of shape {tuple(p.shape)} that is no "
                    "parameter of "
                    f"this {type(model).__name__}: pass the model that the optimizer was built from"
                )
    # Hooks close over the old optimizer and model; a copy of them would hold the dense network alive.
    hooks = {
        k: v for k, v in vars(optimizer).items() if k.startswith("_optimizer_") and isinstance(v, OrderedDict)
    }
    for hook in hooks.values():
        memo[id(hook)] = OrderedDict()
    carried = copy.deepcopy(optimizer, memo)
    where = coordinates(small).since(coordinates(model))
    if where.scale and any(carried.state.values()):
        warnings.warn(
            f"{len(where.scale)} tensors of the smaller network were multiplied by a factor ({next(iter(where.scale))!r}, ...): "
            "their momentum is that of the tensors before, so training goes on nearly as it would have, not exactly",
            stacklevel=2,
        )
    shapes = {name: p.shape for name, p in old.items()}
    for name in old:
        slots = carried.state.get(new[name])
        if slots:
            _cut_slots(slots, name, shapes[name], where, carried)
    return carried


def cut_state_(
    optimizer: Optimizer, names: dict[Tensor, str], shapes: dict[str, torch.Size], where: Coordinates
) -> None:
    """Cut an optimizer's state in place. names: its parameters -> their names; shapes: name -> shape before the cut."""
    for p, slots in optimizer.state.items():
        if p in names:
            _cut_slots(slots, names[p], shapes[names[p]], where, optimizer)


def _cut_slots(
    slots: dict[str, Any], name: str, shape: torch.Size, where: Coordinates, optimizer: Optimizer
) -> None:
    first = where.aliases.get(name, name)
    if first not in where.kept:
        return
    for slot, value in slots.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            continue
        if value.shape != shape:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {slot!r} of shape {tuple(value.shape)} for {name!r} of shape {tuple(shape)}, "
                "and which part of it belongs to which weight is not known; use an optimizer whose state has the weights' "
                "shape (SGD, Adam, AdamW, ...), or clear it (optimizer.state.clear())"
            )
        slots[slot] = where.cut(first, value, scaled=False)
