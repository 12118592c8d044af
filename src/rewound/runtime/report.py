"""How long each operator of an engine takes, and by which kernels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rewound.runtime import reference
from rewound.runtime.graph import Graph, Node
from rewound.runtime.parts import Alone, Native
from rewound.runtime.weights import density

if TYPE_CHECKING:
    from rewound.runtime.engine import Engine

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One operator of the graph. source: its module. how: "sparse", "block 4x1", "dense", "native", "torch", "numpy", or "free"
    where nothing is left to do. density: of its weight, kept / total. schedule: of its kernel (rows that share a tap, vectors of
    pixels, places of a row in a block). milliseconds: of one call. macs: multiply-adds of one call. weight: the parameter."""

    source: str
    operator: str
    how: str
    density: float | None
    schedule: str
    milliseconds: float
    macs: int
    weight: str

    @property
    def gflops(self) -> float:
        """10^9 additions and multiplications that zeros did not save, a second."""
        return 2e-6 * self.macs / self.milliseconds if self.milliseconds else 0.0


@dataclass(frozen=True)
class Report:
    """layers: in the order of the graph. milliseconds: of a whole call, measured from outside. why: outputs of operators that
    run outside of native code, and the reason. ``str()`` is a table."""

    layers: tuple[Layer, ...]
    milliseconds: float
    batch: int
    threads: int
    kernels: str
    weight_bytes: int
    arena_bytes: int
    why: Mapping[str, str]

    def __str__(self) -> str:
        head = ("operator", "kind", "how", "density", "schedule", "ms", "GFLOP/s")
        rows = [head]
        for layer in self.layers:
            if layer.how == "free":
                continue
            kept = "" if layer.density is None else f"{layer.density:.3f}"
            speed = f"{layer.gflops:.1f}" if layer.macs else ""
            row = (
                layer.source if len(layer.source) <= 60 else f"{layer.source[:57]}...",
                layer.operator,
                layer.how,
                kept,
                layer.schedule,
                f"{layer.milliseconds:.3f}",
                speed,
            )
            rows.append(row)
        wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(w) if i in (3, 5, 6) else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, wide))
            )
            for row in rows
        ]
        inside = sum(layer.milliseconds for layer in self.layers)
        macs = sum(layer.macs for layer in self.layers)
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        lines.append(
            f"batch {self.batch}, {threads}, {self.kernels}: {self.milliseconds:.3f} ms a call ({inside:.3f} in operators), "
            f"{macs / 1e6:.1f} million multiply-adds, {2e-6 * macs / max(inside, 1e-9):.1f} GFLOP/s"
        )
        lines.append(
            f"packed weights {self.weight_bytes / 1e6:.1f} MB, values {self.arena_bytes / 1e6:.1f} MB for each thread"
        )
        lines += [f"not native: {name}: {why}" for name, why in self.why.items()]
        return "\n".join(line.rstrip() for line in lines)


class _Tally:
    def __init__(self) -> None:
        self.seconds, self.macs, self.schedule, self.how = 0.0, 0, "", ""


def report(engine: Engine, given: Mapping[str, Array] | None, seconds: float) -> Report:
    """Return the report of an engine: medians over as many runs as fit into about so many seconds."""
    graph = engine.graph
    given = given if given is not None else random_inputs(graph, engine.batch or 1)
    images = len(given[graph.inputs[0]]) if graph.inputs else 1
    tallies = {node.output: _Tally() for node in graph.nodes}
    why: dict[str, str] = {}
    weight_bytes = arena_bytes = 0
    if not engine.parts:
        kernels = "numpy (no native module)"
        total, calls = _timed(lambda: reference.run(graph, given, np.float32), seconds)
        for node in graph.nodes:
            tallies[node.output].how = "numpy"
    else:
        kernels = engine.parts[0].native.instruction_set() if isinstance(engine.parts[0], Native) else "torch"
        total, calls = _timed(lambda: engine._run(given), seconds)
        known = dict(given)
        for part in engine.parts:
            if isinstance(part, Native):
                for stage in part.stages(images):
                    _native(stage, known, images, engine.threads, tallies, calls)
                    stage.run(known, images, engine.threads)
                programs = [each.program for each in part.programs()]
                weight_bytes += sum(program.weight_bytes for program in programs)
                arena_bytes = max(arena_bytes, *(program.arena_bytes for program in programs))
                kernels = programs[0].instruction_set
            elif isinstance(part, Alone):
                node = part.node
                tally = tallies[node.output]
                tally.how = "torch" if node.op == "torch" else "numpy"
                told = node.attributes.get("target", node.op)
                why[f"{node.source or 'nowhere told'} ({told})"] = part.why or "no native operator does this"
                tally.seconds = _timed(lambda part=part: part.run(dict(known), images, engine.threads), 0.05)[
                    0
                ]
                part.run(known, images, engine.threads)
    layers = tuple(_layer(graph, node, tallies[node.output]) for node in graph.nodes)
    return Report(layers, 1e3 * total, images, engine.threads, kernels, weight_bytes, arena_bytes, why)


