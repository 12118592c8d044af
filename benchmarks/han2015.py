"""Han et al. 2015's tables of LeNet-300-100 and LeNet-5, on Fashion-MNIST and on digits: layer densities beside theirs.

    python benchmarks/han2015.py               # about half an hour on two cores
    python benchmarks/han2015.py --quick       # a few images, one seed: does it run?

Their networks, another data set: they used MNIST. The digits are scikit-learn's 1,797, enlarged from 8 x 8 to 28 x 28 pixels.
Train. Then, round by round: scan how sensitive each layer is (each pruned alone, nothing retrained) and take for each the
largest quality parameter that costs half a point at most; prune the dense layers and retrain them at a tenth of the learning
rate, the convolutions frozen, and the other way round; dead units go. The last round whose validation error is within a standard
error of the dense network's is kept (Han: no loss of accuracy). The test split is read for the dense network and for that one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from _machine import facts, write_record

# Layer densities in percent and error in percent as the paper's tables 3, 4 and 1 have them, on MNIST.
HAN: dict[str, dict[str, Any]] = {
    "lenet-300-100": {"densities": (8, 9, 26), "error": (1.64, 1.59), "factor": 12},
    "lenet-5": {"densities": (66, 12, 8, 19), "error": (0.80, 0.77), "factor": 12},
}
BUDGETS: dict[tuple[str, str], dict[str, Any]] = {
    ("lenet-300-100", "fashion-mnist"): {"epochs": 20, "retrain": 4, "rounds": 16, "task": {}},
    ("lenet-5", "fashion-mnist"): {
        "epochs": 12,
        "retrain": 2,
        "rounds": 10,
        "task": {"subset": 10_000, "validation": 2000},
    },
    ("lenet-300-100", "digits"): {"epochs": 40, "retrain": 20, "rounds": 12, "task": {}},
    ("lenet-5", "digits"): {"epochs": 20, "retrain": 6, "rounds": 10, "task": {}},
}
SEEDS = (0, 1, 2)
WITHIN = 0.005  # of validation accuracy, that a layer pruned alone may cost
GIVEN_UP = 0.03  # of validation accuracy: no later round comes back from there
QUALITIES = tuple(0.2 + 0.15 * k for k in range(13))
DECAY = 1e-4  # L2, which the paper found best with retraining


def make_task(network: str, data: str, options: Mapping[str, Any]) -> Any:
    """Return the task; the digits enlarged to the network's 28 x 28 pixels."""
    import torch

    from rewound.tasks import load_task
    from rewound.tasks.digits import read_digits
    from rewound.tasks.models.lenet import lenet_5
    from rewound.tasks.models.mlp import lenet_300_100
    from rewound.tasks.splits import Data
    from rewound.tasks.tensor_task import TensorTask

    if data == "fashion-mnist":
        return load_task(data, model=network, **options)

    def enlarged(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(images, size=28, mode="bilinear")

    def read() -> Data:
        found = read_digits()
        train, validation = ((enlarged(x), y) for x, y in (found.train, found.validation))
        return Data(train, validation, lambda: (enlarged(found.test()[0]), found.test()[1]))

    build = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}[network]
    return TensorTask("digits, enlarged", read, build, epochs=1, lr=0.05, weight_decay=DECAY)


