"""The oracle of Molchanov et al. 2017: what removing each unit really does; and how well a criterion ranks by comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rewound.activations import examples_in
from rewound.compaction.units import Structure, each_mask
from rewound.parameters import parameters_by_name, unwrap_model
from rewound.untouched import as_found, call_of


def oracle(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    signed: bool = False,
) -> dict[str, Tensor]:
    """Return group name -> by how much the loss changes when each unit alone is masked: float64 [size].

    Molchanov et al. 2017, section 2.1. The absolute value, which the paper found the better one to prune by; with ``signed``
    the change itself (positive: the loss rises). The mean over all examples, in evaluation mode. Each unit costs a forward
    pass over ``batches``, so pass few. The model is left as found.

    >>> from rewound.compaction.coupling import find_units
    >>> from rewound.criteria import taylor
    >>> from rewound.evidence import Evidence
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> batches, loss = [(torch.randn(8, 3).double(), torch.arange(8) % 2)], nn.functional.cross_entropy
    >>> units = find_units(net, batches[0][0][:1])
    >>> truth = oracle(net, units, batches, loss)
    >>> guess = taylor(Evidence(net, batches=batches, loss=loss).with_structure(units))
    >>> -1 <= spearman(guess, truth) <= 1                          # over all units
    True
    >>> {name: -1 <= spearman(guess[name], truth[name]) <= 1 for name in truth}     # layer by layer
    {'0': True}
    """
    inner, pairs = unwrap_model(model), list(batches)
    if not pairs:
        raise ValueError("'batches' yielded nothing (a generator that was used up?): pass a list or a loader")
    parameters = {name: p.detach() for name, p in parameters_by_name(inner).items()}

    def mean_loss(masks: Iterable[tuple[str, Tensor]]) -> float:
        changed = {
            name: parameters[name].masked_fill(~mask.to(parameters[name].device), 0) for name, mask in masks
        }
        total, examples = 0.0, 0
        for given, target in pairs:
            args, kwargs = call_of(given)
            output = torch.func.functional_call(inner, changed, args, kwargs)
            total += float(loss(output, target)) * examples_in(given)
            examples += examples_in(given)
        return total / examples

    changes: dict[str, Tensor] = {}
    with as_found(inner):
        whole = mean_loss(())
        for group in structure:
            alone, found = structure.restricted([group]), []
            for unit in range(group.size):
                kept = torch.arange(group.size) != unit
                found.append(mean_loss(each_mask(alone, {group.name: kept})) - whole)
            changes[group.name] = torch.tensor(found, dtype=torch.float64)
    return changes if signed else {name: change.abs() for name, change in changes.items()}


def spearman(a: Tensor | Mapping[str, Tensor], b: Tensor | Mapping[str, Tensor]) -> float:
    """Return Spearman's rank correlation, equal values sharing the mean of their ranks; NaN if one of them is constant.

    Two mappings are compared over all their units together. ValueError if they are not of the same units, or hold NaN.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
    0.5
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            raise ValueError(
                f"not of the same groups: only one of them has {sorted(a.keys() ^ b.keys())[0]!r}"
            )
        a, b = (torch.cat([each[name].double().cpu().reshape(-1) for name in a]) for each in (a, b))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.numel() != b.numel() or a.numel() < 2:
        raise ValueError(
            "spearman needs two tensors, or two mappings to tensors, with as many values (two or more)"
        )
    x, y = (_ranks(each.detach().double().cpu().reshape(-1)) for each in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / ((x @ x) * (y @ y)).sqrt())


def _ranks(values: Tensor) -> Tensor:
    if bool(values.isnan().any()):
        raise ValueError(
            f"{int(values.isnan().sum()):,} of {values.numel():,} values are NaN: they have no rank"
        )
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[which]
