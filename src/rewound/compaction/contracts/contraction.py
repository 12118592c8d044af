"""Operators that sum over an axis of two tensors: linear layers, convolutions, matrix products, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewound.compaction.contracts.pointwise import add, broadcast
from rewound.compaction.reading import Reading, product
from rewound.compaction.units import Certificate
from rewound.compaction.values import (
    CHANNEL,
    EMBEDDED,
    GROUPED,
    HEAD,
    HEAD_DIM,
    LINEAR,
    Dead,
    Dim,
    Value,
    plain,
)


def linear(reading: Reading, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x [..., in], weight [out, in]."""
    _contract(reading, x, len(x.dims) - 1, weight, 1)
    out = _written(reading, weight, 0, bias, LINEAR)
    reading.work(product(x.shape[:-1]) * product(weight.shape), *x.dims[:-1], *weight.dims)
    rest = tuple(_passed(dim, bias) for dim in x.dims[:-1])
    return Value((*rest, out))


def bilinear(reading: Reading, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """a [..., i], b [..., j], weight [out, i, j]: linear in either input, so a feature of one leaves with its slice of the
    weight, whatever the other holds."""
    front = broadcast(reading, [Value(a.dims[:-1]), Value(b.dims[:-1])], _zero_of_either).dims
    _contract(reading, a, len(a.dims) - 1, weight, 1)
    _contract(reading, b, len(b.dims) - 1, weight, 2)
    out = _written(reading, weight, 0, bias, LINEAR)
    reading.work(product([len(dim) for dim in front]) * product(weight.shape), *front, *weight.dims)
    return Value((*(_passed(dim, bias) for dim in front), out))


def addmm(reading: Reading, bias: Value, x: Value, weight: Value, **_: Any) -> Value:
    """bias [out] or [n, out], x [n, in], weight [in, out] (Hugging Face's Conv1D)."""
    return (
        add(reading, matmul(reading, x, weight), bias)
        if len(bias.dims) > 1
        else _with_bias(reading, x, weight, bias)
    )


def _with_bias(reading: Reading, x: Value, weight: Value, bias: Value) -> Value:
    result = matmul(reading, x, weight)
    reading.tie(result.dims[-1], bias.dims[-1])
    reading.role(bias, 0, "affine")
    return Value((*(_passed(dim, bias) for dim in result.dims[:-1]), result.dims[-1]))


def matmul(reading: Reading, a: Value, b: Value) -> Value:
    """a [..., m, k] and b [..., k, n]; axes in front are batches: of two activations, the axis of heads."""
    if len(a.dims) == 1:
        row = Value((plain(1), *a.dims), a.origin, (None, *a.axes) if a.origin else ())
        dims = matmul(reading, row, b).dims
        return Value(dims[1:] if len(b.dims) == 1 else (*dims[:-2], dims[-1]))
    if len(b.dims) == 1:
        column = Value((*b.dims, plain(1)), b.origin, (*b.axes, None) if b.origin else ())
        return Value(matmul(reading, a, column).dims[:-1])
    _contract(reading, a, len(a.dims) - 1, b, len(b.dims) - 2)
    if a.origin is None and b.origin is None:
        reading.rescaled(a.dims[-1], "product")
    batch = (
        broadcast(reading, [Value(a.dims[:-2]), Value(b.dims[:-2])], _zero_of_either).dims
        if _batched(a, b)
        else ()
    )
    if a.origin is None and b.origin is None and any(dim.tracked for dim in batch):
        for dim in (a.dims[-2], a.dims[-1], b.dims[-1]):
            reading.be(dim, HEAD_DIM)
        for dim in batch:
            reading.be(dim, HEAD)
    for value, axis in ((a, len(a.dims) - 2), (b, len(b.dims) - 1)):
        if value.origin is not None:
            reading.role(value, axis, "writes")
            reading.be(value.dims[axis], LINEAR)
    inner = (a.dims[-2], a.dims[-1], b.dims[-1])
    reading.work(product([*(len(d) for d in batch), *(len(d) for d in inner)]), *batch, *inner)
    return Value((*batch, a.dims[-2], b.dims[-1]))


def baddbmm(reading: Reading, x: Value, a: Value, b: Value, **_: Any) -> Value:
    return add(reading, matmul(reading, a, b), x)


def einsum(reading: Reading, equation: str, operands: list[Value], **_: Any) -> Value:
    """Letters shared by two operands and kept are batches; shared and dropped, contracted; dropped alone, summed."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) > 2:
        reading.untouched(*operands, what="enters a form of einsum that is not read")
        return Value(tuple(plain(n) for n in reading.shape))
    seen: dict[str, Dim] = {}
    for term, value in zip(terms, operands):
        for axis, letter in enumerate(term):
            both = all(letter in other for other in terms) and len(terms) == 2
            if letter in seen:
                reading.tie(seen[letter], value.dims[axis])
                dead = _zero_of_either([seen[letter].dead, value.dims[axis].dead])
                seen[letter] = seen[letter].be(dead) if seen[letter].tracked else value.dims[axis].be(dead)
            else:
                seen[letter] = value.dims[axis]
            if value.origin is not None:
                reading.role(
                    value,
                    axis,
                    "writes"
                    if letter in right and not both
                    else "reads"
                    if letter not in right
                    else "affine",
                )
                if letter in right and not both:
                    reading.be(value.dims[axis], LINEAR)
    activations = all(value.origin is None for value in operands) and len(terms) == 2
    shared = {letter for letter in seen if all(letter in term for term in terms)}
    activations = activations and any(letter in right and seen[letter].tracked for letter in shared)
    for letter, dim in seen.items():
        if letter not in right and dim.dead is not Dead.ZERO:
            reading.mark(dim, Certificate.APPROXIMATE, "is summed over, and a dead slice is not zero")
        if activations:
            reading.be(dim, HEAD if letter in shared and letter in right else HEAD_DIM)
    # what one operand alone is summed over goes before the product
    inner = [
        dim for letter, dim in seen.items() if letter in right or sum(letter in term for term in terms) > 1
    ]
    if len(terms) > 1:
        reading.work(product([len(dim) for dim in inner]), *inner)
    return Value(tuple(seen[letter] for letter in right))


def convolution(
    reading: Reading, x: Value, weight: Value, bias: Value | None = None, *arguments: Any, **_: Any
) -> Value:
    """x [n, c, ...], weight [o, c / groups, ...]."""
    groups = _groups(arguments, at=3)
    return _convolution(reading, x, weight, bias, groups, transposed=False)


def transposed_convolution(
    reading: Reading, x: Value, weight: Value, bias: Value | None = None, *arguments: Any, **_: Any
) -> Value:
    """x [n, c, ...], weight [c, o / groups, ...]."""
    return _convolution(reading, x, weight, bias, _groups(arguments, at=3), transposed=True)


def any_convolution(
    reading: Reading, x: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *_: Any,
) -> Value:  # fmt: skip
    return _convolution(reading, x, weight, bias, groups, transposed)


def _convolution(
    reading: Reading, x: Value, weight: Value, bias: Value | None, groups: int, transposed: bool
) -> Value:
    unbatched = len(x.dims) < len(weight.dims)
    channels = x.dims[0 if unbatched else 1]
    first, second = weight.dims[:2]
    if (
        groups > 1
    ):  # axis 0 of the weight is [groups, per group], and so are the channels read (or, transposed, written)
        of_x, within = reading.split(channels, groups, len(channels) // groups)
        of_weight, per_group = reading.split(first, groups, len(first) // groups)
        reading.tie(of_x, of_weight)
        reading.grouped(of_weight)
        if len(within) > 1 or len(per_group) > 1:
            reading.be(of_weight, GROUPED)
        if transposed:
            reading.tie(within, per_group, "reads an axis nothing of which can leave")
            out = _flattened(of_weight, second)
        else:
            reading.tie(within, second, "reads an axis nothing of which can leave")
            out = first
    else:
        reading.tie(channels, first if transposed else second, "reads an axis nothing of which can leave")
        out = second if transposed else first
    reading.role(weight, 1 if transposed else 0, "writes")
    reading.role(weight, 0 if transposed else 1, "reads")
    if groups > 1 and transposed:
        reading.role(weight, 0, "writes")
    for axis in range(2, len(weight.dims)):
        reading.fix(weight.dims[axis], "is the positions of a kernel")
    for dim in x.dims[1 if unbatched else 2 :]:
        reading.fix(dim, "is moved over by a convolution")
    reading.be(out, CHANNEL)
    if bias is not None:
        reading.tie(out, bias.dims[0])
        reading.role(bias, 0, "affine")
    shape = reading.shape
    places = (
        product(x.shape[1 if unbatched else 2 :]) if transposed else product(shape[1 if unbatched else 2 :])
    )
    batch = 1 if unbatched else shape[0]
    reading.work(batch * places * product(weight.shape), *weight.dims[:2])
    result = (out.be(Dead.ZERO), *(plain(n) for n in shape[1 if unbatched else 2 :]))
    return Value(result if unbatched else (x.dims[0], *result))


def embedding(reading: Reading, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """weight [rows, features]: rows are chosen by the input's numbers and stay."""
    reading.fix(weight.dims[0], "its rows are chosen by number")
    reading.role(weight, 1, "writes")
    reading.be(weight.dims[1], EMBEDDED)
    return Value((*index.dims, weight.dims[1]))


def _contract(reading: Reading, a: Value, i: int, b: Value, j: int) -> None:
    one, other = a.dims[i], b.dims[j]
    reading.tie(one, other, "reads an axis nothing of which can leave")
    if Dead.ZERO not in (one.dead, other.dead):
        reading.mark(one, Certificate.APPROXIMATE, "is summed over, and a dead slice is not zero")
    for value, axis in ((a, i), (b, j)):
        reading.role(value, axis, "reads")


def _written(reading: Reading, weight: Value, axis: int, bias: Value | None, kind: int) -> Dim:
    out = weight.dims[axis]
    reading.role(weight, axis, "writes")
    if weight.origin is not None:
        reading.be(out, kind)
    dead = out.dead
    if bias is not None:
        reading.tie(out, bias.dims[-1])
        reading.role(bias, len(bias.dims) - 1, "affine")
        dead = max(dead, bias.dims[-1].dead)
    return out.be(dead)


def _passed(dim: Dim, bias: Value | None) -> Dim:
    """An axis in front of the features: a dead slice of zeros gives the bias."""
    return dim if bias is None or dim.dead is not Dead.ZERO else dim.be(Dead.ANYTHING)


def _batched(a: Value, b: Value) -> bool:
    return len(a.dims) > 2 or len(b.dims) > 2


def _zero_of_either(states: list[Dead]) -> Dead:
    return Dead.ZERO if Dead.ZERO in states else Dead.ANYTHING


def _flattened(outer: Dim, inner: Dim) -> Dim:
    from rewound.compaction.atoms import merged

    return Dim(merged(outer.cells, inner.cells), Dead.ZERO)


def _groups(arguments: tuple[Any, ...], at: int) -> int:
    return int(arguments[at]) if len(arguments) > at else 1


RULES: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "bilinear": bilinear,
    "addmm": addmm,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "mv": matmul,
    "dot": matmul,
    "vdot": matmul,
    "baddbmm": baddbmm,
    "einsum": einsum,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    "convolution": any_convolution,
    "_convolution": any_convolution,
    "embedding": embedding,
}
