"""What an engine computes: operators over named values, as data. Written to files, printed, planned; knows no layout.

The first axis of every value is the batch (size ``None``) unless the value is a constant; constants are ``weights``. An
operator has one output. ``source`` is the path of the module it came from, for reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewound.runtime.weights import Weight


@dataclass(frozen=True)
class Value:
    """shape: sizes, ``None`` for the batch. dtype: "float32" or "int64"."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Node:
    """op: a name of operators.OPERATORS. inputs: names of values. weights: role ("weight", "bias", ...) -> key in
    Graph.weights. attributes: plain JSON values."""

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Graph:
    """nodes: in an order that can be run. inputs, outputs: names of values. structure: how outputs were nested."""

    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Weight]
    structure: Any = None
