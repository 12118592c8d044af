"""What the guard adds to a training step; beside it torch.nn.utils.prune on the same model, interleaved.

    python benchmarks/guard.py

Networks: the MLP of the digits task at batch 64, and ResNet-20 (CIFAR size) at batch 128; SGD with momentum, 80 % pruned
by global magnitude. One thread, process CPU time. Blocks of steps are taken in turn (plain, guarded, torch.nn.utils.prune,
plain, ...); a ratio compares blocks of one turn, and its median, quartiles and range are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _machine import facts, write_record
from torch import nn
from torch.nn.utils import prune as torch_prune

import rewound
from rewound.tasks import load_task
from rewound.tasks.models.resnet import cifar_resnet

DENSITY = 0.2


def stepper(model: nn.Module, x: torch.Tensor, y: torch.Tensor, kind: str) -> Callable[[], None]:
    """Return one training step of ``model``, its pruned weights held by ``kind``."""
    if kind == "torch.nn.utils.prune":
        mask = rewound.prune(model, density=DENSITY)  # the same weights
        for name, kept in mask.items():
            module = model.get_submodule(name.rpartition(".")[0])
            torch_prune.custom_from_mask(module, "weight", kept)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    if kind == "guarded":
        rewound.guard(optimizer, model, rewound.prune(model, density=DENSITY))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def measure(make: Callable[[], nn.Module], x: torch.Tensor, steps: int, turns: int) -> dict[str, object]:
    """Return milliseconds a step and ratios to the plain step, over ``turns`` turns of ``steps`` steps."""
    y = torch.randint(0, 10, (len(x),))
    kinds = ["plain", "guarded", "torch.nn.utils.prune"]
    steppers = {kind: stepper(make(), x, y, kind) for kind in kinds}
    for step in steppers.values():
        for _ in range(max(2, steps // 4)):
            step()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(turns):
        for kind in kinds[turn % 3 :] + kinds[: turn % 3]:  # none is always the first of a turn
            start = time.process_time()
            for _ in range(steps):
                steppers[kind]()
            times[kind].append((time.process_time() - start) / steps * 1e3)
    ratios = {kind: [a / b for a, b in zip(times[kind], times["plain"])] for kind in kinds[1:]}
    return {
        "milliseconds": {kind: statistics.median(values) for kind, values in times.items()},
        "ratio": {kind: spread(values) for kind, values in ratios.items()},
        "turns": turns,
        "steps_a_block": steps,
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
    torch.manual_seed(0)
    machine = facts()
    digits = load_task("digits")
    found = {
        "digits MLP, batch 64": measure(
            lambda: digits.model(0), torch.randn(64, 64).reshape(64, 1, 8, 8), 200, arguments.turns
        ),
        "ResNet-20, batch 128": measure(
            lambda: cifar_resnet(20), torch.randn(128, 3, 32, 32), 1, arguments.turns
        ),
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
