"""Element by element: every operand's entry i leaves with the result's entry i."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rewound.compaction.reading import Reading, values_in
from rewound.compaction.values import Dead, Dim, Value, plain


def unary(reading: Reading, x: Value, *arguments: Any, **keywords: Any) -> Value:
    """f(x): a dead slice of zeros stays so if f(0) = 0, and becomes a constant if not (sigmoid, softplus, exp, cos)."""
    others = values_in([*arguments, keywords])
    if others:
        return nary(reading, x, *others)
    at_zero = _at_zero(reading, arguments, keywords)
    if at_zero == 0:
        return Value(x.dims)
    for d in x.dims:
        if d.dead is Dead.ZERO and at_zero is not None and not math.isfinite(at_zero):
            reading.fix(d, f"a dead slice of zeros would become {at_zero}")
    return Value(tuple(d.be(Dead.CONSTANT) if d.dead is Dead.ZERO else d for d in x.dims))


def add(reading: Reading, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    """a + b and a - b: zero where both are."""
    return broadcast(reading, [a, b], lambda states: max(states))


def multiply(reading: Reading, a: Any, b: Any) -> Value:
    """a * b: zero where either is."""

    def state(states: list[Dead]) -> Dead:
        return Dead.ZERO if Dead.ZERO in states else max(states)

    return broadcast(reading, [a, b], state)


def divide(reading: Reading, a: Any, b: Any, **_: Any) -> Value:
    """a / b: zero where a is (and b is not)."""

    def state(states: list[Dead]) -> Dead:
        if states[0] is Dead.ZERO and states[1] is not Dead.ZERO:
            return Dead.ZERO
        return Dead.ANYTHING if Dead.ZERO in states else max(states)

    _not_by_zero(reading, b)
    return broadcast(reading, [a, b], state)


def remainder(reading: Reading, a: Any, b: Any, **_: Any) -> Value:
    """a modulo b, and a / b rounded: of two numbers as any other function, but no number where b is zero."""
    _not_by_zero(reading, b)
    return nary(reading, a, b)


def _not_by_zero(reading: Reading, b: Any) -> None:
    for dim in b.dims if isinstance(b, Value) else ():
        if dim.dead is Dead.ZERO:
            reading.fix(dim, "is divided by, and a dead slice is zero")


def power(reading: Reading, a: Any, exponent: Any) -> Value:
    if isinstance(a, Value) and isinstance(exponent, (int, float)):
        return unary(reading, a, exponent)
    return nary(reading, a, exponent)


def accumulate(reading: Reading, x: Value, a: Any, b: Any, *, value: Any = 1) -> Value:
    """addcmul, lerp and their like."""
    return broadcast(reading, [x, a, b], lambda states: max(states))


def prelu(reading: Reading, x: Value, weight: Value) -> Value:
    """A slope a channel (axis 1), or one for all."""
    if weight.shape and len(weight.dims[0]) > 1:
        reading.tie(x.dims[1], weight.dims[0])
        reading.role(weight, 0, "affine")
    return Value(x.dims)


def where(reading: Reading, condition: Value, a: Any, b: Any) -> Value:
    return broadcast(
        reading,
        [condition, a, b],
        lambda states: max(states[1:]) if max(states[1:]) is Dead.ZERO else Dead.ANYTHING,
    )


def masked_fill(reading: Reading, x: Value, mask: Value, value: Any) -> Value:
    zero = isinstance(value, (int, float)) and value == 0
    return broadcast(
        reading, [x, mask], lambda states: states[0] if states[0] is Dead.ZERO and zero else Dead.ANYTHING
    )


def nary(reading: Reading, *operands: Any, **_: Any) -> Value:
    """Any other function of several operands (maximum, comparisons): a constant where all are constant."""
    return broadcast(reading, list(operands), lambda states: max(Dead.CONSTANT, max(states)))


def broadcast(reading: Reading, operands: list[Any], state: Callable[[list[Dead]], Dead]) -> Value:
    """Tie the operands axis by axis, as broadcasting aligns them. ``state``: states of the operands' dead slices -> of the
    result's; a number is a constant, 0 is zero, and an operand that is spread along the axis may hold anything there."""
    values = [x for x in operands if isinstance(x, Value)]
    ndim = max(len(x.dims) for x in values)
    dims: list[Dim] = []
    for k in range(-ndim, 0):
        own = [x.dims[k] if len(x.dims) >= -k else plain(1) for x in values]
        size = max(len(dim) for dim in own) if all(len(dim) for dim in own) else 0
        wide = [dim for dim in own if len(dim) == size]
        for other in wide[1:]:
            reading.tie(wide[0], other)
        states, aligned = [], iter(own)
        for x in operands:
            if isinstance(x, Value):
                dim = next(aligned)
                states.append(dim.dead if len(dim) == size else Dead.ANYTHING)
            else:
                states.append(Dead.ZERO if isinstance(x, (int, float)) and x == 0 else Dead.CONSTANT)
        first = next((dim for dim in wide if dim.tracked), wide[0])
        dims.append(first.be(state(states)))
    for x in values:
        for axis in range(len(x.dims)):
            reading.role(x, axis, "affine")
    return Value(tuple(dims))


def _at_zero(reading: Reading, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> float | None:
    """Return f(0): ask f. None where it does not say."""
    try:
        result = reading.node.target(torch.zeros(1), *arguments, **keywords)
        return float(result)
    except Exception:
        return None


_UNARY = """relu relu6 gelu silu mish sigmoid logsigmoid log_sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu celu
softplus softsign hardshrink softshrink threshold exp expm1 exp2 log log2 log10 log1p sin cos tan asin acos atan sinh cosh
asinh acosh atanh sqrt rsqrt square abs neg negative reciprocal sign sgn floor ceil round trunc frac erf erfc clamp
clamp_min clamp_max clip isnan isinf isfinite nan_to_num logical_not bitwise_not deg2rad rad2deg sinc logit log_normal
rrelu_eval""".split()
_NARY = """maximum minimum max_other atan2 eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
xlogy copysign hypot logaddexp fmax fmin __and__ __or__ isclose""".split()

RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_NARY, nary),
    "add": add,
    "sub": add,
    "rsub": add,
    "mul": multiply,
    "multiply": multiply,
    "div": divide,
    "divide": divide,
    "true_divide": divide,
    **dict.fromkeys(("fmod", "remainder", "floor_divide"), remainder),
    "pow": power,
    "addcmul": accumulate,
    "addcdiv": accumulate,
    "lerp": accumulate,
    "prelu": prelu,
    "_prelu_kernel": lambda reading, x, weight: broadcast(reading, [x, weight], lambda states: states[0]),
    "where": where,
    "masked_fill": masked_fill,
}
