"""Norms and softmax: statistics over an axis bind it; whether removing from it is exact depends on the statistic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewound.compaction.reading import Reading
from rewound.compaction.units import Certificate
from rewound.compaction.values import GROUPED, NORMED, Dead, Dim, Value


def batch_norm(
    reading: Reading,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Any = None,
    var: Any = None,
    *_: Any,
    **__: Any,
) -> Value:
    """A statistic a channel (axis 1). A dead channel is zero where scale and shift are masked with it."""
    channel = _channelwise(reading, x, 1, weight, bias, mean, var)
    dead = Dead.ZERO if weight is not None and bias is not None else max(Dead.CONSTANT, channel.dead)
    return Value((x.dims[0], channel.be(dead), *x.dims[2:]))


def instance_norm(
    reading: Reading,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Any = None,
    var: Any = None,
    *_: Any,
    **__: Any,
) -> Value:
    channel = _channelwise(reading, x, 1, weight, bias, mean, var)
    zero = (weight is not None and bias is not None) or (
        weight is None and mean is None and channel.dead is Dead.ZERO
    )
    return Value((x.dims[0], channel.be(Dead.ZERO if zero else Dead.ANYTHING), *x.dims[2:]))


def layer_norm(
    reading: Reading,
    x: Value,
    shape: list[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Mean and variance over the last axes: fewer features, another mean."""
    dims = _over_last(reading, x, len(shape), weight, bias)
    for dim in dims[-len(shape) :]:
        reading.mark(
            dim, Certificate.APPROXIMATE, "is the width of a LayerNorm: its mean and variance would change"
        )
        reading.be(dim, NORMED)
    return Value(dims)


def rms_norm(
    reading: Reading, x: Value, shape: list[int], weight: Value | None = None, *_: Any, **__: Any
) -> Value:
    """The mean square over the last axes: n times the mean is the same sum, so a factor repairs it."""
    dims = _over_last(reading, x, len(shape), weight, None)
    for dim, given in zip(dims[-len(shape) :], x.dims[-len(shape) :]):
        level = Certificate.EXACT_AFTER_RESCALE if given.dead is Dead.ZERO else Certificate.APPROXIMATE
        reading.mark(dim, level, "is the width of an RMSNorm")
        reading.rescaled(dim, "rms_norm")
        reading.be(dim, NORMED)
    return Value(dims)


def group_norm(
    reading: Reading,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Channels are [groups, per group]: a whole group leaves exactly, a part of every group does not."""
    channel = x.dims[1]
    if channel.tracked:
        whole, part = reading.split(channel, groups, len(channel) // groups)
        reading.grouped(whole)
        if len(part) > 1:
            reading.be(whole, GROUPED)
            reading.mark(
                part,
                Certificate.APPROXIMATE,
                "is part of a GroupNorm's group: its mean and variance would change",
            )
    channel = _channelwise(reading, x, 1, weight, bias)
    return Value((x.dims[0], channel.be(Dead.ZERO if weight is not None else channel.dead), *x.dims[2:]))


def softmax(reading: Reading, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    reading.fix(x.dims[dim], "is normalised over (softmax)")
    return Value(tuple(d.be(max(Dead.CONSTANT, d.dead)) for d in x.dims))


def weight_norm(reading: Reading, direction: Value, scale: Value, dim: int = 0, *_: Any) -> Value:
    """w = g v / |v| along ``dim``: a unit's rows of v and its g leave together; the columns it reads change |v|."""
    for axis, (d, g) in enumerate(zip(direction.dims, scale.dims)):
        if len(g) == len(d):
            reading.tie(d, g)
        elif axis != dim:
            continue
        reading.role(scale, axis, "affine")
    # 0 / 0 for a dead row: the masked network would hold NaN
    reading.untouched(
        direction, what="is under weight_norm: remove_weight_norm (or remove_parametrizations) first"
    )
    return Value(direction.dims)


def _channelwise(reading: Reading, x: Value, axis: int, *parameters: Value | None) -> Dim:
    dim = x.dims[axis]
    for parameter in parameters:
        if isinstance(parameter, Value):
            reading.tie(dim, parameter.dims[0])
            reading.role(parameter, 0, "affine")
            dim = dim if dim.tracked else parameter.dims[0]
    return dim


def _over_last(
    reading: Reading, x: Value, count: int, weight: Value | None, bias: Value | None
) -> tuple[Dim, ...]:
    front = tuple(d.be(Dead.ANYTHING) if bias is not None else d for d in x.dims[:-count])
    last = []
    for k in range(-count, 0):
        dim = x.dims[k]
        for parameter in (weight, bias):
            if parameter is not None:
                reading.tie(dim, parameter.dims[k])
                reading.role(parameter, len(parameter.dims) + k, "affine")
                dim = dim if dim.tracked else parameter.dims[k]
        last.append(dim.be(Dead.ZERO if weight is not None else Dead.ANYTHING))
    return (*front, *last)


RULES: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "softmax": softmax,
    "_softmax": softmax,
    "log_softmax": softmax,
    "_log_softmax": softmax,
    "_weight_norm": weight_norm,
}
