"""Calls that are compared take turns, so that what else the machine does meets all of them.

A turn of a call is a block: one call that is not counted (its caches belong to the others; where calls are long, that does
not matter and it is left out), then as many as last a little while. Each counted call is timed by the wall clock; of the
block, the process's CPU time is taken.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Call = Callable[[], Any]
Key = TypeVar("Key", bound=Hashable)

BLOCK = 0.03  # seconds that a turn lasts at least
_LONG = 0.5  # a call of so many seconds
_LEAST = 3  # turns, however long they take
_STEADY, _WARM = 0.05, 1.5  # warm are calls that differ by 5 %, or that have run for so many seconds


@dataclass(frozen=True)
class Turns:
    """wall, cpu: seconds of one call, one entry a turn (the block's median, and its mean); calls: every counted call's wall
    time, in order.

    >>> turns = Turns((0.002, 0.004), (0.002, 0.003), (0.001, 0.002, 0.003, 0.004, 0.004, 0.020))
    >>> round(turns.p95, 6)
    0.016
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def p95(self) -> float:
        """Seconds that 95 % of the calls stay under, interpolated."""
        if len(self.calls) < 2:
            return self.calls[0]
        return statistics.quantiles(self.calls, n=20, method="inclusive")[-1]


def take_turns(
    calls: Mapping[Key, Call],
    *,
    rounds: int = 15,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[Key, Turns]:
    """Return what ``rounds`` rounds over all calls took; the order moves on by one every round.

    seconds: after so many no round is begun, but three are made in any case.
    """
    keys = list(calls)
    lengths = {key: _warm_up(call, clock) for key, call in calls.items()}
    counts = {key: max(1, math.ceil(BLOCK / length)) for key, length in lengths.items()}
    found: dict[Key, tuple[list[float], list[float], list[float]]] = {key: ([], [], []) for key in keys}
    began = clock()
    for turn in range(rounds):
        if turn >= _LEAST and clock() - began > seconds:
            break
        first = turn % len(keys)
        for key in keys[first:] + keys[:first]:
            call, taken = calls[key], []
            if lengths[key] < _LONG:
                call()
            before = cpu_clock()
            for _ in range(counts[key]):
                start = clock()
                call()
                taken.append(clock() - start)
            wall, cpu, every = found[key]
            cpu.append((cpu_clock() - before) / counts[key])
            wall.append(statistics.median(taken))
            every += taken
    return {key: Turns(*map(tuple, lists)) for key, lists in found.items()}


def _warm_up(call: Call, clock: Callable[[], float]) -> float:
    """Call until the last three took alike; return the seconds of one."""
    began, taken = clock(), []
    while True:
        start = clock()
        call()
        taken.append(max(clock() - start, 1e-9))
        last = taken[-3:]
        if len(last) == 3 and max(last) <= (1 + _STEADY) * min(last):
            break
        if clock() - began > _WARM and len(taken) >= 2:
            break
    return statistics.median(taken[-3:])
