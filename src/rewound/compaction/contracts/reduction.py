"""Sums, means, norms and orderings along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewound.compaction.contracts.pointwise import nary
from rewound.compaction.reading import Reading, positive
from rewound.compaction.units import Certificate
from rewound.compaction.values import NORMED, Dead, Dim, Value, plain, plain_value


def total(reading: Reading, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    """sum and vector norms: zeros add nothing."""

    def judge(d: Dim) -> None:
        if d.dead is not Dead.ZERO:
            reading.mark(d, Certificate.APPROXIMATE, "is summed over, and a dead slice is not zero")

    return _reduced(reading, x, dim, keepdim, judge, keeps_zero=True)


def vector_norm(
    reading: Reading, x: Value, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Value:
    return total(reading, x, dim, keepdim)


def mean(reading: Reading, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    """A mean of fewer entries; where it is a mean of squares (RMSNorm), a factor repairs it."""
    square = _is_square(reading)

    def judge(d: Dim) -> None:
        if square and d.dead is Dead.ZERO:
            reading.mark(d, Certificate.EXACT_AFTER_RESCALE, "is the width of an RMSNorm")
            reading.rescaled(d, "mean")
        else:
            reading.mark(d, Certificate.APPROXIMATE, "is averaged over")
        reading.be(d, NORMED)

    return _reduced(reading, x, dim, keepdim, judge, keeps_zero=True)


def statistic(reading: Reading, x: Value, dim: Any = None, *arguments: Any, **keywords: Any) -> Any:
    """var, std, max, min, prod, logsumexp, argmax over an axis: another number with fewer entries."""
    if isinstance(dim, Value):  # the larger of two tensors
        return nary(reading, x, dim)
    keepdim = bool(
        keywords.get("keepdim", next((a for a in reversed(arguments) if isinstance(a, bool)), False))
    )

    def judge(d: Dim) -> None:
        reading.mark(d, Certificate.APPROXIMATE, "is reduced by a statistic of all its entries")
        reading.be(d, NORMED)

    # of zeros these are zero, and where it is (argmax, the second result) may be anywhere
    result = _reduced(
        reading, x, dim, keepdim, judge, keeps_zero=reading.operator not in ("logsumexp", "argmax", "argmin")
    )
    spread = reading.operator in ("var_mean", "std_mean", "aminmax")
    others = [result if spread else Value(tuple(d.be(Dead.ANYTHING) for d in result.dims))] * (
        len(reading.shapes) - 1
    )
    return [result, *others] if others else result


def running(reading: Reading, x: Value, dim: int, *_: Any, **__: Any) -> Any:
    """cumsum, sort, topk along an axis: what comes later depends on what came before."""
    at = positive(dim if isinstance(dim, int) else -1, len(x.dims))
    reading.fix(x.dims[at], "has an order that matters")
    zero = reading.operator not in ("logcumsumexp", "argsort")
    dims = [d if d.dead is Dead.ZERO and zero else d.be(Dead.ANYTHING) for d in x.dims]
    result = Value((*dims[:at], plain(reading.shape[at]), *dims[at + 1 :]))
    places = Value(tuple(d.be(Dead.ANYTHING) for d in result.dims))  # where each came from
    return [result, places] if len(reading.shapes) > 1 else result


def ordered(reading: Reading, x: Value, *arguments: Any, **keywords: Any) -> Any:
    """topk(k, dim), sort(dim): as ``running``; the axis is that of the keyword or the position each has."""
    dim = keywords.get(
        "dim",
        arguments[1 if reading.operator == "topk" else 0]
        if len(arguments) > (reading.operator == "topk")
        else -1,
    )
    return running(reading, x, dim if isinstance(dim, int) and not isinstance(dim, bool) else -1)


def triangle(reading: Reading, x: Value, *_: Any) -> Value:
    """tril and triu: the last two axes are positions."""
    for dim in x.dims[-2:]:
        reading.fix(dim, "is cut to a triangle")
    return Value(x.dims)


def _reduced(
    reading: Reading, x: Value, dim: Any, keepdim: bool, judge: Callable[[Dim], None], keeps_zero: bool
) -> Value:
    if dim is None or dim == []:
        axes = set(range(len(x.dims)))
    else:
        axes = {positive(d, len(x.dims)) for d in ([dim] if isinstance(dim, int) else dim)}
    for axis in axes:
        judge(x.dims[axis])
    kept = []
    for axis, d in enumerate(x.dims):
        if axis not in axes:
            kept.append(d if keeps_zero or d.dead is not Dead.ZERO else d.be(Dead.CONSTANT))
        elif keepdim:
            kept.append(plain(1))
    result = Value(tuple(kept))
    return result if result.shape == reading.shape else plain_value(reading.shape)


def _is_square(reading: Reading) -> bool:
    argument = reading.node.args[0]
    name = str(getattr(argument, "target", ""))
    if name.startswith("aten.pow"):
        return argument.args[1] == 2
    if name.startswith("aten.mul"):
        return argument.args[0] is argument.args[1]
    return name.startswith("aten.square")


RULES: dict[str, Callable[..., Any]] = {
    "sum": total,
    "linalg_vector_norm": vector_norm,
    "norm": vector_norm,
    "mean": mean,
    **dict.fromkeys(
        ("var", "std", "var_mean", "std_mean", "aminmax", "max", "min", "amax", "amin", "argmax",
         "argmin", "prod", "logsumexp", "any", "all", "median",
         "count_nonzero"),
        statistic,
    ),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), running),
    **dict.fromkeys(("topk", "sort", "argsort"), ordered),
    "tril": triangle,
    "triu": triangle,
}  # fmt: skip
