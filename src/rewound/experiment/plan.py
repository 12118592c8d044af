"""What an experiment will train and cost, before anything runs; making it also checks a recipe whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewound.experiment.arms import run_options, task_of
from rewound.experiment.estimate import as_line
from rewound.experiment.recipe import Recipe
from rewound.experiment.store import arm_folder
from rewound.experiment.table import counted


def make_plan(recipe: Recipe, task: Any = None) -> dict[str, Any]:
    """Return the experiment's plan as a plain dict; nothing is trained and no folder is made.

    Builds the task (if it is not given) and, for every technique, the Run that an arm will be. So all that a
    recipe can get wrong is an error here: ValueError, TypeError, FileNotFoundError (data), ImportError (extras).
    """
    from rewound.techniques import parse_technique

    texts = [str(parse_technique(text)) for text in recipe.techniques]
    if len(set(texts)) < len(texts):
        raise ValueError(f"'techniques' names one of them twice (got {', '.join(texts)})")
    if not texts:
        raise ValueError("'techniques' is empty; name one, such as lr-rewinding")
    task = task_of(recipe) if task is None else task
    plans = [plan_of(recipe, task, text) for text in recipe.techniques]
    seeds = len(recipe.seeds)
    return {
        "name": recipe.name,
        "folder": str(recipe.place),
        "task": task.name,
        "metric": {"name": task.metric, "higher_is_better": task.higher_is_better},
        "seeds": list(recipe.seeds),
        "arms": len(plans) * seeds,
        "workers": min(recipe.workers, len(plans) * seeds),
        "threads": recipe.threads,
        "techniques": plans,
        "total_epochs": seeds * sum(plan["total_epochs"] for plan in plans),
        "total_flops": seeds * sum(plan["flops"] for plan in plans),
        "disk_bytes": seeds * sum(plan["disk_bytes"] for plan in plans),
    }


def check_evaluation(recipe: Recipe, task: Any) -> None:
    """Evaluate a network once before anything is trained, and see that the metrics asked for are among it.

    Raises ValueError or TypeError saying what is missing, and whatever the task's ``evaluate`` raises itself.
    """
    from rewound.plan import parse_until
    from rewound.spelling import nearest

    found = task.evaluate(task.model(recipe.seeds[0]))
    if not isinstance(found, Mapping):
        raise TypeError(
            f"evaluate() of task {task.name!r} must return a dict of numbers (got {type(found).__name__})"
        )
    if task.metric not in found:
        raise ValueError(
            f"task {task.name!r} is judged by {task.metric!r}, which its evaluate() does not return; "
            f"{nearest(task.metric, found)}"
        )
    decides = None if recipe.target is None else parse_until(recipe.target).metric
    if decides is not None and decides not in (logged := [*found, "train_loss"]):
        raise ValueError(
            f"'until' stops by {decides!r}, which task {task.name!r} does not measure; {nearest(decides, logged)}"
        )


def plan_of(recipe: Recipe, task: Any, text: str) -> dict[str, Any]:
    """Return the plan of one technique of a recipe, as a plain dict, having built its Run; errors are those of that."""
    from rewound.measure.cost import training_flops
    from rewound.run import Run
    from rewound.tasks import example_of

    seed = recipe.seeds[0]
    epochs = recipe.epochs or task.epochs
    model = task.model(seed)
    optimizer = task.optimizer(model)
    example = example_of(task, seed)
    plan = Run(
        model,
        optimizer,
        epochs=epochs,
        scheduler=task.scheduler(optimizer, epochs * task.steps_per_epoch, task.steps_per_epoch),
        folder=arm_folder(recipe.place, text, seed),  # counted in the plan's disk; made when the run begins
        seed=seed,
        example=example,
        **run_options(recipe, task, text, seed),
    ).plan
    flops = training_flops(model, example) * task.steps_per_epoch * plan.total_epochs
    return {**plan.to_dict(), "technique": text, "flops": flops, "at_most": plan.until.metric is not None}


def as_lines(plan: dict[str, Any]) -> list[str]:
    """Set the plan for people, with its estimate of time where it has one."""
    first = plan["techniques"][0]
    share = f"{first['size']:,} of {first['model_size']:,} weights"
    if first["what"] != "weights":
        share = f"{first['size']:,} {first['what']}, made of {first['covered']:,} of {first['model_size']:,} weights"
    arms = f"{counted(len(plan['techniques']), 'technique')} x {counted(len(plan['seeds']), 'seed')}"
    pace = f"{plan['workers']} at a time, each on {counted(plan['threads'], 'thread')}"
    most = "at the most " if any(one["at_most"] for one in plan["techniques"]) else ""
    cost = f"{most}{plan['total_epochs']:,} epochs of search{_flops(plan['total_flops'])}"
    lines = [
        f"{plan['name']}: {arms} on {plan['task']}, judged by validation {plan['metric']['name']}",
        f"folder {plan['folder']}; {pace}; prunable: {share}",
        "",
    ]
    for one in plan["techniques"]:
        lines.append(f"{one['technique']}: {told_epochs(one)}{_flops(one['flops'])}")
        lines.append(f"    densities  {told_densities(one['densities'])} (until {one['until']})")
        kept = ", ".join(one["snapshots"]) or "none beside where it stands"
        lines.append(f"    snapshots  {kept}; on disk {told_bytes(one['disk_bytes'])} a seed")
    lines += [
        "",
        f"In all {counted(plan['arms'], 'run')}, {cost}, about {told_bytes(plan['disk_bytes'])} on disk.",
    ]
    return [*lines, as_line(plan)] if "estimate" in plan else lines


def told_epochs(one: Mapping[str, Any]) -> str:
    """Return for people how many epochs one seed of a technique trains, given the technique's plan.

    >>> rewinding = {"epochs": 10, "rounds": 6, "retrain_epochs": 8, "total_epochs": 58, "at_most": False}
    >>> told_epochs(rewinding)
    '10 + 6 x 8 = 58 epochs a seed'
    >>> told_epochs({**rewinding, "total_epochs": 10, "starts": [2, 3, 4, 5, 6, 7]})
    '10 epochs a seed, pruned 6 times within them, before epochs 2 to 7'
    """
    most = "at the most " if one["at_most"] else ""  # a metric may end it after any round
    if starts := one.get("starts"):
        before = f"epochs {starts[0]} to {starts[-1]}" if len(starts) > 1 else f"epoch {starts[0]}"
        return f"{one['epochs']} epochs a seed, pruned {counted(len(starts), 'time')} within them, before {before}"
    sum_ = f"{one['epochs']} + {one['rounds']} x {one['retrain_epochs']} = {one['total_epochs']}"
    return f"{most}{sum_} epochs a seed"


def told_densities(densities: list[float]) -> str:
    """Return densities for people, the middle of many left out."""
    texts = [f"{d:.3g}" for d in densities]
    return " ".join(texts if len(texts) <= 8 else [*texts[:4], "..", *texts[-3:]])


def _flops(flops: float) -> str:
    return f", {flops:.3g} training FLOPs"


def told_bytes(count: float) -> str:
    """Return a size for people.

    >>> told_bytes(2_400_000), told_bytes(800)
    ('2.4 MB', '800 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
