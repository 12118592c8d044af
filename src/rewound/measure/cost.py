"""What a network costs on paper: parameters and FLOPs, dense or with a mask.

FLOPs are 2 x multiply-adds, counted operation by operation with PyTorch's own formulas (those behind
``torch.utils.flop_counter.FlopCounterMode``): matrix products, convolutions and attention; element-wise work
and normalisation count as nothing. With a mask, an operation that reads a masked weight counts times that
weight's density.

This is arithmetic that a perfect sparse engine would do, a computed ratio. It is not speed: that is measured.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from rewound.parameters import parameters_by_name, tied_names, unwrap_model
from rewound.untouched import as_found, call_of

TRAINING_FACTOR = 3  # the forward pass, and as much again for each of the inputs' and the weights' gradients


def parameters(model: nn.Module, mask: Mapping[str, Tensor] | None = None) -> int:
    """Return the number of parameters of the whole model, those that ``mask`` has pruned left out.

    A tied tensor counts once. Raises ``ValueError`` for a mask that does not fit the model.

    >>> parameters(nn.Linear(3, 2)), parameters(nn.Linear(3, 2), {"weight": torch.eye(2, 3).bool()})
    (8, 4)
    """
    pruned = sum(kept.numel() - int(kept.sum()) for kept in _checked(model, mask).values())
    return sum(p.numel() for p in parameters_by_name(model).values()) - pruned


def flops(model: nn.Module, example: Any, mask: Mapping[str, Tensor] | None = None) -> int:
    """Return the FLOPs of one forward pass in evaluation mode over the whole batch ``example``.

    ``example``: a tensor, a tuple of positional or a dict of keyword arguments. The model is left as found:
    mode, buffers, gradients, random state. Where the model allows it, nothing is computed: shapes alone run
    through it. A sharded model (FSDP2) is counted whole, and must allow that: ``ValueError`` where it does not.

    >>> flops(nn.Linear(3, 2), torch.zeros(5, 3))  # 2 * 5 * 3 * 2
    60
    >>> flops(nn.Linear(3, 2), torch.zeros(5, 3), {"weight": torch.eye(2, 3).bool()})
    20
    """
    counts = flops_by_weight(model, example)
    density = {name: float(kept.sum()) / max(kept.numel(), 1) for name, kept in _checked(model, mask).items()}
    return round(sum(n * density.get(name, 1.0) for name, n in counts.items()))


def training_flops(model: nn.Module, example: Any, mask: Mapping[str, Tensor] | None = None) -> int:
    """Return the FLOPs of one training step on the batch ``example``: 3 x the forward pass.

    The rule: back-propagation makes two products of the forward pass's size for each weight, one for the
    gradient of the inputs and one for that of the weights. The first layer needs no gradient of its inputs,
    so the rule counts it a third too high; the optimizer's own element-wise work counts as nothing. With a
    mask, both products are taken to skip pruned weights: the least that an engine could do.

    >>> training_flops(nn.Linear(3, 2), torch.zeros(5, 3))
    180
    """
    return TRAINING_FACTOR * flops(model, example, mask)


def flops_by_weight(model: nn.Module, example: Any) -> dict[str, int]:
    """Return the dense forward FLOPs of each weight by its name.

    Those of operations that read no weight stand under "" (attention's products of activations). A tied weight stands under
    its first name. Arguments as in :func:`flops`.

    >>> flops_by_weight(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.zeros(5, 3))
    {'0.weight': 60, '1.weight': 20}
    """
    inner = unwrap_model(model)
    names = {id(p): name for name, p in parameters_by_name(model).items()}
    tensors = dict([*inner.named_parameters(remove_duplicate=False), *inner.named_buffers()])
    sharded = any(hasattr(t, "to_local") for t in tensors.values())
    metas = {id(t): _whole_shape(t) for t in tensors.values()}
    args, kwargs = call_of(example)
    with as_found(inner):
        if sharded:
            _drop_sharding_hooks(inner)
        try:
            shapes = {n: metas[id(t)] for n, t in tensors.items()}
            weights = {names[i]: meta for i, meta in metas.items() if i in names}
            args_meta, kwargs_meta = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
            with _Counter(weights) as counter:
                torch.func.functional_call(inner, shapes, args_meta, kwargs_meta, tie_weights=False)
        except Exception as error:  # the model looks at values, or makes tensors of its own: run it for real
            if sharded:
                raise ValueError(
                    "the FLOPs of a sharded model are counted on shapes alone, and this model or example cannot run so "
                    f"({type(error).__name__}: {error}); count them on the model before it is sharded"
                ) from error
            device = next((t.device for t in tensors.values()), None)
            args, kwargs = tree_map_only(Tensor, lambda t: t.to(device), (args, kwargs))
            with _as_products(), _Counter(parameters_by_name(model)) as counter:
                inner(*args, **kwargs)
    return counter.counts


def multiply_adds_each(model: nn.Module, example: Any) -> dict[str, float]:
    """Return name of a weight -> multiply-adds that each single one of its entries takes part in, over the whole ``example``.

    Those of a convolution work at every position of the output, those of a linear layer once a row (or token). A tensor of
    which parts are used apart (fused projections) has their mean. Weights of no multiply-adds (embeddings, norms) are
    left out. Arguments as in :func:`flops`.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    >>> multiply_adds_each(model, torch.zeros(1, 1, 6, 6))
    {'0.weight': 16.0, '2.weight': 1.0}
    """
    sizes = {name: p.numel() for name, p in parameters_by_name(model).items()}
    counts = flops_by_weight(model, example)
    return {name: count / (2 * sizes[name]) for name, count in counts.items() if name and count}


class _Counter(TorchDispatchMode):
    """Sum FLOPs by the weight that an operation reads, told by the storage it shares with a parameter."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.alive: list[Tensor] = []  # keeps addresses of copies from being given out again
        self.names = {_address(w): name for name, w in weights.items() if w.numel() and w.ndim > 1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # a composite operation: count its parts
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        read = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        name = next((self.names[_address(a)] for a in read if _address(a) in self.names), "")
        if packet in flop_registry:
            self.counts[name] = self.counts.get(name, 0) + int(
                flop_registry[packet](*args, **kwargs, out_val=result)
            )
        elif name and len(read) == 1 and isinstance(result, Tensor) and result.numel() == read[0].numel():
            self.names.setdefault(_address(result), name)  # a cast or a copy of a weight is still that weight
            self.alive.append(result)
        return result


def _whole_shape(tensor: Tensor) -> Tensor:
    if hasattr(tensor, "to_local"):  # sharded: its shape is that of the whole
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return tensor.detach().to("meta")


def _drop_sharding_hooks(model: nn.Module) -> None:
    """Take away the hooks by which FSDP2 gathers parameters, until :func:`rewound.untouched.as_found` puts the modules back."""
    for module in model.modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = getattr(module, kind).items()
            own = {k: h for k, h in hooks if not _is_of_torch_distributed(h)}
            setattr(module, kind, OrderedDict(own))


def _is_of_torch_distributed(hook: Any) -> bool:
    return str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith("torch.distributed")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _checked(model: nn.Module, mask: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the mask under first names, each tied tensor once."""
    first = {alias: names[0] for names in tied_names(model).values() for alias in names}
    known, checked = parameters_by_name(model), {}
    for name, kept in (mask or {}).items():
        parameter = known.get(first.get(name, name))
        if parameter is None:
            raise ValueError(f"the mask names {name!r}, which is no parameter of the model")
        if kept.shape != parameter.shape:
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(kept.shape)}, not {tuple(parameter.shape)}"
            )
        checked[first.get(name, name)] = kept
    return checked


@contextmanager
def _as_products() -> Iterator[None]:
    """Run recurrent layers and attention as the matrix products they are: the CPU's fused operations have no formula."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says here that Intel GPUs are absent
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield
