"""How long the page of many runs takes, from their folder on disk to the file.

    python benchmarks/report.py

Runs are made of nothing but arithmetic: five techniques, four retraining times, fifty seeds, twelve rounds, twenty tensors, a log
of every epoch. What is timed is the whole command, `rewound report`, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import facts, write_record

TECHNIQUES = ("fine-tuning", "weight-rewinding", "lr-rewinding", "lottery-ticket", "cyclic-restart")
TIMES, EPOCHS, ROUNDS, TENSORS = (5, 10, 15, 20), 20, 12, 20


def made_run(key: str, technique: str, t: int, seed: int) -> dict[str, Any]:
    """A finished run as a grid's folder has it."""
    chance, rounds = random.Random(f"{technique} {t} {seed}"), []
    for k in range(ROUNDS):
        density, epochs = 0.8**k, t if k else EPOCHS
        value = 0.97 - 0.1 * (k / ROUNDS) ** 3 - 0.1 / t + chance.uniform(-0.005, 0.005)
        rounds.append(
            {
                "index": k,
                "density": density,
                "density_total": density,
                "metrics": {"accuracy": value, "loss": 1 - value},
                "before": {"accuracy": value - 0.1},
                "epochs": epochs,
                "steps": 100 * epochs,
                "flops": 1e12 * epochs,
                "sparse_flops": 1e12 * epochs * density,
                "seconds": 2.0 * epochs,
                "densities": {f"layer{i}.weight": min(1.0, density * (0.5 + i / 20)) for i in range(TENSORS)},
                "multiply_adds": [int(1e8 * density), 10**8],
                "collapsed": [],
                "log": [{"train_loss": 1 / (e + 2), "loss": 1 / (e + 1)} for e in range(epochs)],
            }
        )
    cost = {
        name: sum(r[name] for r in rounds) for name in ("epochs", "steps", "flops", "sparse_flops", "seconds")
    }
    return {
        "key": key,
        "status": "finished",
        "error": None,
        "best": ROUNDS - 1,
        "rounds": rounds,
        "search_cost": cost,
        "test": {"accuracy": value - 0.01},
        "seconds": cost["seconds"],
    }


def write_grid(place: Path, seeds: int) -> int:
    """Write the folder of a finished grid; return how many runs it has."""
    (place / "runs").mkdir(parents=True)
    asked = {}
    for technique in TECHNIQUES:
        for t in TIMES:
            for seed in range(seeds):
                key, text = f"{len(asked):016x}", f"{technique}:{t}ep"
                cell = {"task": "made", "technique": text, "epochs": EPOCHS, "rate": 0.2, "seed": seed}
                asked[key] = {"label": f"{text}, seed {seed}", "cell": cell, "original": None}
                (place / "runs" / f"{key}.json").write_text(json.dumps(made_run(key, technique, t, seed)))
    about = {
        "name": "made",
        "task": {"name": "made"},
        "metric": {"name": "accuracy", "higher_is_better": True},
    }
    about |= {"command": "", "versions": {}, "machine": {}, "runs": asked}
    (place / "grid.json").write_text(json.dumps(about))
    (place / "recipe.toml").write_text('name = "made"\n')
    return len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", help="folder of the record")
    arguments = parser.parse_args()
    machine, walls = facts(), []
    with tempfile.TemporaryDirectory() as work:
        place, page = Path(work) / "grid", Path(work) / "report.html"
        runs = write_grid(place, arguments.seeds)
        command = [sys.executable, "-m", "rewound", "report", str(place), "-o", str(page)]
        for _ in range(arguments.times):
            began = time.perf_counter()
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            walls.append(time.perf_counter() - began)
        size = page.stat().st_size
    walls.sort()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    data = {"machine": machine, "runs": runs, "wall_seconds": walls, "page_bytes": size, "peak_bytes": peak}
    says = (
        f"The page of {runs:,} runs in {len(TECHNIQUES) * len(TIMES)} series takes {walls[len(walls) // 2]:.1f} s "
        f"(median of {len(walls)}, {walls[0]:.1f} to {walls[-1]:.1f} s; asked for: less than 20 s), has "
        f"{size / 1e6:.1f} MB, and needs at most {peak / 1e6:,.0f} MB of memory. One thread."
    )
    print(says)
    print(write_record("report", data, says, arguments.out))


if __name__ == "__main__":
    main()
