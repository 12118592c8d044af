"""Fine-tuning, weight rewinding and learning-rate rewinding on Fashion-MNIST, iterative, with controls of equal epochs.

    python benchmarks/fashion_mnist.py lenet-300-100       # T = 10, 20 % a round to density 0.02, three seeds
    python benchmarks/fashion_mnist.py lenet-5             # smaller budget: 10,000 images, T = 5, 50 % a round to 0.05

Controls: "dense" trains the unpruned network for as many epochs as learning-rate rewinding takes in all; "cyclic" repeats the
schedule round by round as learning-rate rewinding does, and prunes nothing. Every choice is made on the validation split; the
test split is read once, at the end of a run. Arms run in two processes of one thread each; each has its folder under --work, so
a killed benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _machine import facts, write_record

BUDGETS: dict[str, dict[str, Any]] = {
    "lenet-300-100": {"task": {}, "epochs": 10, "rate": 0.2, "until": 0.02, "seeds": [0, 1, 2]},
    "lenet-5": {"task": {"subset": 10_000}, "epochs": 5, "rate": 0.5, "until": 0.05, "seeds": [0, 1, 2]},
}
TECHNIQUES = ["fine-tuning", "weight-rewinding", "lr-rewinding"]
CONTROLS = ["dense", "cyclic"]


def one_arm(model: str, arm: str, seed: int, work: str) -> dict[str, Any]:
    """Train one arm and return its result as JSON-able values."""
    import torch

    from rewound.plan import kept_by_round, parse_until
    from rewound.tasks import drive, load_task

    torch.set_num_threads(1)
    budget = BUDGETS[model]
    epochs, rate, until = budget["epochs"], budget["rate"], budget["until"]
    task = load_task("fashion-mnist", model=model, epochs=epochs, **budget["task"])
    rounds = len(kept_by_round(10**6, rate, parse_until(until)))
    if arm == "dense":
        return {"arm": arm, "seed": seed, **dense(task, epochs * (1 + rounds), seed)}
    options: dict[str, Any] = {"epochs": epochs, "technique": arm, "rate": rate, "until": until}
    if arm == "cyclic":
        options |= {"technique": "lr-rewinding", "rate": 0, "until": f"{rounds} rounds"}
    result, test = drive(task, seed=seed, folder=Path(work) / model / f"{arm}-{seed}", **options)
    return {"arm": arm, "seed": seed, "test": test, **result.to_dict()}


def dense(task: Any, epochs: int, seed: int) -> dict[str, Any]:
    """Train the network once, for ``epochs``, and return what an arm returns."""
    from rewound.measure.cost import training_flops
    from rewound.tasks import train_epoch

    model = task.model(seed)
    optimizer = task.optimizer(model)
    steps = epochs * task.steps_per_epoch
    scheduler = task.scheduler(optimizer, steps, task.steps_per_epoch)
    for epoch in range(epochs):
        train_epoch(task, model, optimizer, scheduler, epoch, seed)
    flops = steps * training_flops(model, next(iter(task.batches(0, seed)))[0])
    return {
        "test": task.evaluate(model, split="test"),
        "rounds": [{"density": 1.0, "metrics": task.evaluate(model)}],
        "search_cost": {"epochs": epochs, "steps": steps, "flops": flops},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=list(BUDGETS))
    parser.add_argument(
        "--work", default="runs/fashion-mnist", help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    model, budget = arguments.model, BUDGETS[arguments.model]
    machine = {**facts(), "torch_threads": 1, "processes": arguments.workers}
    jobs = [(arm, seed) for seed in budget["seeds"] for arm in TECHNIQUES + CONTROLS]
    arms: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(one_arm, model, arm, seed, arguments.work): (arm, seed) for arm, seed in jobs}
        for future in as_completed(futures):
            found = future.result()
            arms.append(found)
            last = found["rounds"][-1]
            print(
                f"{len(arms)}/{len(jobs)} {found['arm']} seed {found['seed']}: density {last['density']:.3f}, "
                f"validation {last['metrics']['accuracy']:.4f}, test {found['test']['accuracy']:.4f}",
                flush=True,
            )
    arms.sort(key=lambda a: ((TECHNIQUES + CONTROLS).index(a["arm"]), a["seed"]))
    name = f"fashion-mnist-{model}"
    page = text(model, budget, arms)
    slim = [{**a, "rounds": [{k: v for k, v in r.items() if k != "log"} for r in a["rounds"]]} for a in arms]
    path = write_record(name, {"machine": machine, "budget": budget, "arms": slim}, page, arguments.out)
    picture(model, budget, arms, path.with_suffix(".svg"))
    path.write_text(path.read_text().replace("PICTURE", path.with_suffix(".svg").name))
    print(page, path, sep="\n\n")


def by_round(
    arms: list[dict[str, Any]], arm: str, metric: str = "accuracy"
) -> list[tuple[float, list[float]]]:
    """Return (density, values over seeds) for every round of an arm."""
    runs = [a["rounds"] for a in arms if a["arm"] == arm]
    return [(rounds[0]["density"], [r["metrics"][metric] for r in rounds]) for rounds in zip(*runs)]


def cell(values: list[float]) -> str:
    """Median and range over seeds, in percent."""
    return f"{100 * statistics.median(values):.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def text(model: str, budget: dict[str, Any], arms: list[dict[str, Any]]) -> str:
    """Return the tables of the record."""
    cost = {arm: next(a["search_cost"] for a in arms if a["arm"] == arm) for arm in TECHNIQUES + CONTROLS}
    lines = [
        f"Fashion-MNIST, {model}, T = {budget['epochs']} epochs, rate {budget['rate']}, until density {budget['until']}, "
        f"{len(budget['seeds'])} seeds{', ' + str(budget['task']) if budget['task'] else ''}. Validation accuracy in percent, "
        "median (range over seeds).",
        "",
        "![validation accuracy against density](PICTURE)",
        "",
        "| round | density | " + " | ".join(TECHNIQUES) + " | cyclic, dense |",
        "| --- " * (3 + len(TECHNIQUES)) + "|",
    ]
    tables = {arm: by_round(arms, arm) for arm in TECHNIQUES + ["cyclic"]}
    for k, (density, _) in enumerate(tables[TECHNIQUES[0]]):
        cells = [cell(tables[arm][k][1]) for arm in [*TECHNIQUES, "cyclic"]]
        lines.append(f"| {k} | {density:.4f} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| arm | search cost, epochs | training FLOPs (dense) | validation at the end | test at the end |",
        "| --- " * 5 + "|",
    ]
    for arm in TECHNIQUES + CONTROLS:
        end = [a["rounds"][-1]["metrics"]["accuracy"] for a in arms if a["arm"] == arm]
        test = [a["test"]["accuracy"] for a in arms if a["arm"] == arm]
        lines.append(
            f"| {arm} | {cost[arm]['epochs']} | {cost[arm]['flops']:.3g} | {cell(end)} | {cell(test)} |"
        )
    return "\n".join(lines)


def picture(model: str, budget: dict[str, Any], arms: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against density: a line a technique (median), every seed faint, the dense controls dotted."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = model
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    colours = {"fine-tuning": "#0072b2", "weight-rewinding": "#d55e00", "lr-rewinding": "#009e73"}
    for arm, colour in colours.items():
        table = by_round(arms, arm)
        densities = [density for density, _ in table]
        for seed in range(len(table[0][1])):
            axes.plot(
                densities, [100 * values[seed] for _, values in table], color=colour, alpha=0.25, lw=0.8
            )
        axes.plot(
            densities,
            [100 * statistics.median(v) for _, v in table],
            color=colour,
            marker="o",
            ms=3,
            label=arm,
        )
    dense = [100 * a["rounds"][0]["metrics"]["accuracy"] for a in arms if a["arm"] == "dense"]
    cyclic = [100 * a["rounds"][-1]["metrics"]["accuracy"] for a in arms if a["arm"] == "cyclic"]
    axes.axhline(statistics.median(dense), color="0.3", ls=":", lw=1.2, label="dense, equal total epochs")
    axes.axhline(
        statistics.median(cyclic), color="0.3", ls="--", lw=1.2, label="dense, cyclic, equal total epochs"
    )
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [d for d in (1, 0.5, 0.2, 0.1, 0.05, 0.02) if d >= budget["until"] * 0.99]
    axes.set_xticks(ticks, [f"{d:g}" for d in ticks])
    axes.minorticks_off()
    axes.set_xlabel("density")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title(f"Fashion-MNIST, {model}, T = {budget['epochs']} epochs a round", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
