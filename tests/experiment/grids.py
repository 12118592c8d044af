"""What tests of grids share: a small grid, running it, and what of its folder must be the same, however it came about."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from rewound.experiment.grid import make_grid
from rewound.experiment.screen import progress
from rewound.experiment.sweep import run_grid

TASK = f"{Path(__file__).with_name('toy_task.py')}:Toy"
SMALL = {
    "task": TASK,
    "techniques": ["lr-rewinding:2ep", "weight-rewinding:3ep"],
    "seeds": 2,
    "until": "2 rounds",
    "allocation": "uniform",  # of 128 weights, globally, a layer may lose all
    "workers": 1,
    "grid": {"rate": [0.2, 0.5]},
}


def grid_at(place, **keys):
    return make_grid({**SMALL, **keys, "folder": str(place)})


def run(place, on="local", **keys):
    """Run a grid without a word; return its study."""
    return run_grid(grid_at(place, **keys), lambda *shown: progress(*shown, stream=io.StringIO()), on=on)


def recorded(place, events, **keys):
    """Run a grid and append (label, event) of all that was reported."""

    @contextmanager
    def show(labels, epochs, metric):
        yield lambda event: events.append((labels[event["arm"]], event))

    return run_grid(grid_at(place, **keys), show)


def drive(place, on="local", slow=0.03):
    """Start a process that runs the grid with two workers, ``slow`` seconds a batch; it says "ended" at its end."""
    environment = {**os.environ, "TOY_SLOW": str(slow), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(driver(place, on, 2), stdout=subprocess.PIPE, text=True, env=environment)


def driver(place, on, workers):
    """The command of a process that runs the grid."""
    return [sys.executable, str(Path(__file__).with_name("drive_grid.py")), str(place), on, str(workers)]


def busy(place):
    """Seconds files are written after every epoch: when did any run get further last?"""
    return max((path.stat().st_mtime_ns for path in place.glob("*/*/seconds.json")), default=0)


def until_it_gets_further(place, process, since, patience=30):
    deadline = time.monotonic() + patience
    while busy(place) <= since and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def content(place):
    """Return what a grid's folder holds, without times: results, the names of masks and traces, which carry the checksums of
    their content, and a digest of the newest state of every run."""
    found = {}
    for path in sorted(place.glob("runs/*.json")):
        found[path.name] = _timeless(json.loads(path.read_text()))
        states = sorted(path.with_suffix("").glob("state/epoch-*.pt"))
        found[path.stem] = _digest(torch.load(states[-1], weights_only=True))
    found["rounds"] = sorted(str(path.relative_to(place)) for path in place.glob("runs/*/rounds/*/*.pt"))
    return found


def _digest(value):
    """Of every tensor's bytes and every plain value; the same state may be pickled in more than one way."""
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                add(one)
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()


def _timeless(value):
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "shared_epochs")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
