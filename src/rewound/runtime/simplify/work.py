"""A Graph that is being rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewound.runtime import operators
from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import dense

Rule = Callable[["Work", Node], bool]


class Work:
    """nodes: by output, in an order that can be run. Rules put a node in the place of another, under the other's output, so that
    the order stays good: what the new one reads must be there before the old one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {node.output: node for node in graph.nodes}
        self.values = dict(graph.values)
        self.weights: dict[str, Any] = dict(graph.weights)
        self.outputs = list(graph.outputs)
        self._readers: dict[str, set[str]] = {}
        for node in graph.nodes:
            self._reads(node, True)

    def _reads(self, node: Node, reads: bool) -> None:
        for name in node.inputs:
            readers = self._readers.setdefault(name, set())
            (readers.add if reads else readers.discard)(node.output)

    # -- asking -----------------------------------------------------------------------------------------------------------------

    def made(self, name: str, *ops: str) -> Node | None:
        """Return the node that makes a value, if it is one of ``ops``."""
        node = self.nodes.get(name)
        return node if node is not None and (not ops or node.op in ops) else None

    def private(self, name: str, reader: Node) -> bool:
        """Whether nothing but ``reader`` reads a value, once."""
        once = self._readers.get(name, set()) == {reader.output} and reader.inputs.count(name) == 1
        return once and name not in self.outputs

    def only(self, name: str, reader: Node, *ops: str) -> Node | None:
        """Return the node that makes a value for ``reader`` alone, if it is one of ``ops``."""
        return self.made(name, *ops) if self.private(name, reader) else None

    def shape(self, name: str) -> tuple[int | None, ...]:
        return self.values[name].shape

    def array(self, node: Node, role: str) -> NDArray[Any] | None:
        """Return a node's weight in float64, or ``None``."""
        if role not in node.weights:
            return None
        return np.asarray(dense(self.weights[node.weights[role]]), np.float64)

    # -- rewriting --------------------------------------------------------------------------------------------------------------

    def put(self, old: Node, new: Node) -> bool:
        """Put a node in another's place. Its output becomes the other's. False, and nothing done, if operators.py refuses it."""
        new = replace(new, output=old.output)
        try:
            value = operators.infer(new, self.values, self.weights)
        except ValueError:
            return False
        if value.shape != self.values[old.output].shape:
            return False
        self._reads(self.nodes[old.output], False)
        self.nodes[old.output] = new
        self._reads(new, True)
        self._collect(old.inputs)
        return True

    def alias(self, node: Node, name: str) -> bool:
        """Let everybody read ``name`` instead of what ``node`` makes, and drop the node."""
        for reader in list(self._readers.get(node.output, ())):
            old = self.nodes[reader]
            self._reads(old, False)
            self.nodes[reader] = replace(
                old, inputs=tuple(name if n == node.output else n for n in old.inputs)
            )
            self._reads(self.nodes[reader], True)
        self.outputs = [name if n == node.output else n for n in self.outputs]
        self._collect([node.output])
        return True

    def before(self, node: Node, new: Node) -> str | None:
        """Add a node in front of another and return its output, a name that nobody has. ``None`` if operators.py refuses it."""
        output, count = f"{node.output}.{new.op}", 1
        while output in self.values:
            count += 1
            output = f"{node.output}.{new.op}{count}"
        new = replace(new, output=output)
        try:
            declared = {output: Value((self.values[node.output].shape[0],))}
            self.values[output] = operators.infer(new, {**self.values, **declared}, self.weights)
        except ValueError:
            return None
        ordered = {}
        for name, old in self.nodes.items():
            if name == node.output:
                ordered[output] = new
            ordered[name] = old
        self.nodes = ordered
        self._reads(new, True)
        return output

    def _collect(self, names: Iterable[str]) -> None:
        """Drop what nobody reads."""
        left = list(names)
        while left:
            name = left.pop()
            if name in self.nodes and not self._readers.get(name) and name not in self.outputs:
                node = self.nodes.pop(name)
                self._reads(node, False)
                left += node.inputs

    def keep(self, key: str, array: NDArray[Any], *owners: Node) -> str:
        """Keep an array under ``key``, or a name like it if nodes other than ``owners`` use that, and return the name."""
        mine = {node.output for node in owners}
        base, count = key.partition("#")[0], 1
        while any(key in node.weights.values() for output, node in self.nodes.items() if output not in mine):
            count += 1
            key = f"{base}#{count}"
        self.weights[key] = array
        return key

    def constant(self, old: Node, array: NDArray[Any], key: str) -> bool:
        """Put a constant [1, ...] in a node's place."""
        weights = {"value": self.keep(key, array, old)}
        return self.put(old, Node("constant", (), old.output, weights, {}, old.source))

    def exhaust(self, rules: Mapping[str, tuple[Rule, ...]]) -> bool:
        """Apply rules (by the operator that they start from; "" = any) until none applies. True if one did."""
        ever, again = False, True
        while again:
            again = False
            for output in list(self.nodes):
                node = self.nodes.get(output)
                while node is not None and any(
                    rule(self, node) for rule in rules.get(node.op, ()) + rules.get("", ())
                ):
                    again = ever = True
                    node = self.nodes.get(output)
        return ever

    def result(self) -> Graph:
        """Return the graph."""
        keys = {key for node in self.nodes.values() for key in node.weights.values()}
        names = {*self.graph.inputs, *self.nodes}
        return Graph(
            {name: value for name, value in self.values.items() if name in names},
            tuple(self.nodes.values()),
            self.graph.inputs,
            tuple(self.outputs),
            {key: array for key, array in self.weights.items() if key in keys},
            self.graph.structure,
        )


def without(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in names}
