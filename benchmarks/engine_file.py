"""How large the engine's file is, beside every other format and the ideal, and how quickly it is read.

    python benchmarks/engine_file.py

ResNet-50 with random weights and random masks of equal density in every layer, the stem dense; norms folded. Reading: checksums,
decoding and the check of the graph, the file in the page cache; wall time on one thread, best and median of --repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _machine import facts, write_record

from rewound.runtime import file
from rewound.runtime.codec import native
from rewound.runtime.codec.sizes import FORMATS, sizes
from rewound.runtime.convert import convert
from rewound.runtime.graph import Graph, rounded
from rewound.runtime.simplify import simplify
from rewound.tasks.models.resnet import imagenet_resnet

VALUES = ("float32", "bfloat16", "codebook:16")


def network(density: float) -> torch.nn.Module:
    """A ResNet-50 that keeps ``density`` of every layer but the first."""
    torch.manual_seed(0)
    model = imagenet_resnet(50).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2 and p.shape[1] != 3:
                p *= torch.rand(p.shape) < density
    return model


def seconds_to_read(path: Path, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        file.read(path)
        times.append(time.perf_counter() - start)
    return times


def measured(graph: Graph, values: str, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.engine"
        start = time.perf_counter()
        contents = file.write(graph, path, values=values)
        written = time.perf_counter() - start
        times = seconds_to_read(path, repeats)
        with mock.patch.multiple(native, decode_bitmap=None, decode_deltas=None, decode_codes=None):
            plain = seconds_to_read(path, max(1, repeats // 4))
    return {
        "values": values,
        "bytes": contents.bytes,
        "write": written,
        "read": statistics.median(times),
        "read at best": min(times),
        "read in numpy": statistics.median(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--densities", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.02])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    assert native.decode_deltas is not None, "the native module is missing: build it first"
    data: dict[str, Any] = {"machine": facts(), "rows": []}
    lines = [
        "| density | values | file, MB | write, s | read, ms: median (best) | in numpy, ms |",
        "|---|---|---|---|---|---|",
    ]
    table = ["", "Formats in MB, norms not folded:", "", f"| density | {' | '.join(FORMATS)} |"]
    table.append("|---" * (len(FORMATS) + 1) + "|")
    for density in arguments.densities:
        model = network(density)
        graph = rounded(simplify(convert(model, torch.zeros(1, 3, 224, 224))))
        for values in VALUES:
            row = {"density": density, **measured(graph, values, arguments.repeats)}
            data["rows"].append(row)
            lines.append(
                f"| {density} | {values} | {row['bytes'] / 1e6:.2f} | {row['write']:.2f} | {1e3 * row['read']:.0f} "
                f"({1e3 * row['read at best']:.0f}) | {1e3 * row['read in numpy']:.0f} |"
            )
            print(lines[-1], flush=True)
        found = sizes(model)
        data["rows"].append({"density": density, "formats": {name: found.total(name) for name in FORMATS}})
        table.append(f"| {density} | {' | '.join(f'{found.total(name) / 1e6:.2f}' for name in FORMATS)} |")
    write_record("engine_file", data, "\n".join([*lines, *table]))


if __name__ == "__main__":
    main()
