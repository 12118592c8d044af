"""What states on disk add to an epoch, and whether memory grows with their number.

    python benchmarks/snapshots.py

ResNet-20 on Fashion-MNIST: one epoch is far longer than this script needs, so it measures (a) the CPU and wall time of an
optimizer step, which gives the epoch, (b) the time of writing one whole state, captured and fsynced, many times, and reports
(b) / epoch. Memory: the live tensors of a Run with a folder over rounds of weight rewinding.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from typing import Any

import torch
from _machine import facts, write_record
from torch import nn

import rewound
from rewound.folder import Folder
from rewound.state import capture
from rewound.tasks import load_task


def live_bytes() -> int:
    """Bytes of all live tensors."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return sum(
        t.untyped_storage().nbytes() for t in {t.untyped_storage().data_ptr(): t for t in tensors}.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--writes", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    machine = facts()
    task = load_task("fashion-mnist", model="resnet-20")
    model = task.model(0)
    optimizer = task.optimizer(model)
    batches = task.batches(0, 0)
    steps: list[float] = []
    for _ in range(arguments.steps + 1):
        x, y = next(batches)
        start = time.perf_counter()
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
    epoch = statistics.median(steps[1:]) * task.steps_per_epoch
    writes: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(place)
        for number in range(arguments.writes):
            start = time.perf_counter()
            path = folder.save_state("epoch", number, capture(model, optimizer).to_plain(), keep=2)
            writes.append(time.perf_counter() - start)
        size = path.stat().st_size
        folder.close()
    memory = memory_by_round()
    share = statistics.median(writes) / epoch
    data: dict[str, Any] = {
        "machine": machine, "seconds_an_epoch": epoch,
        "seconds_a_state": {"median": statistics.median(writes), "max": max(writes)},
        "bytes_a_state": size, "share_of_an_epoch": share, "live_tensor_bytes_by_round": memory,
    }  # fmt: skip
    text = (
        f"ResNet-20 on Fashion-MNIST, 2 threads: an epoch takes {epoch:.1f} s ({task.steps_per_epoch} steps); a whole state "
        f"({size / 1e6:.2f} MB) is written in {statistics.median(writes) * 1e3:.1f} ms (median of {len(writes)}, at most "
        f"{max(writes) * 1e3:.1f} ms): {100 * share:.3f} % of an epoch for one state an epoch.\n\n"
        "States are spaced so that they take at most 2 % of the time of any run (rewound.store.SHARE_OF_TIME).\n\n"
        f"Live tensors of a Run with a folder at the end of rounds 1 to {len(memory)} of weight rewinding, bytes: {memory}."
    )
    print(text)
    print(write_record("snapshots", data, text))


def memory_by_round() -> list[int]:
    """Live tensor bytes at the end of each round."""
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = []
    with tempfile.TemporaryDirectory() as place:
        run = rewound.Run(
            model, optimizer, epochs=3, technique="weight-rewinding:2ep", until="8 rounds", folder=place
        )
        for epoch in run:
            optimizer.zero_grad()
            model(torch.ones(4, 256)).square().mean().backward()
            optimizer.step()
            run.log(x=0)
            if run.round and epoch == 2:
                found.append(live_bytes())
    return found


if __name__ == "__main__":
    main()
