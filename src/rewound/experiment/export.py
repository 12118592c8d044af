"""From a finished run to files that are used without it: an engine, checked before it is kept; plain weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rewound.experiment.networks import WITHIN, Candidate, candidates, choose, network_of
from rewound.experiment.places import is_run, located

ROWS = 16  # of the task's own data, on which outputs are compared
FACTOR = 4.0  # the engine's largest error against float64 may be so many times that of torch in float32
FLOOR = 1e-5  # relative to the largest output: less than this is no error, even where torch has next to none


def export(
    place: str | Path,
    *,
    engine: str | Path | None = None,
    weights: str | Path | None = None,
    technique: str | None = None,
    seed: int | None = None,
    within: float = WITHIN,
    threads: int = 1,
    measure: bool = False,
) -> dict[str, Any]:
    """Write a finished run's network as an engine, as plain weights (safetensors), or as both; return what was written.

    place: a run's folder (in a grid GRID/runs/ and how its key begins will do), or that of an experiment or a grid: then the
    smallest network that has lost no more than ``within`` of its metric before pruning (1 %), among those of ``technique`` and
    ``seed`` if these are given. engine: is written to a name beside it, read back and compared with the model on rows of the
    task's data; it gets its name only if it gives the same. measure: the latency of one row too, beside torch.

    ``ValueError``: nothing is asked for, nothing has finished, or the engine gives something else than the model.
    """
    if engine is None and weights is None:
        raise ValueError("nothing to write: give --engine PATH, --weights PATH, or both")
    for path in (engine, weights):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder for {str(path)!r}")
    place = located(Path(place))
    chosen: Candidate | None = None
    why = "the folder given"
    if not is_run(place):
        chosen, why = choose(candidates(place), technique, seed, within)
    folder = chosen.folder if chosen else place
    model, inputs = network_of(folder, ROWS)
    from rewound.measure.bench.networks import Zeros

    zeros = Zeros.of(model)
    found: dict[str, Any] = {
        "run": str(folder),
        "network": str(chosen) if chosen else folder.name,
        "why": why,
        "weights": zeros.weights,
        "density": 1 - zeros.share,
    }
    if weights is not None:
        found["weights_file"] = _write_weights(model, Path(weights))
    if engine is not None:
        found["engine_file"] = _write_engine(model, inputs, Path(engine), threads)
    if measure:
        from rewound.measure.bench.compare import compare
        from rewound.measure.latency import of_batch

        told = compare(
            model, of_batch(inputs, 1), runtimes=["torch", "engine"], threads=threads, fresh=False, twin=False
        )
        found["latency"] = {row.runtime: row.wall.median for row in told.rows}
    return found


def as_lines(found: dict[str, Any]) -> list[str]:
    """Set the outcome for people."""
    lines = [f"{found['network']} ({found['why']})"]
    lines.append(f"{found['weights']:,} weights, density {found['density']:.3g}")
    if "weights_file" in found:
        file = found["weights_file"]
        lines.append(f"weights  {file['path']}: {file['bytes']:,} bytes")
    if "engine_file" in found:
        file = found["engine_file"]
        lines.append(
            f"engine   {file['path']}: {file['bytes']:,} bytes; weights in float32 are {file['dense_bytes']:,}"
        )
        lines.append(
            f"parity   error {file['error']:.1e} against float64 on {file['rows']} rows of the task's data; "
            f"torch in float32 has {file['torch_error']:.1e}"
        )
    if "latency" in found:
        told = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in found["latency"].items())
        lines.append(f"latency  one row, median: {told}")
    return lines


def _write_weights(model: Any, path: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, passing)
    os.replace(passing, path)
    return {"path": str(path), "bytes": path.stat().st_size}


def _write_engine(model: Any, inputs: Any, path: Path, threads: int) -> dict[str, Any]:
    from torch.utils._pytree import tree_leaves

    import rewound.runtime
    from rewound.measure.bench.networks import Flat, in_float32, in_float64, largest_error, tensors_of
    from rewound.measure.latency import of_batch
    from rewound.untouched import call_of

    flat, tensors = Flat(model, inputs).eval(), tensors_of(inputs)
    expected = in_float64(flat, tensors)
    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        rewound.runtime.compile(model, of_batch(inputs, 1), threads=threads).save(passing)
        args, kwargs = call_of(inputs)
        given = tree_leaves(rewound.runtime.load(passing, threads=threads)(*args, **kwargs))
        error = largest_error(given, expected)
        torch_error = largest_error(in_float32(flat, tensors), expected)
        if not error <= max(FACTOR * torch_error, FLOOR):
            raise ValueError(
                f"the engine's outputs are not the model's: error {error:.1e} against float64, where torch in float32 "
                f"has {torch_error:.1e}; {path} was not written"
            )
        os.replace(passing, path)
    finally:
        passing.unlink(missing_ok=True)
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "dense_bytes": sum(4 * p.numel() for p in model.parameters()),
        "error": error,
        "torch_error": torch_error,
        "rows": len(tensors[0]),
    }
