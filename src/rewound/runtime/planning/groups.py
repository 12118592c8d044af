"""How a batch is cut into groups of images that a program computes at once, and where a network changes from one size of group
to another.

Large planes fill the vectors of a machine by themselves: one image at a time leaves the rest of a cache to weights. Small planes
do not, and a plain vector has one pixel: there several images stand side by side. So a convolutional network begins image by
image and ends, after its last large plane, in groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rewound.runtime.graph import Graph, Node
from rewound.runtime.planning.lower import Lowering
from rewound.runtime.weights import Sparse

_LADDER = (16, 32, 64, 128)  # images of vectors: whole registers of pixels
_SMALL, _SEVERAL = 16, 16  # pixels of a small plane, and how many of these stand in a group
_WORTH = 50_000  # weights that several images must share for a zone of their own


class Groups(NamedTuple):
    """vectors: an image is one pixel everywhere. most: images in a group of planes."""

    vectors: bool
    most: int

    def of(self, images: int) -> Iterator[tuple[int, int, int]]:
        """Yield (size, count, padding) until all images are in a group, whatever the number of threads: results do not depend on
        it.

        >>> list(Groups(True, 1).of(150)), list(Groups(False, 4).of(9))
        ([(128, 1, 0), (32, 1, 10)], [(4, 2, 0), (1, 1, 0)])
        """
        if not self.vectors:
            most = max(1, min(self.most, images))
            size = 1 << (most.bit_length() - 1)
            if images >= size:
                yield size, images // size, 0
            if images % size:
                yield 1, images % size, 0
            return
        size = next((n for n in _LADDER if n >= images), _LADDER[-1]) if images > 1 else 1
        if images >= size:
            yield size, images // size, 0
        rest = images % size
        if rest:
            last = 1 if rest == 1 else next(n for n in _LADDER if n >= rest)
            yield last, 1, last - rest


class Zone(NamedTuple):
    """Nodes that are computed in groups of one kind."""

    graph: Graph
    groups: Groups


def zones_of(graph: Graph) -> list[Zone]:
    """Return the zones of a graph without ``torch`` nodes, in the order in which they run.

    ``Unplanned``: as of ``plan``.
    """
    lower = Lowering(graph, 1)
    lower.run()
    pixels: dict[str, int] = {}
    plain: dict[str, bool] = {}
    for step in lower.steps:
        if step.node < 0:
            continue
        name = graph.nodes[step.node].output
        buffers = [span.buffer for span in (*step.reads, step.write) if not span.buffer.raw]
        pixels[name] = max(pixels.get(name, 1), *(buffer.height * buffer.width for buffer in buffers))
        plain[name] = plain.get(name, True) and all(buffer.vector for buffer in buffers)
    zone: dict[str, int] = {}
    follow: dict[str, int] = {}
    for node in reversed(graph.nodes):  # what a node wants, and all that comes of it
        own = _SEVERAL if pixels.get(node.output, 1) <= _SMALL else 1
        zone[node.output] = min(own, follow.get(node.output, own))
        for name in node.inputs:
            follow[name] = min(follow.get(name, zone[node.output]), zone[node.output])
    for node in graph.nodes:  # another view of a value stays where the value is
        inside = [zone[name] for name in node.inputs if name in zone]
        if node.output not in pixels and inside and node.op != "constant":
            zone[node.output] = max(inside)
    found = []
    for most in sorted({zone[node.output] for node in graph.nodes if node.op != "constant"}):
        nodes = [node for node in graph.nodes if node.op != "constant" and zone[node.output] == most]
        vectors = all(plain.get(node.output, True) for node in nodes)
        found.append((nodes, Groups(vectors, most)))
    if len(found) <= 1:
        vectors = all(plain.values()) and bool(plain)
        return [Zone(graph, Groups(vectors, found[0][1].most if found else 1))]
    if sum(_entries(graph, node) for node in found[-1][0]) < _WORTH:
        return [Zone(graph, Groups(False, 1))]
    return [Zone(_part(graph, nodes, i == 0), groups) for i, (nodes, groups) in enumerate(found)]


def _entries(graph: Graph, node: Node) -> int:
    weight = graph.weights[node.weights["weight"]] if "weight" in node.weights else None
    return 0 if weight is None else len(weight.values) if isinstance(weight, Sparse) else weight.size


def _part(graph: Graph, nodes: list[Node], first: bool) -> Graph:
    """Return some nodes as a graph, with the constants they read; constants that are results are the first part's."""
    constants = {node.output: node for node in graph.nodes if node.op == "constant"}
    read = {name for node in nodes for name in node.inputs}
    extra = [n for name, n in constants.items() if name in read or (first and name in graph.outputs)]
    made = {node.output for node in (*extra, *nodes)}
    outside = dict.fromkeys(name for node in nodes for name in node.inputs if name not in made)
    own = {node.output for node in nodes} | ({*graph.outputs} & {*constants} if first else set())
    later = {
        name
        for node in graph.nodes
        if node.output not in made
        for name in node.inputs
        if name in own and name not in constants
    }
    outputs = [node.output for node in (*extra, *nodes) if node.output in own & (later | {*graph.outputs})]
    return replace(graph, nodes=(*extra, *nodes), inputs=tuple(outside), outputs=tuple(outputs))