def one_run(network: str, data: str, budget: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, prune and retrain one network; JSON-able."""
    import torch

    import rewound
    from rewound.mask import Mask
    from rewound.papers.han2015 import choose_qualities, han2015, sensitivity
    from rewound.tasks import train_epoch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task = make_task(network, data, budget["task"])
    model = task.model(seed)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, budget["epochs"] * task.steps_per_epoch, task.steps_per_epoch)
    for epoch in range(budget["epochs"]):
        train_epoch(task, model, optimizer, scheduler, epoch, seed)
    dense = task.evaluate(model)["accuracy"]
    dense_test = task.evaluate(model, split="test")["accuracy"]

    scans: list[dict[str, Any]] = []
    present: dict[str, Mask | None] = {"mask": None}

    def accuracy_of(net: Any) -> float:
        return task.evaluate(net)["accuracy"]

    def scanned() -> Iterator[dict[str, float]]:
        for _ in range(budget["rounds"]):
            found = sensitivity(model, accuracy_of, qualities=QUALITIES, mask=present["mask"])
            scans.append({name: [vars(one) for one in tried] for name, tried in found.items()})
            yield choose_qualities(found, accuracy_of(model), WITHIN)

    example = next(iter(task.batches(0, seed)))[0][:1]
    structure = rewound.find_units(model, example)
    for group in optimizer.param_groups:
        group["lr"] = task.lr / 10
    rounds: list[dict[str, Any]] = []
    kept: tuple[dict[str, Any], Mask] | None = None
    epoch, last = budget["epochs"], stages_a_round(model)
    stages = han2015(model, optimizer, scanned(), structure=structure)
    for number, stage in enumerate(stages, start=1):
        for _ in range(budget["retrain"]):
            train_epoch(task, model, optimizer, None, epoch, seed)
            epoch += 1
        present["mask"] = stage.mask
        if number % last:
            continue  # the other kind of layers follows
        accuracy = task.evaluate(model)["accuracy"]
        rounds.append(
            {
                "round": stage.round,
                "density": stage.mask.density,
                "accuracy": accuracy,
                "dead": dict(stage.dead),
            }
        )
        if accuracy >= dense - error_of(dense, len(task.data.validation[1])):
            kept = {name: t.clone() for name, t in model.state_dict().items()}, stage.mask
            rounds[-1]["kept"] = True
        elif accuracy < dense - GIVEN_UP:
            break
    stages.close()
    found = {
        "network": network, "data": data, "seed": seed, "dense": dense, "dense test": dense_test, "rounds": rounds,
        "epochs": epoch, "scans": scans,
    }  # fmt: skip
    if kept is None:
        return found
    model.load_state_dict(kept[0])
    mask = kept[1]
    total = sum(p.numel() for p in model.parameters())
    return found | {
        "densities": mask.densities,
        "factor": total / (total - mask.size + mask.kept),
        "accuracy": task.evaluate(model)["accuracy"],
        "test": task.evaluate(model, split="test")["accuracy"],
    }


def error_of(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy measured on so many images."""
    return (accuracy * (1 - accuracy) / images) ** 0.5


def stages_a_round(model: Any) -> int:
    """Two kinds of layers, or one."""
    from torch import nn

    return 1 + any(isinstance(module, nn.Conv2d) for module in model.modules())


# ---- the record ----------------------------------------------------------------------------------------------------------


def text(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the record: a table of totals, and a table of layer densities for each network."""
    yield "Median over seeds (range). Errors in percent on the test split: of the dense network, and of the last pruned one"
    yield "that is within a standard error of it on validation. Han's are of MNIST."
    yield from (
        "",
        "| network | data | error before | error after | parameters left, 1/ | seeds that reached one |",
        "| --- " * 6 + "|",
    )
    for network, han in HAN.items():
        yield f"| {network} | MNIST (Han et al.) | {han['error'][0]:.2f} | {han['error'][1]:.2f} | {han['factor']} | |"
        for data in dict.fromkeys(r["data"] for r in runs if r["network"] == network):
            there = [r for r in runs if (r["network"], r["data"]) == (network, data)]
            done = [r for r in there if "test" in r]
            before, after = (
                [100 * (1 - r[key]) for r in rs] for key, rs in (("dense test", there), ("test", done))
            )
            factors = [r["factor"] for r in done]
            cells = [shown(before), shown(after), shown(factors, 1), f"{len(done)} of {len(there)}"]
            yield f"| {network} | {data} | " + " | ".join(cells) + " |"
    for network, han in HAN.items():
        done = [r for r in runs if r["network"] == network and "test" in r]
        if not done:
            continue
        data = list(dict.fromkeys(r["data"] for r in done))
        yield from ("", f"{network}: density of each layer, percent.", "")
        yield "| layer | MNIST (Han et al.) | " + " | ".join(data) + " |"
        yield "| --- " * (2 + len(data)) + "|"
        for layer, (name, theirs) in enumerate(zip(done[0]["densities"], han["densities"])):
            cells = [shown([100 * r["densities"][name] for r in done if r["data"] == one], 1) for one in data]
            yield f"| {layer + 1} | {theirs} | " + " | ".join(cells) + " |"


def shown(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def quick(budget: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Return a budget of seconds."""
    task = {"subset": 500, "validation": 500} if data == "fashion-mnist" else {}
    return {**budget, "epochs": 3, "retrain": 1, "rounds": 2, "task": task}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=None, help="folder of the record")
    arguments = parser.parse_args()
    machine = {**facts(), "torch_threads": 1, "processes": arguments.workers}
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    jobs = [
        (network, data, quick(budget, data) if arguments.quick else budget, seed)
        for (network, data), budget in BUDGETS.items()
        for seed in seeds
    ]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(one_run, *zip(*jobs)))
    page = "\n".join(text(runs))
    name = "han2015-quick" if arguments.quick else "han2015"
    path = write_record(name, {"machine": machine, "runs": runs}, page, arguments.out)
    print(page, path, sep="\n\n")


if __name__ == "__main__":
    main()
