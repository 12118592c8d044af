"""What a plan consists of: calls of the native program's methods, before anything has an address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rewound.runtime.planning.layout import Span, View


class Reach(NamedTuple):
    """How far a convolution looks from the place of its output's pixel, in rows and columns of what it reads (strides done):
    first and last tap, and the size of its output."""

    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int


@dataclass(eq=False)
class Step:
    """One operator. reads and write are planes; arguments as the native method takes them; shared: the places in ``reads``
    whose memory ``write`` may take over; node: the graph's node it belongs to (-1: none)."""

    method: str
    reads: tuple[Span, ...]
    write: Span
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[int, ...] = ()
    reach: Reach | None = None
    node: int = -1


@dataclass(eq=False)
class Move(Step):
    """Elements go from a view to a view of the same shape (axes of the source may repeat)."""

    source: View | None = None
    target: View | None = None


@dataclass(eq=False)
class Product(Step):
    """A matmul: a [batch..., m, k], b [batch..., k, n], y [batch..., m, n]; batch axes of size 1 repeat."""

    views: tuple[View, View, View] | None = None
