"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return flatten, then linear layers of the given widths with ReLU between them.

    >>> sum(p.numel() for p in mlp(784, (300, 100), 10).parameters())  # 266,200 of them weights
    266610
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else inputs, outputs))


def lenet_300_100() -> nn.Sequential:
    """Return LeNet-300-100 for 28 x 28 images, as in Han et al. 2015 (267K parameters)."""
    return mlp(784, (300, 100), 10)
