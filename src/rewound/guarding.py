"""Keep pruned weights at zero through any optimizer, without touching the training loop.

Two things hold a pruned weight dead (docs/architecture.md, decision 5), both at once:

1. its gradient is masked *as it accumulates*, so that clipping by norm, gradient scaling and optimizers that
   look at norms see the survivors only, as in the paper, whose mask multiplies in the forward pass;
2. after every optimizer step weights (and optimizer state that could hold more) are *projected*: momentum, weight decay and a
   gradient that somebody wrote by hand revive nothing.

Gradient masking alone is the field's classic bug; projection alone changes what clipping does.
Zeros are never written by multiplying, since NaN x 0 is NaN: see ``_Zeroing``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rewound.mask import Mask
from rewound.parameters import local, local_like, parameters_by_name, unwrap_optimizer


class Guard:
    """The handle that :func:`guard` returns: ``check()``, ``remove()``, ``mask``."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, mask: Mask) -> None:
        self.mask = mask
        self.optimizer = guardable(optimizer, model, mask)
        parameters = parameters_by_name(model)
        mask.apply_(model)
        self._model = model
        # A tensor from which nothing is pruned needs no guarding and costs nothing; nor does one that is frozen and that no
        # optimizer holds (the frozen norm of a pruned channel): its zeros are written once.
        held = _held(self.optimizer)
        self._guarded = {
            parameters[name]: _Zeroing(name, ~kept, parameters[name])
            for name, kept in mask.items()
            if not bool(kept.all()) and (parameters[name].requires_grad or id(parameters[name]) in held)
        }
        self._handles: list[RemovableHandle] = [
            _hooked(p, zeroing.gradient_hook(p.dtype)) for p, zeroing in self._guarded.items()
        ]
        self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        self._hook_ids = (self._handles[-2].id, self._handles[-1].id)
        self._every_slot = type(self.optimizer) not in _ELEMENTWISE
        self._before_step()
        self._after_step()

    def _before_step(self, *_: Any) -> None:
        # Gradients that were written by hand, or written to after the backward pass (clipped, noised), are masked
        # again here: late for clipping, but before they reach momentum.
        for p, zeroing in self._guarded.items():
            grad = p.grad
            if grad is not None and zeroing.masked != (id(grad), grad._version):
                zeroing.mask_gradient(p)
            zeroing.masked = None

    def _after_step(self, *_: Any) -> None:
        state, every_slot = self.optimizer.state, self._every_slot
        for p, zeroing in self._guarded.items():
            zeroing.after_step(p, state.get(p), every_slot)

    def check(self) -> None:
        """Raise ``RuntimeError`` if a pruned weight can come back, naming tensor, optimizer and remedy.

        Looks for lost hooks, parameters that were replaced in the model or in the optimizer, and pruned
        weights that are not zero. One pass over the guarded weights; call it as often as once an epoch.
        """
        optimizer, kind = self.optimizer, type(self.optimizer).__name__
        remedy = (
            "guard the new ones: rewound.guard(optimizer, model, mask), or run.attach(optimizer) in a Run"
        )
        pre = getattr(optimizer, "_optimizer_step_pre_hooks", {})
        post = getattr(optimizer, "_optimizer_step_post_hooks", {})
        if self._hook_ids[0] not in pre or self._hook_ids[1] not in post:
            raise RuntimeError(f"the guard's hooks are gone from this {kind}; {remedy}")
        current = parameters_by_name(self._model)
        held = _held(optimizer)
        for (p, zeroing), handle in zip(self._guarded.items(), self._handles):
            name = zeroing.name
            if current.get(name) is not p:
                raise RuntimeError(
                    f"the model's parameter {name!r} is another tensor than the one guarded "
                    f"(it was replaced or removed), so {kind} trains a tensor that is not in the model; {remedy}"
                )
            if id(p) not in held:
                raise RuntimeError(f"{name!r} is no longer among the parameters of this {kind}; {remedy}")
            if handle.id not in (getattr(p, "_post_accumulate_grad_hooks", None) or {}):
                raise RuntimeError(
                    f"the gradient hook of {name!r} is gone, so clipping sees pruned weights; {remedy}"
                )
            back = zeroing.nonzero(p)
            if back:
                raise RuntimeError(
                    f"{back:,} pruned weights of {name!r} are not zero: something wrote to them after the last "
                    f"step of {kind} (a load_state_dict, a weight average, a second optimizer?); "
                    "apply the mask after such a write: mask.apply_(model)"
                )

    def remove(self) -> None:
        """Take every hook away; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __repr__(self) -> str:
        return f"Guard({self.mask!r}, {type(self.optimizer).__name__})"


def guard(optimizer: Optimizer, model: nn.Module, mask: Mask) -> Guard:
    """Zero the pruned weights of ``model`` now, and hold them at zero through every step of ``optimizer``.

    Works with any optimizer whose ``step`` is called once an update: SGD (momentum, Nesterov, weight decay), Adam,
    AdamW, Adagrad, RMSprop and their foreach, fused and capturable forms; under GradScaler, Accelerate, Fabric, DDP and
    FSDP2. Guard again after pruning further, having removed the old guard.

    Args:
        optimizer: holds every parameter that ``mask`` names (a wrapper around one is looked through).
        model: the module trained; compiled, distributed or averaged wrappers are looked through.
        mask: name -> bool tensor of the parameter's shape, True = kept.

    Returns:
        a :class:`Guard` with ``check()`` and ``remove()``.

    Raises:
        TypeError: for LBFGS and SparseAdam, with the reason.
        ValueError: if the mask does not fit the model, or the optimizer does not hold a masked parameter.

    Source: Renda et al. 2020, section 2 (pruned weights stay pruned); the projection is ours.

    >>> import torch, rewound
    >>> model = torch.nn.Linear(4, 4)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    >>> mask = rewound.prune(model, density=0.25)
    >>> held = rewound.guard(optimizer, model, mask)
    >>> for _ in range(3):
    ...     model(torch.ones(2, 4)).sum().backward()
    ...     optimizer.step()
    >>> int((model.weight != 0).sum())
    4
    >>> held.check()
    """
    return Guard(optimizer, model, mask)


# Optimizers that make zero of zero, weight by weight: once its slots are zero under the mask, a masked gradient leaves
# them so, and they are projected only when they are new. Any other optimizer's slots are projected after every step.
_ELEMENTWISE = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
}

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Zeroing:
    """Write zeros under a parameter's mask into any tensor of its shape: the weight, its gradient, its momentum.

    On a CPU this is a bitwise AND with all ones or all zeros, on the numbers seen as integers: NaN-proof, vectorised, and
    five to forty times as fast as ``masked_fill_`` (docs/log.md); it costs as much memory as the weight and a byte more.
    Elsewhere ``masked_fill_`` is as fast as the memory, with one byte a weight.
    """

    __slots__ = ("_bits", "_pruned", "_sharded", "_slots", "_view", "masked", "name")

    def __init__(self, name: str, pruned: Tensor, p: Tensor) -> None:
        self.name = name
        self.masked: tuple[int, int] | None = None  # identity and version of the gradient masked last
        self._sharded = hasattr(p, "to_local")
        self._slots: tuple[Any, int] = (None, 0)
        self._view: tuple[int, Tensor, Tensor] | None = None
        self._pruned = local_like(pruned, p)
        self._bits: dict[torch.dtype, Tensor] | None = {} if self._pruned.device.type == "cpu" else None
        if self._bits is not None:
            self._keep_bits(local(p).dtype, like=local(p))

    def _keep_bits(self, dtype: torch.dtype, like: Tensor) -> Tensor:
        assert self._bits is not None
        bits = torch.empty_like(like, dtype=_BITS[dtype.itemsize], requires_grad=False).fill_(-1)
        bits.masked_fill_(self._pruned, 0)
        self._bits[dtype] = bits
        return bits

    def __call__(self, tensor: Tensor) -> None:
        """Zero what is pruned in ``tensor``, in place."""
        if self._sharded:
            tensor = local(tensor)
        if tensor.requires_grad:
            tensor = tensor.detach()
        if self._bits is None or tensor.is_complex():
            tensor.masked_fill_(self._pruned, 0)
            return
        bits = self._bits.get(tensor.dtype)
        if bits is None:  # fp32 momentum of a bf16 weight, say
            bits = self._keep_bits(tensor.dtype, like=tensor)
        tensor.view(bits.dtype).bitwise_and_(bits)

    def mask_gradient(self, p: Tensor) -> None:
        """Zero what is pruned in the gradient of ``p``."""
        grad = p.grad
        if grad is None:
            return
        if grad.layout is not torch.strided:
            raise TypeError(
                f"the gradient of {self.name!r} is sparse (layout {grad.layout}) and cannot be masked; "
                "build its embedding with sparse=False"
            )
        self(grad)
        self.masked = (id(grad), grad._version)

    def gradient_hook(self, dtype: torch.dtype) -> Callable[[Tensor], None]:
        """Return ``mask_gradient`` as a post-accumulate-grad hook; for an ordinary gradient on a CPU a shorter way to it,
        since a small network spends a tenth of its step here."""
        if self._bits is None or self._sharded:
            return self.mask_gradient
        bits = self._bits[dtype]
        integers, strided = bits.dtype, torch.strided

        def mask_gradient(p: Tensor) -> None:
            grad: Any = p.grad
            if grad.dtype is dtype and grad.layout is strided and not grad.requires_grad:
                grad.view(integers).bitwise_and_(bits)
                self.masked = (id(grad), grad._version)
            else:
                self.mask_gradient(p)

        return mask_gradient

    def after_step(self, p: Tensor, slots: dict[str, Any] | None, every_slot: bool) -> None:
        """Zero what is pruned in the weight, whose view is kept from step to step, and in optimizer slots."""
        if self._view is not None and self._view[0] == p.data_ptr():
            self._view[1].bitwise_and_(self._view[2])
        else:
            self(p)
            if self._bits is not None and not self._sharded:
                bits = self._bits[p.dtype]
                self._view = (p.data_ptr(), p.detach().view(bits.dtype), bits)
        if not slots or not (every_slot or self._slots[0] is not slots or self._slots[1] != len(slots)):
            return
        self._slots = (slots, len(slots))  # slots just made, or loaded from somewhere
        for value in slots.values():
            if _is_dense_like(value, p):
                self(value)

    def nonzero(self, p: Tensor) -> int:
        """Return how many pruned weights are not zero."""
        return int((local(p).detach() != 0).logical_and_(self._pruned).sum())


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _is_dense_like(value: Any, p: Tensor) -> bool:
    """Whether a slot holds one number a weight; integers are codes (8-bit optimizers), of which 0 is not zero."""
    if not isinstance(value, Tensor) or value.shape != p.shape:
        return False
    return value.layout is torch.strided and value.is_floating_point()


def guardable(optimizer: Optimizer, model: nn.Module, names: Iterable[str]) -> Optimizer:
    """Return the optimizer that really steps; ``TypeError`` or ``ValueError`` where its steps cannot be guarded."""
    optimizer = unwrap_optimizer(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS evaluates the loss many times inside one step and keeps a history of dense directions, so pruned "
            "weights come back between the evaluations; use SGD, Adam or AdamW"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise TypeError(
            "SparseAdam updates rows from sparse gradients, which a weight mask cannot reach; "
            "build the embedding with sparse=False and use Adam"
        )
    parameters, held, names = parameters_by_name(model), _held(optimizer), list(names)
    trained = [name for name in names if name in parameters and parameters[name].requires_grad]
    absent = [name for name in trained if id(parameters[name]) not in held]
    if absent:
        raise ValueError(
            f"this {type(optimizer).__name__} does not hold {len(absent)} of the {len(names)} parameters to prune "
            f"(first: {absent[0]!r}); pass the optimizer that was built from this model's parameters, "
            "after the model was moved, wrapped or sharded, or leave those parameters out of the scope"
        )
    return optimizer


def require_unguarded(model: nn.Module) -> None:
    """Raise ``ValueError`` where an earlier guard, a finished run's for one, still masks gradients of ``model``."""
    for name, p in parameters_by_name(model).items():
        hooks = getattr(p, "_post_accumulate_grad_hooks", None) or {}
        if any(getattr(hook, "__module__", None) == __name__ for hook in hooks.values()):
            raise ValueError(
                f"{name!r} is still guarded under the mask of an earlier run, which would train a pruned network here; take "
                "that guard away (run.guard.remove()), or build model and optimizer anew"
            )


def _hooked(p: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook the gradient of ``p`` also where it is frozen at present: it may be unfrozen later."""
    frozen = not p.requires_grad
    if frozen:
        p.requires_grad_(True)
    handle = p.register_post_accumulate_grad_hook(hook)
    if frozen:
        p.requires_grad_(False)
    return handle
