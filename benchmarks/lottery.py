"""Tickets of LeNet-300-100 on Fashion-MNIST, their controls (Frankle and Carbin 2019), and instability (Frankle et al. 2020).

    python benchmarks/lottery.py               # a quarter of an hour on two cores
    python benchmarks/lottery.py --quick       # a few images, one seed: does it run?

Round by round the network is pruned layer by layer and set back to step 0; what is trained then is the winning ticket. Beside
it, in every round: fresh weights under the same mask (random re-initialisation), and the initial weights under a random mask of
the same layer densities. The validation loss is measured four times an epoch; the early-stopping iteration is that of its
minimum. Then, for some rounds, two copies of the ticket are trained with batches in different orders from epoch k on, and the
error is measured along the line between them. The test split is read at the early-stopping iteration, which the validation loss
has chosen. Layers lose the same share each; Frankle and Carbin prune the last one half as fast.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _machine import facts, write_record

BUDGET: dict[str, Any] = {
    "epochs": 10, "rate": 0.36, "until": 0.02, "seeds": [0, 1, 2], "task": {"subset": 20_000},
}  # fmt: skip
QUICK: dict[str, Any] = {
    "epochs": 2, "rate": 0.6, "until": 0.1, "seeds": [0], "task": {"subset": 1000, "validation": 500},
}  # fmt: skip
PER_EPOCH = 4  # measurements of the validation loss
KINDS = ("winning ticket", "random re-initialisation", "random mask")
FORKS = (0, 1, 3)  # epochs after which two copies go apart
POINTS = 30


def one_seed(budget: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Find tickets with one seed, train the controls, and measure instability; JSON-able."""
    import torch

    import rewound
    from rewound.papers.lottery import random_reinitialization_, random_ticket, winning_ticket_
    from rewound.tasks import load_task

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    epochs = budget["epochs"]
    task = load_task("fashion-mnist", model="lenet-300-100", epochs=epochs, **budget["task"])
    model = task.model(seed)
    initial = copied(model)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, epochs * task.steps_per_epoch, task.steps_per_epoch)
    run = rewound.Run(
        model, optimizer, epochs=epochs, scheduler=scheduler, technique="lottery-ticket", rate=budget["rate"],
        until=budget["until"], allocation="uniform", seed=seed,
    )  # fmt: skip
    masks, logs, ends = {}, {}, {}
    for epoch in run:
        log = logs.setdefault(run.round, [])
        trained(task, model, optimizer, scheduler, epoch, seed, log, ends.setdefault(run.round, {}))
        run.log(**log[-1])
        masks[run.round] = run.mask
    rounds = []
    for index, mask in masks.items():
        found = {KINDS[0]: stopped(task, logs[index], ends[index])}
        for kind in KINDS[1:] if index else ():
            other = task.model(seed)
            if kind == "random mask":
                mask_now = random_ticket(mask, seed)
                winning_ticket_(other, mask_now, initial)
            else:
                mask_now = mask
                random_reinitialization_(other, mask, seed + 1000)
            found[kind] = stopped(task, *train(task, other, mask_now, seed, range(epochs)))
        rounds.append({"index": index, "density": mask.density, **found})
    chosen = sorted({0, len(rounds) // 3, 2 * len(rounds) // 3, len(rounds) - 1})
    unstable = [
        {
            "density": rounds[k]["density"],
            "fork": fork,
            "instability": gap(task, masks[k], initial, seed, fork, epochs),
        }
        for k in chosen
        for fork in FORKS
        if fork < epochs
    ]
    return {"seed": seed, "rounds": rounds, "instability": unstable, "steps_per_epoch": task.steps_per_epoch}


def trained(
    task: Any, model: Any, optimizer: Any, scheduler: Any, epoch: int, seed: int, log: list, best: dict
) -> None:
    """Train one epoch, measuring the validation loss some times; keep the weights of the smallest loss in ``best``."""
    batches, every = task.steps_per_epoch, max(1, task.steps_per_epoch // PER_EPOCH)
    for step, (x, y) in enumerate(task.batches(epoch, seed), start=1):
        model.train()
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        if (step % every == 0 and step // every < PER_EPOCH) or step == batches:
            found = task.evaluate(model)
            log.append({**found, "iteration": epoch * batches + step})
            if not best or found["loss"] < best["loss"]:
                best.update(loss=found["loss"], weights=copied(model))


def train(task: Any, model: Any, mask: Any, seed: int, epochs: range) -> tuple[list, dict]:
    """Train ``model`` under ``mask`` for ``epochs`` of the task's schedule; return its log and its best weights."""
    import rewound

    optimizer, log, best = task.optimizer(model), [], {}
    rewound.guard(optimizer, model, mask)
    scheduler = task.scheduler(optimizer, task.epochs * task.steps_per_epoch, task.steps_per_epoch)
    for _ in range(epochs.start * task.steps_per_epoch):
        scheduler.step()
    for epoch in epochs:
        trained(task, model, optimizer, scheduler, epoch, seed, log, best)
    return log, best


def stopped(task: Any, log: list, best: Mapping[str, Any]) -> dict[str, float]:
    """Return the early-stopping iteration, and what was measured there and at the end; test at the early stop only."""
    from rewound.papers.lottery import early_stop

    stop, model = early_stop(log), task.model(0)
    model.load_state_dict(best["weights"])
    return {
        "iteration": log[log.index(stop.metrics)]["iteration"],
        "loss": stop.loss,
        "accuracy": stop.metrics["accuracy"],
        "test": task.evaluate(model, split="test")["accuracy"],
        "accuracy at the end": log[-1]["accuracy"],
    }


def gap(task: Any, mask: Any, initial: Any, seed: int, fork: int, epochs: int) -> float:
    """Train a ticket to epoch ``fork``, two copies of it on with other batches, and return the rise of error between them."""
    import rewound
    from rewound.papers.lottery import instability, winning_ticket_

    ends = []
    for noise in (seed + 100, seed + 200):
        model = task.model(seed)
        winning_ticket_(model, mask, initial)
        optimizer = task.optimizer(model)
        rewound.guard(optimizer, model, mask)
        scheduler = task.scheduler(optimizer, epochs * task.steps_per_epoch, task.steps_per_epoch)
        for epoch in range(epochs):  # the same batches, and the same optimizer state, up to the fork
            for x, y in task.batches(epoch, seed if epoch < fork else noise):
                optimizer.zero_grad()
                task.loss(model(x), y).backward()
                optimizer.step()
                scheduler.step()
        ends.append(copied(model))
    line = instability(model, *ends, lambda net: 1 - task.evaluate(net)["accuracy"], points=POINTS)
    return line.instability


def copied(model: Any) -> dict[str, Any]:
    """Return the state dict, owned."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# ---- the record ----------------------------------------------------------------------------------------------------------


def text(budget: Mapping[str, Any], seeds: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the record."""
    images = f"{budget['task']['subset']:,} images of Fashion-MNIST"
    yield f"{images}, LeNet-300-100, T = {budget['epochs']} epochs, {budget['rate']:.0%} of each layer's survivors a round, "
    yield f"{len(seeds)} seeds. Median (range over seeds); accuracies in percent, at the early-stopping iteration."
    yield from ("", "![tickets](PICTURE)", "")
    yield "| density | " + " | ".join(f"{kind}: iteration | validation | test" for kind in KINDS) + " |"
    yield "| --- " * (1 + 3 * len(KINDS)) + "|"
    for rounds in zip(*(one["rounds"] for one in seeds)):
        cells = []
        for kind in KINDS:
            there = [r[kind] for r in rounds if kind in r]
            cells.append(shown([r["iteration"] for r in there], 1, 0))
            cells += [shown([r[key] for r in there], 100, 2) for key in ("accuracy", "test")]
        yield f"| {rounds[0]['density']:.3g} | " + " | ".join(cells) + " |"
    yield from (
        "",
        "Instability: error along the line between two copies, above the mean of its ends, in points; stable below 2.",
        "",
    )
    yield "| density | " + " | ".join(f"apart from epoch {fork}" for fork in FORKS) + " |"
    yield "| --- " * (1 + len(FORKS)) + "|"
    for density in dict.fromkeys(one["density"] for one in seeds[0]["instability"]):
        cells = [
            shown(
                [
                    u["instability"]
                    for s in seeds
                    for u in s["instability"]
                    if (u["density"], u["fork"]) == (density, fork)
                ],
                100,
                1,
            )
            for fork in FORKS
        ]
        yield f"| {density:.3g} | " + " | ".join(cells) + " |"


def shown(values: list[float], scale: float, digits: int) -> str:
    """Median and range."""
    if not values:
        return "-"
    middle, low, high = (scale * v for v in (statistics.median(values), min(values), max(values)))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def draw(seeds: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy and early-stopping iteration against density, a line a kind, every seed faint."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "lottery"
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, key, scale, label in ((panels[0], "accuracy", 100, "validation accuracy at the early stop, %"),
                                    (panels[1], "iteration", 1, "early-stopping iteration")):  # fmt: skip
        for k, kind in enumerate(KINDS):
            lines = [
                [(r["density"], scale * r[kind][key]) for r in one["rounds"] if kind in r] for one in seeds
            ]
            for one in lines:
                axes.plot(*zip(*one), color=f"C{k}", alpha=0.25, lw=0.8)
            medians = [statistics.median(value for _, value in points) for points in zip(*lines)]
            axes.plot([d for d, _ in lines[0]], medians, color=f"C{k}", marker="o", ms=3.5, label=kind)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("density")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else BUDGET
    machine = {**facts(), "torch_threads": 1, "processes": arguments.workers}
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        seeds = list(pool.map(one_seed, [budget] * len(budget["seeds"]), budget["seeds"]))
    page = "\n".join(text(budget, seeds))
    name = "lottery-quick" if arguments.quick else "lottery"
    path = write_record(name, {"machine": machine, "budget": budget, "seeds": seeds}, page, arguments.out)
    draw(seeds, path.with_suffix(".svg"))
    path.write_text(path.read_text().replace("PICTURE", path.with_suffix(".svg").name))
    print(page, path, sep="\n\n")


if __name__ == "__main__":
    main()
