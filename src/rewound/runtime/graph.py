"""What an engine computes: operators over named values, as data. Written to files, printed, planned; knows no layout.

The first axis of every value is the batch (size ``None``; a number in a graph whose batch is fixed); constants are
``weights``. An operator has one output. operators.py says what there is and checks it, reference.py what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewound.runtime.weights import Sparse, Weight, density, sparse


@dataclass(frozen=True)
class Value:
    """shape: sizes, ``None`` for the batch. dtype: "float32", "int64", or, of an input, "bool"."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Node:
    """op: a name of operators.OPERATORS. inputs: names of values. weights: role ("weight", "bias", ...) -> key in
    Graph.weights. attributes: plain JSON values. source: the module it came from and the line, for reports."""

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Graph:
    """nodes: in an order that can be run. inputs, outputs: names of values. structure: how the model's arguments and results
    were nested (structure.py), and why the batch is fixed where it is. Weights are float32 once :func:`rounded`; until then
    what was folded is float64."""

    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Weight]
    structure: Any = None


SPARSE_BELOW = 0.9  # density from which on a weight is kept as an array


def rounded(graph: Graph) -> Graph:
    """Return a graph as engines keep it: arrays in float32, weights of few survivors as Sparse (zeros are zeros).

    >>> import numpy as np
    >>> node = Node("linear", ("x",), "y", {"weight": "w"})
    >>> graph = Graph({"x": Value((None, 2)), "y": Value((None, 1))}, (node,), ("x",), ("y",), {"w": np.array([[0.0, 3.0]])})
    >>> rounded(graph).weights["w"].density
    0.5
    """
    sparse_keys = {node.weights["weight"] for node in graph.nodes if node.op in ("conv", "linear")}
    other = {
        k
        for n in graph.nodes
        for role, k in n.weights.items()
        if not (role == "weight" and n.op in ("conv", "linear"))
    }
    weights: dict[str, Weight] = {}
    for key, weight in graph.weights.items():
        if not isinstance(weight, Sparse):
            with np.errstate(over="ignore"):  # beyond float32 is infinite, as in torch
                weight = np.ascontiguousarray(weight, np.float32)
            if key in sparse_keys - other and density(weight) < SPARSE_BELOW:
                weight = sparse(weight)
        weights[key] = weight
    return Graph(graph.values, graph.nodes, graph.inputs, graph.outputs, weights, graph.structure)
