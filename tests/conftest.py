"""Fixtures that all tests share: tiny, seeded, on one thread."""

from __future__ import annotations

import pytest
import torch
from torch import nn

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def mlp() -> nn.Module:
    """Two linear layers with a batch norm between: 60 + 30 = 90 prunable weights."""
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))


@pytest.fixture
def convnet() -> nn.Module:
    """A convolution, a batch norm and a linear layer, for inputs of shape [N, 1, 6, 6]."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 3)
    )
