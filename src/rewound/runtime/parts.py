"""What an engine runs one after the other: native programs over groups of images, and single nodes in torch or numpy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rewound.runtime import fallback, reference
from rewound.runtime.graph import Graph
from rewound.runtime.planning.emit import Plan, Schedules, plan
from rewound.runtime.planning.groups import Groups, Zone, zones_of
from rewound.runtime.planning.lower import Unplanned
from rewound.runtime.weights import dense

Array = NDArray[Any]
_ZONES_PAY = 4  # images from which on a network is computed by zones
_AT_ONCE = 16  # images that go through all zones together


class Part(Protocol):
    graph: Graph

    def run(self, known: dict[str, Array], images: int, threads: int) -> None:
        """Add this part's outputs to what is known."""


class Chunk(NamedTuple):
    """Images from ``start`` on: ``groups`` groups of ``size``, of which the last may lack ``padding`` images."""

    start: int
    size: int
    groups: int
    padding: int


class Native:
    """Nodes that are native operators. Programs are made for the group sizes that batches ask for, and kept."""

    def __init__(
        self, graph: Graph, native: Any, autotune: bool = False, groups: Groups | None = None
    ) -> None:
        self.graph, self.native, self.autotune = graph, native, autotune
        zones = [Zone(graph, groups)] if groups is not None else zones_of(graph)
        self.groups = zones[0].groups if len(zones) == 1 else Groups(False, 1)
        self.plans: dict[int, Plan] = {}
        self._zones = [] if len(zones) == 1 else [Native(z.graph, native, autotune, z.groups) for z in zones]
        self._lock = threading.Lock()

    def stages(self, images: int) -> list[Native]:
        """Return what computes a batch one after the other: all at once, or zones with groups of their own."""
        return self._zones if self._zones and images >= _ZONES_PAY else [self]

    def prepare(self, images: int) -> None:
        """Pack what a batch needs. ``Unplanned``: a node that native operators cannot do."""
        for stage in self.stages(images):
            stage.planned(min(images, _AT_ONCE) if stage is not self else images)

    def planned(self, images: int) -> list[tuple[Chunk, Plan]]:
        """Return the chunks of a batch and the program of each."""
        try:
            return [(chunk, self.plan(chunk.size)) for chunk in self._chunks(images)]
        except Unplanned:
            if self.groups.most == 1 and not self.groups.vectors:
                raise
            self.groups = Groups(False, 1)  # perhaps the group was too large
            return [(chunk, self.plan(chunk.size)) for chunk in self._chunks(images)]

    def plan(self, size: int) -> Plan:
        """Return the program for groups of ``size`` images."""
        found = self.plans.get(size)
        if found is None:
            with self._lock:
                found = self.plans.get(size)
                if found is None:
                    found = self.plans[size] = self._packed(size)
        return found

    def programs(self) -> list[Plan]:
        """Return all programs that there are."""
        return [*self.plans.values(), *(plan for zone in self._zones for plan in zone.programs())]

    def _packed(self, size: int) -> Plan:
        schedules: Schedules = {}
        if self.autotune:
            from rewound.runtime.planning.tune import tuned

            schedules = tuned(self.graph, size, self.native)
        return plan(self.graph, size, self.native, schedules)

    def _chunks(self, images: int) -> Iterator[Chunk]:
        start = 0
        for size, count, padding in self.groups.of(images):
            yield Chunk(start, size, count, padding)
            start += size * count - padding

    def run(self, known: dict[str, Array], images: int, threads: int) -> None:
        stages = self.stages(images)
        if stages == [self]:
            self._run(known, images, threads)
            return
        # not the whole batch through the first zone: what zones hand over stays in a cache
        graph = self.graph
        for name in graph.outputs:
            known[name] = self._result(name, images)
        for start in range(0, images, _AT_ONCE):
            some = min(_AT_ONCE, images - start)
            inside = {name: known[name][start : start + some] for name in graph.inputs}
            for stage in stages:
                stage._run(inside, some, threads)
            for name in graph.outputs:
                known[name][start : start + some] = inside[name]

    def _result(self, name: str, images: int) -> Array:
        return np.empty((images, *(n or 0 for n in self.graph.values[name].shape[1:])), np.float32)

    def _run(self, known: dict[str, Array], images: int, threads: int) -> None:
        graph = self.graph
        for name in graph.outputs:
            known[name] = self._result(name, images)
        for chunk, made in self.planned(images):
            inside = slice(chunk.start, chunk.start + chunk.size * chunk.groups - chunk.padding)
            given = [known[name][inside].astype(dtype, copy=False) for name, dtype in made.inputs]
            results = [known[name][inside] for name in graph.outputs]
            if not chunk.padding:
                made.program.run(given, results, chunk.groups, threads)
                continue
            whole = [np.concatenate([x, np.zeros((chunk.padding, *x.shape[1:]), x.dtype)]) for x in given]
            wide = [np.empty((len(x) + chunk.padding, *x.shape[1:]), np.float32) for x in results]
            made.program.run(whole, wide, chunk.groups, threads)
            for x, y in zip(results, wide):
                x[:] = y[: len(x)]


class Alone:
    """A node that is no native operator, on the whole batch: in torch, or in numpy (why: what the native side said)."""

    def __init__(self, graph: Graph, why: str = "") -> None:
        (self.node,) = graph.nodes
        self.graph, self.why = graph, why
        if self.node.op == "torch":
            self._require_torch()

    def _require_torch(self) -> None:
        target = self.node.attributes["target"]
        try:
            fallback.resolve(str(target))
        except ImportError:
            raise ImportError(
                f"this network has {target} (from {self.node.source or 'nowhere told'}), which runs in torch; install torch"
            ) from None

    def run(self, known: dict[str, Array], images: int, threads: int) -> None:
        node, graph = self.node, self.graph
        x = [known[name] for name in node.inputs]
        if node.op == "torch":
            import torch

            value = graph.values[node.output]
            made = fallback.run(node, value, [torch.from_numpy(one) for one in x], graph.weights)
            known[node.output] = np.ascontiguousarray(made.numpy())
            return
        weights = {role: dense(graph.weights[key]) for role, key in node.weights.items()}
        with np.errstate(all="ignore"):
            y = reference.compute(node, x, weights, images, np.float32)
        known[node.output] = np.ascontiguousarray(y)


__all__ = ["Alone", "Native", "Part", "Unplanned"]
