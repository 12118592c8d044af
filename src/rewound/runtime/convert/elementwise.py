"""Rules: activations, arithmetic, comparisons, reductions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rewound.runtime.convert.build import PROBES, Builder, Const, Live, Unknown, to_numpy
from rewound.runtime.convert.rules import const, live, number, real, require, rule
from rewound.runtime.convert.sizes import Axes, Batch


def activated(b: Builder, x: Any, activation: list[Any], dtype: torch.dtype = torch.float32) -> Live:
    x = live(x)
    name = b.emit("activation", [b.floating(x).name], activation=activation)
    return b.live(name, x.laid, dtype)


def _simple(name: str, *targets: str) -> None:
    @rule(*targets)
    def _(b: Builder, self: Any) -> Live:
        return activated(b, self, [name])


for _name, _targets in {
    "relu": "relu", "silu": "silu", "hardswish": "hardswish", "hardsigmoid": "hardsigmoid", "sigmoid": "sigmoid",
    "tanh": "tanh", "exp": "exp", "erf": "erf special_erf", "sqrt": "sqrt", "rsqrt": "rsqrt", "neg": "neg negative",
    "abs": "abs absolute", "log": "log", "mish": "mish", "reciprocal": "reciprocal", "square": "square", "sin": "sin",
    "cos": "cos",
}.items():  # fmt: skip
    _simple(_name, *_targets.split())


@rule("relu6")
def _relu6(b: Builder, self: Any) -> Live:
    return activated(b, self, ["clamp", 0.0, 6.0])


@rule("hardtanh")
def _hardtanh(b: Builder, self: Any, min_val: Any, max_val: Any) -> Live:
    return activated(b, self, ["clamp", float(number(min_val)), float(number(max_val))])


@rule("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(b: Builder, self: Any, min: Any = None, max: Any = None) -> Live:
    low = -math.inf if min is None else float(number(min))
    high = math.inf if max is None else float(number(max))
    require(low <= high)
    return activated(b, self, ["relu"] if (low, high) == (0, math.inf) else ["clamp", low, high])


@rule("gelu")
def _gelu(b: Builder, self: Any, approximate: Any) -> Live:
    require(approximate in ("none", "tanh"))
    return activated(b, self, ["gelu" if approximate == "none" else "gelu_tanh"])


@rule("leaky_relu")
def _leaky_relu(b: Builder, self: Any, negative_slope: Any) -> Live:
    return activated(b, self, ["leaky_relu", float(number(negative_slope))])


@rule("prelu", "_prelu_kernel")
def _prelu(b: Builder, self: Any, weight: Any) -> Live:
    slope = const(weight).value
    if slope.numel() == 1:
        return activated(b, self, ["leaky_relu", float(slope.item())])
    x = b.plain(self)
    low = activated(b, x, ["clamp", -math.inf, 0.0])
    slopes = to_numpy(slope.reshape(-1))
    key = {
        "scale": b.weight(slope.reshape(-1), const(weight).origin),
        "shift": b.weight(np.zeros_like(slopes), role="zeros"),
    }
    low = b.live(b.emit("affine", [low.name], key, axis=1), x.laid)
    return combined(b, "add", activated(b, x, ["relu"]), low)


@rule("elu")
def _elu(b: Builder, self: Any, alpha: Any, scale: Any, input_scale: Any) -> Live:
    require(number(scale) == 1 and number(input_scale) == 1)
    return activated(b, self, ["elu", float(number(alpha))])


@rule("celu")
def _celu(b: Builder, self: Any, alpha: Any) -> Live:
    require(number(alpha) == 1)
    return activated(b, self, ["elu", 1.0])


@rule("selu")
def _selu(b: Builder, self: Any) -> Live:
    return combined(
        b,
        "mul",
        activated(b, self, ["elu", 1.6732632423543772848170429916717]),
        1.0507009873554804934193349852946,
    )


@rule("softplus")
def _softplus(b: Builder, self: Any, beta: Any, threshold: Any) -> Live:
    require(number(beta) == 1 and number(threshold) == 20)
    return activated(b, self, ["softplus"])


@rule("log_sigmoid")
def _log_sigmoid(b: Builder, self: Any) -> Live:
    return activated(b, activated(b, activated(b, self, ["neg"]), ["softplus"]), ["neg"])


@rule("softsign")
def _softsign(b: Builder, self: Any) -> Live:
    return combined(b, "div", self, combined(b, "add", activated(b, self, ["abs"]), 1))


@rule("tanhshrink")
def _tanhshrink(b: Builder, self: Any) -> Live:
    return combined(b, "sub", self, activated(b, self, ["tanh"]))


# -- arithmetic -----------------------------------------------------------------------------------------------------------------


def combined(b: Builder, kind: str, x: Any, y: Any, dtype: torch.dtype = torch.float32) -> Live:
    """Return x kind y for two live tensors, or one and a constant or number."""
    if isinstance(x, Live) and isinstance(y, Live):
        (x, y), axes = b.aligned(x, y)
        return b.live(b.emit("binary", [x.name, y.name], kind=kind), axes, dtype)
    reverse = not isinstance(x, Live)
    left, right = (y, x) if reverse else (x, y)
    left = b.floating(live(left))
    flags: dict[str, Any] = (
        {"reverse": True} if reverse and kind not in ("add", "mul", "maximum", "minimum") else {}
    )
    if not isinstance(right, Const) or (len(right.shape) == 0 and len(right.at) == 1):
        scalar = float(number(right))
        return b.live(b.emit("binary", [left.name], kind=kind, scalar=scalar, **flags), left.laid, dtype)
    array, axes = b.settled(right, left.laid)
    left = b.reshape(left, ((1,),) * (len(axes) - len(left.laid)) + left.laid)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    key = b.weight(array, right.origin, "constant")
    return b.live(b.emit("binary", [left.name], {"constant": key}, kind=kind, **flags), axes, dtype)


def scaled(b: Builder, x: Any, factor: Any) -> Any:
    factor = number(factor)
    if factor == 1:
        return x
    if isinstance(x, Live):
        return combined(b, "mul", x, factor)
    return Const(tuple(t * factor for t in x.at), x.origin) if isinstance(x, Const) else x * factor


@rule("add")
def _add(b: Builder, self: Any, other: Any, alpha: Any = 1) -> Live:
    return combined(b, "add", self, scaled(b, other, alpha))


@rule("sub", "subtract")
def _sub(b: Builder, self: Any, other: Any, alpha: Any = 1) -> Live:
    return combined(b, "sub", self, scaled(b, other, alpha))


@rule("rsub")
def _rsub(b: Builder, self: Any, other: Any, alpha: Any = 1) -> Live:
    return combined(b, "sub", other, scaled(b, self, alpha))


@rule("mul", "multiply")
def _mul(b: Builder, self: Any, other: Any) -> Live:
    return combined(b, "mul", self, other)


@rule("div", "divide", "true_divide")
def _div(b: Builder, self: Any, other: Any, rounding_mode: Any = None) -> Live:
    require(rounding_mode is None)
    return combined(b, "div", self, other)


@rule("maximum")
def _maximum(b: Builder, self: Any, other: Any) -> Live:
    return combined(b, "maximum", self, other)


@rule("minimum")
def _minimum(b: Builder, self: Any, other: Any) -> Live:
    return combined(b, "minimum", self, other)


@rule("addcmul")
def _addcmul(b: Builder, self: Any, tensor1: Any, tensor2: Any, value: Any) -> Live:
    return combined(b, "add", self, scaled(b, combined(b, "mul", tensor1, tensor2), value))


@rule("pow")
def _pow(b: Builder, self: Any, exponent: Any) -> Live:
    powers = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal", 1: "identity"}
    if (
        isinstance(self, Live)
        and not isinstance(exponent, Live)
        and not (isinstance(exponent, Const) and exponent.shape)
    ):
        n = number(exponent)
        if n in powers:
            return activated(b, self, [powers[n]])
    return combined(b, "pow", self, exponent)


# -- truth: booleans are 0 and 1 in float32, integers are compared as float32 ---------------------------------------------------


def _whole(*tensors: Any) -> None:
    for x in tensors:
        dtype = (
            x.dtype if isinstance(x, (Live, Const)) else torch.int64 if isinstance(x, int) else torch.float32
        )
        require(not dtype.is_floating_point, "comparing floats")


def _truth(b: Builder, x: Any) -> Any:
    """Return whether integers are not 0."""
    if isinstance(x, Const):
        return Const(tuple(t != 0 for t in x.at), x.origin)
    x = live(x)
    if x.dtype == torch.bool:
        return b.floating(x)
    require(not x.dtype.is_floating_point, "truth of floats")
    return activated(b, activated(b, x, ["abs"]), ["clamp", 0.0, 1.0], torch.bool)


def _not(b: Builder, x: Any) -> Any:
    if isinstance(x, Const):
        return Const(tuple(~t for t in x.at), x.origin)
    return combined(b, "sub", 1, x, torch.bool)


@rule("logical_not", "bitwise_not")
def _logical_not(b: Builder, self: Any) -> Any:
    return _not(b, _bools(b, self))


def _bools(b: Builder, x: Any) -> Any:
    require(isinstance(x, (Live, Const)) and x.dtype == torch.bool, "bits of integers")
    return _truth(b, x)


@rule("logical_and", "bitwise_and", "__and__")
def _and(b: Builder, self: Any, other: Any) -> Live:
    return combined(b, "mul", _bools(b, self), _bools(b, other), torch.bool)


@rule("logical_or", "bitwise_or", "__or__")
def _or(b: Builder, self: Any, other: Any) -> Live:
    return combined(b, "maximum", _bools(b, self), _bools(b, other), torch.bool)


@rule("ne", "not_equal")
def _ne(b: Builder, self: Any, other: Any) -> Live:
    _whole(self, other)
    return activated(
        b, activated(b, combined(b, "sub", self, other), ["abs"]), ["clamp", 0.0, 1.0], torch.bool
    )


@rule("eq")
def _eq(b: Builder, self: Any, other: Any) -> Any:
    return _not(b, _ne(b, self, other))


@rule("gt", "greater")
def _gt(b: Builder, self: Any, other: Any) -> Live:
    _whole(self, other)
    return activated(b, combined(b, "sub", self, other), ["clamp", 0.0, 1.0], torch.bool)


@rule("lt", "less")
def _lt(b: Builder, self: Any, other: Any) -> Live:
    return _gt(b, other, self)


@rule("ge", "greater_equal")
def _ge(b: Builder, self: Any, other: Any) -> Any:
    return _not(b, _gt(b, other, self))


@rule("le", "less_equal")
def _le(b: Builder, self: Any, other: Any) -> Any:
    return _not(b, _gt(b, self, other))


@rule("where")
def _where(b: Builder, condition: Any, self: Any = None, other: Any = None) -> Live:
    """Numbers on both sides, or a number where a tensor is not taken."""
    require(self is not None and other is not None)
    self, other = _uniform(self), _uniform(other)
    if _is_number(self) and isinstance(other, Live):
        return _filled(b, other, _truth(b, condition), number(self))
    if _is_number(other) and isinstance(self, Live):
        return _filled(b, self, _not(b, _truth(b, condition)), number(other))
    if _is_number(self) and _is_number(other):
        yes, no = float(number(self)), float(number(other))
        taken = live(_truth(b, condition))
        if math.isinf(yes) or math.isinf(no):
            require(0 in (yes, no) and -math.inf in (yes, no))  # the logarithm of 0 and 1
            return activated(b, taken if no else _not(b, taken), ["log"])
        if yes == 0:
            return combined(b, "mul", _not(b, taken), no)
        return (
            combined(b, "mul", taken, yes)
            if no == 0
            else combined(b, "add", combined(b, "mul", taken, yes - no), no)
        )
    taken = _truth(b, condition)
    if (
        isinstance(self, Const)
        and self.dtype.is_floating_point
        and bool(torch.isfinite(self.at[0]).all())
        and _is_number(other)
    ):
        kept = combined(b, "mul", taken, self)  # a table, or a number where it is hidden
        require(not math.isinf(number(other)))
        return (
            combined(b, "add", kept, combined(b, "mul", _not(b, taken), number(other)))
            if number(other)
            else kept
        )
    raise Unknown("choosing between two tensors")


def _uniform(x: Any) -> Any:
    """Return the number that a constant holds everywhere, if it does; the result then has the other operands' shape."""
    if isinstance(x, Const) and all(
        t.numel() > 0 and bool((t == x.at[0].reshape(-1)[0]).all()) for t in x.at
    ):
        return x.at[0].reshape(-1)[0].item()
    return x


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) or (isinstance(x, Const) and len(x.at) == 1 and x.at[0].numel() == 1)


@rule("masked_fill")
def _masked_fill(b: Builder, self: Any, mask: Any, value: Any) -> Live:
    require(_is_number(value))
    scalar = value.value.item() if isinstance(value, Const) else value
    self = _uniform(self)
    if not isinstance(self, Live):
        return _where(b, mask, scalar, self)
    return _filled(b, live(self), _truth(b, mask), number(scalar))


def _may_be_nan(b: Builder, name: str) -> bool:
    """Whether elementwise arithmetic in front of a value can make NaN of numbers."""
    made = {node.output: node for node in b.nodes}
    left, seen = [name], set[str]()
    while left:
        node = made.get(left.pop())
        if node is None or node.output in seen:
            continue
        seen.add(node.output)
        kind = (node.attributes.get("activation") or [""])[0]
        divides = node.attributes.get("kind") in ("div", "pow") and not node.attributes.get("scalar")
        if (
            node.op == "torch"
            or kind in ("log", "sqrt", "rsqrt", "reciprocal")
            or (node.op == "binary" and divides)
        ):
            return True
        if node.op in (
            "activation",
            "binary",
            "affine",
            "reshape",
            "permute",
            "slice",
            "expand",
            "concat",
            "pad",
            "reduce",
        ):
            left += node.inputs
    return False


def _filled(b: Builder, x: Live, mask: Any, value: float) -> Live:
    """Return x, and ``value`` where the mask is true: between bounds that are infinite elsewhere. A NaN would stay one, so that
    hiding the logarithm of what is negative is left to torch."""
    require(not _may_be_nan(b, x.name), "NaN that the mask may hide")
    if value == -math.inf:
        if isinstance(mask, Const):
            return combined(b, "add", x, Const(tuple((~t).double().log() for t in mask.at)))
        return combined(b, "add", x, activated(b, _not(b, mask), ["log"]))
    require(not math.isinf(value))
    low: Any
    high: Any
    if isinstance(mask, Const):
        low, high = (
            Const(
                tuple(torch.full(t.shape, side, dtype=torch.float64).masked_fill(t, value) for t in mask.at)
            )
            for side in (-math.inf, math.inf)
        )
    else:
        hidden = activated(b, mask, ["log"])
        low, high = combined(b, "add", hidden, value), combined(b, "sub", value, hidden)
    return combined(b, "minimum", combined(b, "maximum", x, low), high)


