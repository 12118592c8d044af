"""Make a network smaller where it stands: the user's own module and optimizer, in the middle of training.

Parameters keep their identity (an optimizer, a loop, a scheduler go on holding them) and get smaller tensors; what the optimizer
keeps for them is cut with them. The code of the model must be able to run on smaller tensors; that is proven on a copy first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rewound.compaction import mending, proof
from rewound.compaction.coordinates import Coordinates, coordinates, recall
from rewound.compaction.coupling import Coupling, couple
from rewound.compaction.optimizers import cut_state_
from rewound.compaction.surgery import (
    Cut,
    Unsettled,
    before_edits,
    copied,
    edits_of,
    finish_,
    plan_cut,
    settle,
)
from rewound.compaction.units import Certificate
from rewound.parameters import canonical, named_modules, parameters_by_name, unwrap_model, unwrap_optimizer


def shrink_(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    example: Any,
    *,
    optimizers: Iterable[Optimizer] = (),
    copies: Iterable[nn.Module] = (),
    coupling: Coupling | None = None,
) -> Coordinates:
    """Cut everything that is wholly masked out of ``model``, in place; return where the survivors were.

    optimizers: whose state is cut along. copies: models of the same parameters (averages of weights) that are cut alike.
    coupling: of this model, if it is known. Raises what :func:`rewound.compact` raises, and ``ValueError`` for a
    distributed wrapper, before anything is changed.

    >>> import rewound
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> weight = model[0].weight
    >>> mask = rewound.prune(model, density=0.5, pattern="hidden unit", example=torch.ones(1, 4))
    >>> shrink_(model, mask, torch.ones(1, 4))
    Coordinates(3 tensors cut)
    >>> model[0].weight is weight, tuple(weight.shape)
    (True, (4, 4))
    """
    require_shrinkable(model)
    inner = unwrap_model(model)
    coupling = coupling or couple(inner, example)
    cut = plan_cut(inner, coupling, mask)
    _require_no_factors(coupling, cut)
    try:
        edits = settle(copied(inner, cut.tensors), cut.mending, _expected(inner, mask, example), example)
    except Unsettled as error:
        raise RuntimeError(
            f"the network cannot become smaller where it stands: {error}. Let that line take the size from its tensors (-1, or "
            "x.shape), or train masked (shrink=False) and call rewound.compact at the end"
        ) from error
    together = [unwrap_model(other) for other in copies]
    optimizers = [unwrap_optimizer(optimizer) for optimizer in optimizers]
    names = {p: name for name, p in parameters_by_name(inner).items()}
    shapes = {name: p.shape for p, name in names.items()}
    for optimizer in optimizers:
        cut_state_(optimizer, names, shapes, cut.coordinates)
    for each in (inner, *together):
        _cut_tensors_(each, cut, mask)
        finish_(each, cut.coordinates, edits)
    return cut.coordinates


def require_shrinkable(model: nn.Module) -> None:
    """Raise ``ValueError`` for wrappers that keep sizes of their own."""
    sharded = any(hasattr(p, "to_local") for p in model.parameters())
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or sharded:
        raise ValueError(
            f"{type(model).__name__} keeps the sizes of its parameters, so it cannot become smaller in mid-training; "
            "train masked (shrink=False) and call rewound.compact at the end"
        )


def _require_no_factors(coupling: Coupling, cut: Cut) -> None:
    """A weight that is multiplied by a factor takes other steps from there on, so this is for the end of a training."""
    if cut.repair.scale or cut.repair.edits or cut.repair.failed:
        groups = (
            g
            for g in coupling.structure
            if g.name in cut.kept and g.certificate is Certificate.EXACT_AFTER_RESCALE
        )
        group = next(groups, None)
        which = (
            "what is masked"
            if group is None
            else f"the units of {group.name!r} ({group.kind}: it {group.why})"
        )
        raise ValueError(
            f"a network cannot become smaller in mid-training by {which}: weights would be multiplied by a factor, and train on "
            "at another rate. Prune without allow='exact after rescale', or train masked (shrink=False) and call rewound.compact "
            "at the end"
        )


def _expected(model: nn.Module, mask: Mapping[str, Tensor], example: Any) -> list[Tensor]:
    return proof.run_in_float64(proof.masked_copy(model, mask), example)


def _cut_tensors_(model: nn.Module, cut: Cut, mask: Mapping[str, Tensor]) -> None:
    known = cut.coordinates
    for name, p in parameters_by_name(model).items():
        if name in mask:  # what is pruned and stays, in a mask that prunes single weights too
            p.data.masked_fill_(~mask[name].to(p.device), 0)
        if name in known.kept:
            # A new tensor under the same Parameter; its gradient, if any, is of the old shape.
            grad = p.grad
            replace_(p, known.cut(name, p.data))
            p.grad = None if grad is None else known.cut(name, grad)
    for module_name, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            name = canonical(f"{module_name}.{leaf}" if module_name else leaf)
            if buffer is not None and name in known.kept:
                module._buffers[leaf] = known.cut(name, buffer)


def replace_(p: nn.Parameter, data: Tensor) -> None:
    """Give a Parameter data of another shape; its gradient is gone."""
    p.grad = None
    # A loop often still holds the last loss, and with its graph the node that accumulates gradients of the old shape. Data of
    # another dtype makes autograd let go of that node.
    p.data = torch.empty(
        0, dtype=torch.float32 if p.dtype is torch.float16 else torch.float16, device=p.device
    )
    p.data = data


def grow_(model: nn.Module, original: nn.Module) -> None:
    """Give a network that was shrunk its original shapes and attributes again (those of ``original``), in place; the values of
    its tensors are zero, for somebody to fill in."""
    model, original = unwrap_model(model), unwrap_model(original)
    modules = dict(named_modules(original))
    edits = {key: value for key, value in edits_of(model).items() if not isinstance(value, mending.Added)}
    mending.apply(model, {(path, name): mending.read(modules[path], name) for path, name in edits})
    shapes = coordinates(model).since(coordinates(original)).shapes
    for name, p in parameters_by_name(model).items():
        if name in shapes:
            replace_(p, p.data.new_zeros(shapes[name]))
    for module_name, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            name = canonical(f"{module_name}.{leaf}" if module_name else leaf)
            if buffer is not None and name in shapes:
                module._buffers[leaf] = buffer.new_zeros(shapes[name])
    recall(model, coordinates(original))
    object.__setattr__(model, "_rewound_edits", edits_of(original))
    object.__setattr__(model, "_rewound_before", before_edits(original))
