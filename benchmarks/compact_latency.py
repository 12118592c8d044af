"""What compaction does for latency: batch 1, one thread, torch and ONNX Runtime, before and after, in turns.

    python benchmarks/compact_latency.py                            # pip install onnxruntime onnx onnxscript for the second
    python benchmarks/compact_latency.py --networks ResNet-20 GNMT
    python benchmarks/compact_latency.py --quick --out /tmp         # tiny networks: does it run?

Networks of real size with random weights (latency does not look at values). "Half of the units": channels, heads, hidden units
of every layer alike (allocation "uniform"). "Half of the multiply-adds": the share of units, the same in every layer, that
leaves half of them; there a speed-up of 2 is asked for. "In eights": widths are multiples of 8 (not where attention heads are
among the units). Each network in a process of its own; blocks of calls of the dense
and the compact networks take turns, in changing order, in both runtimes; process CPU time and wall time a call, and
the ratio to the dense network in the same turn.

Takes about ten minutes. Finished networks are kept in --work, so that a killed benchmark goes on where it was.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _fresh import answer, ask, parser, shown
from _machine import facts, write_record

CHOSEN = [
    "ResNet-20", "ResNet-56", "ResNet-50", "VGG-16", "MobileNetV2", "U-Net", "ViT-S", "BERT-base, 4 layers",
    "GPT-2, 3 layers", "GNMT",
]  # fmt: skip
DENSE, UNITS, WORK, EIGHTS = (
    "dense",
    "half of the units",
    "half of the multiply-adds",
    "half of the multiply-adds, in eights",
)
TORCH, ONNX = "torch", "ONNX Runtime"
BLOCK = 0.15  # seconds
_CLOCKS = {"CPU time": "cpu_ms", "wall time": "wall_ms"}
_NOT_IN_UNIT = ("head dim", "width")  # kinds that pattern "unit" leaves out

Call = Callable[[], Any]


# ---- in a process of its own -------------------------------------------------------------------------------------


def child(network: str, quick: bool, turns: int) -> dict[str, Any]:
    """Return sizes and times of one network, dense and compact."""
    from _networks import build

    from rewound.measure import cost

    model, example = build(network, quick)
    models = {DENSE: model, **compacted(model, example)}
    found: dict[str, Any] = {
        "sizes": {
            name: {
                "parameters": sum(p.numel() for p in m.parameters()),
                "multiply_adds": cost.flops(m, example) // 2,
            }
            for name, m in models.items()
        },
    }
    calls: dict[tuple[str, str], Call] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, m in models.items():
            calls[TORCH, name] = in_torch(m, example)
        try:
            for name, m in models.items():
                calls[ONNX, name] = in_onnxruntime(m, example, Path(place) / f"{len(calls)}.onnx")
        except Exception as error:
            calls = {key: call for key, call in calls.items() if key[0] == TORCH}
            found["without_onnxruntime"] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            )
        times = measured(calls, turns)
    found["times"] = {
        runtime: {name: times[runtime, name] for name in models if (runtime, name) in times}
        for runtime in (TORCH, ONNX)
    }
    return found


def compacted(model: Any, example: Any) -> dict[str, Any]:
    """Return the smaller networks by name; without those for which not enough can leave."""
    import rewound

    units = rewound.find_units(model, example)
    units = units.restricted(g for g in units if g.kind not in _NOT_IN_UNIT)

    def mask(density: float, multiple: int = 1) -> Any:
        return rewound.prune(
            model, density, pattern=units, allocation="uniform", multiple=multiple, example=example
        )

    found = {UNITS: rewound.compact(model, mask(0.5), example)}
    half = left_work(units, {}) / 2
    heads = any("head" in group.kind for group in units)
    for name, multiple in ((WORK, 1), (EIGHTS, 8)):
        low, high = 0.01, 1.0
        for _ in range(9):
            middle = (low + high) / 2
            low, high = (low, middle) if left_work(units, mask(middle, multiple)) > half else (middle, high)
        chosen = mask(low, multiple)
        if left_work(units, chosen) <= 1.05 * half and not (heads and multiple > 1):
            found[name] = rewound.compact(model, chosen, example)
    return found


def left_work(structure: Any, mask: Mapping[str, Any]) -> float:
    """Return the multiply-adds that ``mask`` leaves of one example, by what the structure says of every operator."""
    total = 0.0
    for work in structure.work:
        share = 1.0
        for name, axis in work.axes:
            if name in mask:
                kept = mask[name].movedim(axis, 0).flatten(1).any(1) if mask[name].ndim > 1 else mask[name]
                share *= float(kept.double().mean())
        total += share * work.count
    return total


def in_torch(model: Any, example: Any) -> Call:
    import torch

    inputs = example if isinstance(example, tuple) else (example,)

    def call() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    return call


def in_onnxruntime(model: Any, example: Any, path: Path) -> Call:
    """Export, load, and see that it computes the same."""
    import onnxruntime
    import torch

    class First(torch.nn.Module):
        """Only the first output: Hugging Face's containers are no business of ONNX."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            result = self.inner(*inputs)
            return result if isinstance(result, torch.Tensor) else result[0]

    inputs = example if isinstance(example, tuple) else (example,)
    logging.disable(logging.WARNING)
    torch.onnx.export(First().eval(), inputs, str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {told.name: tensor.numpy() for told, tensor in zip(session.get_inputs(), inputs)}
    found = torch.from_numpy(session.run(None, given)[0])
    with torch.no_grad():
        expected = First().eval()(*inputs)
    error = float((found - expected).abs().max() / expected.abs().max())
    if error > 1e-3:
        raise ValueError(f"its outputs differ from torch's by {error:.1e} (relative)")
    return lambda: session.run(None, given)


def measured(calls: Mapping[Any, Call], turns: int) -> dict[Any, dict[str, list[float]]]:
    """Return for each call its milliseconds, one entry a turn: process CPU time and wall time."""
    repeats = {}
    for key, call in calls.items():
        call()
        start = time.perf_counter()
        for _ in range(2):
            call()
        repeats[key] = max(1, round(BLOCK / ((time.perf_counter() - start) / 2)))
    found: dict[Any, dict[str, list[float]]] = {key: {"cpu_ms": [], "wall_ms": []} for key in calls}
    keys = list(calls)
    for turn in range(turns):
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            call, count = calls[key], repeats[key]
            call()  # caches belong to the others
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(count):
                call()
            found[key]["cpu_ms"].append((time.process_time() - cpu) / count * 1e3)
            found[key]["wall_ms"].append((time.perf_counter() - wall) / count * 1e3)
    return found


# ---- the record --------------------------------------------------------------------------------------------------


def main() -> None:
    made = parser(__doc__, work="runs/compact-latency")
    made.add_argument("--turns", type=int, default=15, help="blocks of each (default: %(default)s)")
    made.add_argument("--networks", nargs="+", choices=CHOSEN, default=CHOSEN)
    given = made.parse_args()
    if given.child:
        answer(given.child, child)
        return
    machine = {**facts(), "torch_threads": 1}
    try:
        import onnxruntime

        machine["onnxruntime"] = onnxruntime.__version__
    except ImportError:
        machine["onnxruntime"] = "not installed"
    found = {}
    for network in given.networks:
        found[network] = ask(
            given.work, 1800, network=network, quick=given.quick, turns=3 if given.quick else given.turns
        )
        print("\n".join(rows(network, found[network])), flush=True)
    page = text(found)
    record = {"machine": machine, "networks": found}
    print("", page, "", write_record("compact-latency", record, page, given.out), sep="\n")


def ratios(times: Mapping[str, Mapping[str, list[float]]], name: str, clock: str = "cpu_ms") -> list[float]:
    """How many times faster than the dense network, turn by turn."""
    return [a / b for a, b in zip(times[DENSE][clock], times[name][clock])]


def rows(network: str, found: Mapping[str, Any]) -> list[str]:
    """Return the table's lines of one network."""
    if "failed" in found:
        return [f"| {network} | {found['failed']} |" + " |" * 7]
    sizes, times = found["sizes"], found["times"]
    dense, lines = sizes[DENSE], []
    for name in [name for name in sizes if name != DENSE]:
        size = sizes[name]
        cells = [network, name, f"{dense['parameters']:,} to {size['parameters']:,}"]
        cells.append(f"{dense['multiply_adds'] / max(size['multiply_adds'], 1):.2f}")
        for runtime in (TORCH, ONNX):
            if name not in times[runtime]:
                cells += [found.get("without_onnxruntime", "-"), "-"]
                continue
            before, after = (statistics.median(times[runtime][n]["cpu_ms"]) for n in (DENSE, name))
            cells += [f"{before:.2f} to {after:.2f}", shown(ratios(times[runtime], name))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def text(found: Mapping[str, Any]) -> str:
    """Return the tables of the record."""
    lines = [
        "Batch 1, one thread. Milliseconds of process CPU time a call (median), and times faster than the dense network: median "
        "(range over turns). Multiply-adds: dense / compact, the speed-up that arithmetic alone promises.", "",
        "| network | what leaves | parameters | multiply-adds, ratio | torch, ms | torch, times faster "
        "| ONNX Runtime, ms | ONNX Runtime, times faster |", "|" + "---|" * 8,
    ]  # fmt: skip
    for network, one in found.items():
        lines += rows(network, one)
    columns = " | ".join(f"{runtime}, {clock}" for runtime in (TORCH, ONNX) for clock in _CLOCKS)
    lines += ["", "Asked for and met, in the median:", ""]
    lines += [f"| network | what leaves | asked | multiply-adds | {columns} |", "|" + "---|" * 8]
    for network, one in found.items():
        for name in [name for name in one.get("sizes", ()) if name in (WORK, EIGHTS)]:
            promised = one["sizes"][DENSE]["multiply_adds"] / one["sizes"][name]["multiply_adds"]
            met = [
                f"{statistics.median(ratios(one['times'][runtime], name, clock)):.2f}"
                if name in one["times"][runtime]
                else "-"
                for runtime in (TORCH, ONNX)
                for clock in _CLOCKS.values()
            ]
            lines.append(f"| {network} | {name} | 2.00 | {promised:.2f} | {' | '.join(met)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
