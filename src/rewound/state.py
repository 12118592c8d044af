"""Everything that training depends on, frozen at a step: weights, buffers, optimizer, scheduler, RNG, extras.

A State owns its tensors: nothing in it is an alias of a live one, so it cannot silently become the final weights (the
field's second classic bug). It is made of plain values only, so that it loads without running anybody's pickled code.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rewound.parameters import canonical, local, unwrap_model, unwrap_optimizer


@dataclass(frozen=True, eq=False)
class State:
    """Plain values by part; a part that was not asked for is None. ``optimizer`` is {"slots", "groups"}."""

    model: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    clock: dict[str, Any] | None = None
    rng: dict[str, Any] | None = None
    extras: list[Any] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the parts as one plain dict, for a file."""
        return {part: getattr(self, part) for part in PARTS}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> State:
        """Inverse of :meth:`to_plain`."""
        return cls(**{part: plain[part] for part in PARTS})


PARTS = ("model", "optimizer", "clock", "rng", "extras")
WEIGHT_PARTS = (
    "model",
    "rng",
    "extras",
)  # what travels with the weights; the optimizer's slots by the technique's rule


def capture(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Any = None,
    extras: Sequence[Any] = (),
    parts: Sequence[str] = PARTS,
) -> State:
    """Freeze the parts asked for. ``clock`` is what tells the hour: parameter-group options and the scheduler.

    Raises ``TypeError`` naming the place, where a scheduler's or an extra's state holds what no plain file can.
    """
    optimizer = unwrap_optimizer(optimizer)
    taken: dict[str, Any] = {}
    if "model" in parts:
        taken["model"] = {name: plain(t, name) for name, t in persistent_tensors(model).items()}
        for name, module in _with_extra_state(model).items():
            taken["model"][name] = plain(module.get_extra_state(), name)
    if "optimizer" in parts:
        taken["optimizer"] = _slots(optimizer)
    if "clock" in parts:
        taken["clock"] = {
            "groups": [
                _options(group, f"param_groups[{i}]") for i, group in enumerate(optimizer.param_groups)
            ],
            "scheduler": None if scheduler is None else plain(scheduler.state_dict(), "scheduler"),
        }
    if "rng" in parts:
        taken["rng"] = rng_state()
    if "extras" in parts:
        taken["extras"] = [plain(_extra_state(e), f"extras[{i}]") for i, e in enumerate(extras)]
    return State(**taken)


def restore(
    state: State, model: nn.Module, optimizer: Optimizer, scheduler: Any = None, extras: Sequence[Any] = ()
) -> None:
    """Write every part that ``state`` has back into the live objects, in place. The state stays untouched.

    Raises ``ValueError``, before the model is touched, where it has other tensors, shapes or dtypes than the state.
    """
    optimizer = unwrap_optimizer(optimizer)
    if state.model is not None:
        _restore_model(state.model, model)
    if state.optimizer is not None:
        _restore_slots(state.optimizer, optimizer)
    if state.clock is not None:
        _restore_clock(state.clock, optimizer, scheduler)
    if state.extras is not None:
        if len(state.extras) != len(extras):
            raise ValueError(f"the state has {len(state.extras)} extras, this run {len(extras)}")
        for saved, extra in zip(state.extras, extras):
            _restore_extra(saved, extra)
    if state.rng is not None:  # last: restoring must not consume randomness
        set_rng_state(state.rng)


