"""LSTM, GRU and plain recurrent layers: a hidden unit is a row of every gate, a column of what comes next, a place in the
state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rewound.compaction.atoms import joined
from rewound.compaction.reading import Reading, product
from rewound.compaction.values import RECURRENT, Dead, Dim, Value, plain


def layers(
    reading: Reading, x: Value, state: Any, weights: list[Value], biased: bool, depth: int, dropout: float, training: bool,
    bidirectional: bool, batch_first: bool = False, *, gates: int, cell: bool,
) -> list[Value]:  # fmt: skip
    """torch's stacked layers. One module has one hidden size, so unit i of all its layers and directions leaves together."""
    directions = 2 if bidirectional else 1
    states = state if isinstance(state, (list, tuple)) else [state]
    per = len(weights) // (depth * directions)
    projected = per == (5 if biased else 3)
    hidden = output = None
    steps = product(x.shape[:-1])
    given = x.dims[-1]
    for layer in range(depth):
        ends = []
        for direction in range(directions):
            part = weights[(layer * directions + direction) * per :][:per]
            of_input, of_state = part[:2]
            reading.tie(given, of_input.dims[1], "reads an axis nothing of which can leave")
            size = len(of_input.dims[0]) // gates
            unit = _gated(reading, part[: 4 if biased else 2], gates, size)
            hidden = unit if hidden is None else hidden
            reading.tie(hidden, unit, "is the hidden size of one module")
            end = part[-1].dims[0] if projected else unit
            output = end if output is None else output
            reading.tie(output, end, "is the output size of one module")
            reading.tie(of_state.dims[1], end)
            for value, axis, role in (
                (of_input, 0, "writes"),
                (of_input, 1, "reads"),
                (of_state, 0, "writes"),
                (of_state, 1, "reads"),
            ):
                reading.role(value, axis, role)
            if projected:
                reading.tie(part[-1].dims[1], unit)
                reading.role(part[-1], 0, "writes")
                reading.role(part[-1], 1, "reads")
            for weight in (of_input, of_state, *part[4:]):
                reading.work(steps * product(weight.shape), *weight.dims)
            ends.append(end)
        given = Dim(joined([end.cells for end in ends]), Dead.ZERO)
    assert hidden is not None and output is not None
    reading.be(hidden, RECURRENT)
    reading.be(output, RECURRENT)
    zero = True
    for begin, dim in zip(states, (output, hidden)):
        reading.tie(begin.dims[-1], dim)
        reading.fix(begin.dims[0], "is the layers and directions of one module")
        zero = zero and begin.dims[-1].dead is Dead.ZERO
    dead = Dead.ZERO if zero else Dead.ANYTHING
    batch = plain(reading.shapes[1][1]) if len(x.dims) == 2 else x.dims[0 if batch_first else 1]
    ends_of = [Value((plain(depth * directions), batch, output.be(dead)))]
    if cell:
        ends_of.append(Value((*ends_of[0].dims[:-1], hidden.be(dead))))
    return [Value((*x.dims[:-1], given.be(dead))), *ends_of]


def any_layers(
    reading: Reading, x: Value, second: Any, third: Any, *arguments: Any, gates: int, cell: bool
) -> list[Value]:
    """As ``layers``; a packed sequence comes with its batch sizes before the state."""
    if (
        isinstance(third, list)
        and all(isinstance(w, Value) for w in third)
        and not isinstance(arguments[0], list)
    ):
        return layers(reading, x, second, third, *arguments, gates=gates, cell=cell)
    weights, *rest = arguments
    return layers(reading, x, third, weights, *rest, gates=gates, cell=cell)


def packed(reading: Reading, x: Value, lengths: Value, batch_first: bool) -> list[Value]:
    """pack_padded_sequence: time and batch become one axis."""
    places, sizes = reading.shapes
    return [Value((plain(places[0]), *x.dims[2:])), Value((plain(sizes[0]),))]


def unpacked(reading: Reading, x: Value, sizes: Value, *_: Any) -> list[Value]:
    """pad_packed_sequence."""
    padded, lengths = reading.shapes
    return [Value((plain(padded[0]), plain(padded[1]), *x.dims[1:])), Value((plain(lengths[0]),))]


def single(reading: Reading, x: Value, state: Any, *weights: Value, gates: int, cell: bool) -> Any:
    """LSTMCell, GRUCell, RNNCell: x [n, in], state [n, hidden]."""
    present = [w for w in weights if isinstance(w, Value)]
    size = len(present[0].dims[0]) // gates
    unit = _gated(reading, present, gates, size)
    reading.tie(x.dims[-1], present[0].dims[1], "reads an axis nothing of which can leave")
    reading.tie(present[1].dims[1], unit)
    reading.be(unit, RECURRENT)
    states = state if isinstance(state, (list, tuple)) else [state]
    dead = Dead.ZERO
    for begin in states:
        reading.tie(begin.dims[-1], unit)
        dead = max(dead, begin.dims[-1].dead)
    for weight in present[:2]:
        reading.role(weight, 0, "writes")
        reading.role(weight, 1, "reads")
        reading.work(product(x.shape[:-1]) * product(weight.shape), *weight.dims)
    result = Value((*x.dims[:-1], unit.be(dead)))
    return [result, result] if cell else result


def _gated(reading: Reading, tensors: list[Value], gates: int, size: int) -> Dim:
    """Unite the gates' rows of weights and biases; return the axis of hidden units."""
    unit = None
    for tensor in tensors:
        rows = tensor.dims[0]
        if gates > 1:
            of_gate, rows = reading.split(rows, gates, size)
            reading.fix(of_gate, "is the gates of a recurrent layer")
        unit = rows if unit is None else unit
        reading.tie(unit, rows)
        if len(tensor.dims) == 1:
            reading.role(tensor, 0, "affine")
    assert unit is not None
    return unit


_KINDS = {"lstm": (4, True), "gru": (3, False), "rnn_tanh": (1, False), "rnn_relu": (1, False)}

RULES: dict[str, Callable[..., Any]] = {
    "_pack_padded_sequence": packed,
    "_pad_packed_sequence": unpacked,
    **{name: partial(any_layers, gates=gates, cell=cell) for name, (gates, cell) in _KINDS.items()},
    **{f"{name}_cell": partial(single, gates=gates, cell=cell) for name, (gates, cell) in _KINDS.items()},
}
