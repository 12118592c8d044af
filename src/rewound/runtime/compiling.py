"""From a torch model, or a file, to an engine."""

from __future__ import annotations

import os
from typing import Any

from rewound.runtime.engine import Engine
from rewound.runtime.graph import Graph, rounded


def compile(
    model: Any,
    example: Any = None,
    *,
    threads: int = 1,
    dynamic_batch: bool = True,
    autotune: bool = False,
) -> Engine:
    """Return an engine that computes what ``model`` computes in evaluation mode, skipping the zeros of its weights.

    model: a torch module, which is not changed; or a Graph. example: inputs for one call, a tensor, a tuple of positional or a
    dict of keyword arguments, with the batch as first axis of each; sizes other than the batch are fixed by it. threads: that
    one call may use. dynamic_batch: other batches than the example's may come. autotune: try several schedules of each product
    and remember the best, for this machine (seconds; without it a cost model chooses).

    ``ValueError``: the data decide what the model computes, it has a state, or draws at random; the line is named.

    >>> import numpy, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    >>> engine = compile(model, torch.zeros(1, 3))
    >>> engine(numpy.zeros((5, 3), numpy.float32)).shape
    (5, 2)
    """
    if isinstance(model, Graph):
        graph, batch = model, None
    else:
        graph, batch = _captured(model, example)
    return Engine(graph, threads=threads, batch=batch, dynamic_batch=dynamic_batch, autotune=autotune)


def _captured(model: Any, example: Any) -> tuple[Graph, int | None]:
    from rewound.runtime.convert import convert
    from rewound.runtime.simplify import simplify

    if example is None:
        raise ValueError("'example' is missing: give inputs of one call, such as torch.zeros(1, 3, 224, 224)")
    graph = rounded(simplify(convert(model, example)))
    return graph, _batch(example)


def _batch(example: Any) -> int | None:
    """Return the size of the first axis of the first tensor in an example."""
    if hasattr(example, "shape"):
        return int(example.shape[0]) if len(example.shape) else None
    items = (
        example.values()
        if isinstance(example, dict)
        else example
        if isinstance(example, (list, tuple))
        else ()
    )
    found = (_batch(item) for item in items)
    return next((size for size in found if size is not None), None)


def load(path: str | os.PathLike[str], *, threads: int = 1, autotune: bool = False) -> Engine:
    """Return the engine that ``engine.save(path)`` wrote. Needs no torch, unless operators of the network run in it.

    ``ValueError``: a file that is damaged, foreign or of a newer version, with what is wrong. ``ImportError``: it needs torch.
    """
    from rewound.runtime.file import describe, read

    graph, batch = read(path), describe(path).notes.get("batch")
    if batch is not None and (type(batch) is not int or batch < 0):
        raise ValueError(f"{path}: the batch in its notes is {batch!r}, no number of images")
    return Engine(graph, threads=threads, batch=batch, dynamic_batch=batch is None, autotune=autotune)
