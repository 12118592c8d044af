"""What a tracker is told of a Run, the same for all of them."""

from __future__ import annotations

from rewound import ranks
from rewound.run import Run


def scalars(run: Run) -> dict[str, float]:
    """Return the numbers of the epoch that just ended; a metric of the user's goes before one of ours of its name."""
    in_units = run.mask.unit_density
    rates = run.lr
    names = ["lr"] if len(rates) == 1 else [f"lr/{group}" for group in range(len(rates))]
    ours = {"round": float(run.round), "density": run.density if in_units is None else in_units}
    return {**ours, **dict(zip(names, rates)), **run.logged}


def epochs_trained(run: Run) -> int:
    """Return how many epochs were trained since the very first, all rounds counted; it rises where ``run.epoch`` rewinds."""
    assert run.epoch is not None, "a tracker is called after an epoch"
    first = 0 if run.round == 0 else run.plan.epochs - run.plan.retrain_epochs
    return sum(done.epochs for done in run.result.rounds) + run.epoch + 1 - first


def settings(run: Run) -> dict[str, str | int]:
    """Return what the run will do, as a tracker's parameters."""
    plan = run.plan
    return {
        "technique": str(plan.technique),
        "epochs": plan.epochs,
        "retrain_epochs": plan.retrain_epochs,
        "rounds": plan.rounds,
        "until": str(plan.until),
        "prunable": plan.size,
        "prunes": plan.what,
    }


def is_first() -> bool:
    """Return whether this process is the one that logs."""
    return ranks.rank() == 0
