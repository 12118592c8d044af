"""What the guard adds to a training step; beside it torch.nn.utils.prune on the same model, interleaved.

    python benchmarks/guard.py

The steps are those of the bundled tasks and their loop (rewound.tasks.train_epoch): the digits MLP at batch 64, and ResNet-20
on Fashion-MNIST at batch 128; SGD with momentum and weight decay, 80 % pruned by global magnitude. One thread, process CPU time.
Blocks of steps are taken in turn (plain, guarded, torch.nn.utils.prune, plain, ...); a ratio compares blocks of one turn, and
its median, quartiles and range are reported. The digits network begins every block from fresh weights: trained on for
thousands of steps, its gradients would become denormal numbers, which are slow, in some of the networks and not in others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from _machine import facts, write_record
from torch import nn
from torch.nn.utils import prune as torch_prune

import rewound
from rewound.tasks import load_task, train_epoch

DENSITY = 0.2
KINDS = ["plain", "guarded", "torch.nn.utils.prune"]


def prepared(task: Any, kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Return model, optimizer and scheduler of ``task``, pruned weights held by ``kind``."""
    model = task.model(0)
    mask = rewound.prune(model, density=DENSITY)
    mask.apply_(model)  # the plain step starts from the same weights, and lets them grow
    if kind == "torch.nn.utils.prune":
        for name, kept in mask.items():
            torch_prune.custom_from_mask(model.get_submodule(name.rpartition(".")[0]), "weight", kept)
    optimizer = task.optimizer(model)
    if kind == "guarded":
        rewound.guard(optimizer, model, mask)
    return model, optimizer, task.scheduler(optimizer, 20 * task.steps_per_epoch, task.steps_per_epoch)


def limited(task: Any, steps: int) -> Any:
    """Return what the loop needs of ``task``, with ``steps`` batches an epoch."""

    def batches(epoch: int, seed: int, round: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return islice(task.batches(epoch, seed, round), steps)

    return SimpleNamespace(batches=batches, loss=task.loss, steps_per_epoch=steps)


def measure(task: Any, steps: int, epochs: int, turns: int, fresh: bool) -> dict[str, object]:
    """Return milliseconds a step and ratios to the plain step: blocks of ``epochs`` epochs of ``steps`` steps."""
    fed = limited(task, steps)
    kept = {kind: prepared(task, kind) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(turns + 1):
        for kind in KINDS[turn % 3 :] + KINDS[: turn % 3]:  # none is always the first of a turn
            model, optimizer, scheduler = prepared(task, kind) if fresh else kept[kind]
            if fresh:
                train_epoch(fed, model, optimizer, scheduler, 0, 0)
            start = time.process_time()
            for epoch in range(epochs):
                train_epoch(fed, model, optimizer, scheduler, 1 + epoch + turn * (not fresh), 0)
            if turn > 0:  # the first turn warms up
                times[kind].append((time.process_time() - start) / (steps * epochs) * 1e3)
    ratios = {kind: [a / b for a, b in zip(times[kind], times["plain"])] for kind in KINDS[1:]}
    return {
        "milliseconds": {kind: statistics.median(values) for kind, values in times.items()},
        "ratio": {kind: spread(values) for kind, values in ratios.items()},
        "turns": turns,
        "steps_a_block": steps * epochs,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, quartiles and range."""
    low, _, high = statistics.quantiles(values, n=4)
    return {
        "median": statistics.median(values),
        "q1": low,
        "q3": high,
        "min": min(values),
        "max": max(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = facts()
    digits, resnet = load_task("digits"), load_task("fashion-mnist", model="resnet-20")
    found = {
        "digits MLP, batch 64": measure(digits, digits.steps_per_epoch, 10, arguments.turns, fresh=True),
        "ResNet-20, batch 128": measure(resnet, 1, 1, arguments.turns, fresh=False),
    }
    lines = [
        "Ratio to the same training step without pruning (median, quartiles, range):",
        "",
        "| network | plain step | guarded | torch.nn.utils.prune |",
        "| --- | --- | --- | --- |",
    ]
    for name, result in found.items():
        cells = [
            f"{r['median']:.3f} ({r['q1']:.3f} to {r['q3']:.3f}; {r['min']:.3f} to {r['max']:.3f})"
            for r in result["ratio"].values()  # type: ignore[attr-defined]
        ]
        lines.append(f"| {name} | {result['milliseconds']['plain']:.3f} ms | {' | '.join(cells)} |")  # type: ignore[index]
    print("\n".join(lines))
    print(
        write_record("guard", {"machine": machine, "density": DENSITY, "networks": found}, "\n".join(lines))
    )


if __name__ == "__main__":
    main()
