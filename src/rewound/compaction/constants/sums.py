"""Linear layers, convolutions, matrix products, attention: what they read is noted, and a constant goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rewound.compaction.constants.holding import (
    NAN,
    Rule,
    along,
    along_kept,
    called,
    numbers,
    shape_of,
    told,
    unknown,
    zeros_along,
)
from rewound.compaction.queries import short
from rewound.compaction.reading import product
from rewound.compaction.values import Value

if TYPE_CHECKING:
    from rewound.compaction.constants.reckoner import Reckoner


def _linear(self: Reckoner, node: fx.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    more: dict[str, Any] = {"why": "", "bias": None}
    more["bias"], more["why"] = self.bias_of(node, node.args[1], node.args[2] if len(node.args) > 2 else None)
    return _through(self, node, x, node.args[1], 0, weight, bias, more)


def _bilinear(
    self: Reckoner, node: fx.Node, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    weight = weight.expand(shape_of(node.args[2]))  # a computed one may be alike along an axis
    for at, held, axis in ((0, a, 1), (1, b, 2)):
        cells = self.cells(node.args[at], -1)
        self.read(node, cells, zeros_along((held, -1), (weight, axis), n=len(cells)))
    result = torch.where((weight != 0).flatten(1).any(1), NAN, 0.0).double()
    result = result if bias is None else result + bias.double()
    return result.reshape([1] * (len(shape_of(node)) - 1) + [-1])


def _addmm(self: Reckoner, node: fx.Node, bias: Tensor, x: Tensor, weight: Tensor, **_: Any) -> Tensor:
    more: dict[str, Any] = {}
    more["bias"], more["why"] = self.bias_of(node, node.args[2], node.args[0])
    if bias.ndim > 1:
        more = {"bias": None, "why": "is a sum with another matrix"}
    return _through(self, node, x, node.args[2], 1, weight.t(), bias, more)


def _through(
    self: Reckoner,
    node: fx.Node,
    x: Tensor,
    of: Any,
    axis: int,
    weight: Tensor,
    bias: Tensor | None,
    more: dict[str, Any],
) -> Tensor:
    """x [..., in] times weight [out, in]; ``of``: the weight's node, whose ``axis`` is that of the outputs."""
    whole = shape_of(of)
    weight = weight.expand(whole if axis == 0 else whole[::-1])  # a computed one may be alike along an axis
    inner = weight.shape[1]
    x = x.expand(*x.shape[:-1], inner)
    uses = weight != 0  # of NaN too
    operand = node.args[1] if short(node) == "addmm" else node.args[0]
    cells = self.cells(operand, -1)
    if self.free(cells):
        self.read(
            node,
            cells,
            along(x, -1),
            uses=uses[None],
            out=self.cells(of, axis),
            weight=lambda: weight.double()[None],
            **more,
        )
    varies = x.isnan()
    if bool(varies.all()):
        result = torch.where(uses.any(1), NAN, 0.0).expand(*x.shape[:-1], -1).double()
    else:
        known = torch.where(varies, 0.0, x.double())
        result = known @ weight.double().nan_to_num().t()
        touched = varies.float() @ uses.float().t() + (known != 0).float() @ weight.isnan().float().t()
        result = result.masked_fill(touched > 0, NAN)
    return result if bias is None else result + bias.double()


