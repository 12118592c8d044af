"""Accuracy against multiply-adds: one global threshold, uniform, ERK, and weights weighed against what they cost.

    python benchmarks/cost_aware.py            # about 20 minutes on one core; goes on where it was killed
    python benchmarks/cost_aware.py --quick    # does it run: one seed, 500 images, one epoch

ResNet-14 of half the usual width on Fashion-MNIST, 8,000 training images, T = 4 epochs, pruned once and retrained by
learning-rate rewinding (t = T), three seeds. The original run of a seed is trained once, and every arm goes on from its weights
and its recorded schedule, with fresh momentum. Two comparisons: at equal density (0.1), and at equal multiply-adds (a tenth),
where the other allocations get the density at which they need as many. Accuracies are of the validation split, which decided
nothing here; the test split is read once an arm.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

from _machine import facts, write_record
from fashion_mnist import cell

NAME = "cost-aware"
TASK: dict[str, Any] = {"model": "resnet-14-narrow", "subset": 8_000, "epochs": 4}
QUICK: dict[str, Any] = {"model": "resnet-14-narrow", "subset": 500, "epochs": 1}
SHARE = 0.1  # the density of the first comparison, the part of the multiply-adds in the second
BOTH = f"for_multiply_adds({SHARE:g})"
ARMS = {  # name: (allocation, what is equal)
    "global": ("global", "density"),
    "uniform": ("uniform", "density"),
    "erk": ("erk", "density"),
    "cost": ("cost", "density"),
    "density and multiply-adds": (BOTH, "density"),
    "global, fewer weights": ("global", "multiply-adds"),
    "erk, fewer weights": ("erk", "multiply-adds"),
    "multiply-adds alone": (BOTH, "multiply-adds"),
}


def original(task: Any, seed: int, file: Path) -> dict[str, Any]:
    """Train the network of a seed, or take it from ``file``: its state and the schedule that it used."""
    import torch

    from rewound import Trace
    from rewound.tasks import train_epoch
    from rewound.trace import Recorder

    if not file.exists():
        torch.manual_seed(seed)
        model = task.model(seed)
        optimizer = task.optimizer(model)
        scheduler = task.scheduler(optimizer, task.epochs * task.steps_per_epoch, task.steps_per_epoch)
        recorder = Recorder(optimizer)
        for epoch in range(task.epochs):
            recorder.start_epoch()
            train_epoch(task, model, optimizer, scheduler, epoch, seed)
        content = {
            "model": model.state_dict(),
            "trace": recorder.trace().to_plain(),
            "accuracy": task.evaluate(model)["accuracy"],
        }
        torch.save(content, file)
    found = torch.load(file, weights_only=True)
    return {**found, "trace": Trace.from_plain(found["trace"])}


def density_for(model: Any, allocation: str, example: Any) -> float:
    """Return the density at which ``allocation`` leaves a share of ``SHARE`` of the multiply-adds."""
    import rewound
    from rewound.measure.cost import flops

    if allocation == BOTH:
        return rewound.prune(model, None, allocation=allocation, example=example).density
    low, high, dense = 0.0, 1.0, flops(model, example)
    for _ in range(14):
        middle = (low + high) / 2
        mask = rewound.prune(model, middle, allocation=allocation)
        low, high = (low, middle) if flops(model, example, mask) > SHARE * dense else (middle, high)
    return low


def one_arm(task: Any, name: str, seed: int, start: dict[str, Any]) -> dict[str, Any]:
    """Prune once, rewind the learning rate, retrain; return what came out."""
    import torch

    from rewound import Run
    from rewound.tasks import train_epoch

    torch.manual_seed(seed)
    allocation, equal = ARMS[name]
    model, example = task.model(seed), torch.zeros(1, 1, 28, 28)
    model.load_state_dict(copy.deepcopy(start["model"]))
    optimizer = task.optimizer(model)
    run = Run(
        model,
        optimizer,
        epochs=task.epochs,
        technique="lr-rewinding",
        history=start["trace"],
        rate=None,
        until=SHARE if equal == "density" else density_for(model, allocation, example),
        allocation=allocation,
        example=example,
        seed=seed,
    )
    for epoch in run:
        train_epoch(task, model, optimizer, None, epoch, seed, run.round)
        run.log(**task.evaluate(model))
    last = run.result.rounds[-1]
    return {
        "arm": name,
        "seed": seed,
        "density": last.density,
        "multiply_adds": last.multiply_adds,
        "lowest": min(last.densities.values()),
        "accuracy": last.metrics["accuracy"],
        "test": task.evaluate(model, split="test")["accuracy"],
    }


def text(arms: list[dict[str, Any]], dense: list[float], options: dict[str, Any]) -> str:
    """Return the tables of the record."""
    lines = [
        f"Fashion-MNIST, ResNet-14 of width 8, {options['subset']:,} training images, pruned once after T = "
        f"{options['epochs']} epochs, learning-rate rewinding with t = T; {len(dense)} seeds. Accuracy in percent, median "
        f"(range over seeds). Before pruning: {cell(dense)} on the validation split."
    ]
    for equal in ("density", "multiply-adds"):
        lines += [
            "",
            f"Equal {equal} ({SHARE:g}):",
            "",
            "| allocation | density | multiply-adds | fewer | sparsest tensor | validation | test |",
            "| --- " * 7 + "|",
        ]
        for name, (_, which) in ARMS.items():
            own = [a for a in arms if a["arm"] == name]
            # Uniform is both at once.
            if not own or (which != equal and (name, equal) != ("uniform", "multiply-adds")):
                continue
            share = statistics.median(a["multiply_adds"][0] / a["multiply_adds"][1] for a in own)
            density, lowest = (statistics.median(a[key] for a in own) for key in ("density", "lowest"))
            accuracies = (cell([a[key] for a in own]) for key in ("accuracy", "test"))
            lines.append(
                f"| {name} | {density:.3f} | {share:.3f} | {1 / share:.1f}x | {lowest:.4f} | {' | '.join(accuracies)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 500 images, one epoch")
    parser.add_argument("--work", default=None, help="folder of what is done (default: runs/cost-aware)")
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    import torch

    from rewound.tasks import load_task

    torch.set_num_threads(1)
    options, seeds = (QUICK, [0]) if arguments.quick else (TASK, [0, 1, 2])
    work = Path(arguments.work or ("runs/cost-aware-quick" if arguments.quick else "runs/cost-aware"))
    work.mkdir(parents=True, exist_ok=True)
    machine = {**facts(), "torch_threads": 1}
    task = load_task("fashion-mnist", **options)
    arms, dense = [], []
    for seed in seeds:
        start = original(task, seed, work / f"original-{seed}.pt")
        dense.append(start["accuracy"])
        for name in ARMS:
            file = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(one_arm(task, name, seed, start)))
            found = json.loads(file.read_text())
            arms.append(found)
            share = found["multiply_adds"][0] / found["multiply_adds"][1]
            print(
                f"{name}, seed {seed}: density {found['density']:.3f}, multiply-adds {share:.3f}, "
                f"validation {found['accuracy']:.4f}, test {found['test']:.4f}",
                flush=True,
            )
    page = text(arms, dense, options)
    if arguments.quick and arguments.out is None:
        print(page)
        return
    content = {"machine": machine, "task": options, "dense": dense, "arms": arms}
    path = write_record(NAME + "-quick" * arguments.quick, content, page, arguments.out)
    print(page, path, sep="\n\n")


if __name__ == "__main__":
    main()
