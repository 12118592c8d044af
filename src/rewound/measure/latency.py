"""How long a call takes, measured: warmed up, several calls in turn, threads as asked, the median and its spread.

Networks that are compared are measured interleaved, so that what else the machine does meets all of them; their ratio is
the median of the ratios of each turn. On one CPU thread the clock is the CPU time of this process: the latency on a machine
that does nothing else. Otherwise it is wall-clock time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from rewound.untouched import as_found, call_of

Call = Callable[[], Any]
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}

_SAMPLE = 5e-4  # seconds that a sample lasts at least: shorter calls are made several times
_LEAST, _MOST = 7, 60  # samples
_ROUNDS = 5  # samples of an operator: there are hundreds of them


@dataclass(frozen=True)
class Timing:
    """samples: seconds of one call each, in the order of the turns; clock: "cpu" or "wall"; threads: of torch.

    >>> print(Timing((0.002, 0.003, 0.004), "cpu", 1))
    3.00 ms (2.50 - 3.50)
    """

    samples: tuple[float, ...]
    clock: str
    threads: int

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.samples)

    @property
    def how(self) -> str:
        """Clock and threads in words."""
        clock = {"cpu": "CPU time", "wall": "wall-clock time"}.get(self.clock, self.clock)
        return f"{clock}, {self.threads} thread{'s' * (self.threads != 1)}"

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and the upper quartile."""
        return _quartiles(self.samples)

    def __str__(self) -> str:
        low, high = self.spread
        return f"{_ms(self.median)} ms ({_ms(low)} - {_ms(high)})"


@dataclass(frozen=True)
class Ratio:
    """By how much one network is faster than another: the median of the turns' ratios, and their quartiles."""

    median: float
    spread: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.spread[0]:.2f} - {self.spread[1]:.2f})"


def ratio(before: Timing, after: Timing) -> Ratio:
    """Return how many times faster ``after`` is, from two timings taken in turn.

    >>> print(ratio(Timing((4.0, 8.0, 5.0), "cpu", 1), Timing((2.0, 4.0, 2.0), "cpu", 1)))
    2.00x (2.00 - 2.25)
    """
    ratios = [a / b for a, b in zip(before.samples, after.samples)]
    return Ratio(statistics.median(ratios), _quartiles(ratios))


def joined(a: Timing, b: Timing) -> Timing:
    """Return the timing of all samples of two."""
    return Timing((*a.samples, *b.samples), a.clock, a.threads)


def of_batch(example: Any, batch: int) -> Any:
    """Return the example with ``batch`` rows: every tensor whose first axis is as long as the first tensor's, repeated or cut.

    >>> of_batch({"x": torch.ones(2, 3), "mask": torch.ones(2), "table": torch.ones(5, 3)}, 3)["mask"].shape
    torch.Size([3])
    """
    first = rows_of(example)

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim or leaf.shape[0] != first:
            return leaf
        return leaf[torch.arange(batch, device=leaf.device) % first].contiguous()

    return tree_map(rows, example)


def rows_of(example: Any) -> int:
    """Return the length of the first axis of an example's first tensor: its batch."""
    return next((t.shape[0] for t in tree_leaves(example) if isinstance(t, torch.Tensor) and t.ndim), 1)


class Operation(Protocol):
    """An operator at given sizes, which builds its inputs when it is to be timed."""

    def make(self) -> Call:
        """Return a call of it."""


