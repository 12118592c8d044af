"""The user's own objects, and a run's hooks on them: guarded, replayed, recorded, frozen and put back, always in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rewound.guarding import Guard, guardable
from rewound.mask import Mask
from rewound.movement import Movement
from rewound.parameters import unwrap_model
from rewound.state import PARTS, State, capture, forget_slots, restore, rng_state, set_rng_state
from rewound.trace import Recorder, Replay, Trace


class Live:
    """Model, optimizer, scheduler and extras, with guard, replay and recorder on the optimizer.

    ``full``: the mask of the scope before anything is pruned; modules among the extras that it fits (EMA copies) obey every
    later mask.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, scheduler: Any, extras: Sequence[Any], full: Mask
    ) -> None:
        self.model, self.scheduler, self.extras = model, scheduler, tuple(extras)
        self._names = tuple(full)
        self.optimizer = guardable(optimizer, model, self._names)
        modules = [m for extra in extras if isinstance(extra, nn.Module) for m in extra.modules()]
        fitting = [unwrap_model(module) for module in modules if full.fits(module)]
        self.copies = tuple({id(module): module for module in fitting}.values())
        self.guard: Guard | None = None
        self.replay: Replay | None = None
        self.recorder: Recorder | None = None
        self.movement: Movement | None = None

    def watch(self, movement: Movement) -> None:
        """Keep a movement record with everything else that is saved and rewound."""
        self.movement, self.extras = movement, (*self.extras, movement)

    def attach(self, optimizer: Optimizer, scheduler: Any = None) -> None:
        """Move every hook over to a rebuilt optimizer."""
        self.optimizer = guardable(optimizer, self.model, self._names)
        self.scheduler = scheduler or self.scheduler
        if self.guard is not None:
            self.protect(self.guard.mask)
        for hook in (self.replay, self.recorder):
            if hook is not None:
                hook.attach(self.optimizer)
        if self.movement is not None:
            self.movement.watch(self.optimizer)

    def protect(self, mask: Mask) -> None:
        """Guard the weights under ``mask``, and let EMA copies and other extra modules obey it."""
        if self.guard is not None:
            self.guard.remove()
            self.guard = None  # its bits are as large as the weights: gone before the next ones are made
        self.guard = Guard(self.optimizer, self.model, mask)
        for copy in self.copies:
            mask.apply_(copy)

    def listen(self, trace: Trace | None) -> None:
        """Replay ``trace`` if any, and record: the recorder comes last, so that it writes down what a step really uses."""
        self.unlisten()
        self.replay = None if trace is None else Replay(self.optimizer, trace)
        self.recorder = Recorder(self.optimizer)
        if self.movement is not None:
            self.movement.watch(self.optimizer)

    def unlisten(self) -> None:
        """Neither replay nor record any longer; the guard stays."""
        for hook in (self.replay, self.recorder, self.movement):
            if hook is not None:
                hook.remove()

    def capture(self, parts: Sequence[str] = PARTS) -> State:
        """Freeze the parts asked for."""
        return capture(self.model, self.optimizer, self.scheduler, self.extras, parts)

    def restore(self, state: State) -> None:
        """Put back what ``state`` has."""
        restore(state, self.model, self.optimizer, self.scheduler, self.extras)

    def forget_slots(self) -> None:
        """Give the optimizer the state of a new one."""
        forget_slots(self.optimizer)

    def draw_fresh(self, initialize: Callable[[nn.Module, int], None], seed: int) -> None:
        """Draw fresh weights, and let averages of the weights begin anew from them."""
        initialize(self.model, seed)
        for copy in self.copies:
            copy.load_state_dict(unwrap_model(self.model).state_dict())
        for extra in self.extras:
            if isinstance(extra, torch.optim.swa_utils.AveragedModel):
                extra.n_averaged.zero_()

    def evaluated(self, evaluate: Callable[[nn.Module], Mapping[str, float]] | None) -> dict[str, float]:
        """Return the user's metrics of the model now; measuring changes neither modes nor random numbers."""
        if evaluate is None:
            return {}
        modes, rng = [(module, module.training) for module in self.model.modules()], rng_state()
        found = evaluate(self.model)
        if not isinstance(found, Mapping):
            raise TypeError(f"'evaluate' must return a dict of metrics by name (got {type(found).__name__})")
        metrics = {name: number(name, value) for name, value in found.items()}
        for module, training in modes:  # one by one: a frozen batch norm may be in evaluation mode
            module.training = training
        set_rng_state(rng)
        return metrics


def number(name: str, value: Any) -> float:
    """Return a metric as a float; ``TypeError`` names one that is none."""
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} must be a number (got {type(value).__name__})") from None
