"""Run(shrink=True) against masked training: epochs a second, round by round, and the same results.

    python benchmarks/shrink.py
    python benchmarks/shrink.py --quick --out /tmp       # the digits: does it run?

A ResNet-20 on Fashion-MNIST, channel pruning, learning-rate rewinding, one thread. Two runs take turns epoch by epoch (who
goes first changes): one masked, one whose network gets smaller where it stands. Timed is the training of an epoch; what
lies between two rounds (pruning, cutting, rewinding) is told apart. Before that, a short pair in float64 on the digits must
agree in every logged number to 1e-8 (relative): in float32, sums of another order drift apart, as on any two machines, so that
only accuracies are compared there.

Takes about five minutes.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from _fresh import parser, shown
from _machine import facts, write_record
from torch import nn

import rewound
from rewound.tasks import load_task, train_epoch
from rewound.tasks.fashion_mnist import fashion_mnist
from rewound.tasks.models.resnet import cifar_resnet

MASKED, SMALL = "masked", "shrink"
CLOSE = 0.05  # of accuracy, in float32, round by round; in float64 everything is compared
EXACT = 1e-8


class Side:
    """One run, driven epoch by epoch from outside."""

    def __init__(self, task: Any, name: str, double: bool, **options: Any) -> None:
        self.task, self.name = task, name
        self.model: nn.Module = task.model(0).double() if double else task.model(0)
        self.optimizer = task.optimizer(self.model)
        epochs = options["epochs"]
        scheduler = task.scheduler(self.optimizer, epochs * task.steps_per_epoch, task.steps_per_epoch)
        example = next(iter(task.batches(0, 0)))[0]
        self.run = rewound.Run(
            self.model, self.optimizer, scheduler=scheduler, pattern="channel", allocation="uniform", example=example,
            shrink=name == SMALL, **options,
        )  # fmt: skip
        self.scheduler, self.epochs = scheduler, iter(self.run)
        self.rows: list[dict[str, Any]] = []

    def epoch(self) -> bool:
        """Train one epoch; return whether there was one left."""
        start = time.process_time(), time.perf_counter()
        number = next(self.epochs, None)
        if number is None:
            return False
        began = time.process_time(), time.perf_counter()
        loss = train_epoch(self.task, self.model, self.optimizer, self.scheduler, number, 0, self.run.round)
        done = time.process_time(), time.perf_counter()
        metrics = {"train_loss": loss, **self.task.evaluate(self.model)}
        self.run.log(**metrics)
        self.rows.append({
            "round": self.run.round, "epoch": number, "between_cpu_s": began[0] - start[0], "cpu_s": done[0] - began[0],
            "wall_s": done[1] - began[1], "parameters": sum(p.numel() for p in self.model.parameters()), **metrics,
        })  # fmt: skip
        return True


def pair(task: Any, double: bool = False, **options: Any) -> dict[str, Side]:
    """Train both, in turns."""
    sides = {name: Side(task, name, double, **options) for name in (MASKED, SMALL)}
    turn, left = 0, True
    while left:
        order: Iterator[Side] = iter(sides.values()) if turn % 2 == 0 else reversed(list(sides.values()))
        alive = [side.epoch() for side in order]
        if len(set(alive)) > 1:
            raise AssertionError("the two runs have another number of epochs")
        turn, left = turn + 1, alive[0]
        if left:
            a, b = (side.rows[-1] for side in sides.values())
            print(
                f"round {a['round']}, epoch {a['epoch']}: {MASKED} {a['cpu_s']:.2f} s, {SMALL} {b['cpu_s']:.2f} s, "
                f"accuracy {a['accuracy']:.4f} and {b['accuracy']:.4f}",
                flush=True,
            )
    return sides


def difference(sides: dict[str, Side]) -> float:
    """Return the largest relative difference between numbers that the two runs logged."""
    keys = ("train_loss", "loss", "accuracy")
    pairs = [(a[k], b[k]) for a, b in zip(sides[MASKED].rows, sides[SMALL].rows) for k in keys]
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)


def doubled(task: Any) -> Any:
    """The task with inputs in float64."""
    before = task.prepare
    return replace(task, prepare=lambda x: (x if before is None else before(x)).double())


def by_round(sides: dict[str, Side]) -> list[dict[str, Any]]:
    """Return what each round was, both sides."""
    found = []
    for index in sorted({row["round"] for row in sides[MASKED].rows}):
        rows = {name: [r for r in side.rows if r["round"] == index] for name, side in sides.items()}
        ends = {name: side.run.result.rounds[index] for name, side in sides.items()}
        units = ends[MASKED].unit_density
        if units != ends[SMALL].unit_density:
            raise AssertionError(
                f"round {index}: {units} and {ends[SMALL].unit_density} of the units are kept"
            )
        found.append({
            "round": index, "units": units,
            "parameters": {name: those[-1]["parameters"] for name, those in rows.items()},
            "epochs_a_second": {name: [1 / r["cpu_s"] for r in those] for name, those in rows.items()},
            "wall_s": {name: [r["wall_s"] for r in those] for name, those in rows.items()},
            "times_faster": [a["cpu_s"] / b["cpu_s"] for a, b in zip(rows[MASKED], rows[SMALL])],
            "between_cpu_s": {name: those[0]["between_cpu_s"] for name, those in rows.items()},
            "accuracy": {name: those[-1]["accuracy"] for name, those in rows.items()},
        })  # fmt: skip
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--images", type=int, default=2560, help="of an epoch (default: %(default)s)")
    made.add_argument(
        "--width", type=int, default=16, help="of ResNet-20's first stage (default: %(default)s)"
    )
    made.add_argument("--epochs", type=int, default=3, help="of a round (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=6)
    made.add_argument("--rate", type=float, default=0.3)
    given = made.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    machine = {**facts(), "torch_threads": 1}

    digits = load_task("digits-resnet")
    exact = pair(doubled(digits), double=True, epochs=2, rate=0.4, until="2 rounds")
    worst = difference(exact)
    if worst > EXACT:
        raise AssertionError(f"in float64 the two runs differ by {worst:.1e} (relative)")

    options = {"epochs": given.epochs, "rate": given.rate, "until": f"{given.rounds} rounds"}
    if given.quick:
        task, what = digits, "ResNet-8 on the digits"
        options |= {"epochs": 1, "until": "2 rounds"}
    else:
        task = fashion_mnist("resnet-20", subset=given.images, validation=1000)
        task = replace(task, build=lambda: cifar_resnet(20, width=given.width, in_channels=1))
        what = f"ResNet-20 of width {given.width} on {given.images:,} images of Fashion-MNIST"
    sides = pair(task, **options)
    rounds = by_round(sides)
    apart = [abs(r["accuracy"][MASKED] - r["accuracy"][SMALL]) for r in rounds]
    page = text(what, options, rounds, worst, apart)
    record = {"machine": machine, "options": options, "float64_difference": worst, "rounds": rounds}
    print("", page, "", write_record("shrink", record, page, given.out), sep="\n")
    if max(apart) > CLOSE and not given.quick:
        raise SystemExit(
            f"the accuracies of a round are {max(apart):.3f} apart: look into it before this is published"
        )


def text(
    what: str, options: dict[str, Any], rounds: list[dict[str, Any]], worst: float, apart: list[float]
) -> str:
    """Return the table of the record."""
    lines = [
        f"{what}, channel pruning, {options['rate']} of the channels a round, {options['epochs']} epochs a round, one thread. "
        "Epochs a second of process CPU time: median (range over the epochs of the round).", "",
        "| round | channels kept | parameters, shrink | masked | shrink | times faster | between rounds, s: masked, shrink "
        "| accuracy: masked, shrink |", "|" + "---|" * 8,
    ]  # fmt: skip
    for r in rounds:
        rates, between, accuracy = r["epochs_a_second"], r["between_cpu_s"], r["accuracy"]
        cells = [
            f"{r['round']}", f"{r['units']:.3f}", f"{r['parameters'][SMALL]:,}", shown(rates[MASKED], 3), shown(rates[SMALL], 3),
            shown(r["times_faster"]), f"{between[MASKED]:.1f}, {between[SMALL]:.1f}",
            f"{100 * accuracy[MASKED]:.2f}, {100 * accuracy[SMALL]:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    total = {
        name: sum(statistics.fmean(1 / e for e in r["epochs_a_second"][name]) for r in rounds)
        for name in (MASKED, SMALL)
    }
    lines += [
        "",
        f"Training of all rounds: {total[MASKED] / total[SMALL]:.2f} times faster. A pair of runs in float64 on the digits "
        f"agrees in every logged loss and accuracy to {worst:.1e} (relative); here, in float32, accuracies at the end of a round "
        f"are at most {100 * max(apart):.2f} points apart.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
