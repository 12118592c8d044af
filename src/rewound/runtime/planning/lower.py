"""A segment of a Graph as steps over buffers: each node says how it wants its inputs to stand, and gets them so.

What a node is given in another form is moved by a step of its own; ``memory`` finds out afterwards which of these moves are
none, because source and target may be the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewound.runtime.graph import Graph, Node
from rewound.runtime.planning.layout import (
    Buffer,
    Form,
    Span,
    View,
    array_of_user,
    atoms_of,
    laid_out,
    sized,
    usual,
)
from rewound.runtime.planning.steps import Move, Reach, Step
from rewound.runtime.weights import dense

Constant = np.ndarray  # of a ``constant`` node, the batch axis of size 1 left out
Rule = Callable[["Lowering", Node], None]
RULES: dict[str, Rule] = {}


class Unplanned(Exception):
    """A node that native operators cannot do; says why. output: the value that the node makes."""

    output = ""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how a node of these operators is lowered."""

    def registered(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return registered


class Lowering:
    """Steps of a segment. inputs: names of values -> port; ids: those that embedding reads as int64."""

    def __init__(self, graph: Graph, images: int) -> None:
        self.graph, self.images = graph, images
        self.steps: list[Step] = []
        self.values: dict[str, View | Constant] = {}
        self.inputs: dict[tuple[str, str], int] = {}
        self.node = -1
        self._arranged: dict[tuple[str, Form, bool], View] = {}
        self.phased: dict[str, Span] = {}  # values that are there as phase planes alone
        self._split: dict[tuple[int, int, int, int, int], Span] = {}
        readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        self.readers = readers

    # -- what values are ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for i, node in enumerate(self.graph.nodes):
            self.node = i
            try:
                if any(0 in self.shape(name) for name in (*node.inputs, node.output)):
                    raise Unplanned("it has values without elements")
                RULES[node.op](self, node)
            except Unplanned as error:
                error.output = node.output
                raise
        self.node = -1
        for i, name in enumerate(self.graph.outputs):
            target = array_of_user("output", i, self.shape(name))
            self.move(self.view(name), target)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n or 0) for n in self.graph.values[name].shape[1:])

    def port(self, name: str, dtype: str = "float32") -> int:
        """Return the number of the program's input for a value that comes from outside."""
        if name not in self.graph.inputs:
            raise Unplanned("its ids come from native operators")
        return self.inputs.setdefault((name, dtype), len(self.inputs))

    def value(self, name: str) -> View | Constant:
        if name not in self.values:
            self.values[name] = array_of_user("input", self.port(name), self.shape(name))
        return self.values[name]

    def view(self, name: str) -> View:
        """Return a value as a view, a constant in its usual form."""
        value = self.value(name)
        return self.placed(value, usual(value.shape)) if isinstance(value, np.ndarray) else value

    # -- where values stand ---------------------------------------------------------------------------------------------

    def arranged(self, name: str, form: Form, wide: bool = False) -> View:
        """Return a value standing in a form (moved there once, where it does not yet)."""
        key = (name, form, wide)
        if key not in self._arranged:
            self._arranged[key] = self.placed(self.value(name), form, wide)
        return self._arranged[key]

    def placed(self, value: View | Constant, form: Form, wide: bool = False) -> View:
        if isinstance(value, np.ndarray):
            return self.constant(value, form, wide)
        if value.stands(form) and (value.buffer.wide == wide or sized(value.shape, form)[1:] != (1, 1)):
            return value
        target = laid_out(value.shape, form, wide=wide and sized(value.shape, form)[1:] == (1, 1))
        self.move(value, target)
        return target

    def constant(self, array: Constant, form: Form, wide: bool = False) -> View:
        channels, height, width = sized(array.shape, form)
        planes = array.transpose([i for axes in form for i in axes] + _left(array.ndim, form))
        planes = np.ascontiguousarray(planes.reshape(channels, height, width), np.float32)
        return laid_out(
            array.shape, form, kind="constant", images=False, array=planes, wide=wide and height * width == 1
        )

    def new(self, name: str, form: Form, wide: bool = False) -> View:
        """Return a view of a new buffer for a value that a node makes."""
        shape = self.shape(name)
        made = laid_out(shape, form, wide=wide and sized(shape, form)[1:] == (1, 1))
        self.values[name] = made
        return made

    def form_of(self, name: str) -> Form:
        """Return the form in which a value stands, or the usual one if it has none."""
        value = self.value(name)
        found = value.form() if isinstance(value, View) else None
        return complete(found, value.shape) if found is not None else usual(value.shape)

    # -- steps ----------------------------------------------------------------------------------------------------------

    def step(
        self,
        method: str,
        reads: Sequence[View | Span],
        write: View | Span,
        shared: Sequence[int] = (),
        reach: Reach | None = None,
        **arguments: Any,
    ) -> None:
        spans = tuple(read.span() if isinstance(read, View) else read for read in reads)
        target = write.span() if isinstance(write, View) else write
        self.steps.append(Step(method, spans, target, arguments, tuple(shared), reach, self.node))

    def move(self, source: View, target: View) -> None:
        self.steps.append(
            Move(
                "copy",
                (whole(source.buffer),),
                whole(target.buffer),
                node=self.node,
                source=source,
                target=target,
            )
        )

    def phases(
        self, x: View, stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
    ) -> Span:
        """Return x split by the places of its pixels modulo the stride, made once for all its readers."""
        span = x.span() if not x.buffer.raw else None
        key = (id(x.buffer), x.start[0], *stride, x.shape[0])
        if key not in self._split:
            made = Buffer(x.shape[0] * stride[0] * stride[1], *size, wide=size == (1, 1))
            if span is None:
                self.steps.append(
                    Move(
                        "phases",
                        (whole(x.buffer),),
                        whole(made),
                        {"stride": stride, "padding": padding},
                        node=self.node,
                        source=x,
                    )
                )
            else:
                self.step("phases", (span,), whole(made), stride=stride, padding=padding)
            self._split[key] = whole(made)
        return self._split[key]

    def split(self, name: str, channels: int, size: tuple[int, int]) -> Span:
        """Return where the phase planes of a value go that nobody wants otherwise."""
        self.phased[name] = whole(Buffer(channels, *size, wide=size == (1, 1)))
        return self.phased[name]

    def weight(self, node: Node, role: str) -> np.ndarray | None:
        """Return a small weight (a bias, a scale) as an array."""
        if role not in node.weights:
            return None
        return np.ascontiguousarray(dense(self.graph.weights[node.weights[role]]), np.float32)


