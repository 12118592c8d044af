"""The bundled networks, each written out, with weights that are a pure function of a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Return ``build()`` with weights drawn on the CPU from ``seed``; the global generator stays as it was.

    >>> before = torch.random.get_rng_state()
    >>> a, b = (seeded(1, lambda: nn.Linear(2, 2)) for _ in range(2))
    >>> bool((a.weight == b.weight).all()), bool((torch.random.get_rng_state() == before).all())
    (True, True)
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(int(seed))  # torch.manual_seed would reseed GPUs as well
        return build()
