"""Run a model to look at it, and leave it as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def call_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an example (tensor, tuple or dict) stands for.

    >>> call_of({"x": 1})
    ((), {'x': 1})
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


@contextmanager
def as_found(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients inside; attributes (mode, caches), buffers and random state put back
    after. training: training mode with gradients instead; in a model that is in it, layers that are not stay as they are."""
    attributes = [(m, dict(vars(m))) for m in model.modules()]
    buffers = [(m, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    gpus = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    fast_path = torch.backends.mha.get_fastpath_enabled()
    if not training or not model.training:
        model.train(training)
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation has no formula
    try:
        with torch.set_grad_enabled(training), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, found in attributes:
            now = vars(module)
            for name in [n for n in now if n not in found]:
                del now[name]
            now.update(found)
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)
