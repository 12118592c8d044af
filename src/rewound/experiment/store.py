"""The one place where the file names of an experiment's folder are spelled.

recipe.toml                       what was asked, overrides included
arms/TECHNIQUE/seed-N/            the folder of that arm's Run: states, masks, rounds
arms/TECHNIQUE/seed-N.json        the arm's result, written once, when it is finished
results.json  table.md  picture.png
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewound.experiment.recipe import Recipe, differences, read_recipe, task_name, to_toml

RECIPE, RESULTS, TABLE, PICTURE = "recipe.toml", "results.json", "table.md", "picture.png"
_HEAD = "# What this folder holds. 'rewound run recipe.toml' with the same recipe goes on here.\n"


def arm_folder(place: Path, technique: str, seed: int) -> Path:
    """Return the folder of one arm's Run.

    >>> arm_folder(Path("demo"), "lr-rewinding:36ep", 0).as_posix()
    'demo/arms/lr-rewinding_36ep/seed-0'
    """
    return place / "arms" / re.sub(r"[^A-Za-z0-9.=-]", "_", technique) / f"seed-{seed}"


def result_file(folder: Path) -> Path:
    """Return the file of an arm's result, beside its Run's folder."""
    return folder.with_name(folder.name + ".json")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(passing, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document; ValueError naming the file where it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); delete it and run again") from error


def key_of(recipe: Recipe) -> str:
    """Return what ties a result to its recipe: a hash of all that shapes an arm, task's source included."""
    plain = recipe.model_dump(mode="json", exclude={"name", "techniques", "seeds", "workers", "folder"})
    source = task_file(recipe)
    plain["task"], plain["until"] = task_name(recipe.task), recipe.target
    plain["source"] = hashlib.sha256(source.read_bytes()).hexdigest() if source else None
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def task_file(recipe: Recipe) -> Path | None:
    """Return the file a user's task is written in, or None for a task that ships."""
    file, colon, _ = recipe.task.rpartition(":")
    path = Path(file if colon else recipe.task)
    return path if path.suffix == ".py" and path.is_file() else None


def finished_result(folder: Path, key: str) -> dict[str, Any] | None:
    """Return a finished arm's stored result, or None where it has still to run.

    Raises ValueError where the result belongs to another recipe or to a task that has changed since.
    """
    path = result_file(folder)
    if not path.is_file():
        return None
    found = read_json(path)
    if found.get("key") != key:
        raise ValueError(
            f"{path} was made by another recipe, or the task's file has changed since; "
            "choose another --folder, or delete this one"
        )
    return found


def check_recipe(place: Path, recipe: Recipe) -> None:
    """Raise ValueError where the folder holds another experiment, with the difference."""
    if not place.exists():
        return
    if not (place / RECIPE).is_file():
        if place.is_dir() and not any(place.iterdir()):
            return
        raise ValueError(f"{place} exists and holds no experiment (no {RECIPE}); choose another --folder")
    apart = differences(read_recipe(place / RECIPE), recipe)
    if apart:
        raise ValueError(
            f"{place} holds another experiment ({'; '.join(apart)}); "
            "choose another --folder, or delete this one"
        )


def write_recipe(place: Path, recipe: Recipe) -> None:
    """Copy the recipe into the folder, its task's file by an absolute path."""
    source = task_file(recipe)
    if source:
        task = str(source.resolve()) + recipe.task[len(str(source)) :]
        recipe = recipe.model_copy(update={"task": task})
    write_text(place / RECIPE, _HEAD + to_toml(recipe))


def read_results(place: Path) -> Mapping[str, Any]:
    """Return an experiment's results; FileNotFoundError where there are none yet."""
    path = place / RESULTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{place} has no {RESULTS}: it is no experiment, or none of its runs has finished"
        )
    return read_json(path)


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the folder for this process; RuntimeError where another one has it."""
    from filelock import FileLock, Timeout

    place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place / ".lock", timeout=0):
            yield
    except Timeout:
        raise RuntimeError(
            f"another process is running the experiment in {place}; wait for it, or end it"
        ) from None
