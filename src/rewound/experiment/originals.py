"""Original runs that several arms begin from: trained once, with every snapshot that any of them needs.

originals/KEY/        the folder of a Run with until="0 rounds"       originals/KEY.json   its result, once it is finished
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewound.experiment import lease, store
from rewound.experiment.clock import Clock
from rewound.experiment.recipe import Recipe

_SNAPSHOTS = "snapshots.json"


@dataclass(frozen=True)
class Original:
    """One original run. ``recipe``: that of any arm that begins from it; ``snapshots``: the epochs whose state they need."""

    index: int
    key: str
    folder: Path
    recipe: Recipe
    snapshots: tuple[int, ...]
    after: int | None = None

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.recipe.seeds[0]

    @property
    def label(self) -> str:
        """What people call it."""
        return f"original run, seed {self.seed}"


def snapshots_for(techniques: Iterable[str], epochs: int) -> tuple[int, ...]:
    """Return the epochs at which an original run of ``epochs`` must keep its state for these techniques. The end is always kept.

    >>> snapshots_for(["fine-tuning:2ep", "weight-rewinding:8ep", "lottery-ticket"], 10)
    (0, 2, 8)
    """
    from rewound.configuration import needed_snapshots
    from rewound.techniques import parse_technique

    found = {epoch for text in techniques for epoch in needed_snapshots(parse_technique(text), epochs)}
    return tuple(sorted(found - {epochs}))


def finished_original(original: Original) -> dict[str, Any] | None:
    """Return the result of an original run that is finished and has the snapshots wanted, or None."""
    done = store.finished_result(original.folder, original.key)
    return done if done is not None and {*original.snapshots} <= {*done["snapshots"]} else None


def train_original(original: Original, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train an original run to its end, or go on where it was, and write its result; return it as a plain dict.

    One that was trained before with other snapshots is trained again, with these and those.
    """
    from rewound.experiment.arms import task_of, watcher
    from rewound.tasks import drive

    folder, recipe = original.folder, original.recipe
    with lease.leased(folder) as check:
        done = finished_original(original)
        if done is not None:
            return done
        snapshots, clock, task = _prepared(original), Clock(folder), task_of(recipe)
        result, test = drive(
            task,
            seed=original.seed,
            epochs=recipe.epochs,
            folder=folder,
            progress=watcher(original.index, task.metric, report, check, clock),
            until="0 rounds",
            snapshots=snapshots,
        )
        check()
        cost = result.search_cost
        found = {
            "key": original.key,
            "status": "finished",
            "error": None,
            "snapshots": snapshots,
            "epochs": cost.epochs,
            "seconds": round(sum(clock.seconds.values()), 3),
            "test": test,
            "rounds": result.to_dict()["rounds"],
        }
        store.write_json(store.result_file(folder), found)
        return store.finite(found)


def _prepared(original: Original) -> list[int]:
    """Return the snapshots to keep; what lies in the folder with fewer is cleared away."""
    folder, path = original.folder, original.folder / _SNAPSHOTS
    there = store.read_json(path) if path.is_file() else []
    wanted = sorted({*original.snapshots, *there})
    if path.is_file() and wanted == there:
        return wanted
    store.result_file(folder).unlink(missing_ok=True)
    for part in folder.iterdir():
        if part.is_dir():
            shutil.rmtree(part)
        elif not part.name.startswith(".lock") and part != path:
            part.unlink()
    store.write_json(path, wanted)
    return wanted
