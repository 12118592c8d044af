"""Memory, file size and load time of ResNet-50 with 90 % zeros: the engine, ONNX Runtime and OpenVINO, each in new processes.

    python benchmarks/engine_memory.py            # pip install 'rewound[bench]'; two minutes
    python benchmarks/engine_memory.py --quick --out /tmp

Every runtime loads its file in a process that does nothing else and in which torch is not imported (checked), and calls it five
times, batch 1, one thread. "Added" is over the process after the import of the runtime, whose own share stands beside it. The
medians of several processes, the runtimes taking turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _fresh import answer, ask, parser
from _machine import facts, write_record

RUNTIMES = ["engine", "onnxruntime", "openvino"]
ASKED = {"resident_added": 80e6, "file_bytes": 16e6, "load_seconds": 0.3}  # of the engine, at most
SPARSITY = 0.9


def child(network: str, quick: bool, sparsity: float, times: int) -> dict[str, Any]:
    """Return what each runtime takes, one entry a process."""
    import numpy as np
    from _engine import masked
    from _networks import build

    from rewound.measure.bench.fresh import measure_fresh
    from rewound.measure.bench.networks import Flat, Zeros, tensors_of
    from rewound.measure.bench.runtimes import RUNTIMES as KNOWN
    from rewound.measure.bench.runtimes import files_of, quiet

    model, example = build(network, quick)
    model, _ = masked(model, "uniform", sparsity)
    flat, tensors = Flat(model, example).eval(), tensors_of(example)
    dense = sum(4 * t.numel() for t in model.state_dict().values() if t.is_floating_point())
    found: dict[str, Any] = {"zeros": Zeros.of(model).share, "dense_bytes": dense, "runtimes": {}}
    with tempfile.TemporaryDirectory() as place:
        inputs, paths = Path(place) / "inputs.npz", {}
        np.savez(inputs, *(tensor.numpy() for tensor in tensors))
        for name in RUNTIMES:
            if KNOWN[name].missing:
                continue
            paths[name] = Path(place) / f"{name}{KNOWN[name].suffix}"
            with quiet():
                KNOWN[name].make(flat, tensors, 1, paths[name])
            size = sum(file.stat().st_size for file in files_of(paths[name]))
            found["runtimes"][name] = {"file_bytes": size, "processes": []}
        for _ in range(times):
            for name, path in paths.items():
                one = measure_fresh(name, path, inputs)
                if one["torch_imported"]:
                    raise RuntimeError(f"{name} imported torch")
                found["runtimes"][name]["processes"].append(one)
    return found


def main() -> None:
    made = parser(__doc__, work="runs/engine-memory")
    made.add_argument("--network", default="ResNet-50")
    made.add_argument("--times", type=int, default=7, help="processes of each (default: %(default)s)")
    given = made.parse_args()
    if given.child:
        answer(given.child, child)
        return
    machine = facts()
    times = 2 if given.quick else given.times
    found = ask(given.work, 1200, network=given.network, quick=given.quick, sparsity=SPARSITY, times=times)
    if "failed" in found:
        raise SystemExit(found["failed"])
    page = text(given.network, found)
    record = {"machine": machine, "network": given.network, "sparsity": SPARSITY, "found": found}
    print(page, "", write_record("engine-memory", record, page, given.out), sep="\n")


def middle(one: Mapping[str, Any], key: str) -> float:
    """Return the median over processes; of the file, its size."""
    if key in one:
        return float(one[key])
    values = [process[key] for process in one["processes"]]
    return float("nan") if None in values else float(statistics.median(values))


def text(network: str, found: Mapping[str, Any]) -> str:
    """Return the table of the record, and what was asked of the engine."""
    lines = [
        f"{network}, {100 * found['zeros']:.1f} % of the weights zero, {found['dense_bytes'] / 1e6:.1f} MB in float32.",
        "",
        "| runtime | file, MB | import, s | load, s | load, CPU s | first call, s | by import, MB | added, MB | peak added, MB |",
        "|" + "---|" * 9,
    ]
    for name, one in found["runtimes"].items():
        cells = [name, f"{middle(one, 'file_bytes') / 1e6:.1f}"]
        cells += [
            f"{middle(one, key):.3f}"
            for key in ("import_seconds", "load_seconds", "load_cpu_seconds", "first_call_seconds")
        ]
        cells += [
            f"{middle(one, key) / 1e6:.1f}" for key in ("resident_by_import", "resident_added", "peak_added")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    engine = found["runtimes"]["engine"]
    lines += ["", "Asked of the engine:", ""]
    for key, most in ASKED.items():
        value, unit = middle(engine, key), 1.0 if key.endswith("seconds") else 1e6
        met = "met" if value <= most else "not met"
        lines.append(f"- {key.replace('_', ' ')} at most {most / unit:g}: {value / unit:.3g}, {met}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
