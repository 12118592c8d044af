"""A study: what the folders of grids and experiments hold together, as one plain dict that reports and statistics read.

    {"name", "folder", "task": {"name"}, "metric": {"name", "higher_is_better"},
     "runs": [{"key", "cell", "label", "folder", "status", "error", "rounds", "best", "test", "search_cost", "seconds"}],
     "dense": {key: {"epochs", "seconds", "used_by": [keys of runs]}},
     "recipe", "command", "versions", "machine", "data"}

``cell`` holds every key of a recipe in which runs may differ; ``status`` is finished, failed, running or waiting. A run's
``search_cost`` counts its original run whoever trained it; ``shared_epochs`` are those of an original run that others use too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewound.experiment import lease, store

Study = dict[str, Any]
_COST = {"flops_dense": "flops", "flops_sparse": "sparse_flops"}


def read_study(paths: Sequence[str | Path]) -> Study:
    """Read the folders of grids and experiments, or folders that hold several, into one study. A run met twice is one.

    Raises FileNotFoundError where there is none, ValueError where they are judged by different metrics.
    """
    places = list(dict.fromkeys(place for path in paths for place in _places(Path(path))))
    studies = [_of_grid(p) if (p / store.GRID).is_file() else _of_experiment(p) for p in places]
    metrics = {str(study["metric"]): study["metric"] for study in studies}
    if len(metrics) > 1:
        told = "; ".join(f"{study['folder']}: {study['metric']['name']}" for study in studies)
        raise ValueError(f"these were judged by different metrics, so they are no one study ({told})")
    first, *others = studies
    if not others:
        return first
    runs: dict[str, Any] = {}
    for study in studies:
        for run in study["runs"]:
            if runs.setdefault(run["key"], run)["status"] != "finished" and run["status"] == "finished":
                runs[run["key"]] = run
    names = dict.fromkeys(study["task"]["name"] for study in studies)
    return {
        **first,
        "name": " + ".join(dict.fromkeys(study["name"] for study in studies)),
        "task": {"name": ", ".join(names)},
        "runs": list(runs.values()),
        "dense": {key: one for study in studies for key, one in study["dense"].items()},
        "recipe": "\n".join(study["recipe"] for study in studies),
        "command": "; ".join(filter(None, (study["command"] for study in studies))),
        "data": _data(studies),
    }


def _data(studies: Sequence[Study]) -> dict[str, Any]:
    """The fingerprints of all data; where two studies found something else under one name, each with its folder."""
    names = dict.fromkeys(name for study in studies for name in study["data"])
    found: dict[str, Any] = {}
    for name in names:
        told = {study["folder"]: study["data"][name] for study in studies if name in study["data"]}
        same = len({*told.values()}) == 1
        found |= {name if same else f"{name} ({folder})": text for folder, text in told.items()}
    return found


def _places(path: Path) -> Iterator[Path]:
    """The folders of grids and experiments at or below ``path``; runs within them are not looked into."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path)!r}")
    found = [path] if (path / store.RECIPE).is_file() else []
    found = found or sorted(
        p.parent for p in [*path.glob(f"*/{store.RECIPE}"), *path.glob(f"*/*/{store.RECIPE}")]
    )
    if not found:
        raise FileNotFoundError(f"{str(path)!r} holds no grid and no experiment (no {store.RECIPE} in it)")
    yield from found


def _of_grid(place: Path) -> Study:
    manifest = store.read_json(place / store.GRID)
    runs = []
    for key, asked in manifest["runs"].items():
        folder = place / store.RUNS / key
        runs.append(_run(key, asked["label"], asked["cell"], folder, _result(folder)))
    dense: dict[str, Any] = {}
    for path in sorted((place / store.ORIGINALS).glob("*.json")):
        done = store.read_json(path)
        users = [key for key, asked in manifest["runs"].items() if asked["original"] == path.stem]
        kept = {name: done[name] for name in ("epochs", "seconds", "test", "snapshots")}
        dense[path.stem] = {**kept, "used_by": users}
    about = {key: manifest[key] for key in ("name", "task", "metric", "command", "versions", "machine")}
    data = manifest.get("data", {})  # of grids from before there were fingerprints
    return {**about, "folder": str(place), "runs": runs, "dense": dense, "data": data, **_told(place)}


def _of_experiment(place: Path) -> Study:
    """An experiment of a plain recipe, one arm a run; each trained its own original run."""
    from rewound.experiment.arms import arms_of, task_of
    from rewound.experiment.keys import canonical, cell_of, key_of
    from rewound.experiment.recipe import read_recipe

    recipe = read_recipe(place / store.RECIPE)
    written = store.read_json(place / store.RESULTS) if (place / store.RESULTS).is_file() else None
    failed = {(arm["technique"], arm["seed"]): arm for arm in (written or {}).get("arms", [])}
    if written is not None:
        task, metric = written["task"], written["metric"]
    else:  # none of its runs has finished
        made = task_of(recipe)
        task, metric = {"name": made.name}, {"name": made.metric, "higher_is_better": made.higher_is_better}
    runs = []
    for arm in arms_of(recipe, place):
        own = recipe.model_copy(update={"techniques": (arm.technique,), "seeds": (arm.seed,)})
        found = _result(arm.folder) or failed.get((arm.technique, arm.seed))
        runs.append(_run(key_of(canonical(own)), arm.label, cell_of(own), arm.folder, found))
    machine = (written or {}).get("machine", {})
    return {
        "name": recipe.name,
        "folder": str(place),
        "task": dict(task),
        "metric": metric,
        "runs": runs,
        "dense": {},
        "command": f"rewound run {place.name}",
        "versions": {"python": machine["python"]} if "python" in machine else {},
        "machine": machine,
        "data": (written or {}).get("data", {}),
        **_told(place),
    }


def _told(place: Path) -> dict[str, Any]:
    return {"recipe": (place / store.RECIPE).read_text(encoding="utf-8")}


def _result(folder: Path) -> dict[str, Any] | None:
    path = store.result_file(folder)
    return store.read_json(path) if path.is_file() else None


def _run(
    key: str, label: str, cell: Mapping[str, Any], folder: Path, found: Mapping[str, Any] | None
) -> dict[str, Any]:
    run: dict[str, Any] = {
        "key": key,
        "cell": dict(cell),
        "label": label,
        "folder": str(folder) if folder.is_dir() else None,
        "status": "waiting",
        "error": None,
        "rounds": [],
        "test": None,
        "search_cost": {},
        "seconds": None,
    }
    if found is not None and found["status"] == "finished":
        cost = {"shared_epochs": 0, "seconds": found.get("seconds"), **found["search_cost"]}
        cost |= {name: cost.get(of) for name, of in _COST.items()}
        kept = {
            name: found[name] for name in ("best", "stopped", "test", "seconds", "rounds") if name in found
        }
        return {**run, **kept, "status": "finished", "search_cost": cost}
    if folder.is_dir():
        if lease.is_held(folder):
            run["status"] = "running"
        elif store.error_file(folder).is_file():
            run |= {"status": "failed", "error": store.read_json(store.error_file(folder))["error"]}
        so_far = folder / "result.json"  # of the rounds that are done
        if so_far.is_file():
            run["rounds"] = store.read_json(so_far)["rounds"]
    if found is not None and run["status"] == "waiting":
        run |= {"status": found["status"], "error": found["error"]}
    return run
