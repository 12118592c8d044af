"""A network that is pruned and then really faster: Fashion-MNIST, ResNet-20, 90 % in one shot, learning-rate rewinding.

    python benchmarks/engine_fashion_mnist.py            # under 20 minutes on one core; pip install 'rewound[bench]'
    python benchmarks/engine_fashion_mnist.py --quick --out /tmp

Trains T epochs, prunes to density 0.1 in one shot (once by one global magnitude threshold, once so that no more than a tenth of
the multiply-adds is left as well), retrains T epochs with the learning rates of the original run, and measures the dense
network's and the pruned networks' latency in ONNX Runtime, OpenVINO and the engine, in turns, with the masks as trained.

A full epoch of ResNet-20 on all 55,000 training images takes 140 s on one core, so this is a small budget: 8,000 images
(stratified, always the same) and T = 8. Accuracies are those of that budget, not the best that the network can do. Choices are
made on the validation split; the test split is read once, at the end. A killed benchmark goes on where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _fresh import answer, ask, parser, shown
from _machine import facts, write_record
from engine import fastest, gflops, speed_ups

DENSITY, SUBSET, EPOCHS = 0.1, 8000, 8
GLOBAL, COST = "one global threshold", "a tenth of the multiply-adds"
BATCHES = [1, 16]


def child(runs: str, quick: bool, seed: int) -> dict[str, Any]:
    """Train, prune, retrain; then measure."""
    from _engine import compared

    from rewound.experiment.networks import tensors_of
    from rewound.measure.latency import of_batch
    from rewound.tasks import drive, load_task

    model, subset, epochs = ("resnet-14-narrow", 512, 1) if quick else ("resnet-20", SUBSET, EPOCHS)
    task = load_task("fashion-mnist", model=model, subset=subset, epochs=epochs)
    example = of_batch(next(iter(task.batches(0, seed)))[0], 1)
    found: dict[str, Any] = {"model": model, "images": subset, "epochs": epochs, "runs": {}}
    networks: dict[str, Any] = {}
    for name, options in _prunings().items():
        folder = Path(runs) / f"{model}-{subset}-{epochs}-{seed}-{len(found['runs'])}"
        result, test = drive(
            task,
            seed=seed,
            epochs=epochs,
            folder=folder,
            technique="lr-rewinding",
            **options,
        )
        network = task.model(seed)
        network.load_state_dict(tensors_of(folder, result.to_dict()))
        networks[name] = network.eval()
        found["runs"][name] = {**result.to_dict(), "test": test}
    found["measured"] = [
        compared(networks, example, batch=batch, rounds=3 if quick else 15) for batch in BATCHES
    ]
    return found


def _prunings() -> dict[str, dict[str, Any]]:
    """Return the arguments of Run by name; both prune in one shot to the same number of weights."""
    common = {"rate": None, "until": DENSITY}
    return {GLOBAL: common, COST: {**common, "allocation": f"for_multiply_adds({DENSITY})"}}


def main() -> None:
    made = parser(__doc__, work="runs/engine-fashion-mnist")
    made.add_argument("--seed", type=int, default=0)
    given = made.parse_args()
    if given.child:
        answer(given.child, child)
        return
    machine = facts()
    found = ask(given.work, 3600, runs=given.work, quick=given.quick, seed=given.seed)
    if "failed" in found:
        raise SystemExit(found["failed"])
    page = text(found)
    slim = {
        name: {**run, "rounds": [{k: v for k, v in r.items() if k != "log"} for r in run["rounds"]]}
        for name, run in found["runs"].items()
    }
    record = {"machine": machine, "seed": given.seed, **found, "runs": slim}
    print(page, "", write_record("engine-fashion-mnist", record, page, given.out), sep="\n")


def text(found: Mapping[str, Any]) -> str:
    """Return the tables of the record."""
    lines = [
        f"Fashion-MNIST, {found['model']}, {found['images']:,} training images, T = {found['epochs']} epochs, one shot to "
        f"density {DENSITY:g}, learning-rate rewinding, one seed.", "",
        "| mask | density | multiply-adds left | validation, dense | pruned | retrained | test, retrained |", "|" + "---|" * 7,
    ]  # fmt: skip
    for name, run in found["runs"].items():
        first, last = run["rounds"][0], run["rounds"][-1]
        done = (first["metrics"], last["before"], last["metrics"], run["test"])
        left = last["multiply_adds"][0] / last["multiply_adds"][1]
        accuracies = [f"{100 * values['accuracy']:.2f} %" if "accuracy" in values else "-" for values in done]
        lines.append(f"| {name} | {last['density']:.3f} | {left:.3f} | {' | '.join(accuracies)} |")
    lines += [
        "",
        "One thread, process CPU time; times faster than the faster dense runtime, turn by turn: median (range).",
        "",
    ]
    lines += [
        "| mask | batch | dense runtime | ms | the engine, ms | times faster | GFLOP/s | error |",
        "|" + "---|" * 8,
    ]
    for one in found["measured"]:
        peer = fastest(one, 1)
        for mask in one["masks"]:
            engine = mask["engine"].get("1", {})
            cells = [mask["kind"], str(one["batch"])]
            cells += [peer[0], f"{statistics.median(peer[1]):.3g}"] if peer else ["-", "-"]
            if "failed" in engine:
                lines.append(f"| {' | '.join(cells)} | {engine['failed']} | - | - | - |")
                continue
            speed = gflops(mask)
            cells += [f"{statistics.median(engine['cpu_ms']):.3g}", shown(speed_ups(one, mask, 1))]
            cells += ["-" if speed is None else f"{speed:.1f}", f"{mask['error'] / mask['torch_error']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Error: the engine's largest against float64, as a multiple of that of torch in float32."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
