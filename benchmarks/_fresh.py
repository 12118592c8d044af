"""Measurements each in a process of its own, one after the other; those that are kept in a folder are not made again.

A script calls ``ask(work, **question)``. The script itself is started anew with ``--child QUESTION``; what it prints last is
the answer, in JSON. One thread. With a folder ``work``, an answer is kept under a sum of the question, the sources of
rewound and those of the benchmarks: another version of any of them is measured anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def parser(doc: str | None, work: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that such scripts share."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="tiny networks and few repeats: does it run?")
    made.add_argument("--out", default=None, help="folder of the record (default: benchmarks/records)")
    made.add_argument(
        "--work", default=work, help="folder that keeps finished measurements (default: %(default)s)"
    )
    made.add_argument("--child", default=None, help=argparse.SUPPRESS)
    return made


def answer(question: str, work: Callable[..., Any]) -> None:
    """In the child: do the work, and print what comes of it."""
    import torch

    torch.set_num_threads(1)
    print("\n" + json.dumps(work(**json.loads(question))))


def ask(work: str | None, limit: float | None = None, **question: Any) -> Any:
    """Return the child's answer to ``question``, or {"failed": why}; limit: seconds it may take."""
    text = json.dumps(question, sort_keys=True)
    kept = None if work is None else Path(work) / f"{_sum_of_sources(text)}.json"
    if kept is not None and kept.is_file():
        return json.loads(kept.read_text())
    command = [sys.executable, sys.argv[0], "--child", text]
    environment = {**os.environ, **_ONE_THREAD, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return {"failed": last[:300]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return found


def shown(values: list[float] | None, digits: int = 2) -> str:
    """Return "median (smallest to largest)"."""
    if not values:
        return "-"
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def _sum_of_sources(question: str) -> str:
    total = hashlib.sha256(question.encode())
    for path in _sources():
        total.update(path.read_bytes())
    return total.hexdigest()[:24]


def _sources() -> list[Path]:
    """Python and C++: what is measured and what measures."""
    source = _HERE.parent / "src"
    found = [path for ending in ("py", "cc", "h") for path in source.rglob(f"*.{ending}")]
    return [*sorted(found), *sorted(_HERE.glob("*.py"))]