def whole(buffer: Buffer) -> Span:
    return Span(buffer, 0, buffer.channels)


def complete(form: Form, shape: Sequence[int]) -> Form:
    """Return a form that names axes of size 1 too (as channels, in order), so that it says where each axis of a result stands.

    >>> complete(Form((1,), (), (2,)), (1, 8, 9))
    Form(channels=(0, 1), rows=(), columns=(2,))
    """
    channels, rows, columns = form
    missing = [i for i in range(len(shape)) if i not in (*channels, *rows, *columns)]
    return Form((*missing, *channels), rows, columns)


def _left(axes: int, form: Form) -> list[int]:
    return [i for i in range(axes) if i not in (*form.channels, *form.rows, *form.columns)]


# -- moving ---------------------------------------------------------------------------------------------------------------------


@rule("constant")
def _constant(lower: Lowering, node: Node) -> None:
    array = lower.weight(node, "value")
    assert array is not None
    lower.values[node.output] = array[0]


@rule("permute")
def _permute(lower: Lowering, node: Node) -> None:
    order = [i - 1 for i in node.attributes["axes"][1:]]
    value = lower.value(node.inputs[0])
    lower.values[node.output] = (
        value.transpose(order) if isinstance(value, np.ndarray) else value.permuted(order)
    )


@rule("reshape")
def _reshape(lower: Lowering, node: Node) -> None:
    value, shape = lower.value(node.inputs[0]), lower.shape(node.output)
    if isinstance(value, np.ndarray):
        lower.values[node.output] = value.reshape(shape)
    else:
        lower.values[node.output] = reshaped(lower, value, shape)


def reshaped(lower: Lowering, x: View, shape: tuple[int, ...]) -> View:
    """Return x in another shape: the same buffer where axes split or merge there, else moved."""
    found = atoms_of(x.shape, shape)
    if found is None:  # 6 x 4 as 8 x 3: by way of one long row
        row = laid_out(x.shape, Form((), (), tuple(range(len(x.shape)))))
        lower.move(x, row)
        flat = row.merged([len(x.shape)])
        assert flat is not None
        return flat.split([shape])
    old, new = found
    atoms = x.split(old)
    made = atoms.merged([len(factors) for factors in new])
    if made is not None:
        return made
    groups: list[list[int]] = [[], [], []]
    at = 0
    for i, factors in enumerate(new):
        kinds = {atoms.axes[k][0] for k in range(at, at + len(factors)) if atoms.shape[k] != 1}
        at += len(factors)
        if kinds <= {"c"}:
            groups[0].append(i)
        elif kinds <= {"h"}:
            groups[1].append(i)
        elif kinds <= {"h", "w"}:
            groups[2].append(i)
        else:
            groups = [list(axes) for axes in usual(shape)]
            break
    target = laid_out(shape, Form(*(tuple(axes) for axes in groups)))
    lower.move(atoms, target.split(new))
    return target


@rule("expand")
def _expand(lower: Lowering, node: Node) -> None:
    value, shape = lower.value(node.inputs[0]), lower.shape(node.output)
    lower.values[node.output] = (
        np.broadcast_to(value, shape) if isinstance(value, np.ndarray) else value.expanded(shape)
    )


@rule("slice")
def _slice(lower: Lowering, node: Node) -> None:
    a = node.attributes
    axis, start, stop, step = a["axis"] - 1, a["start"], a["stop"], a["step"]
    value = lower.value(node.inputs[0])
    if isinstance(value, np.ndarray):
        lower.values[node.output] = value[(slice(None),) * axis + (slice(start, stop, step),)]
    else:
        lower.values[node.output] = value.sliced(axis, start, lower.shape(node.output)[axis], step)


@rule("concat")
def _concat(lower: Lowering, node: Node) -> None:
    axis = node.attributes["axis"] - 1
    forms = [lower.form_of(name) for name in node.inputs]
    largest = max(range(len(forms)), key=lambda i: math.prod(lower.shape(node.inputs[i])))
    target = lower.new(node.output, forms[largest])
    at = 0
    for name in node.inputs:
        count = lower.shape(name)[axis]
        lower.move(lower.view(name), target.sliced(axis, at, count))
        at += count


@rule("pad")
def _pad(lower: Lowering, node: Node) -> None:
    widths: Sequence[Sequence[int]] = node.attributes["widths"][1:]
    name = node.inputs[0]
    target = inside = lower.new(node.output, lower.form_of(name))
    lower.step("fill", (), whole(target.buffer), number=float(node.attributes["value"]))
    for axis, ((before, _), n) in enumerate(zip(widths, lower.shape(name))):
        inside = inside.sliced(axis, before, n)
    lower.move(lower.view(name), inside)
