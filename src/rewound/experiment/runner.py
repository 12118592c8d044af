"""From a recipe to a folder of results: the finished stays, what was cut short goes on, the rest begins."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewound.experiment import store
from rewound.experiment.arms import Arm, arms_of, task_of, work_of
from rewound.experiment.execute import Outcome, Report, Work, execute
from rewound.experiment.findings import findings
from rewound.experiment.plan import check_evaluation, make_plan
from rewound.experiment.provenance import fingerprints
from rewound.experiment.recipe import Recipe
from rewound.experiment.table import as_markdown, make_table

Show = Callable[[Sequence[str], Sequence[int], str], AbstractContextManager[Report]]


def run_experiment(recipe: Recipe, show: Show, on: str = "local") -> dict[str, Any]:
    """Run what is not yet finished and return the results, as they are written to ``results.json``.

    ``show(labels, epochs, metric)`` gives a context manager of a progress report; ``on``: see
    :mod:`rewound.experiment.executors`. Errors in the recipe are
    raised before anything is trained or written; an arm that fails is part of the results. Where all is
    finished, torch is not even imported.
    """
    place = recipe.place
    store.check_recipe(place, recipe)
    arms = arms_of(recipe, place)
    outcomes = {arm.index: store.finished_result(arm.folder, arm.key) for arm in arms}
    todo = [arm for arm in arms if outcomes[arm.index] is None]
    if not todo and (place / store.RESULTS).is_file():
        written = store.read_results(place)
        about = {key: written.get(key, {}) for key in ("task", "metric", "data")}
    else:
        task = task_of(recipe)
        plan = make_plan(recipe, task)
        if not any(arm.folder.exists() for arm in arms):
            check_evaluation(recipe, task)
        data = fingerprints([recipe], lambda _: task)
        about = {"task": {"name": plan["task"]}, "metric": plan["metric"], "data": data}
    with store.locked(place):
        if todo:
            store.write_recipe(place, recipe)
            length = {one["technique"]: one["total_epochs"] for one in plan["techniques"]}
            jobs = [replace(arm, index=k, folder=arm.folder.resolve()) for k, arm in enumerate(todo)]
            epochs = [length[arm.technique] for arm in todo]
            done = carry_out(jobs, work_of, epochs, about["metric"]["name"], recipe, show, on)
            outcomes |= {arm.index: done[k] for k, arm in enumerate(todo)}
        results = _results(recipe, arms, outcomes, about)
        _write(place, results)
    return results


def carry_out(
    jobs: Sequence[Any],
    work: Work,
    epochs: Sequence[int],
    metric: str,
    recipe: Recipe,
    show: Show,
    on: str,
) -> dict[int, Outcome]:
    """Do the ``work`` of jobs (arms, original runs), each so many ``epochs`` long, where ``on`` says, and show how it goes."""
    with show([job.label for job in jobs], epochs, metric) as report:
        return execute(
            jobs,
            work,
            workers=recipe.workers,
            threads=recipe.threads,
            report=report,
            on=on,
            folder=None if on == "local" else recipe.place.resolve(),
        )


def _results(
    recipe: Recipe, arms: Sequence[Arm], outcomes: dict[int, Any], about: dict[str, Any]
) -> dict[str, Any]:
    results: dict[str, Any] = {
        "format": 1,
        "name": recipe.name,
        **about,
        "recipe": recipe.model_dump(mode="json"),
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        "arms": [_slim(arm, outcomes[arm.index]) for arm in arms],
    }
    return {**results, "findings": findings(results)}


def _slim(arm: Arm, outcome: dict[str, Any]) -> dict[str, Any]:
    """One arm without its epoch-by-epoch log, which stays in the arm's own file."""
    rounds = [{k: v for k, v in r.items() if k != "log"} for r in outcome.get("rounds", [])]
    folder = arm.folder.relative_to(arm.folder.parents[2]).as_posix()
    return {
        **outcome,
        "technique": arm.technique,
        "seed": arm.seed,
        "folder": folder,
        "rounds": rounds,
    }


def _write(place: Path, results: dict[str, Any]) -> None:
    store.write_json(place / store.RESULTS, results)
    if any(arm["status"] == "finished" for arm in results["arms"]):
        says = "\n".join(f"- {sentence}" for sentence in results["findings"])
        store.write_text(place / store.TABLE, f"{as_markdown(make_table(results))}\n\n{says}\n")


def draw_picture(place: Path, results: dict[str, Any]) -> str:
    """Draw the picture; return a sentence on where it is, or on why there is none."""
    from rewound.experiment.picture import draw

    path = place / store.PICTURE
    try:
        return f"Picture: {draw(results, path)}"
    except (ImportError, ValueError) as error:
        return f"There is no picture: {error}"
