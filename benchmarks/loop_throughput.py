"""Bundled batches against a standard DataLoader: LeNet-300-100 trained by one loop, fed two ways.

    python benchmarks/loop_throughput.py [--images 12800] [--repeats 9] [--batch-size 128] [--threads 1 2]

Data of Fashion-MNIST's shape (made up: values do not matter). The DataLoader reads a TensorDataset of float images, as
tutorials do, and makes its batches in the training process or in two workers; once with torch's default SGD in place of
the task's fused one. The ways take turns within every repeat; the record states median and spread of each, and of the
ratios within repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import torch
from _machine import facts, write_record
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from rewound.tasks import train_epoch
from rewound.tasks.fashion_mnist import MODELS, RECIPES, normalised
from rewound.tasks.splits import Data
from rewound.tasks.tensor_task import TensorTask

BUNDLED, STANDARD = "bundled", "DataLoader"
Feed = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


def make_task(images: int, batch_size: int) -> TensorTask:
    """Return LeNet-300-100's bundled task over made-up images."""
    x = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8)
    data = Data((x, torch.randint(0, 10, (images,))), (x[:1], x[:1]), lambda: (x[:1], x[:1]))
    recipe = RECIPES["lenet-300-100"] | {"batch_size": batch_size}
    return TensorTask("bench", lambda: data, MODELS["lenet-300-100"], prepare=normalised, **recipe)


def feeds(task: TensorTask) -> dict[str, Feed]:
    """Return name -> what gives the batches of an epoch."""
    images, labels = task.data.train
    standard = TensorDataset(normalised(images), labels)
    alone = DataLoader(standard, task.batch_size, shuffle=True)
    helped = DataLoader(standard, task.batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    return {
        BUNDLED: lambda epoch: task.batches(epoch, seed=0),
        STANDARD: lambda epoch: alone,
        f"{STANDARD}, 2 workers": lambda epoch: helped,
    }


def measure(task: TensorTask, repeats: int) -> dict[str, list[float]]:
    """Return name -> images a second, one value a repeat, the ways taking turns in changing order."""
    ways = []
    for name, feed in feeds(task).items():
        model = task.model(0)
        fed = SimpleNamespace(
            batches=lambda epoch, seed, round, feed=feed: feed(epoch),
            loss=task.loss,
            steps_per_epoch=task.steps_per_epoch,
        )
        ways.append((name, fed, model, task.optimizer(model)))
        if name == STANDARD:  # and once with the optimizer that torch gives by default
            model = task.model(0)
            default = SGD(
                model.parameters(), lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay
            )
            ways.append((f"{STANDARD}, default SGD", fed, model, default))
    rates: dict[str, list[float]] = {name: [] for name, *_ in ways}
    for repeat in range(repeats + 1):
        for name, fed, model, optimizer in ways[repeat % len(ways) :] + ways[: repeat % len(ways)]:
            began = time.perf_counter()
            train_epoch(fed, model, optimizer, None, repeat, 0)
            if repeat > 0:  # the first is for warming up
                rates[name].append(len(task.data.train[1]) / (time.perf_counter() - began))
    return rates


def spread(values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", help="folder of the record; default benchmarks/records")
    options = parser.parse_args()
    machine = facts()
    found, lines = (
        {},
        ["| threads | way | images / s: median (range) | bundled is faster by: median (range) |"],
    )
    lines.append("|---|---|---|---|")
    for threads in options.threads:
        torch.set_num_threads(threads)
        rates = measure(make_task(options.images, options.batch_size), options.repeats)
        for name, values in rates.items():
            rate, ratio = spread(values), spread([b / v for b, v in zip(rates[BUNDLED], values)])
            found[f"{threads} threads, {name}"] = {"images_per_second": rate, "bundled_over_this": ratio}
            times = "{median:.2f} x ({min:.2f} .. {max:.2f})".format(**ratio) if name != BUNDLED else ""
            shown = "{median:,.0f} ({min:,.0f} .. {max:,.0f})".format(**rate)
            lines.append(f"| {threads} | {name} | {shown} | {times} |")
    lines += [
        "",
        f"LeNet-300-100, batches of {options.batch_size}, {options.images:,} images an epoch; the ways take",
        f"turns {options.repeats} times. The loop is the same for all, and the optimizer (fused SGD), but where named.",
    ]
    record = {
        "machine": machine,
        "images": options.images,
        "batch_size": options.batch_size,
        "results": found,
    }
    print(write_record("loop_throughput", record, "\n".join(lines), options.out).read_text())


if __name__ == "__main__":
    main()
