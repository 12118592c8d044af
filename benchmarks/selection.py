"""Global magnitude pruning of 50 tensors: rewound against torch.nn.utils.prune.global_unstructured.

Both decide and apply: 80 % of the weights become zero. Timings are interleaved in one fresh process per size;
the peak of extra memory is measured in a fresh process per size and side.

    python benchmarks/selection.py                          # 10^6, 10^7 and 10^8 weights
    python benchmarks/selection.py --sizes 1e6 --repeats 3  # a quick look
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import _machine
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from rewound.pruning import prune

TENSORS, DENSITY = 50, 0.2
REPEATS = {6: 15, 7: 7, 8: 3}  # by decimal power


def model_of(weights: int) -> nn.Module:
    rows = 1000 if weights >= 1_000_000 else 10
    columns = weights // TENSORS // rows
    return nn.ModuleList(nn.utils.skip_init(nn.Linear, columns, rows, bias=False) for _ in range(TENSORS))


def refill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)


def ours(model: nn.Module) -> None:
    prune(model, DENSITY).apply_(model)


def torchs(model: nn.Module) -> None:
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in model],
        pruning_method=torch_prune.L1Unstructured,
        amount=1 - DENSITY,
    )


SIDES = {"rewound": ours, "torch": torchs}


def undo(model: nn.Module) -> None:
    for layer in model:
        if torch_prune.is_pruned(layer):
            torch_prune.remove(layer, "weight")


def clock(weights: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return side -> (wall, process CPU) seconds of each repeat, the sides taking turns."""
    model = model_of(weights)
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            refill(model)
            wall, cpu = time.perf_counter(), time.process_time()
            SIDES[side](model)
            times[side].append((time.perf_counter() - wall, time.process_time() - cpu))
            undo(model)
    return times


def peak(weights: int, side: str) -> float:
    """Return the extra memory at its peak, in MB (10^6 bytes), in this process."""
    small = model_of(10_000)
    refill(small)
    SIDES[side](small)  # what is loaded and allocated once is not counted
    model = model_of(weights)
    refill(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SIDES[side](model)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * (1 if sys.platform == "darwin" else 1024) / 1e6


def in_a_fresh_process(*arguments: object) -> object:
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(weights: int, repeats: int) -> dict[str, object]:
    times = in_a_fresh_process("--child-clock", weights, "--repeats", repeats)
    row: dict[str, object] = {"weights": weights, "repeats": repeats, "weights_mb": weights * 4 / 1e6}
    for side in SIDES:
        row[side] = {
            "wall_s": summary([wall for wall, _ in times[side]]),
            "cpu_s": summary([cpu for _, cpu in times[side]]),
            "peak_extra_mb": in_a_fresh_process("--child-peak", weights, "--side", side),
        }
    for clock_ in ("wall_s", "cpu_s"):
        row[f"times_faster_{clock_}"] = row["torch"][clock_]["median"] / row["rewound"][clock_]["median"]
    row["extra_memory_of_weights"] = row["rewound"]["peak_extra_mb"] / row["weights_mb"]
    return row


def table(rows: list[dict]) -> str:
    def cell(row: dict, side: str, clock_: str) -> str:
        s = row[side][clock_]
        return f"{s['median']:.3f} ({s['min']:.3f} - {s['max']:.3f})"

    lines = [
        f"{TENSORS} float32 tensors, global magnitude to density {DENSITY}, decided and applied.",
        "Seconds: median (min - max). Memory: peak of what is used beyond the weights, in MB.",
        "",
        "| weights | repeats | rewound wall | torch wall | times | rewound CPU | torch CPU | times "
        "| rewound memory | torch memory | rewound memory / weights |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['weights']:,}",
            str(row["repeats"]),
            cell(row, "rewound", "wall_s"),
            cell(row, "torch", "wall_s"),
            f"{row['times_faster_wall_s']:.1f}",
            cell(row, "rewound", "cpu_s"),
            cell(row, "torch", "cpu_s"),
            f"{row['times_faster_cpu_s']:.1f}",
            f"{row['rewound']['peak_extra_mb']:.0f}",
            f"{row['torch']['peak_extra_mb']:.0f}",
            f"{row['extra_memory_of_weights']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if len(rows) > 1:
        lines += ["", "Growth of rewound's CPU time, from row to row:", ""]
        for a, b in pairwise(rows):
            ratio = b["rewound"]["cpu_s"]["median"] / a["rewound"]["cpu_s"]["median"]
            lines.append(f"- {b['weights'] / a['weights']:.0f} times the weights: {ratio:.1f} times the time")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e6, 1e7, 1e8], help="numbers of weights")
    parser.add_argument("--repeats", type=int, help="timings of each side (default: 15, 7, 3 by size)")
    parser.add_argument("--out", help="folder of the record (default: benchmarks/records)")
    parser.add_argument("--child-clock", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child-peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child_clock:
        print(json.dumps(clock(given.child_clock, given.repeats)))
        return
    if given.child_peak:
        print(json.dumps(peak(given.child_peak, given.side)))
        return
    machine = _machine.facts()
    rows = []
    for size in map(int, given.sizes):
        repeats = given.repeats or REPEATS.get(len(str(size)) - 1, 3)
        rows.append(measure(size, repeats))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(
        "\nrecord:",
        _machine.write_record("selection", {"machine": machine, "rows": rows}, table(rows), given.out),
    )


if __name__ == "__main__":
    main()
