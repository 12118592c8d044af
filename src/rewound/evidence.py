"""What a criterion may look at: weights, gradients, movement; each computed once, when it is first asked
for."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewound.compaction.units import Group, Structure
from rewound.measure.cost import multiply_adds_each
from rewound.measure.latency import rows_of
from rewound.movement import Movement
from rewound.parameters import local, named_modules, parameters_by_name, unwrap_model, whole
from rewound.scope import Scope, ScopeLike, as_scope


def of_units(criterion: Any) -> Any:
    """Mark a criterion as scoring units: it returns group name -> scores [units], from an Evidence that has a
    ``structure``. A decorator; also for what takes options: ``of_units(functools.partial(taylor, flops=1e-3))``.

    >>> of_units(lambda evidence: {}).of_units
    True
    """
    criterion.of_units = True
    return criterion


class Evidence:
    """The facts about a model on which scores are computed.

    batches: iterable of (input, target); an input is a tensor, a tuple (positional) or a dict (keyword
    arguments). loss: function (output, target) -> scalar tensor. movement: what ``watch_movement``
    returned, or name -> tensor. seed: for criteria that draw numbers; pass another one for each round. example: one
    input, on which multiply-adds are counted.

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
        example: Any = None,
    ) -> None:
        self.model = unwrap_model(model)
        self.scope: Scope = as_scope(model, scope)
        self.seed = int(seed)
        self._given = model
        self._batches = batches
        self._loss = loss
        self._movement = movement
        self._example = example
        self.structure: Structure | None = None

    def with_structure(self, structure: Structure) -> Evidence:
        """Return the same evidence with the units to score; what was computed already is not computed again."""
        other = copy.copy(self)
        other.structure = structure
        return other

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

    @property
    def units(self) -> Structure:
        """The units to score; ValueError where single weights are."""
        if self.structure is None:
            raise ValueError(
                "this criterion scores units, and single weights are to be pruned: ask for a pattern of units "
                "(pattern='channel', 'filter', 'head', 'unit', ...), or pass evidence.with_structure(find_units(...))"
            )
        return self.structure

    @cached_property
    def multiply_adds(self) -> dict[str, float]:
        """Name -> multiply-adds of one example (one row of ``example``) that each single weight of the tensor takes part in."""
        if self._example is None:
            raise ValueError(
                "multiply-adds are counted by running the network once: pass example=one input to prune (or to Evidence)"
            )
        found, rows = multiply_adds_each(self.model, self._example), rows_of(self._example)
        return {name: found.get(name, 0.0) / rows for name in self.names}

    def filters(self, group: Group) -> Tensor:
        """The weights that write each unit of a group, side by side if several tensors do: [units, weights]."""
        parameters = parameters_by_name(self.model)
        if not group.writers:
            raise ValueError(f"no weight writes the units of {group.name!r}: leave it out of the pattern")
        parts = [s.entries(whole(parameters[s.tensor].detach())) for s in group.writers]
        return torch.cat([part.to(parts[0].device) for part in parts], dim=1)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Name -> gradient of the loss, averaged over the batches; float32, or float64 for float64 weights.

        The model runs in the mode it is in (train or eval), with random numbers drawn from ``seed``. Its
        ``.grad``, mode, buffers and all random number generators are left as they were. Under
        DistributedDataParallel the gradients are averaged over the ranks, so that every rank decides the
        same. A weight that the loss does not depend on has gradient 0.
        """
        batches, loss = self._data()
        with self._differentiable():
            sums = _mean_gradients(self.model, self.names, batches, loss)
        return self.averaged(sums)

    def for_each_batch(self, see: Callable[[Tensor, Any], None]) -> int:
        """Call ``see(loss, input)`` after the forward pass of each batch, while its graph is there to be differentiated;
        return the number of batches.

        Mode, random numbers and what is put back: as for ``gradients``. For criteria that look at each batch by itself.
        """
        batches, loss = self._data()
        count = 0
        with self._differentiable():
            for value, given in _losses(self.model, batches, loss):
                see(value, given)
                count += 1
        return count

    def averaged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors averaged over the ranks, in place, where the model is under DistributedDataParallel."""
        if isinstance(self._given, nn.parallel.DistributedDataParallel):
            import torch.distributed as dist

            for total in tensors.values():
                dist.all_reduce(total, group=self._given.process_group)
                total /= dist.get_world_size(self._given.process_group)
        return tensors

    def _data(self) -> tuple[Iterable[tuple[Any, Any]], Callable[[Any, Any], Tensor]]:
        if self._batches is None or self._loss is None:
            missing = " and ".join(
                n for n, v in (("batches", self._batches), ("loss", self._loss)) if v is None
            )
            raise ValueError(
                f"gradients need {missing}: pass evidence=Evidence(model, scope, "
                "batches=[(input, target), ...], loss=function(output, target))"
            )
        return self._batches, self._loss

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        found = parameters_by_name(self.model)
        writers = [] if self.structure is None else [s.tensor for g in self.structure for s in g.writers]
        names = dict.fromkeys([*self.names, *writers])
        frozen = [found[name] for name in names if not found[name].requires_grad]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _as_found(self.model, self.seed),
            _thawed(frozen),
        ):
            yield

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
    for value, _ in _losses(model, batches, loss):
        grads = _by_backward(everything, parameters, value) if sharded else _by_autograd(parameters, value)
        for total, grad in zip(sums, grads):
            if grad is not None:
                total += whole(grad)
        steps += 1
    return {name: total.div_(steps) for name, total in zip(names, sums)}


def _losses(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Callable[[Any, Any], Tensor]
) -> Iterator[tuple[Tensor, Any]]:
    """Yield (loss, input) of each batch."""
    empty = True
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"'batches' must yield pairs (input, target) (got {type(batch).__name__})")
        value = loss(_forward(model, batch[0]), batch[1])
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                "'loss' must return one differentiable number: a scalar tensor that depends on the model"
            )
        empty = False
        yield value, batch[0]
    if empty:
        raise ValueError("'batches' yielded nothing (a generator that was used up?): pass a list or a loader")


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