class Stopwatch:
    """Measures on this machine.

    threads: of torch while it measures (None: as they are). clock: "cpu", "wall", or None: CPU time where one CPU thread
    computes, else wall-clock time. seconds: about how long one comparison of networks may take.
    """

    def __init__(self, threads: int | None = None, clock: str | None = None, seconds: float = 2.0) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(
                f"'threads' must be a whole number from 1, or None: as many as torch uses (got {threads!r})"
            )
        if clock is not None and clock not in CLOCKS:
            raise ValueError(f"'clock' must be 'cpu', 'wall' or None (got {clock!r})")
        self.threads, self.clock, self.seconds = threads, clock, seconds
        self.known: dict[Any, float] = {}  # seconds of operators, for those who ask again

    def models(self, models: Sequence[nn.Module], example: Any) -> list[Timing]:
        """Return the timing of each of the models on ``example``: evaluation mode, no gradients, taking turns."""
        args, kwargs = call_of(example)
        device = _device(models[0], example)
        fast_path = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            threads = stack.enter_context(pinned(self.threads))
            for model in models:
                stack.enter_context(as_found(model))
            torch.backends.mha.set_fastpath_enabled(fast_path)  # as where the network is used
            calls = [_bound(model, args, kwargs) for model in models]
            clock = self._clock(device, threads)
            samples = in_turn(calls, CLOCKS[clock], self.seconds, _waiting(device))
        return [Timing(tuple(row), clock, threads) for row in samples]

    def operations(
        self, operations: Sequence[Operation], progress: Callable[[float], None] | None = None
    ) -> list[float]:
        """Return the median seconds of each; NaN for one that cannot be called. progress: is told the share done."""
        found: list[list[float]] = [[] for _ in operations]
        counts = [0] * len(operations)
        with pinned(self.threads) as threads, torch.no_grad():
            for turn in range(_ROUNDS):
                for i, operation in enumerate(operations):
                    if counts[i] < 0:
                        continue
                    try:
                        call = operation.make()
                        device = _device(None, getattr(operation, "device", None))
                        clock, wait = CLOCKS[self._clock(device, threads)], _waiting(device)
                        _sample(call, 1, clock, wait)  # caches, and kernels that are made for these sizes
                        if not counts[i]:
                            counts[i] = _repeats(call, clock, wait)
                        found[i].append(_sample(call, counts[i], clock, wait))
                    except (
                        Exception
                    ):  # an operator that insists on sizes which do not fit: its time is not known
                        counts[i] = -1
                    if progress is not None:
                        progress((turn + (i + 1) / len(operations)) / _ROUNDS)
        return [statistics.median(row) if row else math.nan for row in found]

    def _clock(self, device: torch.device, threads: int) -> str:
        return self.clock or ("cpu" if threads == 1 and device.type == "cpu" else "wall")


def in_turn(
    calls: Sequence[Call], clock: Callable[[], float], seconds: float, wait: Call = lambda: None
) -> list[list[float]]:
    """Return samples (seconds of one call) of each call, all taking turns for about ``seconds``; each is warmed up first."""
    counts = []
    for call in calls:
        _sample(call, 2, clock, wait)
        counts.append(_repeats(call, clock, wait))
    found: list[list[float]] = [[] for _ in calls]
    began, turn = time.perf_counter(), 0
    while turn < _LEAST or (turn < _MOST and time.perf_counter() - began < seconds):
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for i in order:
            found[i].append(_sample(calls[i], counts[i], clock, wait))
        turn += 1
    return found


@contextmanager
def pinned(threads: int | None) -> Iterator[int]:
    """Let torch compute on so many threads inside, and yield their number."""
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _ms(seconds: float) -> str:
    """Milliseconds to three digits."""
    digits = 2 - math.floor(math.log10(1e3 * seconds)) if seconds > 0 else 0
    return f"{1e3 * seconds:.{min(6, max(0, digits))}f}"


def _sample(call: Call, repeats: int, clock: Callable[[], float], wait: Call) -> float:
    wait()
    start = clock()
    for _ in range(repeats):
        call()
    wait()
    return (clock() - start) / repeats


def _repeats(call: Call, clock: Callable[[], float], wait: Call) -> int:
    """How many calls last long enough to be told apart by a clock."""
    return max(1, math.ceil(_SAMPLE / max(_sample(call, 1, clock, wait), 1e-6)))


def _bound(model: nn.Module, args: Any, kwargs: Any) -> Call:
    return lambda: model(*args, **kwargs)


def _device(model: nn.Module | None, example: Any) -> torch.device:
    if isinstance(example, torch.device):
        return example
    tensors = tree_leaves(example) if model is None else [*model.parameters(), *tree_leaves(example)]
    return next((t.device for t in tensors if isinstance(t, torch.Tensor)), torch.device("cpu"))


def _waiting(device: torch.device) -> Call:
    """An accelerator computes on after a call has returned."""
    if device.type == "cpu":
        return lambda: None
    module = torch.get_device_module(device)
    return getattr(module, "synchronize", lambda: None)


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
