"""Watch how far training moves each weight away from zero, for the criterion "movement"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rewound.parameters import local, parameters_by_name, unwrap_optimizer
from rewound.scope import ScopeLike, as_scope


class Movement:
    """The record that ``watch_movement`` keeps: ``sums`` (name -> float32 tensor, or float64) over
    ``steps`` steps."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._names = {id(p): name for name, p in parameters.items()}
        wide = {
            n: torch.float64 if p.dtype is torch.float64 else torch.float32 for n, p in parameters.items()
        }
        self.sums = {n: torch.zeros_like(p.detach(), dtype=wide[n]) for n, p in parameters.items()}
        self.steps = 0
        self._handle: RemovableHandle | None = None

    def watch(self, optimizer: Optimizer) -> None:
        """Accumulate before every step of ``optimizer``, after the hooks that it has now; leave another one.

        A hook that sets the learning rate must have run before this one reads it: watch after it.
        """
        self.remove()
        inner = unwrap_optimizer(optimizer)
        held = {id(p) for group in inner.param_groups for p in group["params"]}
        missing = [name for key, name in self._names.items() if key not in held]
        if missing:
            raise ValueError(
                f"the optimizer does not hold {missing[0]!r} ({len(missing)} of {len(self._names)} tensors in scope): "
                "pass the optimizer that trains them, or a smaller scope"
            )
        self._handle = inner.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # a fused optimizer under GradScaler is handed scaled gradients, and told so by these two attributes
        scale, bad = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if bad is not None and bool(bad):
            return
        factor = 1.0 if scale is None else 1.0 / float(scale)
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = self._names.get(id(p))
                if name is not None and p.grad is not None:
                    total: Tensor = self.sums[name]
                    total.add_(p.grad.to(total.dtype) * p.to(total.dtype), alpha=-float(group["lr"]) * factor)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the record, for a checkpoint."""
        return {"steps": self.steps, "sums": {name: total.clone() for name, total in self.sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a record that ``state_dict`` returned; ValueError if it is of other tensors."""
        odd = sorted(self.sums.keys() ^ state["sums"].keys())
        if odd:
            raise ValueError(f"the movement record is of another scope: only one has {odd[0]!r}")
        for name, total in self.sums.items():
            if state["sums"][name].shape not in (total.shape, local(total).shape):
                raise ValueError(f"the movement record of {name!r} has another shape than the model's tensor")
        with torch.no_grad():
            for name, total in self.sums.items():
                local(total).copy_(local(state["sums"][name]))
        self.steps = int(state["steps"])

    def remove(self) -> None:
        """Stop watching; the record stays."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def watch_movement(optimizer: Optimizer, model: nn.Module, scope: ScopeLike = None) -> Movement:
    """Accumulate -lr * gradient * weight before every step of ``optimizer``, for the criterion "movement".

    Source: Sanh et al. 2020, "Movement Pruning", section 3. The gradient is the one the optimizer uses:
    averaged, clipped and unscaled as the loop left it. Costs one tensor of float32 (float64 for float64)
    per tensor in scope. A ``Run`` with ``criterion="movement"`` watches by itself.

    Raises ValueError if the optimizer does not hold a tensor in scope.

    >>> import torch
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> movement = watch_movement(optimizer, layer)
    >>> _ = layer.weight.data.fill_(2.0)
    >>> layer(torch.ones(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> movement.sums["weight"].item(), movement.steps
    (-1.0, 1)
    """
    parameters = parameters_by_name(model)
    movement = Movement({name: parameters[name] for name in as_scope(model, scope).names})
    movement.watch(optimizer)
    return movement
