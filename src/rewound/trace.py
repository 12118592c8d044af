"""Record the hyper-parameters that every optimizer step really used, and replay them: a schedule is a recording.

While the original network trains, one row a step is written down: learning rate, momentum, betas, weight decay, of
every parameter group. Rewinding the learning rate is then a slice of that array, whatever made the schedule: step decay,
cosine, one-cycle, warm-up, ReduceLROnPlateau, or three lines of the user's own.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from rewound.parameters import unwrap_optimizer


@dataclass(frozen=True, eq=False)
class Trace:
    """Hyper-parameters by step: ``values`` [steps, groups, hyper-parameters] float64, ``names`` of the last axis.

    ``epoch_starts``: the step at which each epoch began (first is 0); a retraining's rows keep the epochs of the
    part that was replayed. A trace of one group serves an optimizer of any number of groups.

    >>> trace = Trace.from_schedule(lambda step: 0.1 if step < 4 else 0.01, epochs=3, steps_per_epoch=2)
    >>> trace.lr[:, 0].tolist()
    [0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    >>> trace.last_epochs(1).lr[:, 0].tolist()
    [0.01, 0.01]
    """

    values: np.ndarray
    names: tuple[str, ...]
    epoch_starts: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)  # a copy: a trace never aliases a buffer that grows
        if values.ndim != 3 or values.shape[2] != len(self.names):
            raise ValueError(
                f"'values' must be [steps, groups, {len(self.names)} hyper-parameters] (got shape {values.shape})"
            )
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "names", tuple(self.names))
        starts = tuple(int(s) for s in self.epoch_starts)
        if starts[:1] != (0,) or list(starts) != sorted(starts) or starts[-1] > len(values):
            raise ValueError(
                f"'epoch_starts' must begin with 0, rise, and stay within the {len(values):,} steps (got {starts})"
            )
        object.__setattr__(self, "epoch_starts", starts)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.values)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return len(self.epoch_starts)

    @property
    def lr(self) -> np.ndarray:
        """Learning rates, [steps, groups]."""
        return self.of("lr")

    def of(self, name: str) -> np.ndarray:
        """Return one hyper-parameter, [steps, groups]; ``betas`` are ``betas.0`` and ``betas.1``."""
        if name not in self.names:
            raise KeyError(f"{name!r} was not recorded; recorded: {', '.join(self.names)}")
        return self.values[:, :, self.names.index(name)]

    def last(self, steps: int) -> Trace:
        """Return the last ``steps`` rows, S[T-t:T], with the epochs that begin in them."""
        if not 0 <= steps <= self.steps:
            raise ValueError(
                f"'steps' must be between 0 and the {self.steps:,} recorded steps (got {steps:,})"
            )
        start = self.steps - steps
        inside = [s - start for s in self.epoch_starts if s > start]
        return Trace(self.values[start:], self.names, (0, *inside))

    def last_epochs(self, epochs: int) -> Trace:
        """Return the rows of the last ``epochs`` epochs."""
        if not 0 <= epochs <= self.epochs:
            raise ValueError(
                f"'epochs' must be between 0 and the {self.epochs} recorded epochs (got {epochs})"
            )
        return self.last(self.steps - self.epoch_starts[-epochs] if epochs else 0)

    def with_lr(self, lr: np.ndarray) -> Trace:
        """Return this trace with other learning rates, [steps, groups]."""
        values = self.values.copy()
        values[:, :, self.names.index("lr")] = lr
        return Trace(values, self.names, self.epoch_starts)

    @classmethod
    def from_schedule(cls, lr: Callable[[int], float], *, epochs: int, steps_per_epoch: int) -> Trace:
        """Write down a schedule given as a function from step to learning rate, for a model without a recording."""
        if epochs < 1 or steps_per_epoch < 1:
            raise ValueError(
                f"'epochs' and 'steps_per_epoch' must be at least 1 (got {epochs} and {steps_per_epoch})"
            )
        rows = [float(lr(step)) for step in range(epochs * steps_per_epoch)]
        return cls(
            np.array(rows).reshape(-1, 1, 1),
            ("lr",),
            tuple(range(0, epochs * steps_per_epoch, steps_per_epoch)),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the trace as tensors, lists and strings, for a state file."""
        return {
            "values": torch.from_numpy(self.values.copy()),
            "names": list(self.names),
            "epoch_starts": list(self.epoch_starts),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Trace:
        """Inverse of :meth:`to_plain`."""
        return cls(plain["values"].numpy(), tuple(plain["names"]), tuple(plain["epoch_starts"]))

    def __repr__(self) -> str:
        groups = self.values.shape[1]
        return (
            f"Trace({self.steps:,} steps in {self.epochs} epochs, {groups} group{'s' * (groups != 1)}, "
            f"of {', '.join(self.names)})"
        )


def hyper_parameters(group: Mapping[str, Any]) -> dict[str, float]:
    """Return what of a parameter group can be scheduled, flat: ``lr``, ``momentum``, ``betas.0``, ``weight_decay``...

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    >>> hyper_parameters(sgd.param_groups[0])
    {'lr': 0.1, 'momentum': 0.9, 'dampening': 0.0, 'weight_decay': 0.0}
    """
    flat: dict[str, float] = {}
    for key, value in group.items():
        if key == "params" or key.startswith("initial_") or key in _SCHEDULER_KEYS:
            continue
        if isinstance(value, (tuple, list)) and value and all(_is_number(v) for v in value):
            flat.update({f"{key}.{i}": float(v) for i, v in enumerate(value)})
        elif _is_number(value):
            flat[key] = float(value)
    return flat


# Bounds that OneCycleLR and CyclicLR leave in the group for themselves: not what a step uses.
_SCHEDULER_KEYS = {"max_lr", "min_lr", "max_momentum", "base_momentum"}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.is_floating_point()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scheduled(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the hyper-parameters that every group of ``optimizer`` has; ``ValueError`` where lr is not among them."""
    groups = [hyper_parameters(group) for group in optimizer.param_groups]
    names = tuple(name for name in groups[0] if all(name in group for group in groups))
    if "lr" not in names:
        raise ValueError(
            f"this {type(optimizer).__name__} has no learning rate to record: 'lr' is no number in some parameter group "
            f"(got {[group.get('lr') for group in optimizer.param_groups]!r}); give it one, and a scheduler if it varies"
        )
    return names


EMPTY = Trace(np.zeros((0, 1, 1)), ("lr",))


def held(optimizer: Optimizer, epochs: int, lr: float | None = None) -> Trace:
    """Return what ``optimizer`` has now, or ``lr`` in its place, as a trace of one row an epoch."""
    optimizer = unwrap_optimizer(optimizer)
    names = scheduled(optimizer)
    flat = [hyper_parameters(group) for group in optimizer.param_groups]
    row = [[group[name] for name in names] for group in flat]
    trace = Trace(
        np.array([row] * epochs).reshape(epochs, len(row), len(names)), names, tuple(range(epochs)) or (0,)
    )
    return trace if lr is None else trace.with_lr(np.full(trace.lr.shape, lr))


def joined(traces: Iterable[Trace]) -> Trace:
    """Return traces one after the other; those without a step are passed over."""
    parts = [trace for trace in traces if trace.steps] or [EMPTY]
    starts, offset = [], 0
    for part in parts:
        starts += [start + offset for start in part.epoch_starts]
        offset += part.steps
    return Trace(np.concatenate([part.values for part in parts]), parts[0].names, tuple(starts))


class Recorder:
    """Write down one row before every step of ``optimizer``, until ``remove()``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = unwrap_optimizer(optimizer)
        self.names = scheduled(self._optimizer)
        self._groups = len(self._optimizer.param_groups)
        self._values = array("d")
        self._starts: list[int] = []
        self._getters = [_getter(name) for name in self.names]
        self._handle = self._optimizer.register_step_pre_hook(self._record)

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return len(self._values) // (self._groups * len(self.names))

    @property
    def last_lr(self) -> tuple[float, ...]:
        """Learning rates of the last step, one a group; empty before the first."""
        width = len(self.names)
        return tuple(self._values[-self._groups * width :][self.names.index("lr") :: width])

    def start_epoch(self) -> None:
        """Note that an epoch begins with the next step."""
        self._starts.append(self.steps)

    def _record(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if len(optimizer.param_groups) != self._groups:
            raise RuntimeError(
                f"the optimizer had {self._groups} parameter groups when recording began and has "
                f"{len(optimizer.param_groups)} now; add groups before the run begins"
            )
        for group in optimizer.param_groups:
            for key, index in self._getters:
                value = group[key]
                self._values.append(float(value if index is None else value[index]))

    def trace(self) -> Trace:
        """Return what was recorded so far, as a copy."""
        values = np.array(self._values, dtype=np.float64).reshape(-1, self._groups, len(self.names))
        return Trace(values, self.names, tuple(self._starts) or (0,))

    def load(self, trace: Trace) -> None:
        """Go on from an earlier recording."""
        if trace.names != self.names or trace.values.shape[1] != self._groups:
            raise ValueError(
                f"the recording has {trace.values.shape[1]} groups of {trace.names}; "
                f"this optimizer has {self._groups} of {self.names}"
            )
        self._values = array("d", trace.values.tobytes())
        self._starts = list(trace.epoch_starts) if trace.steps or trace.epochs > 1 else []

    def attach(self, optimizer: Optimizer) -> None:
        """Go on with another optimizer of the same groups and hyper-parameters; ``ValueError`` where it has others."""
        inner = unwrap_optimizer(optimizer)
        absent = [name for name in self.names if name not in scheduled(inner)]
        if absent or len(inner.param_groups) != self._groups:
            lacks = f", and lacks {', '.join(absent)}" if absent else ""
            raise ValueError(
                f"the recording has {self._groups} parameter groups of {', '.join(self.names)}; this "
                f"{type(inner).__name__} has {len(inner.param_groups)}{lacks}. Attach an optimizer of the same kind and groups"
            )
        self._handle.remove()
        self._optimizer = unwrap_optimizer(optimizer)
        self._handle = self._optimizer.register_step_pre_hook(self._record)

    def remove(self) -> None:
        """Stop recording."""
        self._handle.remove()


class Replay:
    """Set the hyper-parameters of ``trace`` before every step of ``optimizer``, over whatever a scheduler wrote.

    Rows are counted within the epoch, so a step that GradScaler skipped in one epoch does not shift the next.
    """

    def __init__(self, optimizer: Optimizer, trace: Trace) -> None:
        self._setters = [_getter(name) for name in trace.names]
        self._ends = (*trace.epoch_starts[1:], trace.steps)
        self._row = 0
        self._end = trace.steps
        self._trace = trace
        self.overrun = 0  # steps taken beyond the recorded ones of the present epoch
        self._attach(optimizer)

    def _attach(self, optimizer: Optimizer) -> None:
        self._optimizer = unwrap_optimizer(optimizer)
        trace, groups = self._trace, len(self._optimizer.param_groups)
        if trace.values.shape[1] not in (1, groups):
            raise ValueError(
                f"the trace has {trace.values.shape[1]} parameter groups, the optimizer {groups}; "
                "a trace of one group, or of as many, can be replayed"
            )
        for name in trace.names:
            _require_key(self._optimizer, name)
        # Kept as numbers, and made lists of row by row: as lists, long schedules of many groups take gigabytes.
        self._rows = np.broadcast_to(trace.values, (trace.steps, groups, len(trace.names)))
        self._handle = self._optimizer.register_step_pre_hook(self._set)

    def attach(self, optimizer: Optimizer) -> None:
        """Go on with another optimizer, at the same row."""
        self._handle.remove()
        self._attach(optimizer)

    def start_epoch(self, index: int) -> None:
        """Go to the first row of the ``index``-th epoch of the trace (from 0) and show it in the optimizer."""
        self._row, self._end, self.overrun = self._trace.epoch_starts[index], self._ends[index], 0
        if self._row < self._trace.steps:
            _write(self._optimizer, self._setters, self._rows[self._row].tolist())

    @property
    def remaining(self) -> int:
        """Recorded steps of the present epoch that were not taken yet."""
        return self._end - self._row

    def _set(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        row = self._row
        if row < self._end:
            self._row = row + 1
        else:  # a longer epoch than the recorded one holds the epoch's last row
            row = self._end - 1
            self.overrun += 1
        _write(optimizer, self._setters, self._rows[row].tolist())

    def remove(self) -> None:
        """Stop replaying; the optimizer keeps the values of the last step."""
        self._handle.remove()


def _getter(name: str) -> tuple[str, int | None]:
    key, _, index = name.partition(".")
    return key, int(index) if index else None


def _require_key(optimizer: Optimizer, name: str) -> None:
    key, index = _getter(name)
    for group in optimizer.param_groups:
        if key not in group or (index is not None and len(group[key]) <= index):
            raise ValueError(
                f"the trace schedules {name!r}, which a parameter group of this {type(optimizer).__name__} lacks; "
                "replay on the kind of optimizer that was recorded, or give a trace of 'lr' alone"
            )


def _write(optimizer: Optimizer, setters: list[tuple[str, int | None]], row: list[list[float]]) -> None:
    for group, values in zip(optimizer.param_groups, row):
        for (key, index), value in zip(setters, values):
            present = group[key]
            if index is not None:
                if present[index] != value:
                    changed = list(present)
                    changed[index] = value
                    group[key] = type(present)(changed)
            elif isinstance(present, torch.Tensor):
                present.fill_(value)  # a tensor lr (capturable, compiled) must stay the same tensor
            elif present != value:
                group[key] = value
