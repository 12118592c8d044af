"""Load time and memory of a runtime, in a process that does nothing else: ``python -m rewound.measure.bench.fresh QUESTION``.

Seconds: of importing the runtime, of loading the file (what a program waits for until it may call; of the processor too), of
the first call. Bytes
resident: before the import, and what import, loading and calling added; ``peak`` is the most that loading and calling added
at any moment. Mapped pages of the file count as long as they are in memory.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rewound.measure import machine
from rewound.measure.bench.runtimes import RUNTIMES

_MODULES = {"torch.compile": "torch", "engine": "rewound.runtime.compiling"}
_CALLS = 5


def measure_fresh(
    runtime: str, path: Path, inputs: Path, threads: int = 1, limit: float = 600
) -> dict[str, Any]:
    """Return what a new process found; inputs: a file of numpy.savez with arr_0, arr_1, ... RuntimeError where it fails."""
    question = {"runtime": runtime, "path": str(path), "inputs": str(inputs), "threads": threads}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-m", "rewound.measure.bench.fresh", json.dumps(question)],
        capture_output=True,
        text=True,
        timeout=limit,
        env={**os.environ, **dict.fromkeys(names, str(threads))},
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{runtime} failed in a process of its own: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _answer(runtime: str, path: str, inputs: str, threads: int) -> dict[str, Any]:
    import numpy as np

    with machine.on_cores(threads):
        arrays = list(np.load(inputs).values())
        before, start = machine.resident(), time.perf_counter()
        importlib.import_module(_MODULES.get(runtime, runtime))
        imported, began = machine.resident(), time.perf_counter()
        machine.forget_peak()
        cpu = time.process_time()
        bind = RUNTIMES[runtime].load(Path(path), threads)
        loaded, ready, cpu = machine.resident(), time.perf_counter(), time.process_time() - cpu
        call = bind(arrays)
        call()
        first = time.perf_counter()
        for _ in range(_CALLS - 1):
            call()
        ran, most = machine.resident(), machine.peak_resident()
    return {
        "import_seconds": began - start,
        "load_seconds": ready - began,
        "load_cpu_seconds": cpu,
        "first_call_seconds": first - ready,
        "resident_before": before,
        "resident_by_import": _less(imported, before),
        "resident_by_loading": _less(loaded, imported),
        "resident_added": _less(ran, imported),
        "peak_added": _less(most, imported),
        "torch_imported": "torch" in sys.modules,
    }


def _less(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(0, a - b)


if __name__ == "__main__":
    print("\n" + json.dumps(_answer(**json.loads(sys.argv[1]))))
