"""The roofline of one core, and where the engine's layers stand under it: what a sparse kernel can reach at all.

    python benchmarks/roofline.py                          # needs a C++ compiler and matplotlib; a minute
    python benchmarks/roofline.py --sparsity 0.95 --picture roofline.svg

A small program (roofline.cc, compiled for this machine) measures multiply-adds between registers, and multiply-adds that load
their vector from 16 KiB, 512 KiB, 8 MiB or 256 MiB: one, two or four for each load, as a kernel does for single weights and for
blocks of 2x1 and 4x1. Beside these lines, each layer of a network in the engine: useful operations a second. One thread.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _fresh import answer, ask, parser
from _machine import facts, write_record

SOURCE = Path(__file__).with_name("roofline.cc")
INTENSITY = {
    "1": 0.5,
    "2": 1.0,
    "4": 2.0,
}  # operations for a byte of x: rows that share a load -> 2 rows / 4 bytes
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00")  # Okabe and Ito
PATTERNS = {"uniform": "1", "2x1": "2", "4x1": "4"}


def child(network: str, quick: bool, sparsity: float) -> dict[str, Any]:
    """Return GFLOP/s and milliseconds of the engine's layers, by pattern."""
    from _engine import masked
    from _networks import build

    import rewound.runtime
    from rewound.measure import machine

    model, example = build(network, quick)
    found: dict[str, Any] = {}
    with machine.on_cores(1):
        for pattern in PATTERNS:
            engine = rewound.runtime.compile(masked(model, pattern, sparsity)[0], example, threads=1)
            found[pattern] = [
                {"layer": layer.source, "ms": layer.milliseconds, "gflops": layer.gflops}
                for layer in engine.report().layers
                if layer.macs and layer.density is not None and layer.density < 0.5
            ]
    return found


def machine_bounds() -> dict[str, Any]:
    """Compile and run roofline.cc; return what it printed."""
    with tempfile.TemporaryDirectory() as place:
        program = str(Path(place) / "roofline")
        flags = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast"]
        subprocess.run(
            [*shlex.split(os.environ.get("CXX", "c++")), *flags, "-o", program, str(SOURCE)], check=True
        )
        return json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--network", default="ResNet-50")
    made.add_argument("--sparsity", type=float, default=0.9)
    made.add_argument("--picture", default=None, help="where the picture goes too (SVG)")
    given = made.parse_args()
    if given.child:
        answer(given.child, child)
        return
    machine, bounds = facts(), machine_bounds()
    layers = ask(given.work, 600, network=given.network, quick=given.quick, sparsity=given.sparsity)
    record = {
        "machine": machine,
        "network": given.network,
        "sparsity": given.sparsity,
        "bounds": bounds,
        "layers": layers,
    }
    page = text(given.network, given.sparsity, bounds, layers)
    path = write_record("roofline", record, page, given.out)
    picture = path.with_suffix(".svg")
    draw(f"{given.network} at {given.sparsity:g}, batch 1, one thread", bounds, layers, picture)
    if given.picture:
        Path(given.picture).write_bytes(picture.read_bytes())
    path.write_text(path.read_text().replace("PICTURE", picture.name))
    print(page, "", path, sep="\n")


def text(network: str, sparsity: float, bounds: Mapping[str, Any], layers: Mapping[str, Any]) -> str:
    """Return the tables of the record."""
    lines = [
        f"GFLOP/s of one core. Multiply-adds between registers: {bounds['peak']:.0f}. With a vector of {bounds['lanes']} floats "
        "loaded for every one, two or four of them:", "", "![roofline](PICTURE)", "",
        "| x lies in | one (single weights) | two (2x1) | four (4x1) |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, level in bounds["levels"].items():
        lines.append(f"| {name} | {' | '.join(f'{level[rows]:.1f}' for rows in INTENSITY)} |")
    if "failed" in layers:
        return "\n".join([*lines, "", f"The engine's layers were not measured: {layers['failed']}"])
    lines += [
        "",
        f"The engine's sparse layers, {network} at {sparsity:g}, useful operations, weighted by time:",
        "",
    ]
    lines += [
        "| pattern | layers | ms | GFLOP/s | slowest layer | fastest layer |",
        "|---|---|---|---|---|---|",
    ]
    for pattern, found in layers.items():
        if found:
            total = sum(layer["ms"] for layer in found)
            mean = sum(layer["ms"] * layer["gflops"] for layer in found) / total
            ends = [f(layer["gflops"] for layer in found) for f in (min, max)]
            cells = [pattern, str(len(found)), f"{total:.2f}", f"{mean:.1f}", *(f"{end:.1f}" for end in ends)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(title: str, bounds: Mapping[str, Any], layers: Mapping[str, Any], path: Path) -> None:
    """Draw the bounds as lines, and each layer as a dot of an area as its time."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plain = {"svg.hashsalt": "rewound", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(plain):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        axes.axhline(bounds["peak"], color="0.3", ls="--", lw=1)
        axes.text(0.36, bounds["peak"] * 1.04, "multiply-adds between registers", color="0.3")
        for (name, level), colour in zip(bounds["levels"].items(), COLOURS):
            points = [(INTENSITY[rows], value) for rows, value in level.items()]
            axes.plot(*zip(*points), color=colour, marker="o", ms=3, lw=1.2, label=f"x in {name}")
        if "failed" not in layers:
            for pattern, found in layers.items():
                total = sum(layer["ms"] for layer in found) or 1.0
                for i, layer in enumerate(found):  # beside each other, in the network's order
                    x = INTENSITY[PATTERNS[pattern]] * 2 ** (0.5 * (i / max(1, len(found) - 1) - 0.5))
                    area = 6 + 400 * layer["ms"] / total
                    axes.scatter(x, layer["gflops"], s=area, color="0.2", alpha=0.35, linewidths=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(0.35, 2.9)
        axes.set_ylim(3, 220)
        axes.set_xticks([0.5, 1, 2], ["0.5\nsingle weights", "1\n2x1 blocks", "2\n4x1 blocks"])
        ticks = [5, 10, 20, 50, 100, 200]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("operations for a byte of x")
        axes.set_ylabel("GFLOP/s")
        axes.set_title(
            f"What one core can do, and the engine's layers (dots): {title}", loc="left", fontsize=9.5
        )
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
