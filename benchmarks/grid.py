"""What grids cost and save: two workers against one, shared original runs, the store's overhead, the index of 10,000 runs.

    python benchmarks/grid.py                  # about ten minutes on two idle cores
    python benchmarks/grid.py --quick          # shorter runs, each once: does it run?

Workers and sharing: 24 runs of LeNet-300-100 on 5,000 images of Fashion-MNIST, four techniques and six seeds, each command in
a process of its own with one thread a worker, interleaved: the grid with one worker, the grid with two, and the same as a plain
recipe, in which every run trains its own original run. Overhead: within one process, the time spent in everything that a run
without a folder and without a watcher would not do (states, snapshots, masks, traces and results written, progress, lease, clock,
index), as a share of the run's. Index: results made by arithmetic, as in benchmarks/report.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _machine import facts, write_record
from report import write_grid

TECHNIQUES = ("fine-tuning", "weight-rewinding:8ep", "lr-rewinding", "reinitialization")
SHORT = {
    "task": "fashion-mnist", "techniques": list(TECHNIQUES), "seeds": 6, "epochs": 10, "rate": 0.5, "until": "3 rounds",
    "task_options": {"model": "lenet-300-100", "subset": 5000, "validation": 1000},
}  # fmt: skip
MINUTE = {**SHORT, "techniques": ["weight-rewinding:8ep"], "seeds": 1, "until": "4 rounds",
          "task_options": {"model": "lenet-300-100"}}  # fmt: skip
QUICK = {"epochs": 2, "techniques": ["fine-tuning:1ep", "lr-rewinding:1ep"], "seeds": 2}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    times, short, minute = arguments.times, SHORT, MINUTE
    if arguments.quick:
        times, short, minute = 1, {**SHORT, **QUICK}, {**MINUTE, **QUICK}
    data: dict[str, Any] = {"machine": {**facts(), "torch_threads": 1}}
    with tempfile.TemporaryDirectory() as work:
        data["commands"] = commands(short, Path(work), times)
        data["overhead"] = [overhead(minute, Path(work) / f"minute-{k}") for k in range(times)]
        data["index"] = index(Path(work) / "made", 10 if arguments.quick else 500, times)
    says = "\n".join(text(data))
    path = write_record("grid-quick" if arguments.quick else "grid", data, says, arguments.out)
    print(says, path, sep="\n\n")


# ---- whole commands ------------------------------------------------------------------------------------------------------


def commands(recipe: dict[str, Any], work: Path, times: int) -> dict[str, Any]:
    """Time the three ways of the same runs, interleaved; seconds of the wall and of the processor, and what was trained."""
    ways: dict[str, tuple[bool, int]] = {
        "one worker": (True, 1), "two workers": (True, 2), "two workers, nothing shared": (False, 2),
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for k in range(times):
        for way, (shared, workers) in ways.items():
            place = work / f"{way.replace(',', '').replace(' ', '-')}-{k}"
            found[way].append(timed({**recipe, "workers": workers}, place, shared))
    return found


def timed(recipe: dict[str, Any], place: Path, shared: bool) -> dict[str, Any]:
    """Run a recipe, as a grid or as it is, by ``rewound run``; what its plan said of epochs is read beside."""
    from rewound.experiment.grid import grid_toml, make_grid
    from rewound.experiment.recipe import make_recipe, to_toml
    from rewound.experiment.study import read_study

    file = place.with_suffix(".toml")
    whole = {**recipe, "threads": 1, "folder": str(place)}
    if shared:
        grid = make_grid({**whole, "grid": {"criterion": ["magnitude"]}})
        file.write_text(grid_toml(grid))
    else:
        file.write_text(to_toml(make_recipe(whole)))
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "rewound", "run", str(file)], check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wall, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    study = read_study([place])
    asked = sum(run["search_cost"]["epochs"] for run in study["runs"])
    not_trained = sum(run["search_cost"]["shared_epochs"] for run in study["runs"])
    trained = asked - not_trained + sum(one["epochs"] for one in study["dense"].values())
    return {"wall": wall, "processor": processor, "runs": len(study["runs"]), "epochs": trained}


# ---- what the store costs ------------------------------------------------------------------------------------------------


def overhead(recipe: dict[str, Any], place: Path) -> dict[str, float]:
    """Run a grid of one run in this process and return its seconds, and how many of them went into keeping and telling it."""
    import torch

    import rewound.store
    from rewound.experiment import arms, clock, sweep
    from rewound.experiment import store as files
    from rewound.experiment.grid import make_grid
    from rewound.experiment.screen import progress

    torch.set_num_threads(1)
    grid = make_grid(
        {**recipe, "workers": 1, "threads": 1, "folder": str(place), "grid": {"criterion": ["magnitude"]}}
    )
    spent: dict[str, float] = {}
    kept = ("__init__", "save_newest", "keep", "fetch", "finish_round", "trace", "mask", "newest", "close")
    places: list[tuple[Any, str, str]] = [
        (rewound.store.Store, name, "states, masks, traces") for name in kept
    ]
    places += [
        (clock.Clock, "__init__", "progress, clock, lease"),
        (clock.Clock, "tick", "progress, clock, lease"),
    ]
    places += [(files, "write_bytes", "results"), (sweep, "rebuild_index", "index")]
    with open(os.devnull, "w") as nowhere, counted(places, spent), watched(arms, spent):
        began = time.perf_counter()
        sweep.run_grid(grid, lambda *shown: progress(*shown, stream=nowhere))
        whole = time.perf_counter() - began
    return {"seconds": whole, **spent}


@contextmanager
def counted(places: Sequence[tuple[Any, str, str]], spent: dict[str, float]) -> Iterator[None]:
    """Sum up the seconds within functions, by title; one within another is the outer one's."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    inside = [False]
    for (owner, name, function), (_, _, title) in zip(before, places):
        setattr(owner, name, clocked(function, title, spent, inside))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def clocked(function: Callable[..., Any], title: str, spent: dict[str, float], inside: list[bool]) -> Any:
    """Return ``function`` with its seconds added to ``spent[title]``."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if inside[0]:
            return function(*arguments, **named)
        inside[0], began = True, time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            inside[0] = False
            spent[title] = spent.get(title, 0.0) + time.perf_counter() - began

    return call


@contextmanager
def watched(arms: Any, spent: dict[str, float]) -> Iterator[None]:
    """Count what is called after every epoch, too: lease, clock, display."""
    make = arms.watcher
    arms.watcher = lambda *given: clocked(make(*given), "progress, clock, lease", spent, [False])
    try:
        yield
    finally:
        arms.watcher = make


# ---- the index -----------------------------------------------------------------------------------------------------------


def index(place: Path, seeds: int, times: int) -> dict[str, Any]:
    """Time the index of a folder of finished runs, made anew; the folder's files have been read before."""
    from rewound.experiment.index import rebuild_index

    runs = write_grid(place, seeds)
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        path = rebuild_index(place)
        seconds.append(time.perf_counter() - began)
    size = sum(len((place / "runs" / f"{key}.json").read_bytes()) for key in first_keys(place, 100)) / 100
    return {"runs": runs, "seconds": seconds, "bytes": path.stat().st_size, "bytes_a_result": size}


