"""From folders to a study: the plain dict that everything here is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewound.experiment.store import RESULTS, read_results

_NOT_IN_CELLS = ("name", "techniques", "seeds", "workers", "folder", "threads", "scope", "task_options")


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the study of an experiment's folders, those that ``paths`` are and those that they hold.

    Raises ``FileNotFoundError`` for a folder that is none and holds none, ``ValueError`` for experiments of different tasks.
    """
    places = [place for path in paths for place in _experiments(path)]
    studies = [from_results(read_results(place), place) for place in places]
    first = studies[0]
    for place, study in zip(places, studies):
        for key in ("task", "metric"):
            if study[key] != first[key]:
                raise ValueError(
                    f"{places[0]} and {place} are different experiments: {key} {first[key]['name']!r} and "
                    f"{study[key]['name']!r} cannot share a page; make a report of each"
                )
    return {**first, "runs": [run for study in studies for run in study["runs"]]}


def from_results(results: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Return the study of one experiment, as its ``results.json`` has it."""
    recipe = results.get("recipe", {})
    cell = {key: value for key, value in recipe.items() if key not in _NOT_IN_CELLS}
    runs = []
    for arm in results["arms"]:
        technique, seed = arm["technique"], arm["seed"]
        runs.append(
            {
                **arm,
                "cell": {**cell, "technique": technique, "seed": seed},
                "label": f"{technique}, seed {seed}",
                "folder": str(place / arm["folder"]),
            }
        )
    return {
        "name": results["name"],
        "folder": str(place),
        "task": results["task"],
        "metric": results["metric"],
        "runs": runs,
        "dense": {},
        "recipe": _recipe(place),
        "command": f"rewound run {place}",
        "versions": {},
        "machine": results.get("machine", {}),
        "data": {},
    }


def _experiments(path: Path) -> list[Path]:
    if (path / RESULTS).is_file():
        return [path]
    found = sorted(file.parent for file in path.glob(f"*/{RESULTS}"))
    if not found:
        raise FileNotFoundError(
            f"{path} is no experiment with results, and holds none (no {RESULTS}); 'rewound run' makes one"
        )
    return found


def _recipe(place: Path) -> str:
    file = place / "recipe.toml"
    return file.read_text(encoding="utf-8") if file.is_file() else ""