def _matmul(self: Reckoner, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
    one, other = node.args[:2]
    second = self.coupling.values[other]
    if isinstance(second, Value) and second.origin is not None and b.ndim == 2 and a.ndim > 1:
        return _through(
            self,
            node,
            a,
            other,
            1,
            b.t(),
            None,
            {"bias": None, "why": f"{told(node)} has no bias to fold it into"},
        )
    n = shape_of(one)[-1]
    at = -2 if b.ndim > 1 else -1
    self.read(node, self.cells(one, -1), zeros_along((a, -1), (b, at), n=n))
    if a.ndim < 2 or b.ndim < 2:
        return unknown(node)
    a = a.double().expand(*a.shape[:-1], n)
    b = b.double().expand(*b.shape[:-2], n, b.shape[-1])
    touched = a.isnan().double() @ (b != 0).double() + (a != 0).double() @ b.isnan().double()
    return (a.nan_to_num() @ b.nan_to_num()).masked_fill(touched > 0, NAN)


def _einsum(self: Reckoner, node: fx.Node, equation: str, operands: list[Tensor], **_: Any) -> Tensor:
    left, _arrow, right = equation.replace(" ", "").partition("->")
    nodes: Any = node.args[1]
    terms = list(zip(left.split(","), nodes, operands))
    for letter in dict.fromkeys(left.replace(",", "")):
        if letter not in right and letter.isalpha():
            having = [(held, term.index(letter)) for term, _, held in terms if letter in term]
            term, of = next((term, of) for term, of, _ in terms if letter in term)
            cells = self.cells(of, term.index(letter))
            self.read(node, cells, zeros_along(*having, n=len(cells)))
    return unknown(node)


def _convolution(
    self: Reckoner, node: fx.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any
) -> Tensor:
    name = short(node)
    transposed = bool(rest[3]) if name in ("convolution", "_convolution") else "transpose" in name
    at = 5 if name in ("convolution", "_convolution") else 3
    groups = int(rest[at]) if len(rest) > at else 1
    padding = rest[1] if len(rest) > 1 else 0
    weight = weight.expand(shape_of(node.args[1]))  # a computed one may be alike along an axis
    kernel = weight.shape[2:]
    padded = (
        (padding == "same" and product(kernel) > 1) if isinstance(padding, str) else any(numbers(padding))
    )
    channel = x.ndim - weight.ndim + 1
    operand: Any = node.args[0]
    channels = shape_of(operand)[channel]
    held = along(x, channel).expand(channels)
    per = channels // groups

    def matrix(w: Tensor) -> Tensor:  # [groups, out, in] of a weight with its kernel gone
        return w.reshape(groups, per, -1).transpose(1, 2) if transposed else w.reshape(groups, -1, per)

    uses = matrix((weight != 0).flatten(2).any(2) if weight.ndim > 2 else weight != 0)
    spread = padded or transposed
    if spread:
        name_of_bias, why = None, "pads its input with zeros" if padded else "is a transposed convolution"
        why = f"{told(node)} {why}"
    else:
        name_of_bias, why = self.bias_of(node, node.args[1], node.args[2] if len(node.args) > 2 else None)

    def summed() -> Tensor:
        return matrix(weight.double().flatten(2).sum(2))

    self.read(
        node,
        self.cells(operand, channel),
        held,
        uses=uses,
        out=self.cells(node, channel),
        weight=summed,
        bias=name_of_bias,
        why=why,
    )
    usable = ~held.isnan() & ((held == 0) | (not spread))
    touched = (uses & ~usable.reshape(groups, 1, per)).any(2).reshape(-1)
    result = torch.where(touched, NAN, 0.0).double()
    if bool((usable & (held != 0)).any()):
        known = torch.where(usable, held, 0.0)
        result = result + (summed() * known.reshape(groups, 1, per)).sum(2).reshape(-1)
    if bias is not None:
        result = result + bias.double()
    return result.reshape([-1 if k == channel else 1 for k in range(x.ndim)])


def _embedding(self: Reckoner, node: fx.Node, weight: Tensor, index: Tensor, *_: Any, **__: Any) -> Tensor:
    held = along(weight, 1)
    return held.reshape([1] * (len(shape_of(node)) - 1) + [-1])


def _attention(
    self: Reckoner,
    node: fx.Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any = None,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> Tensor:
    cells = self.cells(node.args[0], -1)
    self.read(node, cells, zeros_along((query, -1), (key, -1), n=len(cells)))
    held = along_kept(value, -2)
    if enable_gqa and held.shape[-3] > 1:
        held = held.repeat_interleave(shape_of(node.args[0])[-3] // held.shape[-3], dim=-3)
    # weights that sum to one; of a row that is masked whole nobody knows
    return held if mask is None else held.masked_fill(held != 0, NAN)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "bilinear": _bilinear,
    "addmm": _addmm,
    **called(_matmul, "matmul mm bmm"),
    "einsum": _einsum,
    **called(
        _convolution,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution",
    ),
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
}
