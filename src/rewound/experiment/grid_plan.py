"""What a grid will train and cost, before anything runs: runs, what they share, epochs, FLOPs, disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewound.experiment import store
from rewound.experiment.estimate import as_line
from rewound.experiment.grid import Grid, labels
from rewound.experiment.keys import canonical, key_of, original_key
from rewound.experiment.plan import plan_of, told_bytes, told_densities, told_epochs
from rewound.experiment.recipe import Recipe
from rewound.experiment.table import counted


def plan_grid(grid: Grid, tasks: Callable[[Recipe], Any]) -> dict[str, Any]:
    """Return the grid's plan as a plain dict; nothing is trained and no folder is made.

    ``tasks`` makes a recipe's task. Every kind of run (all but the seed) is built once, so all that a recipe can get wrong is an
    error here. Raises what :func:`rewound.experiment.plan.make_plan` raises, and ValueError where the tasks of a grid are judged
    by different metrics.
    """
    kinds: dict[str, list[tuple[str, Recipe]]] = {}
    for key, recipe in grid.runs.items():
        kinds.setdefault(key_of({**canonical(recipe), "seed": None}), []).append((key, recipe))
    called = labels([runs[0][1] for runs in kinds.values()])
    judged, cells, originals = {}, [], dict[str, int]()
    for runs, label in zip(kinds.values(), called):
        recipe = runs[0][1]
        task = tasks(recipe)
        judged[task.name] = {"name": task.metric, "higher_is_better": task.higher_is_better}
        one = plan_of(recipe, task, recipe.techniques[0])
        for _, own in runs:
            if (first := original_key(canonical(own))) is not None:
                originals[first] = one["epochs"]
        shared = one["epochs"] if original_key(canonical(recipe)) is not None else 0
        name = label.rpartition(", seed ")[0]
        cells.append({**one, "label": name, "keys": [key for key, _ in runs], "shared_epochs": shared})
    if len({str(metric) for metric in judged.values()}) > 1:
        metrics = "; ".join(f"{name}: {metric['name']}" for name, metric in judged.items())
        raise ValueError(f"the tasks of a grid must be judged by one metric ({metrics}); make them two grids")
    asked = sum(one["total_epochs"] * len(one["keys"]) for one in cells)
    saved = sum(one["shared_epochs"] * len(one["keys"]) for one in cells) - sum(originals.values())
    per_epoch = {key: one["flops"] / max(1, one["total_epochs"]) for one in cells for key in one["keys"]}
    of = {original_key(canonical(recipe)): per_epoch[key] for key, recipe in grid.runs.items()}
    flops = sum(
        per_epoch[key] * (one["total_epochs"] - one["shared_epochs"]) for one in cells for key in one["keys"]
    ) + sum(of[key] * epochs for key, epochs in originals.items())
    folder = grid.place / store.RUNS
    return {
        "name": grid.recipe.name,
        "folder": str(grid.place),
        "task": ", ".join(judged),
        "metric": next(iter(judged.values())),
        "runs": len(grid.runs),
        "finished": sum(store.result_file(folder / key).is_file() for key in grid.runs),
        "originals": len(originals),
        "workers": min(grid.recipe.workers, len(grid.runs)),
        "threads": grid.recipe.threads,
        "cells": cells,
        "epochs_without_sharing": asked,
        "total_epochs": asked - saved,
        "total_flops": flops,
        "disk_bytes": sum(one["disk_bytes"] * len(one["keys"]) for one in cells),
    }


def as_lines(plan: dict[str, Any]) -> list[str]:
    """Set the plan for people, with its estimate of time where it has one."""
    pace = f"{plan['workers']} at a time, each on {counted(plan['threads'], 'thread')}"
    lines = [
        f"{plan['name']}: a grid of {counted(plan['runs'], 'run')} on {plan['task']}, judged by validation "
        f"{plan['metric']['name']}; {plan['finished']} finished before",
        f"folder {plan['folder']}; {pace}",
        "",
    ]
    for one in plan["cells"]:
        lines.append(f"{one['label']}: {counted(len(one['keys']), 'seed')}, {told_epochs(one)}")
        if one["densities"]:
            lines.append(f"    densities  {told_densities(one['densities'])}")
    without, total = plan["epochs_without_sharing"], plan["total_epochs"]
    most = "at the most " if any(one["at_most"] for one in plan["cells"]) else ""
    lines += [
        "",
        f"{counted(plan['originals'], 'original run')} for all: {most}{total:,} epochs of training rather than {without:,}, "
        f"{plan['total_flops']:.3g} training FLOPs, at most {told_bytes(plan['disk_bytes'])} on disk.",
    ]
    return [*lines, as_line(plan)] if "estimate" in plan else lines
