"""The model's own parameters under the model's own names, whatever stands around the model.

People hand us compiled, distributed, averaged and wrapped models. Masks, states and reports speak one language:
the dotted names of the user's own module. This file translates, and does nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_WRAPPERS = (
    nn.parallel.DistributedDataParallel,
    nn.DataParallel,
    torch.optim.swa_utils.AveragedModel,
)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's own module from under ``torch.compile``, DDP, ``AveragedModel`` or Fabric.

    FSDP2 (``fully_shard``) works in place and needs no unwrapping; what a forward without a backward (an evaluation)
    left gathered is sharded again, because until then its parameters are copies that the optimizer does not hold.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> unwrap_model(torch.optim.swa_utils.AveragedModel(layer)).weight.shape
    torch.Size([2, 2])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"'model' must be a torch.nn.Module (got {type(model).__name__})")
    while True:
        if isinstance(model, _WRAPPERS):
            inner = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            inner = model._orig_mod
        elif isinstance(getattr(model, "_forward_module", None), nn.Module):  # Lightning Fabric
            inner = model._forward_module
        else:
            _reshard(model)
            return model
        model = inner


def _reshard(model: nn.Module) -> None:
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if fsdp is not None:  # somebody imported it, so there may be sharded modules
        for module in model.modules():
            if isinstance(module, fsdp):
                module.reshard()


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that really steps, from under Accelerate's or Fabric's wrapper.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> unwrap_optimizer(sgd) is sgd
    True
    """
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"'optimizer' must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
    return optimizer


def canonical(name: str) -> str:
    """Return a dotted name without the segment that ``torch.compile`` puts before a compiled submodule.

    >>> canonical("_orig_mod.features._orig_mod.0.weight")
    'features.0.weight'
    """
    return name.replace("_orig_mod.", "")


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (canonical name, module), compiled submodules unwrapped, each module once."""
    seen: set[int] = set()
    for name, module in unwrap_model(model).named_modules():
        inner = getattr(module, "_orig_mod", None)
        module = inner if isinstance(inner, nn.Module) else module
        if id(module) not in seen:
            seen.add(id(module))
            yield canonical(name + "." if name else "").rstrip("."), module


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return canonical name -> parameter; a shared (tied) tensor once, under its first name.

    >>> import torch
    >>> list(parameters_by_name(torch.compile(torch.nn.Linear(2, 2), backend="eager")))
    ['weight', 'bias']
    """
    return {canonical(name): p for name, p in unwrap_model(model).named_parameters()}


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return first name -> all names, for every parameter that goes by more than one."""
    names: dict[int, list[str]] = {}
    for name, p in unwrap_model(model).named_parameters(remove_duplicate=False):
        clean = canonical(name)
        known = names.setdefault(id(p), [])
        if clean not in known:
            known.append(clean)
    return {first[0]: tuple(first) for first in names.values() if len(first) > 1}


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor (sharing its memory), or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered whole (every rank must call this), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_like(full: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of ``full``, cut as ``like`` is sharded; ``full`` itself if it is not."""
    if not hasattr(like, "to_local"):
        return full.to(like.device)
    from torch.distributed.tensor import DTensor, Replicate

    # Every rank has the whole, so that cutting it takes no communication (distribute_tensor would scatter rank 0's).
    mesh = like.device_mesh
    everywhere = DTensor.from_local(full.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    sharded = everywhere.redistribute(mesh, like.placements)
    return sharded.to_local()
