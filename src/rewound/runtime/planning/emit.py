"""Steps become calls of a native program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewound.runtime.graph import Graph
from rewound.runtime.planning import others, products  # noqa: F401  # they register their rules
from rewound.runtime.planning.geometry import Geometries, filled, steps_of
from rewound.runtime.planning.layout import Buffer, Span, View
from rewound.runtime.planning.liveness import Life, offsets
from rewound.runtime.planning.lower import Lowering, Unplanned
from rewound.runtime.planning.memory import lifetimes, shared
from rewound.runtime.planning.steps import Move, Product, Step

Schedules = Mapping[int, Sequence[int]]  # node -> what Program.conv takes as ``schedule``


@dataclass(frozen=True)
class Plan:
    """A native program for groups of so many images.

    inputs: names of values and the dtypes that their arrays need, in the program's order. nodes: for each of its operators the
    graph's node that it belongs to, -1 for what moves results out.
    """

    program: Any
    images: int
    inputs: tuple[tuple[str, str], ...]
    nodes: tuple[int, ...]


def plan(graph: Graph, images: int, native: Any, schedules: Schedules | None = None) -> Plan:
    """Return a program of ``native`` (the module, or what behaves like it) for a graph without ``torch`` nodes.

    ``Unplanned``: a node that native operators cannot do, or that the native module refuses.
    """
    lower = Lowering(graph, images)
    lower.run()
    geometries = Geometries(lower.steps, images)
    steps = shared(lower.steps, geometries)
    lives = {
        buffer: Life(first, last, geometries[buffer].floats(buffer.channels))
        for buffer, (first, last) in lifetimes(steps).items()
    }
    places, size = offsets(lives)
    ports = [
        (dtype, images * math.prod(lower.shape(name)))
        for name, dtype in sorted(lower.inputs, key=lower.inputs.__getitem__)
    ]
    results = [("float32", images * math.prod(lower.shape(name))) for name in graph.outputs]
    emitter = _Emitter(native.Program(size, ports, results), geometries, places, images)
    nodes: list[int] = []
    for step in steps:
        node = graph.nodes[step.node] if step.node >= 0 else None
        name = f"{node.source or node.op}#{step.node}" if node is not None else "results#-1"
        try:
            emitter.emit(step, name, (schedules or {}).get(step.node))
        except ValueError as error:
            if node is None:
                raise
            refused = Unplanned(str(error))
            refused.output = node.output
            raise refused from error
    for row in emitter.program.operators():
        nodes.append(int(row["name"].rpartition("#")[2]))
    return Plan(emitter.program, images, tuple(lower.inputs), tuple(nodes))


class _Emitter:
    def __init__(
        self, program: Any, geometries: Geometries, places: Mapping[Buffer, int], images: int
    ) -> None:
        self.program, self.geometries, self.places, self.images = program, geometries, places, images
        self.ids: dict[tuple[int, int, int], int] = {}
        self.cleared: set[int] = set()

    def emit(self, step: Step, name: str, schedule: Sequence[int] | None) -> None:
        if isinstance(step, Product):
            self._product(step, name)
        elif isinstance(step, Move) and step.method == "copy":
            self._copy(step, name)
        elif isinstance(step, Move):
            assert step.source is not None
            self.program.phases(self._planes(step.source), self.id(step.write), **step.arguments, name=name)
        else:
            self._operator(step, name, schedule)

    def _operator(self, step: Step, name: str, schedule: Sequence[int] | None) -> None:
        reads = [self.id(span) for span in step.reads]
        y = self.id(step.write)
        arguments = dict(step.arguments)
        if step.method in ("conv", "matvec"):
            if len(reads) > 1:
                arguments["residual"] = reads.pop()
            if step.method == "conv" and schedule is not None:
                arguments["schedule"] = schedule
        if step.method == "attention" and len(reads) > 3:
            arguments["mask"] = reads.pop()
        if step.method == "embedding":
            self.program.embedding(arguments.pop("index"), y, **arguments, name=name)
        else:
            getattr(self.program, step.method)(*reads, y, **arguments, name=name)

    def id(self, span: Span) -> int:
        """Return the native value of some channels of a buffer."""
        buffer = span.buffer
        key = (id(buffer), span.first, span.channels)
        if key not in self.ids:
            geometry = self.geometries[buffer]
            sizes = (
                span.channels,
                self.images if buffer.images else 1,
                buffer.height,
                buffer.width,
                *geometry,
            )
            if buffer.kind == "constant":
                if span.first or span.channels != buffer.channels:
                    raise NotImplementedError("some channels of a constant")
                self.ids[key] = self.program.constant(filled(buffer, geometry), sizes)
            else:
                root, first = buffer.root()
                stride = self.geometries[root].stride
                self.ids[key] = self.program.value(
                    self.places[root] + first * stride + span.first * geometry.stride, *sizes
                )
        return self.ids[key]

    def _port(self, view: View) -> int:
        buffer = view.buffer
        key = (id(buffer), 0, 0)
        if key not in self.ids:
            n = buffer.width
            method = self.program.input if buffer.kind == "input" else self.program.output
            self.ids[key] = method(buffer.port, 0, 1, self.images, 1, n, n, n, n * self.images)
        return self.ids[key]

    def _planes(self, x: View) -> int:
        """Return [channels, height, width] of an array of the user's as a native value."""
        channels, height, width = x.shape
        (_, stride), (_, pitch), _ = x.axes
        return int(
            self.program.input(
                x.buffer.port,
                x.start[3],
                channels,
                self.images,
                height,
                width,
                pitch if height > 1 else width,
                x.buffer.width,
                stride,
            )
        )

    def _stand(self, view: View) -> tuple[int, int, list[int]]:
        """Return the native value of a view's buffer, the place of its first element, and strides: of images, of its axes."""
        buffer = view.buffer
        geometry = None if buffer.raw else self.geometries[buffer]
        start, strides, image = steps_of(view, geometry)
        value = self._port(view) if buffer.raw else self.id(Span(buffer, 0, buffer.channels))
        return value, start, [image, *strides]

    def _copy(self, step: Move, name: str) -> None:
        assert step.source is not None and step.target is not None
        self._clear(step.write.buffer, name)
        source, begin, moves = self._stand(step.source)
        target, start, wanted = self._stand(step.target)
        sizes = [self.images, *step.source.shape]
        real = [i for i, n in enumerate(sizes) if n != 1]
        self.program.copy(
            source,
            target,
            [sizes[i] for i in real],
            [moves[i] for i in real],
            [wanted[i] for i in real],
            begin,
            start,
            name=name,
        )

    def _product(self, step: Product, name: str) -> None:
        assert step.views is not None
        self._clear(step.write.buffer, name)
        (a, a_start, a_steps), (b, b_start, b_steps), (y, y_start, y_steps) = (
            self._stand(view) for view in step.views
        )
        one, two, made = (view.shape for view in step.views)

        def batch(steps: Sequence[int], shape: Sequence[int]) -> list[int]:
            return [steps[0], *(s if n != 1 else 0 for s, n in zip(steps[1:-2], shape))]

        self.program.matmul(
            a,
            b,
            y,
            (made[-2], made[-1], one[-1]),
            tuple(a_steps[-2:]),
            tuple(b_steps[-2:]),
            tuple(y_steps[-2:]),
            [self.images, *made[:-2]],
            batch(a_steps, one),
            batch(b_steps, two),
            batch(y_steps, made),
            (a_start, b_start, y_start),
            name=name,
        )

    def _clear(self, buffer: Buffer, name: str) -> None:
        """Zero the guards of what is written pixel by pixel, once."""
        if buffer.raw or id(buffer) in self.cleared:
            return
        self.cleared.add(id(buffer))
        geometry = self.geometries[buffer]
        used = self.images * geometry.plane
        guards = geometry.lead or geometry.pitch > buffer.width or geometry.stride > used
        if guards or geometry.plane > buffer.height * geometry.pitch:
            self.program.clear(self.id(Span(buffer, 0, buffer.channels)), name=name)
