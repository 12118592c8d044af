"""Single products in the sparse engine: the cost model's schedule beside the best of all, and vectors times sparse matrices.

    python benchmarks/kernels.py                       # about five minutes
    python benchmarks/kernels.py --quick --out /tmp    # one layer

Every layer alone, over zeros, its least time of about ten milliseconds of runs; one thread. The best schedule is looked for among
all numbers of rows and vectors, both lengths of vectors, aligned and not, and six sizes of blocks: what a perfect cost model
would choose. This is where the constants of `Cost` and `columns_pay` (src/rewound/runtime/csrc/conv.cc) come from.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _machine import facts, write_record
from torch import nn

import rewound.runtime
from rewound.measure import machine
from rewound.runtime import _native
from rewound.runtime.planning import tune
from rewound.runtime.planning.geometry import Geometries
from rewound.runtime.planning.lower import Lowering

# name -> channels in, out, pixels of a side, kernel
LAYERS = {
    "3x3, 16 of 32 x 32": (16, 16, 32, 3),
    "3x3, 64 of 8 x 8": (64, 64, 8, 3),
    "3x3, 512 of 4 x 4": (512, 512, 4, 3),
    "1x1, 64 to 256 of 56 x 56": (64, 256, 56, 1),
    "3x3, 128 of 28 x 28": (128, 128, 28, 3),
    "1x1, 1024 to 256 of 14 x 14": (1024, 256, 14, 1),
    "3x3, 512 of 7 x 7": (512, 512, 7, 3),
}
DENSITIES = (1.0, 0.2, 0.1, 0.02)
MATRICES = {"300 x 784": (300, 784), "4096 x 4096": (4096, 4096)}
ZEROS = (0.0, 0.5, 0.9)  # of the vector


def sparse(module: nn.Module, density: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1:
                p.mul_(torch.rand(p.shape, generator=generator) < density)
    return module.eval()


def schedules(window: int, channels: int) -> Iterator[tuple[int, ...]]:
    blocks = sorted({window * min(channels, n) for n in (8, 16, 32, 64, 128, channels)})
    lanes = sorted({8, _native.lanes()}) if _native.lanes() >= 8 else [_native.lanes()]
    return itertools.product((1, 2, 4, 6), range(1, 15), blocks, lanes, (1, 2))


def convolution(inputs: int, outputs: int, side: int, kernel: int, density: float) -> dict[str, Any]:
    """Return GFLOP/s of the chosen and of the best schedule, and both."""
    module = sparse(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), density)
    graph = rewound.runtime.compile(module, torch.zeros(1, inputs, side, side)).graph
    lower = Lowering(graph, 1)
    lower.run()
    geometries = Geometries(lower.steps, 1)
    (step,) = [step for step in lower.steps if step.method == "conv"]
    chosen, nanoseconds = tune._timed(step, geometries, 1, _native, None)
    best, least = chosen, nanoseconds
    for schedule in schedules(kernel * kernel, inputs):
        try:
            used, took = tune._timed(step, geometries, 1, _native, schedule)
        except ValueError:  # no such kernel, or it does not fit these pixels
            continue
        if took < least:
            best, least = used, took
    _, nanoseconds = min(
        (tune._timed(step, geometries, 1, _native, chosen) for _ in range(3)), key=lambda t: t[1]
    )
    operations = 2 * int(module.weight.count_nonzero()) * side * side  # type: ignore[arg-type,operator,union-attr]
    return {
        "chosen": chosen, "best": best, "chosen_gflops": operations / nanoseconds, "best_gflops": operations / least,
    }  # fmt: skip


def matrix(rows: int, columns: int, density: float, zeros: float) -> float:
    """Return microseconds of a vector times a matrix."""
    module = sparse(nn.Linear(columns, rows), density)
    engine = rewound.runtime.compile(module, torch.zeros(1, columns))
    x = np.random.default_rng(0).standard_normal((1, columns)).astype(np.float32)
    x *= np.random.default_rng(1).random(x.shape) >= zeros
    engine(x)
    assert engine._short is not None
    (program, _), y = engine._short.ready[1], np.empty((1, rows), np.float32)
    kinds = [told["kind"] for told in program.operators()]
    return min(program.profile([x], [y])[kinds.index("matvec")] for _ in range(200)) / 1e3


def text(layers: list[Any], matrices: list[Any]) -> str:
    lines = [
        "## Convolutions",
        "",
        "A schedule: rows, vectors, places in a block, floats of a vector, aligned (2).",
        "",
    ]
    lines += ["| layer | density | chosen | GFLOP/s | best | GFLOP/s | chosen / best |", "|" + "---|" * 7]
    for one in layers:
        share = one["chosen_gflops"] / one["best_gflops"]
        chosen, best = (" ".join(map(str, one[key])) for key in ("chosen", "best"))
        lines.append(
            f"| {one['layer']} | {one['density']:g} | {chosen} | {one['chosen_gflops']:.0f} | {best} "
            f"| {one['best_gflops']:.0f} | {share:.2f} |"
        )
    lines += [
        "",
        "## A vector times a matrix",
        "",
        "Microseconds, by the share of the vector's entries that are zero.",
        "",
    ]
    lines += [
        f"| matrix | density | {' | '.join(f'{z:g}' for z in ZEROS)} |",
        "|" + "---|" * (2 + len(ZEROS)),
    ]
    for one in matrices:
        lines.append(
            f"| {one['matrix']} | {one['density']:g} | {' | '.join(f'{t:.3g}' for t in one['microseconds'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="one layer, one matrix, one density")
    made.add_argument("--out", default=None, help="folder of the record (default: benchmarks/records)")
    given = made.parse_args()
    torch.set_num_threads(1)
    densities = DENSITIES[2:3] if given.quick else DENSITIES
    layers, matrices = [], []
    with machine.on_cores(1):
        for name, sizes in list(LAYERS.items())[: 1 if given.quick else None]:
            for density in densities:
                layers.append({"layer": name, "density": density, **convolution(*sizes, density)})
                print(f"{name}, {density:g}: {layers[-1]}", flush=True)
        for name, (rows, columns) in list(MATRICES.items())[: 1 if given.quick else None]:
            for density in densities:
                took = [matrix(rows, columns, density, zeros) for zeros in ZEROS]
                matrices.append({"matrix": name, "density": density, "microseconds": took})
    page = text(layers, matrices)
    found = {"layers": layers, "matrices": matrices}
    print(
        "", page, "", write_record("kernels", {"machine": facts(), "found": found}, page, given.out), sep="\n"
    )


if __name__ == "__main__":
    main()
