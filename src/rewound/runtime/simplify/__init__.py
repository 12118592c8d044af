"""Rewrite a Graph into fewer, bigger operators: batch norms folded into layers, activations and sums fused, moves cancelled,
layers that were written by hand recognised. Nothing is rounded: float64 results stay what they were to the last few bits.
"""

from __future__ import annotations

from rewound.runtime import operators
from rewound.runtime.graph import Graph
from rewound.runtime.simplify.clean import CLEAN, share
from rewound.runtime.simplify.fold import FOLD, FUSE
from rewound.runtime.simplify.patterns import PATTERNS
from rewound.runtime.simplify.work import Work


def simplify(graph: Graph) -> Graph:
    """Return a graph that computes the same with less.

    Folded arrays are float64 (:func:`rewound.runtime.graph.rounded` makes them float32) and stay under their parameter's name.
    Zeros stay zeros.

    >>> import numpy as np
    >>> from rewound.runtime.graph import Node, Value
    >>> nodes = (
    ...     Node("linear", ("x",), "y", {"weight": "fc.weight"}),
    ...     Node("affine", ("y",), "z", {"scale": "bn.scale", "shift": "bn.shift"}, {"axis": 1}),
    ...     Node("activation", ("z",), "out", {}, {"activation": ["relu"]}),
    ... )
    >>> weights = {"fc.weight": np.ones((1, 2)), "bn.scale": np.array([2.0]), "bn.shift": np.array([3.0])}
    >>> values = {"x": Value((None, 2)), **{name: Value((None, 1)) for name in ("y", "z", "out")}}
    >>> simple = simplify(Graph(values, nodes, ("x",), ("out",), weights))
    >>> [(node.op, node.attributes) for node in simple.nodes]
    [('linear', {'activation': ['relu']})]
    >>> simple.weights["fc.weight"]
    array([[2., 2.]])
    """
    work = Work(graph)
    while True:
        changed = work.exhaust(CLEAN) | share(work)
        changed |= work.exhaust(PATTERNS)
        changed |= work.exhaust(FOLD)
        if not changed:
            break
    work.exhaust(FUSE)
    simple = work.result()
    operators.check(simple)
    return simple