def first_keys(place: Path, count: int) -> list[str]:
    """Return some keys of a grid."""
    return list(json.loads((place / "grid.json").read_text())["runs"])[:count]


# ---- the record ----------------------------------------------------------------------------------------------------------


def text(data: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the record."""
    ways = data["commands"]
    yield "Medians (smallest to largest). Processor: of all processes of the command together."
    yield from ("", "| the same runs | wall, s | processor, s | epochs trained |", "| --- " * 4 + "|")
    for way, all_times in ways.items():
        cells = [shown([one[key] for one in all_times]) for key in ("wall", "processor")]
        runs, epochs = all_times[0]["runs"], all_times[0]["epochs"]
        yield f"| {runs} runs, {way} | {' | '.join(cells)} | {epochs:,} |"
    one, two, alone = (ways[way] for way in ways)
    faster = [a["wall"] / b["wall"] for a, b in zip(one, two)]
    saved = [1 - b["processor"] / a["processor"] for a, b in zip(alone, two)]
    said = 1 - two[0]["epochs"] / alone[0]["epochs"]
    yield ""
    yield f"- Two workers are {shown(faster, 2)} times as fast as one (asked for: at least 1.8)."
    yield f"- Sharing saves {said:.1%} of the epochs, and {shown([100 * s for s in saved])} % of the processor's time."
    shares = [
        100 * sum(v for k, v in run.items() if k != "seconds") / run["seconds"] for run in data["overhead"]
    ]
    lasted = shown([run["seconds"] for run in data["overhead"]])
    parts = sorted({key for run in data["overhead"] for key in run} - {"seconds"})
    each = ", ".join(
        f"{part} {shown([100 * run.get(part, 0.0) / run['seconds'] for run in data['overhead']], 2)}"
        for part in parts
    )
    yield f"- A run of {lasted} s: {shown(shares, 2)} % of it went into keeping and telling it (asked for: at most 1 %): {each}."
    made = data["index"]
    yield (
        f"- The index of {made['runs']:,} finished runs (a result has {made['bytes_a_result'] / 1e3:.0f} kB) is made anew in "
        f"{shown(made['seconds'])} s (asked for: less than 10 s)."
    )


def shown(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
