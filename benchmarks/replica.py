"""The paper's figures in small, on Fashion-MNIST: accuracy against density and against retraining time, channels, controls.

    python benchmarks/replica.py               # an hour and a half on two idle cores; killed, it goes on where it was
    python benchmarks/replica.py --quick       # a few images and two seeds: does it run?

Runs the recipes in recipes/small, each by ``rewound run``, and reads what they found: nothing here trains. Every choice (the
retraining time too) is made on the validation split; the test split is read once, at the end of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from _machine import facts, write_record

from rewound.experiment.likeness import likeness
from rewound.experiment.matching import matching
from rewound.experiment.retraining_time import Sweep, choose, safe_zone, sweeps
from rewound.experiment.series import Study, comparable, dense_band, series_of
from rewound.experiment.statistics import milestones
from rewound.experiment.study import read_study
from rewound.experiment.summary import Summary, summarize
from rewound.experiment.verdict import control_values, verdict

ROOT = Path(__file__).parent.parent
RECIPES = ("lenet-300-100", "resnet-narrow", "retraining-time", "channels")
QUICK = ("seeds=2", "task_options.subset=256", "task_options.validation=256")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help="some of them only (default: all)")
    parser.add_argument("--work", default="runs/replica", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    machine = {**facts(), "torch_threads": 1, "processes": arguments.workers}
    seconds, studies = {}, {}
    for name in arguments.recipes:
        folder = Path(arguments.work) / name
        seconds[name] = run(name, folder, arguments.workers, QUICK if arguments.quick else ())
        studies[name] = read_study([folder])
    page = "\n".join(line for name, study in studies.items() for line in section(name, study, seconds[name]))
    data = {"machine": machine, "seconds": seconds, "studies": {name: slim(s) for name, s in studies.items()}}
    path = write_record("replica-quick" if arguments.quick else "replica", data, page, arguments.out)
    for name, study in studies.items():
        picture = path.with_name(f"{path.stem}-{name}.svg")
        draw(name, study, picture)
        path.write_text(path.read_text().replace(f"PICTURE-{name}", picture.name))
    print(page, path, sep="\n\n")


def run(name: str, folder: Path, workers: int, overrides: Sequence[str]) -> float:
    """Run a recipe in a process of its own, as anybody would, or go on with it; return the seconds that it has taken by now."""
    command = [
        sys.executable,
        "-m",
        "rewound",
        "run",
        os.path.relpath(ROOT / "recipes" / "small" / f"{name}.toml"),
    ]
    command += ["--folder", str(folder)]
    for override in (f"workers={workers}", "threads=1", *overrides):
        command += ["--set", override]
    taken, start = folder.with_name(f"{name}-seconds.json"), time.perf_counter()
    subprocess.run(command, check=True)
    before = json.loads(taken.read_text()) if taken.exists() else 0.0
    taken.write_text(json.dumps(before + time.perf_counter() - start))
    return json.loads(taken.read_text())


def slim(study: Study) -> dict[str, Any]:
    """Return what a record keeps of a study: its runs without their logs."""
    runs = []
    for one in study["runs"]:
        rounds = [
            {k: r.get(k) for k in ("index", "density", "unit_density", "metrics", "epochs")}
            for r in one["rounds"]
        ]
        kept = {k: one.get(k) for k in ("key", "cell", "status", "test", "search_cost", "seconds")}
        runs.append({**kept, "rounds": rounds})
    return {"metric": study["metric"], "runs": runs}


# ---- what is written -----------------------------------------------------------------------------------------------------


def section(name: str, study: Study, seconds: float) -> Iterator[str]:
    """Yield the lines of one recipe: what was asked, the answer in words, tables."""
    runs = study["runs"]
    finished = sum(r["status"] == "finished" for r in runs)
    yield from (f"## {name}", "", f"![{name}](PICTURE-{name})", "")
    yield f"`recipes/small/{name}.toml`: {finished} of {len(runs)} runs finished, {seconds / 60:.0f} minutes."
    yield ""
    for sentence in verdict(study):
        yield f"- {sentence}"
    swept = sweeps(series_of(study))
    if swept:
        yield ""
        yield from by_time(swept, study)
    else:
        for part, one in comparable(study):
            yield from by_density(part, one)
            yield from by_likeness(part, one)
    yield ""


def by_density(part: str, study: Study) -> Iterator[str]:
    """Yield the table of medians (ranges) by density, and what each series cost."""
    metric, higher = study["metric"]["name"], study["metric"]["higher_is_better"]
    series = [one for one in series_of(study) if not one.is_control]
    densities = (
        milestones(list(series[0].points), 10) if series else []
    )  # those of the recipe's first technique
    yield from (
        "",
        f"Validation {metric} in percent, median (range over seeds){': ' + part if part else ''}.",
        "",
    )
    yield "| density | " + " | ".join(one.label for one in series) + " |"
    yield "| --- " * (len(series) + 1) + "|"
    for density in densities:
        yield f"| {density:.3g} | " + " | ".join(cell(one.summary(density)) for one in series) + " |"
    band = dense_band(study)
    yield from (
        "",
        "| series | search cost, epochs | training FLOPs, dense | sparse | matches the dense runs down to | test at the end |",
    )
    yield "| --- " * 6 + "|"
    for one in series_of(study):
        tests = one.tests(metric)
        reach = "-" if one.is_control or band is None else f"{matching(one, band, higher).density:.3g}"
        epochs, dense, sparse = (
            max(one.costs(key).values(), default=0) for key in ("epochs", "flops", "sparse_flops")
        )
        ended = cell(summarize(tests.values())) if tests else "-"
        yield f"| {one.label} | {epochs:,.0f} | {dense:.3g} | {sparse:.3g} | {reach} | {ended} |"


def by_likeness(part: str, study: Study) -> Iterator[str]:
    """Yield how alike the networks at the end are, technique by technique: masks beside chance, and signs."""
    series = [one for one in series_of(study) if not one.is_control and one.cell.get("criterion") != "random"]
    rows = []
    for one, other in combinations(series, 2):
        folders = {run["cell"]["seed"]: run["folder"] for run in other.runs}
        ends = []
        for run in one.runs:
            shared = (
                likeness(run["folder"], folders[run["cell"]["seed"]])
                if run["cell"]["seed"] in folders
                else []
            )
            ends += [last for last in shared[-1:] if last.signs_apart is not None]
        if ends:
            cells = [f"{summarize(getattr(e, key) for e in ends).median:.3f}" for key in _LIKE]
            rows.append(f"| {one.label}, {other.label} | {ends[0].density:.3g} | " + " | ".join(cells) + " |")
    if rows:
        yield from ("", f"Networks at the end, compared by seed (medians){': ' + part if part else ''}.", "")
        yield "| two techniques | density | weights shared (Jaccard) | by chance | beyond chance | signs apart |"
        yield "| --- " * 6 + "|"
        yield from rows


_LIKE = ("jaccard", "by_chance", "beyond_chance", "signs_apart")


def by_time(swept: Sequence[Sweep], study: Study) -> Iterator[str]:
    """Yield the table by retraining time, the time chosen on validation with its test metric, and the safe zone."""
    metric, higher = study["metric"]["name"], study["metric"]["higher_is_better"]
    for density in swept[0].densities:
        times = sorted({t for sweep in swept for t in sweep.at(density)})
        yield f"Validation {metric} in percent at density {density:.3g}, median (range over seeds), by t."
        yield from (
            "",
            "| t | " + " | ".join(sweep.family for sweep in swept) + " |",
            "| --- " * (len(swept) + 1) + "|",
        )
        for t in times:
            yield f"| {t} | " + " | ".join(cell(sweep.at(density).get(t)) for sweep in swept) + " |"
        yield from (
            "",
            "| technique | t chosen on validation | test there | safe zone of t |",
            "| --- " * 4 + "|",
        )
        for sweep in swept:
            chosen, (low, high) = choose(sweep, density, metric, higher), safe_zone(sweep, density, higher)
            yield f"| {sweep.family} | {chosen.epochs} | {cell(chosen.test)} | {low} to {high} |"


def cell(summary: Summary | None) -> str:
    """Median and range, in percent."""
    if summary is None:
        return "-"
    return f"{100 * summary.median:.2f} ({100 * summary.smallest:.2f} to {100 * summary.largest:.2f})"


# ---- what is drawn -------------------------------------------------------------------------------------------------------


def draw(name: str, study: Study, path: Path) -> None:
    """Draw the medians with every seed faint: against t where that was varied, against density where not."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = name
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    swept = sweeps(series_of(study))
    if swept:
        for k, sweep in enumerate(swept):
            at = {t: series.points[sweep.densities[-1]] for t, series in sweep.series}
            line(axes, at, sweep.family, f"C{k}")
        axes.set_xlabel("retraining time t, epochs")
    else:
        pruned = [one for one in series_of(study) if not one.is_control]
        for k, one in enumerate(pruned):
            line(axes, one.points, one.label, f"C{k % 10}")
        for style, one in zip((":", "--", "-."), (s for s in series_of(study) if s.is_control)):
            values = control_values(one, study["metric"]["name"])
            axes.axhline(
                100 * summarize(values.values()).median,
                color="0.3",
                ls=style,
                lw=1.1,
                label=one.label,
            )
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("density")
    axes.set_ylabel(f"validation {study['metric']['name']}, %")
    axes.set_title(f"{name}: median, each seed faint", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def line(axes: Any, points: Any, label: str, colour: str) -> None:
    """Draw one series: x -> seed -> value."""
    xs = sorted(points)
    for seed in sorted({seed for values in points.values() for seed in values}):
        at = [x for x in xs if seed in points[x]]
        axes.plot(at, [100 * points[x][seed] for x in at], color=colour, alpha=0.2, lw=0.8)
    medians = [100 * summarize(points[x].values()).median for x in xs]
    axes.plot(xs, medians, color=colour, marker="o", ms=3.5, label=label)


if __name__ == "__main__":
    main()
