"""The network that is compared: one form that every runtime takes, its dense twin, and what it ought to give."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rewound.untouched import call_of


class Flat(nn.Module):
    """The model as a function from tensors to a tuple of tensors, whatever it takes and gives (dicts, dataclasses)."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        self.inner = model
        self._call = tree_map(lambda leaf: ... if isinstance(leaf, Tensor) else leaf, call_of(example))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args, kwargs = tree_map(lambda leaf: next(given) if leaf is ... else leaf, self._call)
        found = self.inner(*args, **kwargs)
        return tuple(leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor))


def tensors_of(example: Any) -> tuple[Tensor, ...]:
    """Return an example's tensors in the order that :class:`Flat` takes them."""
    return tuple(leaf for leaf in tree_leaves(call_of(example)) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Zeros:
    """weights: of tensors with two axes or more; zeros: how many of them are exactly 0.

    >>> Zeros.of(nn.Linear(4, 2)).share
    0.0
    """

    weights: int
    zeros: int

    @classmethod
    def of(cls, model: nn.Module) -> Zeros:
        weights = [p.detach() for p in model.parameters() if p.ndim > 1]
        total = sum(w.numel() for w in weights)
        return cls(total, total - sum(int(w.count_nonzero()) for w in weights))

    @property
    def share(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


def dense_twin(model: nn.Module) -> nn.Module:
    """Return a copy without zeros among the weights: each is drawn anew, of its tensor's own spread.

    >>> twin = dense_twin(nn.Linear(3, 2).requires_grad_(False))
    >>> Zeros.of(twin).zeros
    0
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in twin.parameters():
            gone = weight == 0
            if weight.ndim > 1 and weight.is_floating_point() and bool(gone.any()):
                alive = weight[~gone]
                spread = float(alive.std()) if alive.numel() > 1 else 0.01
                drawn = torch.rand(int(gone.sum()), generator=generator).add_(0.5).mul_(spread or 0.01)
                signs = torch.randint(2, drawn.shape, generator=generator).mul_(2).sub_(1)
                weight[gone] = (drawn * signs).to(weight)
    return twin


def in_float64(module: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """Return what the module gives where everything is computed in float64."""
    wide = copy.deepcopy(module).double()
    with torch.no_grad():
        found = wide(*(x.double() if x.is_floating_point() else x for x in inputs))
    return [tensor.numpy() for tensor in found]


def in_float32(module: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """Return what torch gives."""
    with torch.no_grad():
        return [tensor.numpy().copy() for tensor in module(*inputs)]


def largest_error(found: Sequence[Any], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference over all outputs, each relative to its output's largest expected value.

    Infinite where an output is missing, of another shape, or not finite where it should be.

    >>> largest_error([np.array([1.0, 2.1])], [np.array([1.0, 2.0])]).__round__(3)
    0.05
    """
    if len(found) != len(expected):
        return float("inf")
    worst = 0.0
    for one, other in zip(found, expected):
        array = np.asarray(one, np.float64)
        if array.shape != other.shape:
            return float("inf")
        if not other.size:
            continue
        with np.errstate(invalid="ignore"):
            apart = np.abs(array - other)
        apart[(array == other) | (np.isnan(array) & np.isnan(other))] = 0  # infinities agree as well
        finite = np.abs(other[np.isfinite(other)])
        scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
        error = float(apart.max()) / scale
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst
