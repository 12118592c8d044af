"""Schedules of products chosen by time: a few neighbours of the cost model's choice are tried, and the best is remembered.

What was found is kept in a small JSON file in the user's cache folder, by machine, kernels, geometry and density of the weight,
so that a network is tuned once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewound.runtime.graph import Graph
from rewound.runtime.planning import others, products  # noqa: F401  # they register their rules
from rewound.runtime.planning.geometry import Geometries
from rewound.runtime.planning.layout import Span
from rewound.runtime.planning.lower import Lowering
from rewound.runtime.planning.steps import Step
from rewound.runtime.weights import Sparse

Schedule = tuple[
    int, ...
]  # rows that share a tap, vectors of pixels, places of a row in a block, and what more kernels know

_GAIN = 0.97  # what a schedule must take of the time of the one before it to replace it
_SECONDS = 0.01  # of runs, for each schedule


def tuned(graph: Graph, images: int, native: Any, cache: Path | None = None) -> dict[int, Schedule]:
    """Return node -> schedule for the products of a graph without ``torch`` nodes, in groups of so many images.

    ``Unplanned``: as of ``plan``.
    """
    lower = Lowering(graph, images)
    lower.run()
    geometries = Geometries(lower.steps, images)
    path = cache or cache_file()
    known = _read(path)
    found: dict[int, Schedule] = {}
    before = len(known)
    for step in lower.steps:
        if step.method != "conv":
            continue
        key = _key(step, geometries, images, native, graph.weights[graph.nodes[step.node].weights["weight"]])
        if key not in known:
            known[key] = list(_best(step, geometries, images, native))
        found[step.node] = tuple(known[key])
    if len(known) != before:
        _write(path, known)
    return found


def cache_file() -> Path:
    """Return the file: $XDG_CACHE_HOME or ~/.cache, rewound/schedules.json."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "rewound" / "schedules.json"


# -- trying ---------------------------------------------------------------------------------------------------------------------


def _best(step: Step, geometries: Geometries, images: int, native: Any) -> Schedule:
    """Return the quickest of: the model's choice; then other numbers of rows; of the winner other blocks; then fewer vectors."""
    best, least = _timed(step, geometries, images, native, None)
    for neighbours in (_rows, _blocks, _vectors):
        for candidate in neighbours(best, step):
            try:
                schedule, seconds = _timed(step, geometries, images, native, candidate)
            except ValueError:  # no kernel of this kind
                continue
            if seconds < least * _GAIN:
                best, least = schedule, seconds
    return best


def _rows(best: Schedule, step: Step) -> Iterator[Schedule]:
    return ((rows, 0, 0) for rows in (1, 2, 4, 6) if rows != best[0])


def _blocks(best: Schedule, step: Step) -> Iterator[Schedule]:
    rows, vectors, block, *more = best
    window = step.arguments["shape"][2] * step.arguments["shape"][3]
    whole = step.arguments["shape"][1] * window
    sizes = {max(window, block // 2 // window * window), min(whole, 2 * block)} - {block}
    return ((rows, vectors, size, *more) for size in sorted(sizes))


def _vectors(best: Schedule, step: Step) -> Iterator[Schedule]:
    rows, vectors, block, *more = best
    return (
        (rows, n, block, *more)
        for n in sorted({(vectors + 1) // 2, vectors - 1, vectors + 1})
        if 0 < n != vectors
    )


def _timed(
    step: Step, geometries: Geometries, images: int, native: Any, schedule: Schedule | None
) -> tuple[Schedule, float]:
    """Return the schedule that was used and the least nanoseconds of a run, alone in a program over zeros."""
    spans = [*step.reads, step.write]
    sizes = [geometries[span.buffer].floats(span.channels) for span in spans]
    starts = np.concatenate([[0], np.cumsum([-(-size // 16) * 16 for size in sizes])])
    program = native.Program(int(starts[-1]))
    ids = [
        program.value(int(start), *_geometry(span, geometries, images)) for span, start in zip(spans, starts)
    ]
    residual = ids[1] if len(ids) == 3 else None
    program.conv(ids[0], ids[-1], **step.arguments, residual=residual, schedule=schedule)
    took: list[int] = []
    while len(took) < 3 or (sum(took) < 1e9 * _SECONDS and len(took) < 50):
        took += program.profile([], [])
    return tuple(int(n) for n in program.operators()[0]["schedule"]), min(took)


def _geometry(span: Span, geometries: Geometries, images: int) -> tuple[int, ...]:
    buffer = span.buffer
    return (span.channels, images, buffer.height, buffer.width, *geometries[buffer])


# -- remembering ----------------------------------------------------------------------------------------------------------------


def _key(step: Step, geometries: Geometries, images: int, native: Any, weight: Any) -> str:
    own = [_geometry(span, geometries, images) for span in (*step.reads, step.write)]
    given = {k: v for k, v in step.arguments.items() if k not in ("weight", "bias")}
    kept = [f"{share:.2g}" for share in _filled(weight)]
    told = json.dumps([machine(), native.instruction_set(), own, given, kept], default=str, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def _filled(weight: Any) -> tuple[float, ...]:
    """Return the density of a weight, and of its blocks of two and of four neighbouring rows."""
    if not isinstance(weight, Sparse):
        return (1.0, 1.0, 1.0)
    rows = np.repeat(np.arange(weight.shape[0]), np.diff(weight.starts))
    found = [weight.density]
    for height in (2, 4):
        blocks = np.unique(rows // height * weight.row + weight.places)
        found.append(len(blocks) / max(1, -(-weight.shape[0] // height) * weight.row))
    return tuple(found)


@functools.cache
def machine() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, list[int]]:
    """Return what is remembered; nothing where the file is not there or is not what was written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: row for key, row in found.items() if _is_schedule(row)}


def _is_schedule(row: Any) -> bool:
    return (
        isinstance(row, list) and 3 <= len(row) <= 8 and all(type(n) is int and 0 < n < 1 << 31 for n in row)
    )


def _write(path: Path, known: dict[str, Sequence[int]] | dict[str, list[int]]) -> None:
    """Replace the file at once, adding what others have put there meanwhile; a folder that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            json.dump({**_read(path), **known}, file)
        os.replace(file.name, path)
    except OSError:
        return
