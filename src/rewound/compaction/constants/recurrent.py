"""LSTM, GRU and plain recurrent layers: a hidden unit is zero for ever, or it varies."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rewound.compaction.constants.holding import NAN, Rule, along, shape_of, unknown

if TYPE_CHECKING:
    from rewound.compaction.constants.reckoner import Reckoner


def _recurrent(self: Reckoner, node: fx.Node, *arguments: Any, gates: int, cell: bool) -> Any:
    """A hidden unit is zero for ever where its candidate's rows are and it begins at zero."""
    args = list(node.args)
    packed = not (isinstance(args[2], (list, tuple)) and not isinstance(args[3], (list, tuple)))
    at = 2 if packed else 1
    x, state, weights = arguments[0], arguments[at], arguments[at + 1]
    nodes: Any = args[at + 1]
    biased, depth, bidirectional = bool(args[at + 2]), int(args[at + 3]), bool(args[at + 6])
    states = list(state) if isinstance(state, (list, tuple)) else [state]
    starts = [along(s, -1) for s in states]
    directions = 2 if bidirectional else 1
    per = len(weights) // (depth * directions)
    projected = per == (5 if biased else 3)
    given = along(x, -1)
    last: list[Tensor] = []
    for layer in range(depth):
        ends = []
        for direction in range(directions):
            begin = (layer * directions + direction) * per
            part, of = weights[begin : begin + per], nodes[begin : begin + per]
            zero = _zero_units(part[: 4 if biased else 2], gates)
            for start in starts[1:] if cell else starts:
                zero = zero & (start == 0)
            unit = torch.where(zero, 0.0, NAN).double()
            end = unit
            if projected:
                end = torch.where(part[-1].any(1), NAN, 0.0).double()
                _reads_state(self, node, of[-1], part[-1], unit)
            elif cell:
                end = torch.where(zero & (starts[0] == 0), 0.0, NAN).double()
            _reads_state(self, node, of[0], part[0], given)
            _reads_state(self, node, of[1], part[1], end)
            ends.append(end)
            last.append(unit)
        given = torch.cat([end.expand(part[1].shape[1]) for end in ends])
    result = unknown(node)
    result[0] = given.reshape([1] * (result[0].ndim - 1) + [-1])
    return result


def _zero_units(tensors: list[Tensor], gates: int) -> Tensor:
    """Which hidden units have a candidate (the third gate of an LSTM or a GRU) of zeros alone."""
    at = 2 if gates > 1 else 0
    zero = torch.ones(len(tensors[0]) // gates, dtype=torch.bool)
    for tensor in tensors:
        rows = tensor.reshape(gates, len(zero), -1)[at]
        zero = zero & ~(rows != 0).any(1).cpu()
    return zero


def _reads_state(self: Reckoner, node: fx.Node, of: fx.Node, weight: Tensor, held: Tensor) -> None:
    self.read(
        node,
        self.cells(of, 1),
        held,
        uses=(weight != 0)[None],
        out=self.cells(of, 0),
        why="is recurrent",
    )


def _recurrent_cell(
    self: Reckoner, node: fx.Node, x: Tensor, state: Any, *weights: Any, gates: int, cell: bool
) -> Any:
    present = [w for w in weights if isinstance(w, Tensor)]
    nodes = [n for n in node.args[2:] if isinstance(n, fx.Node)]
    states = [along(s, -1) for s in (state if isinstance(state, (list, tuple)) else [state])]
    zero = _zero_units(present, gates) & (states[-1] == 0)
    _reads_state(self, node, nodes[0], present[0], along(x, -1))
    _reads_state(self, node, nodes[1], present[1], states[0])
    held = torch.where(zero, 0.0, NAN).double().reshape([1] * (len(shape_of(node)) - 1) + [-1])
    return [held, held] if cell else held


_KINDS = {"lstm": (4, True), "gru": (3, False), "rnn_tanh": (1, False), "rnn_relu": (1, False)}

RULES: dict[str, Rule] = {
    **{name: partial(_recurrent, gates=gates, cell=cell) for name, (gates, cell) in _KINDS.items()},
    **{
        f"{name}_cell": partial(_recurrent_cell, gates=gates, cell=cell)
        for name, (gates, cell) in _KINDS.items()
    },
}
