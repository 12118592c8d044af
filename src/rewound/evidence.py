"""What a criterion may look at: weights, gradients, movement; each computed once, when it is first asked
for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewound.movement import Movement
from rewound.parameters import local, named_modules, parameters_by_name, unwrap_model, whole
from rewound.scope import Scope, ScopeLike, as_scope


class Evidence:
    """The facts about a model on which scores are computed.

    batches: iterable of (input, target); an input is a tensor, a tuple (positional) or a dict (keyword
    arguments). loss: function (output, target) -> scalar tensor. movement: what ``watch_movement``
    returned, or name -> tensor. seed: for criteria that draw numbers; pass another one for each round.

    Tensors are whole also where the model is sharded. Read them, do not change them.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> batches = [(torch.ones(4, 2), torch.ones(4, 1))]
    >>> evidence = Evidence(layer, batches=batches, loss=torch.nn.functional.mse_loss)
    >>> evidence.names, evidence.gradients["weight"].shape
    (('weight',), torch.Size([1, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        scope: ScopeLike = None,
        *,
        batches: Iterable[tuple[Any, Any]] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        movement: Movement | Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = unwrap_model(model)
        self.scope: Scope = as_scope(model, scope)
        self.seed = int(seed)
        self._given = model
        self._batches = batches
        self._loss = loss
        self._movement = movement

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors to score, in the order of the scope."""
        return self.scope.names

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape of the whole tensor."""
        parameters = parameters_by_name(self.model)
        return {name: parameters[name].shape for name in self.names}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Name -> the weights as they are now (sharing the model's memory unless sharded)."""
        parameters = parameters_by_name(self.model)
        return Computed(self.names, lambda w: w, lambda name: (whole(parameters[name].detach()),))

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Name -> gradient of the loss, averaged over the batches; float32, or float64 for float64 weights.

        The model runs in the mode it is in (train or eval), with random numbers drawn from ``seed``. Its
        ``.grad``, mode, buffers and all random number generators are left as they were. Under
        DistributedDataParallel the gradients are averaged over the ranks, so that every rank decides the
        same. A weight that the loss does not depend on has gradient 0.
        """
        if self._batches is None or self._loss is None:
            missing = " and ".join(
                n for n, v in (("batches", self._batches), ("loss", self._loss)) if v is None
            )
            raise ValueError(
                f"gradients need {missing}: pass evidence=Evidence(model, scope, "
                "batches=[(input, target), ...], loss=function(output, target))"
            )
        found = parameters_by_name(self.model)
        frozen = [found[name] for name in self.names if not found[name].requires_grad]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _as_found(self.model, self.seed),
            _thawed(frozen),
        ):
            sums = _mean_gradients(self.model, self.names, self._batches, self._loss)
        if isinstance(self._given, nn.parallel.DistributedDataParallel):
            import torch.distributed as dist

            for total in sums.values():
                dist.all_reduce(total, group=self._given.process_group)
                total /= dist.get_world_size(self._given.process_group)
        return sums

    @cached_property
    def movement(self) -> dict[str, Tensor]:
        """Name -> -sum over steps of lr * gradient * weight, accumulated while the model trained."""
        if self._movement is None:
            raise ValueError(
                "movement needs a record of training: call movement = watch_movement(optimizer, model) "
                "before it and pass evidence=Evidence(model, scope, movement=movement)"
            )
        sums = self._movement.sums if isinstance(self._movement, Movement) else self._movement
        missing = [name for name in self.names if name not in sums]
        if missing:
            raise ValueError(
                f"movement was not watched for {missing[0]!r} ({len(missing)} of {len(self.names)} tensors)"
            )
        return {name: whole(sums[name].detach()) for name in self.names}


class Computed(Mapping[str, Tensor]):
    """Tensors that are an element-wise function of other tensors, computed when asked for, whole or in part.

    ``inputs(name)`` returns the tensors (of one shape) that ``function`` turns into one of that shape.
    Because nothing is kept, |w| of a large model never exists at once.

    >>> import torch
    >>> scores = Computed(("a",), torch.abs, lambda name: (torch.tensor([-1.0, 2.0, -3.0]),))
    >>> shape, read = scores.open("a")
    >>> scores["a"], read(slice(1, 3))
    (tensor([1., 2., 3.]), tensor([2., 3.]))
    """

    def __init__(
        self,
        names: Iterable[str],
        function: Callable[..., Tensor],
        inputs: Callable[[str], tuple[Tensor, ...]],
    ) -> None:
        self._names = dict.fromkeys(names)
        self._function = function
        self._inputs = inputs

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._function(*self._inputs(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def open(self, name: str) -> tuple[torch.Size, Callable[[slice | Tensor], Tensor]]:
        """Return the tensor's shape and a function from a slice (or indices) of it, flattened, to the
        values there."""
        inputs = self._inputs(name)
        flat = [tensor.reshape(-1) for tensor in inputs]
        return inputs[0].shape, lambda where: self._function(*(tensor[where] for tensor in flat))


def _mean_gradients(
    model: nn.Module,
    names: tuple[str, ...],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, Tensor]:
    found = parameters_by_name(model)
    parameters = [found[name] for name in names]
    sums = [torch.zeros(p.shape, dtype=_wide(p), device=local(p).device) for p in parameters]
    sharded = any(hasattr(p, "to_local") for p in parameters)
    everything = list(found.values())  # taken now: a forward pass swaps a sharded model's parameters
    steps = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"'batches' must yield pairs (input, target) (got {type(batch).__name__})")
        value = loss(_forward(model, batch[0]), batch[1])
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                "'loss' must return one differentiable number: a scalar tensor that depends on the model"
            )
        grads = _by_backward(everything, parameters, value) if sharded else _by_autograd(parameters, value)
        for total, grad in zip(sums, grads):
            if grad is not None:
                total += whole(grad)
        steps += 1
    if steps == 0:
        raise ValueError("'batches' yielded nothing (a generator that was used up?): pass a list or a loader")
    return {name: total.div_(steps) for name, total in zip(names, sums)}


def _forward(model: nn.Module, given: Any) -> Any:
    if isinstance(given, Mapping):
        return model(**given)
    if isinstance(given, tuple | list):
        return model(*given)
    return model(given)


def _by_autograd(parameters: list[nn.Parameter], value: Tensor) -> Iterable[Tensor | None]:
    # autograd.grad touches no .grad and wakes no accumulation hook (a guard's, or an optimizer's in backward)
    return torch.autograd.grad(value, parameters, allow_unused=True)


def _by_backward(
    everything: list[nn.Parameter], parameters: list[nn.Parameter], value: Tensor
) -> list[Tensor | None]:
    # a sharded model reduces its gradients in hooks that only backward() runs
    before = [p.grad for p in everything]
    for p in everything:
        p.grad = None
    try:
        value.backward()
        return [p.grad for p in parameters]
    finally:
        for p, grad in zip(everything, before):
            p.grad = grad


def _wide(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype is torch.float64 else torch.float32


@contextmanager
def _thawed(frozen: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach parameters that are frozen at present: with none, they would rank last and be pruned first."""
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def _as_found(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed the random number generators; afterwards put them and the model's buffers back."""
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for _, module in named_modules(model)
        for name, buffer in module._buffers.items()
    ]
    modes = [(module, module.training) for _, module in named_modules(model)]
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, copy in buffers:
                module._buffers[name] = buffer
                if buffer is not None and copy is not None:
                    buffer.copy_(copy)
