"""The arms of a recipe, one technique with one seed each, and what runs one of them in any process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewound.experiment.recipe import ONE_SHOT, Recipe, ScopeTable
from rewound.experiment.store import arm_folder, finite, key_of, result_file, write_json


@dataclass(frozen=True)
class Arm:
    """One run of Algorithm 1. ``folder`` is its Run's; ``key`` ties its result to the recipe."""

    index: int
    technique: str
    seed: int
    folder: Path
    recipe: Recipe
    key: str

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.technique}, seed {self.seed}"


def arms_of(recipe: Recipe, place: Path) -> list[Arm]:
    """Return the recipe's arms, seed by seed: a run cut short has compared all techniques on some seeds."""
    key = key_of(recipe)
    pairs = [(technique, seed) for seed in recipe.seeds for technique in recipe.techniques]
    return [Arm(k, t, s, arm_folder(place, t, s), recipe, key) for k, (t, s) in enumerate(pairs)]


def task_of(recipe: Recipe) -> Any:
    """Make the recipe's task. Errors are those of ``load_task``."""
    from rewound.tasks import load_task

    # "rewind" is every task's own default; a task that knows nothing else need not take the option
    order = {} if recipe.data_order == "rewind" else {"data_order": recipe.data_order}
    return load_task(recipe.task, **order, **recipe.task_options)


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


def run_arm(arm: Arm, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one arm to its end (or go on where it was) and write its result; return it as a plain dict."""
    from rewound.tasks import drive

    recipe, began = arm.recipe, time.monotonic()
    with _warnings_to(lambda text: report({"arm": arm.index, "kind": "warning", "says": text})):
        task = task_of(recipe)
        result, test = drive(
            task,
            seed=arm.seed,
            epochs=recipe.epochs,
            folder=arm.folder,
            progress=_watcher(arm.index, task.metric, report),
            **run_options(recipe, task, arm.technique, arm.seed),
        )
    found = {
        "technique": arm.technique,
        "seed": arm.seed,
        "status": "finished",
        "error": None,
        "key": arm.key,
        "test": test,
        "seconds": round(time.monotonic() - began, 2),  # of this process; a run cut short took longer
        **{k: v for k, v in result.to_dict().items() if k not in ("technique", "finished")},
    }
    write_json(result_file(arm.folder), found)
    return finite(found)


@contextmanager
def _warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand what Python warns of to ``tell``: printed as it comes, it would run through the progress bars."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tell(str(message))
        yield


def _watcher(index: int, metric: str, report: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    """Return what a Run calls after every epoch: one event, with the epochs done since the very first."""

    def watch(run: Any) -> None:
        plan, done, in_units = run.plan, run.epoch + 1, run.mask.unit_density
        if run.round:
            done = plan.epochs + run.round * plan.retrain_epochs - (plan.epochs - done)
        report(
            {
                "arm": index,
                "kind": "epoch",
                "done": done,
                "round": run.round,
                "density": run.density if in_units is None else in_units,
                "value": run.logged.get(metric, float("nan")),
            }
        )

    return watch
