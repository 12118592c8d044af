"""The one place where the file names of an experiment's folder are spelled.

recipe.toml                       what was asked, overrides included
my_task.py                        the user's own task, as it was when the runs began
arms/TECHNIQUE/seed-N/            the folder of that arm's Run: states, masks, rounds
arms/TECHNIQUE/seed-N.json        the arm's result, written once, when it is finished
results.json  table.md  picture.png

A grid's folder has recipe.toml and the task's file, and instead of the rest

grid.json                         the runs asked for: key -> what sets it apart; the metric; versions, machine, command
runs/KEY/  runs/KEY.json          each run's folder and result         originals/KEY/  originals/KEY.json   what they begin from
index.sqlite                      the same as tables, made anew from the rest at will
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewound.experiment.recipe import Recipe, differences, read_recipe, task_name, to_toml

RECIPE, RESULTS, TABLE, PICTURE = "recipe.toml", "results.json", "table.md", "picture.png"
GRID, RUNS, ORIGINALS, INDEX = "grid.json", "runs", "originals", "index.sqlite"
_HEAD = "# What this folder holds. 'rewound run' with this folder's name goes on here.\n"


def arm_folder(place: Path, technique: str, seed: int) -> Path:
    """Return the folder of one arm's Run.

    >>> arm_folder(Path("demo"), "lr-rewinding:36ep", 0).as_posix()
    'demo/arms/lr-rewinding_36ep/seed-0'
    """
    return place / "arms" / re.sub(r"[^A-Za-z0-9.=-]", "_", technique) / f"seed-{seed}"


def result_file(folder: Path) -> Path:
    """Return the file of an arm's result, beside its Run's folder."""
    return folder.with_name(folder.name + ".json")


def error_file(folder: Path) -> Path:
    """Return the file in a run's folder that says why it failed last, until it is tried again."""
    return folder / "error.json"


def write_text(path: Path, text: str, flush: bool = True) -> None:
    """Write a text file so that it is there whole or not at all."""
    write_bytes(path, text.encode(), flush)


def write_bytes(path: Path, content: bytes, flush: bool = True) -> None:
    """Write a file so that it is there whole or not at all; without ``flush`` a power failure may take it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(passing, "wb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(passing, path)
    except BaseException:  # a full disk: half a file would take what room there is
        passing.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, whole or not at all."""
    write_text(path, as_json(value) + "\n")


def as_json(value: Any) -> str:
    """Return a JSON document that every reader accepts: JSON knows no NaN and no infinity, so they are null.

    >>> print(as_json([1.5, float("nan")]))
    [
     1.5,
     null
    ]
    """
    return json.dumps(finite(value), indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a plain value with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    for late in ("multiple", "floor", "allow"):  # as they were before there were these keys, keys must stay
        if plain[late] == Recipe.model_fields[late].default:
            del plain[late]
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


def own_recipe(path: Path) -> tuple[Path, list[str]]:
    """Return the recipe that ``path`` means, and where its results go if that is not for the recipe to say.

    An experiment's folder means the copy in it, and that copy goes on where it lies: the folder may have been
    moved since.
    """
    path = path / RECIPE if (path / RECIPE).is_file() else path
    goes_on = path.name == RECIPE and ((path.parent / "arms").is_dir() or (path.parent / GRID).is_file())
    return path, [f"folder={json.dumps(str(path.parent))}"] if goes_on else []


def check_recipe(place: Path, recipe: Recipe) -> None:
    """Raise ValueError where the folder holds another experiment, with the difference."""
    if not place.exists():
        return
    if not (place / RECIPE).is_file():
        if place.is_dir() and _hardly_begun(place, recipe):
            return
        raise ValueError(f"{place} exists and holds no experiment (no {RECIPE}); choose another --folder")
    if (place / GRID).is_file():
        raise ValueError(
            f"{place} holds a grid, and this is a recipe without [grid]; choose another --folder"
        )
    apart = differences(read_recipe(place / RECIPE), recipe)
    if apart:
        raise ValueError(
            f"{place} holds another experiment ({'; '.join(apart)}); "
            "choose another --folder, or delete this one"
        )
    _check_source(place, recipe)


def check_grid(place: Path, recipe: Recipe) -> None:
    """Raise ValueError where a grid cannot go into the folder. Another grid can, with the same task: keys tell runs apart."""
    lost = all(
        (place / name).exists() for name in (RECIPE, RUNS)
    )  # grid.json was: it is written again from the recipe
    if place.exists() and not (place / GRID).is_file() and not (lost or _hardly_begun(place, recipe)):
        raise ValueError(f"{place} exists and holds no grid (no {GRID}); choose another --folder")
    _check_source(place, recipe)


def _hardly_begun(place: Path, recipe: Recipe) -> bool:
    """Whether a folder is empty but for what we write before all else: who wrote that was killed there, or found no room."""
    source = task_file(recipe)

    def ours(path: Path) -> bool:
        if path.name == RECIPE:
            return path.read_text(encoding="utf-8").startswith(_HEAD)
        if source and path.name == source.name:
            return path.read_bytes() == source.read_bytes()
        return path.name == ".lock" or (path.name.startswith(".") and path.suffix == ".tmp")

    return all(ours(path) for path in place.iterdir())


def _check_source(place: Path, recipe: Recipe) -> None:
    source = task_file(recipe)
    copy = place / source.name if source else place
    if source and copy.is_file() and copy.read_bytes() != source.read_bytes() and _has_trained(place):
        raise ValueError(
            f"{source} has changed since the runs in {place} began, which would go on half with the old task and half with "
            f"the new; choose another --folder, or go on with the old one: rewound run {place}"
        )


def _has_trained(place: Path) -> bool:
    """Whether an epoch of any arm is done: a task that failed before may be mended in place."""
    folders = ("arms/*/seed-*", f"{RUNS}/*", f"{ORIGINALS}/*")
    states = (path.name for within in folders for path in place.glob(f"{within}/state/epoch-*.pt"))
    return any(not name.startswith("epoch-000000-") for name in states)


def write_recipe(place: Path, recipe: Recipe, as_toml: Callable[[Recipe], str] = to_toml) -> None:
    """Copy the recipe into the folder, and its task's file beside it, so that the folder may be moved."""
    source = task_file(recipe)
    if source:
        copy = place / source.name
        if not (copy.exists() and copy.samefile(source)):
            write_bytes(copy, source.read_bytes())
        recipe = recipe.model_copy(update={"task": task_name(recipe.task)})
    write_text(place / RECIPE, _HEAD + as_toml(recipe))


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
    """Hold the folder for this process; RuntimeError where another one has it, OSError where none can be made."""
    from filelock import FileLock, Timeout

    lock = FileLock(place / ".lock", timeout=0)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"another process is running the experiment in {place}; wait for it, or end it"
        ) from None
    except OSError as error:
        raise OSError(f"cannot write to {place} ({error.strerror}); choose another --folder") from error
    try:
        yield
    finally:
        lock.release()
