"""A graph in parts that run one after the other: native programs, and between them what runs in torch or in numpy.

A native part computes its images in groups; what is between them is given the whole batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from rewound.runtime.graph import Graph, Node


@dataclass(frozen=True)
class Segment:
    """graph: with what it needs as inputs and what others need of it as outputs. alone: its only node is not native."""

    graph: Graph
    alone: bool = False


def segments(graph: Graph, apart: Collection[str] = ()) -> list[Segment]:
    """Return the parts of a graph, in order. apart: outputs of nodes that are not native, besides those of ``torch`` nodes.

    A native node runs in the first part in which all that it reads is there, so that there are as few parts as possible.
    """
    constants = {node.output: node for node in graph.nodes if node.op == "constant"}
    stage: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    stages: dict[int, list[Node]] = {}
    alone: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "constant":
            continue
        at = max((stage[name] for name in node.inputs if name not in constants), default=0)
        if node.op == "torch" or node.output in apart:
            alone.setdefault(at, []).append(node)
            stage[node.output] = at + 1
        else:
            stages.setdefault(at, []).append(node)
            stage[node.output] = at
    parts: list[list[Node]] = []
    for at in sorted({*stages, *alone, 0}):
        parts.append(stages.get(at, []))
        parts += [[node] for node in alone.get(at, [])]
    single = {node.output for nodes in alone.values() for node in nodes}
    # constants are made where they are read; those that something else reads, or that are results, in the first part
    free = {name for name in constants if name in graph.outputs}
    free |= {name for part in parts for node in part if node.output in single for name in node.inputs} & {
        *constants
    }
    parts[0] = [constants[name] for name in constants if name in free] + parts[0]
    found = []
    for part in parts:
        if not part:
            continue
        own = part[0].output in single
        read = {name for node in part for name in node.inputs}
        made = {node.output for node in part}
        extra = [] if own else [node for name, node in constants.items() if name in read and name not in made]
        nodes = (*extra, *part)
        made |= {node.output for node in extra}
        outside = [*dict.fromkeys(name for node in part for name in node.inputs if name not in made)]
        later = {
            name
            for other in parts
            if other is not part
            for node in other
            for name in node.inputs
            if name in made and not (name in constants and name not in free)
        }
        kept = {node.output for node in part} & (later | {*graph.outputs})
        names = [node.output for node in nodes if node.output in kept]
        found.append(Segment(replace(graph, nodes=nodes, inputs=tuple(outside), outputs=tuple(names)), own))
    return found
