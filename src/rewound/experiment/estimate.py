"""About how long it takes to do what a plan says, counted up from a short measurement of each kind of network and data."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rewound.experiment import store
from rewound.experiment.arms import arms_of, task_key
from rewound.experiment.grid import Grid
from rewound.experiment.keys import canonical, original_key
from rewound.experiment.recipe import Recipe
from rewound.experiment.table import counted

if TYPE_CHECKING:
    from rewound.experiment.pace import Pace

IN_ALL = 30.0  # seconds of measuring, where a grid has many kinds of network or data
_UNITS = (
    (1, 60, "s"),
    (60, 90, "min"),
    (3600, 36, "h"),
    (86400, 1e9, "days"),
)  # seconds, how many at most, name


def estimate_experiment(recipe: Recipe, task: Any, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long the runs that are not finished will take, for a plan of :func:`rewound.experiment.plan.make_plan`.

    See :func:`estimate_grid`.
    """
    left = [arm for arm in arms_of(recipe, recipe.place) if not store.result_file(arm.folder).is_file()]
    paces = _measured([recipe] if left else [], lambda _: task)
    of = {one["technique"]: one for one in plan["techniques"]}
    jobs = [paces[task_key(recipe)].seconds(*_work(of[arm.technique])) for arm in left]
    return _estimate(jobs, len(left), plan["arms"], recipe, paces, plan["techniques"])


def estimate_grid(grid: Grid, tasks: Callable[[Recipe], Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long the runs that are not finished will take, for a plan of :func:`rewound.experiment.grid_plan.plan_grid`.

    "seconds" from start to end, on as many workers as the recipe says and this machine has cores for; "work_seconds" of all
    runs and original runs together; "runs_left"; "at_once"; "at_least" where an evaluation was too long to be measured whole;
    "at_most" where a metric may stop a run earlier; "measured": a pace for each kind. A run cut short counts as a whole one. Not
    counted: other load, the reading of data and the start of processes, the choice of what is pruned, the masks in a step.

    Raises what :func:`rewound.experiment.pace.measure_pace` raises.
    """
    left = {
        key: recipe
        for key, recipe in grid.runs.items()
        if not store.result_file(grid.place / store.RUNS / key).is_file()
    }
    paces = _measured(left.values(), tasks)
    jobs, begun = [], set[str]()
    for cell in plan["cells"]:
        for key in [key for key in cell["keys"] if key in left]:
            pace, original = paces[task_key(left[key])], original_key(canonical(left[key]))
            epochs, prunings = _work(cell)
            if original is not None and original not in begun:
                begun.add(original)
                if not store.result_file(grid.place / store.ORIGINALS / original).is_file():
                    jobs.append(pace.seconds(cell["epochs"], 0))
            jobs.append(pace.seconds(epochs - cell["shared_epochs"], prunings))
    return _estimate(jobs, len(left), plan["runs"], grid.recipe, paces, plan["cells"])


def as_line(plan: Mapping[str, Any]) -> str:
    """Set a plan's estimate for people, in one line."""
    found = plan["estimate"]
    if not found["runs_left"]:
        return "All of it is finished; nothing is left to train."
    about = "At the most about" if found["at_most"] else "About"
    of = "" if found["runs_left"] == found["runs"] else f" for the {counted(found['runs_left'], 'run')} left"
    workers = counted(plan["workers"], "worker")
    if found["at_once"] < plan["workers"]:
        workers += f" ({found['at_once']} at a time: more have no core)"
    more = ", or more, as the end of an evaluation was not waited for" if found["at_least"] else ""
    return f"{about} {told_seconds(found['seconds'])}{of} on {workers} of this machine ({_told(found['measured'])}){more}."


def told_seconds(seconds: float) -> str:
    """Return a time for people, of two digits at the most.

    >>> [told_seconds(s) for s in (0.2, 48, 3000, 8000, 200_000, 1e7)]
    ['1 s', '48 s', '50 min', '2.2 h', '2.3 days', '116 days']
    """
    size, _, name = next(unit for unit in _UNITS if seconds < unit[0] * unit[1])
    count = max(seconds / size, 1)
    return f"{count:.1f} {name}" if size >= 3600 and count < 10 else f"{count:.0f} {name}"


def span(jobs: Iterable[float], at_once: int) -> float:
    """Return when the last of ``jobs`` ends, each taken in turn by the first worker that is free.

    >>> span([3, 1, 1, 2], at_once=2)
    4
    """
    free: list[float] = [0] * at_once
    for seconds in jobs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def _measured(recipes: Iterable[Recipe], tasks: Callable[[Recipe], Any]) -> dict[str, Pace]:
    """Measure each kind of task once, all of them together in bounded time."""
    from rewound.experiment.pace import SECONDS, measure_pace

    kinds = {task_key(recipe): recipe for recipe in recipes}
    seconds = min(SECONDS, IN_ALL / 3 / max(1, len(kinds)))  # 3: of training, and of two evaluations
    return {
        key: measure_pace(
            tasks(recipe), recipe.seeds[0], epochs=recipe.epochs, threads=recipe.threads, seconds=seconds
        )
        for key, recipe in kinds.items()
    }


def _work(planned: Mapping[str, Any]) -> tuple[int, int]:
    return planned["total_epochs"], planned["rounds"]


def _estimate(
    jobs: list[float],
    left: int,
    runs: int,
    recipe: Recipe,
    paces: Mapping[str, Pace],
    planned: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = max(1, min(recipe.workers, cores // recipe.threads, left))
    return {
        "seconds": span(jobs, at_once),
        "work_seconds": sum(jobs),
        "runs": runs,
        "runs_left": left,
        "at_once": at_once,
        "at_least": not all(pace.whole for pace in paces.values()),
        "at_most": any(one["at_most"] for one in planned),
        "measured": [asdict(pace) for pace in paces.values()],
    }


def _told(measured: list[dict[str, Any]]) -> str:
    if len(measured) > 1:
        epochs = sorted(one["epoch"] for one in measured)
        return f"measured: {len(measured)} kinds of network or data, epochs of {_ms(epochs[0])} to {_ms(epochs[-1])}"
    (one,) = measured
    if one["epochs"]:
        return f"measured: {counted(one['epochs'], 'epoch')} of {_ms(one['epoch'])}"
    return f"measured: {counted(one['steps'], 'step')} of {_ms(one['step'])}, evaluation of {_ms(one['evaluation'])}"


def _ms(seconds: float) -> str:
    """Return a time of two digits at least, for people.

    >>> [_ms(seconds) for seconds in (0.00043, 0.0144, 0.446, 1.234)]
    ['0.43 ms', '14 ms', '446 ms', '1.23 s']
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"
