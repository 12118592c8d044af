"""Masked and compact are the same function: run both in float64 and compare every number they return."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rewound.parameters import parameters_by_name
from rewound.untouched import as_found, call_of

TOLERANCE = 1e-10  # max|a - b| / max|b|, of each tensor that is returned


class _InFloat64(TorchDispatchMode):
    """Models cast to float32 inside (RMSNorm, attention weights); here that is float64, or rounding would hide errors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
            kwargs = {**kwargs, "dtype": torch.float64}
        if any(
            a in (torch.float32, torch.float16, torch.bfloat16) for a in args if isinstance(a, torch.dtype)
        ):
            args = tuple(
                torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a for a in args
            )
        return func(*args, **kwargs)


def run_in_float64(
    model: nn.Module, example: Any, copied: bool = False, training: bool = False
) -> list[Tensor]:
    """Return the tensors that a float64 copy of ``model`` gives on ``example`` in evaluation mode.
    copied: the model is such a copy already. training: in training mode, with the same random numbers each time.

    >>> run_in_float64(nn.Linear(2, 1), torch.ones(1, 2))[0].dtype
    torch.float64
    """
    double = model if copied else copy.deepcopy(model).double()
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, call_of(example)
    )
    with as_found(double, training), _InFloat64():
        if training:
            torch.manual_seed(0)
        result = double(*args, **kwargs)
    return [leaf.detach() for leaf in tree_leaves(_plain(result)) if isinstance(leaf, Tensor)]


def masked_copy(model: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of ``model`` with everything that is masked set to zero."""
    masked = copy.deepcopy(model)
    parameters = parameters_by_name(masked)
    with torch.no_grad():
        for name, kept in mask.items():
            parameters[name].masked_fill_(~kept.to(parameters[name].device), 0)
    return masked


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest relative difference between tensors that two models return; infinite where their shapes differ
    or one is not finite where the other is."""
    if len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        odd = ~(a.isfinite() & b.isfinite())
        if bool(odd.any()):  # masks of attention: minus infinity on both sides is the same
            if not bool(((a == b) | (a.isnan() & b.isnan()))[odd].all()):
                return float("inf")
            a, b = a.masked_fill(odd, 0), b.masked_fill(odd, 0)
        scale = float(b.abs().max())
        worst = max(worst, float((a - b).abs().max()) / (scale or 1.0))
    return worst


_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


def _plain(result: Any) -> Any:
    """Hugging Face's outputs as plain containers, without caches and states, which have the sizes of what is inside."""
    if isinstance(result, Mapping):
        return {key: _plain(value) for key, value in result.items() if key not in _CACHES}
    return result