# -- reductions -----------------------------------------------------------------------------------------------------------------


def _reduced(b: Builder, kind: str, self: Any, dim: Any, keepdim: Any) -> Live:
    x = live(self)
    rank = b.rank(x)
    dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    require(dims and None not in dims, "a reduction over everything")
    dims = [d % rank for d in dims]
    axes = sorted(b.axis(x, d) for d in dims)
    name = b.emit("reduce", [b.floating(x).name], kind=kind, axes=axes, keepdim=bool(keepdim))
    made: Axes = tuple(
        (1,) if i in dims else axis for i, axis in enumerate(x.laid) if keepdim or i not in dims
    )
    return b.live(name, made)


@rule("mean")
def _mean(b: Builder, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Live:
    real(dtype)
    return _reduced(b, "mean", self, dim, keepdim)


@rule("sum")
def _sum(b: Builder, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Live:
    real(dtype)
    require(live(self).dtype.is_floating_point)
    return _reduced(b, "sum", self, dim, keepdim)


@rule("cumsum")
def _cumsum(b: Builder, self: Any, dim: Any, dtype: Any = None) -> Live:
    """Along the last axis: a product with ones below the diagonal."""
    x = live(self)
    at = b.axis(x, dim)
    size = x.laid[dim % b.rank(x)][0] or 0
    require(dim % b.rank(x) == b.rank(x) - 1 and at == len(b.values[x.name].shape) - 1 and size <= 1024)
    ones = b.weight(np.tri(size), role=f"ones{size}")
    return b.live(b.emit("linear", [b.floating(x).name], {"weight": ones}), x.laid)


@rule("gather")
def _gather(b: Builder, self: Any, dim: Any, index: Any, sparse_grad: Any) -> Any:
    """From a table whose entries are all the same."""
    table = const(self).at[0]
    same = all(t.numel() > 0 and bool((t == table.reshape(-1)[0]).all()) for t in const(self).at)
    require(same, "a table of different entries")
    like = live(index)
    shape = [tuple(n.at(probe) if isinstance(n, Batch) else n for n in like.shape) for probe in PROBES]
    if like.shape == tuple(shape[0]):
        shape = shape[:1]
    return Const(tuple(table.reshape(-1)[:1].reshape((1,) * len(n)).expand(n) for n in shape), self.origin)


@rule("amax", "max")
def _max(b: Builder, self: Any, dim: Any = None, keepdim: Any = False, other: Any = None) -> Live:
    if other is not None:
        return combined(b, "maximum", self, other)
    return _reduced(b, "max", self, dim, keepdim)


@rule("amin", "min")
def _min(b: Builder, self: Any, dim: Any = None, keepdim: Any = False, other: Any = None) -> Live:
    if other is not None:
        return combined(b, "minimum", self, other)
    return _reduced(b, "min", self, dim, keepdim)


@rule("var")
def _var(
    b: Builder, self: Any, dim: Any = None, unbiased: Any = True, correction: Any = None, keepdim: Any = False
) -> Live:
    x = live(self)
    taken_off = (1 if unbiased else 0) if correction is None else number(correction)
    centred = combined(b, "sub", x, _reduced(b, "mean", x, dim, True))
    y = _reduced(b, "mean", activated(b, centred, ["square"]), dim, keepdim)
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    count = math.prod(x.laid[d][0] or 0 for d in dims)
    require(count > taken_off)
    return scaled(b, y, count / (count - taken_off))


@rule("std")
def _std(
    b: Builder, self: Any, dim: Any = None, unbiased: Any = True, correction: Any = None, keepdim: Any = False
) -> Live:
    return activated(b, _var(b, self, dim, unbiased, correction, keepdim), ["sqrt"])


@rule("linalg_vector_norm", "norm")
def _norm(
    b: Builder,
    self: Any,
    ord: Any = None,
    p: Any = None,
    dim: Any = None,
    keepdim: Any = False,
    dtype: Any = None,
) -> Live:
    real(dtype)
    require((ord if ord is not None else p) in (2, 2.0))
    return activated(b, _reduced(b, "sum", activated(b, self, ["square"]), dim, keepdim), ["sqrt"])
