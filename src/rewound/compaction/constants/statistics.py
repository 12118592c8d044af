"""Norms and reductions: a statistic of something that varies varies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rewound.compaction.constants.holding import (
    FORM,
    NAN,
    Rule,
    called,
    numbers,
    shape_of,
    unknown,
    zeros_along,
)
from rewound.compaction.constants.moving import pointwise
from rewound.compaction.queries import short

if TYPE_CHECKING:
    from rewound.compaction.constants.reckoner import Reckoner


def _batch_norm(
    self: Reckoner,
    node: fx.Node,
    x: Tensor,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: Any,
    eps: float,
    *_: Any,
) -> Tensor:
    shape = [-1 if k == 1 else 1 for k in range(x.ndim)]
    weight, bias, mean, var = (
        None if t is None else t.double().reshape(shape) for t in (weight, bias, mean, var)
    )
    if training or mean is None:  # of a constant the mean is itself
        held = x.double().masked_fill(~x.isnan(), 0.0)
    else:
        held = (x.double() - mean) / (var + eps).sqrt()
    if weight is not None:
        held = (held * weight).masked_fill(weight == 0, 0.0)
    return held if bias is None else held + bias


def _group_norm(
    self: Reckoner, node: fx.Node, x: Tensor, groups: int, weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    if weight is None:
        return unknown(node)
    shape = [-1 if k == 1 else 1 for k in range(x.ndim)]
    held = torch.where(weight == 0, 0.0, NAN).double() + (0 if bias is None else bias.double())
    return held.reshape(shape)


def _last_norm(
    self: Reckoner, node: fx.Node, x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    squares = short(node) == "rms_norm"
    bias = None if squares else bias
    for k in range(-len(shape), 0):
        cells = self.cells(node.args[0], k)
        held = zeros_along((x, k), n=len(cells)) if squares else torch.full((1,), NAN)
        self.read(node, cells, held, why="normalises over them")
    zero = torch.zeros((), dtype=torch.bool) if weight is None else weight == 0
    zero = zero | (x == 0) if squares else zero
    held = torch.where(zero, 0.0, NAN).double()
    held = held if bias is None else held + bias.double()
    return held.reshape([1] * (x.ndim - held.ndim) + list(held.shape))


def _reduced(self: Reckoner, node: fx.Node, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
    """sum, mean, norm, max over axes: carried out; what is left out must be zero, or it is missed."""
    name, operand = short(node), node.args[0]
    names = ("p", "dim", "keepdim") if name in ("norm", "linalg_vector_norm") else ("dim", "keepdim")
    given = {**dict(zip(names, arguments)), **keywords}
    dim = given.get("dim")
    if isinstance(dim, Tensor):  # the larger of two
        return pointwise(self, node, x, dim)
    shape = shape_of(operand)
    axes = range(len(shape)) if dim is None or dim == [] else {d % len(shape) for d in numbers(dim)}
    additive = name in ("sum", "norm", "linalg_vector_norm") or node in self.rescaled
    for axis in axes:
        cells = self.cells(operand, axis)
        held = zeros_along((x, axis), n=len(cells)) if additive else torch.full((1,), NAN)
        why = (
            "averages over them"
            if name == "mean"
            else "sums over them"
            if additive
            else f"takes a statistic ({name}) of them"
        )
        self.read(node, cells, held, why=why)
    full = x.double().expand([n if k in axes else m for k, (n, m) in enumerate(zip(shape, x.shape))])
    keep = len(shape_of(node)) == len(shape)
    varies = full.isnan().any(dim=tuple(axes), keepdim=keep) if len(axes) else full.isnan()
    named = {k: v for k, v in keywords.items() if k not in FORM}
    result = node.target(full.nan_to_num(), *arguments, **named)
    if not isinstance(result, Tensor):
        return [result[0].double().masked_fill(varies, NAN), *unknown(node)[1:]]
    return result.double().masked_fill(varies, NAN)


RULES: dict[str, Rule] = {
    **called(_batch_norm, "batch_norm instance_norm"),
    "group_norm": _group_norm,
    **called(_last_norm, "layer_norm rms_norm"),
    **called(_reduced, "sum mean norm linalg_vector_norm amax amin max min var std prod logsumexp median"),
}
