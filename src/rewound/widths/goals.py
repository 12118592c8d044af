"""Allocations that ask for a result instead of a density: multiply-adds, parameters, or measured latency."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rewound.measure.latency import Stopwatch
from rewound.widths.computed import MultiplyAdds, Parameters
from rewound.widths.engine import LayerTimer
from rewound.widths.measured import Speedup
from rewound.widths.table import Timer


def for_speedup(
    times: float,
    *,
    example: Any = None,
    batch: int | None = None,
    threads: int | None = None,
    clock: str | None = None,
    tolerance: float = 0.05,
    seconds: float = 2.0,
    sensitivity: Mapping[str, float] | None = None,
    timer: Timer | LayerTimer | None = None,
) -> Speedup:
    """Return an allocation with which the network is ``times`` as fast on this machine, measured: with units the compact network
    in torch, with single weights or blocks the sparse one in ``rewound.runtime``'s engine (against the engine with the whole).

    With units, times of the network's operators are measured at a ladder of widths; of all widths that promise the time asked
    for, those are chosen that lose the least importance (scores of the criterion; dynamic programming, after SPDY, Frantar and
    Alistarh 2022); then the network is built (:func:`rewound.compact`) and measured in turn with the whole one, and the choice
    corrected until the measured speed-up is within ``tolerance`` of ``times``. This takes seconds for a ResNet-20. "As fast"
    is against the whole network as it is passed to :func:`rewound.prune`, whatever an earlier mask prunes.

    With weights or blocks the same over layers and densities: the engine's time of every layer is measured at a ladder of
    densities, and the densities chosen that lose the least sum of squared scores.

    example: what is timed (default: the pruning's). batch: repeat or cut it to so many rows. threads: of torch while timing
    (default: as they are). clock: "cpu", "wall", or None: CPU time on one CPU thread, else wall-clock time. seconds: about
    how long one comparison lasts. sensitivity: see :class:`Goal`. timer: what measures, if not a new
    ``rewound.measure.latency.Stopwatch`` (``rewound.widths.engine.Compiled``) of these; one that several allocations share
    measures each operator once.

    In ``prune``, ValueError with the largest speed-up there is where ``times`` cannot be reached; a warning where
    nothing came within ``tolerance``. ``print(goal.widths)`` tells what was met.

    >>> import torch, rewound
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256))
    >>> goal = for_speedup(1.5, threads=1, tolerance=0.5, seconds=0.1)
    >>> mask = rewound.prune(model, None, pattern="unit", allocation=goal, example=torch.ones(64, 256))
    >>> mask.units_kept < 1024 and goal.widths.met > 1
    True
    """
    if not _number(times) or not 1 < times < float("inf"):
        raise ValueError(f"for_speedup takes a number above 1: 2.0 is twice as fast (got {times!r})")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ValueError(
            f"'batch' must be a whole number from 1, or None: the example as it is (got {batch!r})"
        )
    if not _number(tolerance) or not 0 < tolerance < 1:
        raise ValueError(f"'tolerance' must be a share between 0 and 1 (got {tolerance!r})")
    if timer is None:
        timer = Stopwatch(threads, clock, seconds)
    elif (threads, clock) != (None, None):
        raise ValueError("a 'timer' has its own threads and clock: leave those out")
    return Speedup(float(times), dict(sensitivity or {}), example, batch, float(tolerance), timer)


def for_multiply_adds(share: float, *, sensitivity: Mapping[str, float] | None = None) -> MultiplyAdds:
    """Return an allocation that leaves at most ``share`` of the multiply-adds, and of that as much as the units allow.

    Computed exactly, on the example of the pruning. Of units, which layers pay is decided as in :func:`for_speedup`. Of single
    weights and blocks, of all masks that need so few multiply-adds that one is taken which loses the least sum of squared
    scores (Lagrange multipliers, to the last weight); with a density, of all that keep so many weights besides. ValueError,
    with the least there is, where so little cannot be reached.

    >>> import torch, rewound
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3),
    ...     torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
    >>> goal, image = for_multiply_adds(0.5), torch.ones(1, 3, 16, 16)
    >>> mask = rewound.prune(model, None, pattern="channel", allocation=goal, example=image)
    >>> 0.45 < goal.widths.met <= 0.5
    True
    >>> mask = rewound.prune(model, 0.1, allocation=for_multiply_adds(0.09), example=image)
    >>> mask.kept, 2 * round(0.09 * 541_008) >= rewound.measure.cost.flops(model, image, mask)
    (331, True)
    """
    return MultiplyAdds(_share(share, "for_multiply_adds"), dict(sensitivity or {}))


def for_parameters(share: float, *, sensitivity: Mapping[str, float] | None = None) -> Parameters:
    """Return an allocation that leaves at most ``share`` of the model's parameters, and of that as much as the units allow.

    >>> import torch, rewound
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    >>> goal = for_parameters(0.25)
    >>> mask = rewound.prune(model, None, pattern="unit", allocation=goal, example=torch.ones(1, 8))
    >>> print(goal.widths.parameters)
    (836, 199)
    """
    return Parameters(_share(share, "for_parameters"), dict(sensitivity or {}))


def read_goal(allocation: Any) -> Any:
    """Return the goal that a text such as "for_multiply_adds(0.1)" asks for, as recipes do; anything else as it is.

    >>> print(read_goal("for_multiply_adds(0.1)"), read_goal("global"))
    for_multiply_adds(0.1) global
    """
    match = re.fullmatch(r"(for_\w+)\(([-+.\deE]+)\)", allocation) if isinstance(allocation, str) else None
    if match is None or match[1] not in _GOALS:
        return allocation
    return _GOALS[match[1]](float(match[2]))


def _share(share: Any, name: str) -> float:
    if not _number(share) or not 0 < share <= 1:
        raise ValueError(f"{name} takes the share that is left, in (0, 1] (got {share!r})")
    return float(share)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_GOALS = {goal.__name__: goal for goal in (for_speedup, for_multiply_adds, for_parameters)}
