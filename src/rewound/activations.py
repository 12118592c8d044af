"""What a network reads of its units, forward pass by forward pass: for criteria that look at feature maps.

Maps are taken by hooks, for as long as a ``with`` block lasts, at the places that ``sites.py`` finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rewound.compaction.units import Structure
from rewound.parameters import named_modules
from rewound.sites import Site, find_sites


@dataclass(frozen=True)
class Reading:
    """What one forward pass showed at a site; ``map`` is a node of the graph that only this reader reads."""

    site: Site
    map: Tensor


@contextmanager
def reading(model: nn.Module, structure: Structure) -> Iterator[Readings]:
    """Inside, every forward pass of ``model`` leaves what was read of every group in the yielded ``Readings``."""
    sites = find_sites(model, structure)
    modules = dict(named_modules(model))
    readings = Readings([group.name for group in structure])
    handles = []
    try:
        for name in dict.fromkeys(site.module for site in sites):
            here = [site for site in sites if site.module == name]
            inputs, outputs = [s for s in here if s.reads], [s for s in here if not s.reads]
            if inputs:
                hook = readings.before(inputs)
                handles.append(modules[name].register_forward_pre_hook(hook, with_kwargs=True))
            if outputs:
                handles.append(modules[name].register_forward_hook(readings.after(outputs)))
        yield readings
    finally:
        for handle in handles:
            handle.remove()


class Readings:
    """What ``reading`` collects; ``take()`` hands it over and begins anew."""

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups
        self._read: list[Reading] = []

    def take(self) -> list[Reading]:
        """Return what the last forward pass showed; ValueError if a group was not seen at all."""
        read, self._read = self._read, []
        seen = {reading.site.group for reading in read}
        missing = [name for name in self._groups if name not in seen]
        if missing:
            raise ValueError(
                f"the units of {missing[0]!r} were not seen: no module that reads or writes them was called (their weights "
                "are used by a function of another module?); criterion 'taylor-weights' needs no feature maps"
            )
        return read

    def before(self, sites: list[Site]) -> Any:
        """Return a hook that keeps a module's first input and hands the module its own copy of it."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not args:
                name = "input" if "input" in kwargs else next(iter(kwargs))
                kwargs = {**kwargs, name: self._kept(kwargs[name], sites)}
                return args, kwargs
            return (self._kept(args[0], sites), *args[1:]), kwargs

        return hook

    def after(self, sites: list[Site]) -> Any:
        """Return a hook that keeps a module's output."""
        return lambda module, args, output: self._kept(output, sites)

    def _kept(self, tensor: Tensor, sites: list[Site]) -> Tensor:
        if not torch.is_grad_enabled():
            raise ValueError(
                f"module {sites[0].module!r} runs without gradients inside the model (gradient checkpointing?): "
                "switch that off while scores are computed"
            )
        # a node of its own: the gradient that arrives here came through this module alone
        own = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_(True)
        self._read += [Reading(site, own) for site in sites]
        return own


def first_order(loss: Tensor, readings: list[Reading], examples: int) -> dict[str, tuple[Tensor, float]]:
    """Return group name -> (sum over positions of gradient x map [examples, units], positions of a map).

    That sum, negated and summed over the examples, is what the loss changes by, to first order, when the unit is gone from
    everything that reads it. A map that several modules read counts once with each.
    """
    maps = list({id(reading.map): reading.map for reading in readings}.values())
    found = torch.autograd.grad(loss, maps, allow_unused=True)
    products = {
        id(z): None if g is None else _wide(g.detach()) * _wide(z.detach()) for z, g in zip(maps, found)
    }
    sums: dict[str, tuple[Tensor, float]] = {}
    for reading_ in readings:
        site, product = reading_.site, products[id(reading_.map)]
        if product is None:
            product = torch.zeros_like(_wide(reading_.map.detach()))
        share = _by_example(product, site, examples)
        size = reading_.map.numel() / examples / reading_.map.shape[site.axis] * site.positions.shape[1]
        before, most = sums.get(site.group, (torch.zeros_like(share), 0.0))
        sums[site.group] = (before + share, max(most, size))
    return sums


def examples_in(given: Any) -> int:
    """Return how many examples an input (tensor, tuple or dict) holds: the length of its first tensor's first axis.

    >>> examples_in({"ids": torch.zeros(3, 7)})
    3
    """
    leaves = tree_leaves(dict(given) if isinstance(given, Mapping) else given)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError("a batch without a tensor in its input: the number of examples cannot be told")


def _by_example(product: Tensor, site: Site, examples: int) -> Tensor:
    """Sum over all axes but those of the examples and the units: [examples, units]."""
    where = site.positions.to(product.device)
    product = product[None] if product.ndim < 2 else product.movedim((site.examples, site.axis), (0, -1))
    length, width = product.shape[0], product.shape[-1]
    if length == 1:  # the same for all examples (a table of positions): each has its share
        product = (product / examples).expand(examples, *product.shape[1:])
    elif length % examples:
        raise ValueError(
            f"module {site.module!r} has {length} entries along axis {site.examples}, which is no multiple of the {examples} "
            "examples of the batch (the first axis of its input); criteria 'taylor-gates' and 'taylor-weights' need no examples"
        )
    by_position = product.reshape(examples, -1, width).sum(1)  # windows of an image are its positions
    return by_position[:, where.reshape(-1)].reshape(examples, *where.shape).sum(-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.float()
