"""Channels of a narrow ResNet on Fashion-MNIST: fine-tuning, weight rewinding and learning-rate rewinding, three seeds.

    python benchmarks/fashion_mnist_structured.py train      # about 35 minutes on two idle cores; goes on where it was killed
    python benchmarks/fashion_mnist_structured.py measure    # compacts every round's network, measures it, writes the record

ResNet-14 of half the usual width, 10,000 training images, T = 8 epochs, 30 % of the channels a round (residual streams
included, global L1 ranking), on the compact network (shrink=True). Control: the dense network trained for as many epochs in
all. Every choice is made on the validation split; the test split is read once, at the end. Latency: batch 1, one thread,
process CPU time, networks in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _machine import facts, write_record
from fashion_mnist import by_round, cell, dense

TASK: dict[str, Any] = {"model": "resnet-14-narrow", "subset": 10_000, "epochs": 8}
HOW: dict[str, Any] = {"rate": 0.3, "until": "4 rounds", "pattern": "channel", "shrink": True}
SEEDS = [0, 1, 2]
TECHNIQUES = ["fine-tuning", "weight-rewinding", "lr-rewinding"]
NAME = "fashion-mnist-channels"


def one_arm(arm: str, seed: int, work: str) -> dict[str, Any]:
    """Train one arm and return its result as JSON-able values."""
    import torch

    from rewound.tasks import drive, load_task

    torch.set_num_threads(1)
    done = Path(work) / f"{arm}-{seed}.json"
    if done.exists():
        return json.loads(done.read_text())
    task = load_task("fashion-mnist", **TASK)
    if arm == "dense":
        found = dense(task, TASK["epochs"] * 5, seed)
    else:
        result, test = drive(task, seed=seed, technique=arm, folder=Path(work) / f"{arm}-{seed}", **HOW)
        found = {"test": test, **result.to_dict()}
    found = {"arm": arm, "seed": seed, **found}
    done.write_text(json.dumps(found))
    return found


def train(work: str, workers: int) -> None:
    """Train all arms, two at a time."""
    Path(work).mkdir(parents=True, exist_ok=True)
    jobs = [(arm, seed) for seed in SEEDS for arm in [*TECHNIQUES, "dense"]]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(one_arm, arm, seed, work) for arm, seed in jobs]
        for i, future in enumerate(as_completed(futures), start=1):
            found = future.result()
            last, test = found["rounds"][-1]["metrics"]["accuracy"], found["test"]["accuracy"]
            print(
                f"{i}/{len(jobs)} {found['arm']} seed {found['seed']}: validation {last:.4f}, test {test:.4f}",
                flush=True,
            )


def networks(work: str) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return (arm, seed, round) -> the compact network of that round with its parameters and multiply-adds."""
    import torch

    import rewound
    from rewound.folder import Folder
    from rewound.mask import Mask
    from rewound.measure import cost
    from rewound.tasks import load_task

    task = load_task("fashion-mnist", **TASK)
    example = torch.zeros(1, 1, 28, 28)
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for arm in TECHNIQUES:
        for seed in SEEDS:
            folder = Folder(Path(work) / f"{arm}-{seed}", 0)
            model = task.model(seed).eval()
            for index in range(5):
                small = model
                if index:
                    mask = Mask.from_plain(folder.load_round(index, "mask"))
                    small = rewound.compact(model, mask, torch.randn(1, 1, 28, 28))
                found[arm, seed, index] = {
                    "model": small,
                    "parameters": cost.parameters(small),
                    "multiply_adds": cost.flops(small, example) // 2,
                }
            folder.close()
    return found


def latencies(found: dict[tuple[str, int, int], dict[str, Any]], repeats: int) -> None:
    """Measure all networks in turns, so that a busy moment meets all of them; add the median in milliseconds."""
    import torch

    torch.set_num_threads(1)
    example, calls = torch.zeros(1, 1, 28, 28), 20
    times: dict[tuple[str, int, int], list[float]] = {key: [] for key in found}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for key, entry in found.items():
                start = time.process_time()
                for _ in range(calls):
                    entry["model"](example)
                if repeat:  # the first turn warms up
                    times[key].append((time.process_time() - start) / calls * 1000)
    for key, values in times.items():
        found[key]["ms"] = statistics.median(values)
        found[key]["ms_spread"] = [min(values), max(values)]