def random_inputs(graph: Graph, images: int) -> dict[str, Array]:
    """Return standard normal floats, and zeros for ids."""
    generator = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for name in graph.inputs:
        value = graph.values[name]
        shape = (images, *(n or 0 for n in value.shape[1:]))
        floats = value.dtype == "float32"
        made[name] = generator.standard_normal(shape, np.float32) if floats else np.zeros(shape, value.dtype)
    return made


def _timed(call: Any, seconds: float) -> tuple[float, int]:
    """Return the median of a call's seconds, and how often it was called."""
    call()
    took: list[float] = []
    while not took or (sum(took) < seconds and len(took) < 200):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return float(np.median(took)), len(took)


def _native(
    part: Native, known: dict[str, Array], images: int, threads: int, tallies: dict[str, _Tally], calls: int
) -> None:
    for chunk, made in part.planned(images):
        given = [
            np.resize(known[name], (chunk.size, *known[name].shape[1:])).astype(dtype, copy=False)
            for name, dtype in made.inputs
        ]
        graph = part.graph
        results = [
            np.empty((chunk.size, *(n or 0 for n in graph.values[name].shape[1:])), np.float32)
            for name in graph.outputs
        ]
        runs = [made.program.profile(given, results, threads) for _ in range(max(3, min(calls, 50)))]
        took = np.median(np.array(runs, float).reshape(len(runs), -1), axis=0) * 1e-9 * chunk.groups
        for nanoseconds, row, at in zip(took, made.program.operators(), made.nodes):
            if at < 0:  # moving results out belongs to what made the first of them
                at = next(i for i, node in enumerate(graph.nodes) if node.output == graph.outputs[0])
            node = graph.nodes[at]
            tally = tallies[node.output]
            tally.seconds += nanoseconds
            tally.macs += int(row["macs"]) * chunk.groups
            tally.how = tally.how or "native"
            if row["kind"] in ("conv", "matvec"):
                tally.how, tally.schedule = _kernel(graph, node, row)


def _kernel(graph: Graph, node: Node, row: Mapping[str, Any]) -> tuple[str, str]:
    kept = density(graph.weights[node.weights["weight"]])
    schedule = [int(n) for n in row["schedule"]]
    told = " x ".join(map(str, schedule))
    if row["kind"] == "matvec":
        return ("sparse" if schedule[0] else "dense"), "vector"
    if schedule[0] == 1:
        return ("sparse" if kept < 1 else "dense"), told
    weight = graph.weights[node.weights["weight"]]
    size = float(np.prod(weight.shape))
    filled = (
        row["bytes"] / (4 * (1 + schedule[0])) * schedule[0] / size
    )  # places that are computed, zeros among them
    return ("dense" if filled > 0.7 else f"block {schedule[0]}x1"), told


def _layer(graph: Graph, node: Node, tally: _Tally) -> Layer:
    key = node.weights.get("weight", "")
    kept = density(graph.weights[key]) if key and node.op in ("conv", "linear") else None
    told = str(node.attributes.get("target", node.op))
    activation = node.attributes.get("activation")
    if activation and node.op != "torch":
        told = activation[0] if node.op == "activation" else f"{told} + {activation[0]}"
    return Layer(
        node.source, told, tally.how or "free", kept, tally.schedule, 1e3 * tally.seconds, tally.macs, key
    )
