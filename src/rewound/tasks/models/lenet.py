"""LeNet-5 in the form that the pruning literature uses."""

from __future__ import annotations

from torch import nn


def lenet_5() -> nn.Sequential:
    """Return LeNet-5 for 28 x 28 images as in Han et al. 2015: Caffe's, with one ReLU, 431K parameters.

    >>> sum(p.numel() for p in lenet_5().parameters())
    431080
    """
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )
