"""The arms of a recipe or a grid, one technique with one seed each, and what runs one of them in any process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewound.experiment.clock import Clock
from rewound.experiment.grid import Grid, labels
from rewound.experiment.keys import cell_of
from rewound.experiment.lease import leased
from rewound.experiment.originals import Original, train_original
from rewound.experiment.recipe import ONE_SHOT, Recipe, ScopeTable
from rewound.experiment.store import (
    RUNS,
    arm_folder,
    error_file,
    finished_result,
    finite,
    key_of,
    result_file,
    write_json,
)


@dataclass(frozen=True)
class Arm:
    """One run of Algorithm 1. ``folder`` is its Run's; ``key`` ties its result to the recipe; ``original`` is what it begins
    from, ``after`` the index of that, where it has still to be trained; ``called`` what people call it and
    ``cell`` all that may set it apart, where that is more than technique and seed."""

    index: int
    technique: str
    seed: int
    folder: Path
    recipe: Recipe
    key: str
    original: Original | None = None
    after: int | None = None
    called: str = ""
    cell: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """What people call it."""
        return self.called or f"{self.technique}, seed {self.seed}"


def arms_of(recipe: Recipe, place: Path) -> list[Arm]:
    """Return the recipe's arms, seed by seed: a run cut short has compared all techniques on some seeds."""
    key = key_of(recipe)
    pairs = [(technique, seed) for seed in recipe.seeds for technique in recipe.techniques]
    return [Arm(k, t, s, arm_folder(place, t, s), recipe, key) for k, (t, s) in enumerate(pairs)]


def arms_of_grid(grid: Grid) -> list[Arm]:
    """Return the grid's runs as arms, each in the folder that its key names."""
    place, recipes = grid.place.resolve() / RUNS, list(grid.runs.values())
    return [
        Arm(
            k,
            recipe.techniques[0],
            recipe.seeds[0],
            place / key,
            recipe,
            key,
            called=label,
            cell=cell_of(recipe),
        )
        for k, ((key, recipe), label) in enumerate(zip(grid.runs.items(), labels(recipes)))
    ]


def task_of(recipe: Recipe) -> Any:
    """Make the recipe's task. Errors are those of ``load_task``."""
    from rewound.tasks import load_task

    # "rewind" is every task's own default; a task that knows nothing else need not take the option
    order = {} if recipe.data_order == "rewind" else {"data_order": recipe.data_order}
    return load_task(recipe.task, **order, **recipe.task_options)


def task_key(recipe: Recipe) -> str:
    """Return what decides of a recipe's task: equal texts, equal tasks."""
    return json.dumps([recipe.task, recipe.data_order, recipe.task_options], sort_keys=True)


def task_keeper() -> Callable[[Recipe], Any]:
    """Return a function that makes a recipe's task, each once."""
    made: dict[str, Any] = {}

    def task(recipe: Recipe) -> Any:
        key = task_key(recipe)
        if key not in made:
            made[key] = task_of(recipe)
        return made[key]

    return task


def run_options(recipe: Recipe, task: Any, technique: str, seed: int) -> dict[str, Any]:
    """Return what a recipe says to ``Run``, beside what the task says."""
    from rewound.configuration import NEED_DATA
    from rewound.evidence import Evidence
    from rewound.scope import find_scope
    from rewound.techniques import parse_technique

    table, scope = recipe.scope, None
    if table != ScopeTable():
        scope = find_scope(
            task.model(seed),
            include=table.include or None,
            exclude=table.exclude or None,
            embeddings=table.embeddings,
        )

    evidence = None
    if recipe.criterion in NEED_DATA:  # the others need no data, or watch the training

        def evidence(pruned: Any, found: Any) -> Evidence:
            return Evidence(pruned, found, batches=task.batches(0, seed), loss=task.loss, seed=seed)

    return {
        "technique": parse_technique(technique),
        "rate": None if recipe.rate == ONE_SHOT else recipe.rate,
        "until": recipe.target,
        "criterion": recipe.criterion,
        "pattern": recipe.pattern,
        "allocation": recipe.allocation,
        "multiple": recipe.multiple,
        "floor": recipe.floor,
        "allow": recipe.allow,
        "scope": scope,
        "evidence": evidence,
    }


def work_of(job: Arm | Original, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do the work of an arm or of an original run; what :func:`rewound.experiment.execute.execute` is given."""
    with _warnings_to(lambda text: report({"arm": job.index, "kind": "warning", "says": text})):
        return train_original(job, report) if isinstance(job, Original) else run_arm(job, report)


def run_arm(arm: Arm, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one arm to its end (or go on where it was) and write its result; return it as a plain dict.

    Where another process has it, waits for that one, and returns what it found or goes on in its place.
    """
    from rewound.tasks import drive

    recipe, original, beginning = arm.recipe, arm.original, {}
    with leased(arm.folder) as check:
        done = finished_result(arm.folder, arm.key)
        if done is not None:
            return done
        error_file(arm.folder).unlink(missing_ok=True)
        shared = {} if original is None else train_original(original, lambda event: None)
        if original is not None:
            beginning = {"original": original.folder}
        task, clock = task_of(recipe), Clock(arm.folder)
        result, test = drive(
            task,
            seed=arm.seed,
            epochs=recipe.epochs,
            folder=arm.folder,
            progress=watcher(arm.index, task.metric, report, check, clock, shared.get("epochs", 0)),
            **beginning,
            **run_options(recipe, task, arm.technique, arm.seed),
        )
        check()
        found = _found(arm, result.to_dict(), test, clock, shared)
        write_json(result_file(arm.folder), found)
    return finite(found)


def _found(
    arm: Arm, plain: dict[str, Any], test: dict[str, float], clock: Clock, shared: dict[str, Any]
) -> dict[str, Any]:
    """The arm's result. An original run is part of its cost whoever trained it; how much was shared is said beside."""
    seconds = dict(clock.seconds)
    if shared:
        seconds[0] = seconds.get(0, 0.0) + shared["seconds"]
    for done in plain["rounds"]:
        done["seconds"] = round(seconds.get(done["index"], 0.0), 3)
    total = round(sum(seconds.values()), 2)
    plain["search_cost"] |= {"seconds": total, "shared_epochs": shared.get("epochs", 0)}
    return {
        "technique": arm.technique,
        "seed": arm.seed,
        "status": "finished",
        "error": None,
        "key": arm.key,
        "test": test,
        "seconds": total,  # of every process that worked at it
        **({} if arm.cell is None else {"cell": dict(arm.cell), "label": arm.label}),
        **{k: v for k, v in plain.items() if k not in ("technique", "finished")},
    }


@contextmanager
def _warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand what Python warns of to ``tell``: printed as it comes, it would run through the progress bars."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tell(str(message))
        yield


def watcher(
    index: int,
    metric: str,
    report: Callable[[dict[str, Any]], None],
    check: Callable[[], None],
    clock: Clock,
    shared: int = 0,
) -> Callable[[Any], None]:
    """Return what a Run calls after every epoch: one event, with the epochs done since the very first, or since the original
    run where its ``shared`` epochs were trained for all; LostLeaseError where the folder is no longer ours."""

    def watch(run: Any) -> None:
        check()
        clock.tick(run.round)
        in_units = run.mask.unit_density
        report(
            {
                "arm": index,
                "kind": "epoch",
                "done": run.plan.trained(run.round, run.epoch) - shared,
                "round": run.round,
                "density": run.density if in_units is None else in_units,
                "value": run.logged.get(metric, float("nan")),
            }
        )

    return watch
