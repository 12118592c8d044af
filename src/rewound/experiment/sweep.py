"""From a grid to a folder of runs: what is finished stays, what was cut short goes on, original runs are trained once for all."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewound.experiment import store
from rewound.experiment.arms import Arm, arms_of_grid, task_keeper, task_key, work_of
from rewound.experiment.grid import Grid, grid_toml
from rewound.experiment.grid_plan import plan_grid
from rewound.experiment.index import rebuild_index
from rewound.experiment.keys import canonical, original_key
from rewound.experiment.originals import Original, finished_original, snapshots_for
from rewound.experiment.plan import check_evaluation
from rewound.experiment.provenance import fingerprints, versions
from rewound.experiment.recipe import Recipe
from rewound.experiment.runner import Show, carry_out
from rewound.experiment.study import read_study


def run_grid(grid: Grid, show: Show, *, on: str = "local", command: str = "") -> dict[str, Any]:
    """Run what is not yet finished and return the grid's study (see :mod:`rewound.experiment.study`).

    ``show(labels, epochs, metric)`` gives a context manager of a progress report; ``on``: see
    :mod:`rewound.experiment.executors`; ``command``: what somebody would type to have this again. Errors in the recipe are
    raised before anything is trained or written; a run that fails is part of the study.
    """
    place = grid.place
    store.check_grid(place, grid.recipe)
    arms = arms_of_grid(grid)
    todo = [arm for arm in arms if store.finished_result(arm.folder, arm.key) is None]
    tasks = task_keeper()
    untold = bool(todo) or not (place / store.GRID).is_file()  # it may have been deleted
    if untold:
        plan = plan_grid(grid, tasks)
        for recipe in {task_key(arm.recipe): arm.recipe for arm in todo if not arm.folder.exists()}.values():
            check_evaluation(recipe, tasks(recipe))
    with store.locked(place):
        if untold:
            store.write_recipe(place, grid.recipe, lambda recipe: grid_toml(replace(grid, recipe=recipe)))
            store.write_json(place / store.GRID, _manifest(grid, arms, plan, command, tasks))
        if todo:
            _run(arms, todo, plan, tasks, grid.recipe, show, on)
        try:
            rebuild_index(place)
        except (OSError, sqlite3.Error) as error:  # nothing is only in it
            warnings.warn(f"the index of {place} could not be written: {error}", stacklevel=2)
    return read_study([place])


def originals_of(arms: Sequence[Arm], tasks: Callable[[Recipe], Any]) -> dict[str, Original]:
    """Return key -> original run of all that these arms can begin from, with every snapshot that any of them needs."""
    of: dict[str, list[Arm]] = {}
    for arm in arms:
        key = original_key(canonical(arm.recipe))
        if key is not None:
            of.setdefault(key, []).append(arm)
    found = {}
    for key, group in of.items():
        recipe = group[0].recipe
        epochs = recipe.epochs or tasks(recipe).epochs
        snapshots = snapshots_for((arm.technique for arm in group), epochs)
        folder = group[0].folder.parents[1] / store.ORIGINALS / key
        found[key] = Original(0, key, folder, recipe, snapshots)
    return found


def _run(
    arms: Sequence[Arm],
    todo: Sequence[Arm],
    plan: dict[str, Any],
    tasks: Callable[[Recipe], Any],
    recipe: Recipe,
    show: Show,
    on: str,
) -> None:
    """Run the arms that are left, and before them the original runs that are; note why one failed."""
    needed = {original_key(canonical(arm.recipe)) for arm in todo}
    originals = {key: one for key, one in originals_of(arms, tasks).items() if key in needed}
    missing = [one for one in originals.values() if finished_original(one) is None]
    numbered = {one.key: replace(one, index=k) for k, one in enumerate(missing)}
    jobs: list[Arm | Original] = [*numbered.values()]
    for arm in todo:
        key = original_key(canonical(arm.recipe))
        original = None if key is None else originals[key]
        after = numbered[key].index if key in numbered else None
        jobs.append(replace(arm, index=len(jobs), original=original, after=after))
    jobs = _in_order(jobs, numbered)
    length = {cell: one for one in plan["cells"] for cell in one["keys"]}
    epochs = [
        length[job.key]["total_epochs"] - (length[job.key]["epochs"] if job.original else 0)
        if isinstance(job, Arm)
        else (job.recipe.epochs or tasks(job.recipe).epochs)
        for job in jobs
    ]
    outcomes = carry_out(jobs, work_of, epochs, plan["metric"]["name"], recipe, show, on)
    for job in jobs:
        outcome = outcomes[job.index]
        if outcome["status"] != "finished" and isinstance(job, Arm):
            job.folder.mkdir(parents=True, exist_ok=True)
            kept = {key: outcome[key] for key in ("error", "traceback") if key in outcome}
            store.write_json(store.error_file(job.folder), kept)


def _in_order(jobs: list[Arm | Original], numbered: dict[str, Original]) -> list[Arm | Original]:
    """Return the jobs, each original run right before the first arm that begins from it, numbered anew."""
    ordered: list[Arm | Original] = []
    place: dict[int, int] = {}
    by_index = {one.index: one for one in numbered.values()}
    for job in jobs:
        if isinstance(job, Original):
            continue
        if job.after is not None and job.after not in place:
            place[job.after] = len(ordered)
            ordered.append(replace(by_index[job.after], index=len(ordered)))
        after = None if job.after is None else place[job.after]
        ordered.append(replace(job, index=len(ordered), after=after))
    return ordered


def _manifest(
    grid: Grid,
    arms: Sequence[Arm],
    plan: dict[str, Any],
    command: str,
    tasks: Callable[[Recipe], Any],
) -> dict[str, Any]:
    from rewound.measure.machine import facts

    return {
        "format": 1,
        "name": grid.recipe.name,
        "task": {"name": plan["task"]},
        "metric": plan["metric"],
        "command": command,
        "versions": versions(),
        "machine": facts(),
        "data": fingerprints((arm.recipe for arm in arms), tasks),
        "runs": {
            arm.key: {"label": arm.label, "cell": arm.cell, "original": original_key(canonical(arm.recipe))}
            for arm in arms
        },
    }


def summary(study: dict[str, Any], place: Path) -> list[str]:
    """Return for people what a grid's runs came to: a line for each kind of run, over its seeds."""
    from rewound.experiment.statistics import Spread, density_of
    from rewound.experiment.table import counted, number

    name, groups = study["metric"]["name"], dict[str, list[tuple[float, float]]]()
    finished = [run for run in study["runs"] if run["status"] == "finished"]
    for run in finished:
        last = run["rounds"][run.get("best", len(run["rounds"]) - 1)]
        if last["metrics"].get(name) is not None:
            group = run["label"].rpartition(", seed ")[0]
            groups.setdefault(group, []).append((density_of(last), last["metrics"][name]))
    lines = [f"validation {name} at the end, median of the seeds (smallest-largest):"]
    for group, points in groups.items():
        spread = Spread.of(value for _, value in points)
        density = Spread.of(at for at, _ in points).median
        lines.append(
            f"  {group}: density {density:.3g}, {number(spread.median)} ({number(spread.low)}-{number(spread.high)})"
        )
    spent = sum(run["search_cost"]["epochs"] for run in finished)
    shared = sum(run["search_cost"]["shared_epochs"] for run in finished)
    trained = sum(one["epochs"] for one in study["dense"].values())
    lines.append(
        f"{len(finished)} of {counted(len(study['runs']), 'run')} finished; their search is worth {spent:,} epochs, of which "
        f"{spent - shared + trained:,} were trained: {counted(len(study['dense']), 'original run')} served them all."
    )
    return [*lines, f"Everything is in {place}; its index for SQL is {place / store.INDEX}."]