def measure(work: str, out: str | None, repeats: int) -> None:
    """Compact, measure, and write the record."""
    arms = [json.loads(file.read_text()) for file in sorted(Path(work).glob("*.json"))]
    found = networks(work)
    latencies(found, repeats)
    machine = {**facts(), "torch_threads": 1}
    sizes = [
        {"arm": arm, "seed": seed, "round": index, **{k: v for k, v in entry.items() if k != "model"}}
        for (arm, seed, index), entry in found.items()
    ]
    slim = [{**a, "rounds": [{k: v for k, v in r.items() if k != "log"} for r in a["rounds"]]} for a in arms]
    page = text(arms, sizes)
    content = {"machine": machine, "task": TASK, "how": HOW, "arms": slim, "networks": sizes}
    path = write_record(NAME, content, page, out)
    print(page, path, sep="\n\n")


def text(arms: list[dict[str, Any]], sizes: list[dict[str, Any]]) -> str:
    """Return the tables of the record."""
    seeds = len({a["seed"] for a in arms})
    lines = [
        "Fashion-MNIST, ResNet-14 of width 8, 10,000 training images, T = 8 epochs, 30 % of the channels a round (residual "
        f"streams included), {seeds} seeds. Validation accuracy in percent, median (range over seeds).",
        "",
        "| round | channels kept | " + " | ".join(TECHNIQUES) + " |",
        "| --- " * (2 + len(TECHNIQUES)) + "|",
    ]
    tables = {arm: by_round(arms, arm) for arm in TECHNIQUES}
    rounds = next(a for a in arms if a["arm"] == TECHNIQUES[0])["rounds"]
    for index, entry in enumerate(rounds):
        kept, size = (sum(pair[k] for pair in entry["units"].values()) for k in (0, 1))
        cells = [cell(tables[arm][index][1]) for arm in TECHNIQUES]
        lines.append(f"| {index} | {kept} of {size} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "The network of each round, made compact: median over seeds; speed-up = dense / compact, CPU time of one image, one "
        "thread.",
        "",
        "| round | "
        + " | ".join(f"{arm}: parameters, multiply-adds, ms, speed-up" for arm in TECHNIQUES)
        + " |",
        "| --- " * (1 + len(TECHNIQUES)) + "|",
    ]
    whole = statistics.median(s["ms"] for s in sizes if s["round"] == 0)
    for index in range(len(rounds)):
        cells = []
        for arm in TECHNIQUES:
            own = [s for s in sizes if (s["arm"], s["round"]) == (arm, index)]
            mid = {
                key: statistics.median(s[key] for s in own) for key in ("parameters", "multiply_adds", "ms")
            }
            millions = mid["multiply_adds"] / 1e6
            cells.append(
                f"{mid['parameters']:,.0f}, {millions:.2f} M, {mid['ms']:.2f}, {whole / mid['ms']:.2f}x"
            )
        lines.append(f"| {index} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| arm | search cost, epochs | validation at the end | test at the end |",
        "| --- " * 4 + "|",
    ]
    for arm in [*TECHNIQUES, "dense"]:
        own = [a for a in arms if a["arm"] == arm]
        end = [a["rounds"][-1]["metrics"]["accuracy"] for a in own]
        test = [a["test"]["accuracy"] for a in own]
        lines.append(f"| {arm} | {own[0]['search_cost']['epochs']} | {cell(end)} | {cell(test)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument(
        "--work", default="runs/fashion-mnist-channels", help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    if arguments.what == "train":
        train(arguments.work, arguments.workers)
    else:
        measure(arguments.work, arguments.out, arguments.repeats)


if __name__ == "__main__":
    main()