def plain(value: Any, where: str) -> Any:
    """Return a deep copy made of tensors on the CPU, numbers, strings, None, lists, tuples and dicts only.

    :func:`revived` gives back the arrays of numpy among them, which are noted as such.
    """
    if isinstance(value, Tensor):
        return local(value).detach().to("cpu", copy=True).contiguous()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_ARRAY: torch.from_numpy(np.array(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        copied = {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
        return collections.Counter(copied) if isinstance(value, collections.Counter) else copied
    if isinstance(value, (list, tuple)):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (bool, int, float, str)):  # a subclass, such as an enum member of str
        return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    raise TypeError(
        f"{where} is a {type(value).__name__}, which cannot be stored without pickled code; let its state_dict() give "
        "tensors, numbers, strings, lists and dicts"
    )


_ARRAY = "numpy.ndarray"


def revived(value: Any) -> Any:
    """Return a deep copy of what :func:`plain` gave, its arrays being arrays again."""
    if isinstance(value, Mapping):
        if value.keys() == {_ARRAY}:
            return np.array(value[_ARRAY].numpy())
        copied = {k: revived(v) for k, v in value.items()}
        return collections.Counter(copied) if isinstance(value, collections.Counter) else copied
    if isinstance(value, (list, tuple)):
        items = [revived(v) for v in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value.clone() if isinstance(value, Tensor) else value


def rng_state() -> dict[str, Any]:
    """Return the state of the global generators of torch (CPU and GPUs), numpy and Python."""
    numpy: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = numpy
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [t.clone() for t in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), gauss_next],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


def persistent_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the live parameters and persistent buffers by canonical name, a shared tensor once."""
    module = unwrap_model(model)
    live: dict[str, Tensor] = {canonical(name): t for name, t in module.named_parameters()}
    transient = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        for name in part._non_persistent_buffers_set
    }
    live.update({canonical(n): b for n, b in module.named_buffers() if n not in transient})
    return live


def _with_extra_state(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that keep something besides tensors (``get_extra_state``), by canonical name."""
    return {
        canonical(f"{name}._extra_state".lstrip(".")): module
        for name, module in unwrap_model(model).named_modules()
        if getattr(type(module), "get_extra_state", None) is not nn.Module.get_extra_state
    }


def _restore_model(saved: Mapping[str, Any], model: nn.Module) -> None:
    live, more = persistent_tensors(model), _with_extra_state(model)
    odd = sorted((live.keys() | more.keys()) ^ saved.keys())
    if odd:
        where = "stored state" if odd[0] in saved else "model"
        raise ValueError(
            f"the model and the stored state differ in {len(odd)} tensors (first: {odd[0]!r}, only in the {where}); build "
            "the model as it was when the run began, and if a first forward pass creates it, run one before the run begins"
        )
    for name, tensor in live.items():  # all are looked at before any is written
        part, kept = local(tensor), saved[name]
        if part.shape != kept.shape:
            raise ValueError(f"{name!r} has shape {tuple(part.shape)}, its stored state {tuple(kept.shape)}")
        if part.dtype != kept.dtype:
            raise ValueError(
                f"{name!r} is of {part.dtype}, its stored state of {kept.dtype}; build the model in the dtype in which the "
                "run began, or start another run"
            )
    with torch.no_grad():
        for name, tensor in live.items():
            local(tensor).copy_(saved[name])
    for name, module in more.items():
        module.set_extra_state(revived(saved[name]))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _slots(optimizer: Optimizer) -> dict[str, Any]:
    """Optimizer state by position of the parameter, and what of it lies on the CPU, as Adam's step counter does."""
    slots: dict[str, Any] = {"by_parameter": {}, "other": {}}
    index = {p: i for i, p in enumerate(_parameters(optimizer))}
    for key, value in optimizer.state.items():
        if key in index:
            i = index[key]
            slots["by_parameter"][i] = {
                k: {"value": plain(v, f"optimizer.state[{i}][{k!r}]"), "device": _device(v, key)}
                for k, v in value.items()
            }
        else:
            slots["other"][str(key)] = plain(value, f"optimizer.state[{key!r}]")
    return slots


def _restore_slots(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    # Not optimizer.load_state_dict: it casts state to the parameter's dtype, which is not to the bit.
    parameters = _parameters(optimizer)
    outdated = [key for key in optimizer.state if isinstance(key, Tensor)]
    previous = {id(key): optimizer.state.pop(key) for key in outdated}
    for i, values in saved["by_parameter"].items():
        p = parameters[int(i)]
        old = previous.get(id(p), {})
        optimizer.state[p] = {k: _revive(v["value"], v["device"], p, old.get(k)) for k, v in values.items()}
    optimizer.state.update(revived(saved["other"]))


def forget_slots(optimizer: Optimizer) -> None:
    """Give the optimizer the state of a new one."""
    optimizer.state.clear()
    if isinstance(
        optimizer, torch.optim.Adagrad
    ):  # it makes its state when it is built (torch < 2.8: only then)
        fresh = torch.optim.Adagrad([dict(group) for group in optimizer.param_groups], **optimizer.defaults)
        optimizer.state.update(fresh.state)


def _revive(value: Any, device: str | None, p: Tensor, old: Any) -> Any:
    if not isinstance(value, Tensor):
        return revived(value)
    if isinstance(old, Tensor) and local(old).shape == value.shape and old.dtype == value.dtype:
        with torch.no_grad():
            local(old).copy_(value)  # the same tensor: CUDA graphs and compiled steps hold on to it
        return old
    fresh = value.to(device or local(p).device, copy=True)
    if hasattr(p, "to_local") and value.shape == local(p).shape:
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(fresh, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
    if fresh.shape == p.shape:  # the parameter's memory format, which fused kernels assume
        return torch.empty_like(p, dtype=fresh.dtype, device=fresh.device).copy_(fresh)
    return fresh


def _device(value: Any, p: Tensor) -> str | None:
    """None where a slot lies with its parameter, on whatever device a later process may have it."""
    if not isinstance(value, Tensor):
        return None
    counter = value.ndim == 0 and value.device.type == "cpu"  # stays there when the parameters move
    return str(value.device) if counter or value.device != p.device else None


def _options(group: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {k: plain(v, f"{where}[{k!r}]") for k, v in group.items() if k not in ("params", "param_names")}


def _restore_clock(saved: Mapping[str, Any], optimizer: Optimizer, scheduler: Any) -> None:
    for options, group in zip(saved["groups"], optimizer.param_groups):
        for key, value in options.items():
            present = group.get(key)
            if isinstance(present, Tensor):
                present.fill_(value.item() if isinstance(value, Tensor) else value)
            else:
                group[key] = revived(value)
    if saved["scheduler"] is not None and scheduler is not None:
        scheduler.load_state_dict(revived(saved["scheduler"]))


def _extra_state(extra: Any) -> Any:
    return extra.get_state() if isinstance(extra, torch.Generator) else extra.state_dict()


def _restore_extra(saved: Any, extra: Any) -> None:
    if isinstance(extra, torch.Generator):
        extra.set_state(saved.clone())
    else:
        extra.load_state_dict(revived(saved))
