"""Fresh weights, drawn as each module draws its own: the re-initialisation control."""

from __future__ import annotations

import torch
from torch import nn

from rewound.parameters import unwrap_model


def reinitialize_(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew and reset every buffer, in place, leaving the global generators as they were.

    Each module's own ``reset_parameters`` is called, children before parents, so that a model that initialises itself in a
    way of its own says so by having that method. Raises ``ValueError`` naming the parameters that nobody would reset.

    >>> layer = torch.nn.Linear(2, 2)
    >>> reinitialize_(layer, seed=1); first = layer.weight.clone()
    >>> reinitialize_(layer, seed=1); bool((layer.weight == first).all())
    True
    """
    model = unwrap_model(model)
    modules = [(name, m) for name, m in model.named_modules()]
    if _reset(model) is None:  # a root that resets itself answers for all that is in it
        for name, module in modules:
            own = [n for n, _ in module.named_parameters(recurse=False)]
            if own and _reset(module) is None:
                raise ValueError(
                    f"cannot draw fresh weights for {name or 'the model'!r} ({type(module).__name__}, with {own[0]!r}): "
                    "it has no reset_parameters(); give its class, or the whole model's, that method"
                )
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for _, module in reversed(modules):
            reset = _reset(module)
            if reset is not None:
                reset()


def _reset(module: nn.Module):
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
