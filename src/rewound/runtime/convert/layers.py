"""Rules: convolutions, linear layers, norms, pools, attention, embedding: what has weights or windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rewound.runtime.convert.build import Builder, Const, Live, to_numpy
from rewound.runtime.convert.rules import (
    both_sides,
    const,
    live,
    many,
    number,
    optional,
    real,
    require,
    rule,
    whole,
)
from rewound.runtime.convert.sizes import Axes
from rewound.runtime.convert.transposed import conv_transpose


def _weights(b: Builder, **roles: Const | None) -> dict[str, str]:
    return {role: b.weight(c.value, c.origin, role) for role, c in roles.items() if c is not None}


# -- products -------------------------------------------------------------------------------------------------------------------


@rule("conv1d", "conv2d")
def _conv(
    b: Builder, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Live:
    w = const(weight)
    planes = w.value.ndim - 2
    x = b.plain(input, planes + 2)
    dilation = many(dilation, planes)
    if padding == "valid":
        sides = [0] * (2 * planes)
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, w.value.shape[2:])]
        sides = [side for r in reach for side in (r // 2, r - r // 2)]
    else:
        sides = both_sides(many(padding, planes))
    name = b.emit(
        "conv", [x.name], _weights(b, weight=w, bias=optional(bias)),
        stride=many(stride, planes), padding=sides, dilation=dilation, groups=whole(groups),
    )  # fmt: skip
    return _as(b, name)


@rule("convolution", "_convolution")
def _convolution(
    b: Builder, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any,
    output_padding: Any, groups: Any, benchmark: Any = None, deterministic: Any = None, allow_tf32: Any = None,
) -> Live:  # fmt: skip
    if transposed:
        return conv_transpose(b, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(b, input, weight, bias, stride, padding, dilation, groups)


def _as(b: Builder, name: str) -> Live:
    """Return a value of the form [batch, ...] as a live tensor."""
    shape = b.values[name].shape
    return b.live(name, ((None,), *((n,) for n in shape[1:])))


@rule("linear")
def linear(b: Builder, input: Any, weight: Any, bias: Any = None) -> Live:
    x, w = live(input), const(weight)
    b.axis(x, -1)
    require(w.value.ndim == 2)
    name = b.emit("linear", [b.floating(x).name], _weights(b, weight=w, bias=optional(bias)))
    return b.live(name, (*x.laid[:-1], (int(w.value.shape[0]),)))


@rule("addmm")
def _addmm(b: Builder, self: Any, mat1: Any, mat2: Any, beta: Any, alpha: Any) -> Any:
    require(number(beta) == 1 and number(alpha) == 1)
    w = const(mat2)
    require(isinstance(self, Const) and self.value.ndim == 1)
    return linear(b, mat1, Const((w.value.t(),), w.origin), self)


@rule("matmul", "mm", "bmm")
def _matmul(b: Builder, self: Any, other: Any = None, mat2: Any = None) -> Live:
    other = mat2 if other is None else other
    if isinstance(other, Const) and len(other.shape) == 2:
        return linear(b, self, Const((other.value.t(),), other.origin))
    if isinstance(other, Const) and len(other.shape) == 1:
        y = linear(b, self, Const((other.value[None],), other.origin))
        return b.reshape(y, y.laid[:-1])
    if isinstance(self, Const) and len(self.shape) == 2 and b.rank(live(other)) >= 2:
        swapped = [*range(b.rank(other) - 2), b.rank(other) - 1, b.rank(other) - 2]
        return b.permute(linear(b, b.permute(other, swapped), self), swapped)
    if isinstance(other, Const) or isinstance(self, Const):
        partner = live(self if isinstance(other, Const) else other)
        constant = const(other if isinstance(other, Const) else self)
        lead: Axes = (*partner.laid[:-2], (1,), (1,))
        made = b.made_live(_leading(constant, lead), lead)
        self, other = (partner, made) if isinstance(other, Const) else (made, partner)
    x, y = live(self), live(other)
    require(b.rank(x) >= 2 and b.rank(y) >= 2, "a product with a vector")
    for tensor in (x, y):
        b.axis(tensor, -1), b.axis(tensor, -2)
    rank = max(b.rank(x), b.rank(y))
    x, y = (b.reshape(b.floating(t), ((1,),) * (rank - b.rank(t)) + t.laid) for t in (x, y))
    together: list[Any] = []
    for p, q in zip(x.laid[:-2], y.laid[:-2]):
        require(
            p == q or (p == (1,) and None not in q) or (q == (1,) and None not in p),
            "batches in different axes",
        )
        together.append(q if p == (1,) else p)
    require(x.laid[-1] == y.laid[-2])
    name = b.emit("matmul", [x.name, y.name])
    return b.live(name, (*together, x.laid[-2], y.laid[-1]))


def _leading(x: Const, axes: Axes) -> Const:
    return Const(tuple(t.reshape((1,) * (len(axes) - t.ndim) + tuple(t.shape)) for t in x.at), x.origin)


@rule("embedding")
def _embedding(
    b: Builder, weight: Any, indices: Any, padding_idx: Any, scale_grad_by_freq: Any, sparse: Any
) -> Live:
    ids, table = live(indices), const(weight)
    require(b.values[ids.name].dtype == "int64", "ids that are no integers")
    name = b.emit("embedding", [ids.name], _weights(b, table=table))
    return b.live(name, (*ids.laid, (int(table.value.shape[1]),)))


@rule("scaled_dot_product_attention")
def _attention(
    b: Builder,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
) -> Live:
    require(number(dropout_p) == 0)
    q, k, v = (b.floating(live(t)) for t in (query, key, value))
    for x in (q, k, v):
        b.axis(x, -1), b.axis(x, -2)
    lead = q.laid[:-2]
    require(k.laid[:-2] == v.laid[:-2] and len(k.laid) == len(q.laid))
    if not enable_gqa:
        require(k.laid[:-2] == lead, "heads that are broadcast")
    else:
        require(len(q.laid) == 4 and q.laid[0] == k.laid[0] == (None,))
    mask = None
    if attn_mask is not None:
        mask = _added(b, attn_mask, (*lead, q.laid[-2], k.laid[-2]))
    made = [_four(b, x) for x in (q, k, v)]
    if mask is not None:
        sizes = b.values[mask.name].shape[1:-2]
        heads = math.prod(n for n in b.values[q.name].shape[1:-2] if n is not None)
        if len(sizes) != 1 and math.prod(n or 1 for n in sizes) != 1:
            wide = [f for axis in lead for f in axis if f is not None]
            shape = [None, *wide, *b.values[mask.name].shape[-2:]]
            wide_name = b.emit("expand", [mask.name], shape=shape)
            mask = b.live(wide_name, ((None,), *((n,) for n in shape[1:])))
            sizes = tuple(wide)
        count = math.prod(n or 1 for n in sizes)
        require(count in (1, heads))
        tail = b.values[mask.name].shape[-2:]
        mask = b.reshape(b.live(mask.name, _plainly(b, mask)), ((None,), (count,), (tail[0],), (tail[1],)))
        made.append(mask)
    scale = 1 / math.sqrt(q.laid[-1][0] or 1) if scale is None else float(number(scale))
    name = b.emit("attention", [x.name for x in made], scale=scale, causal=bool(is_causal))
    return b.live(b.reshape(_as(b, name), _plainly_of(q, v)).name, (*q.laid[:-1], v.laid[-1]))


def _plainly(b: Builder, x: Live) -> Axes:
    return ((None,), *((n,) for n in b.values[x.name].shape[1:]))


def _plainly_of(q: Live, v: Live) -> Axes:
    factors = [f for axis in (*q.laid[:-1], v.laid[-1]) for f in axis if f is not None]
    return ((None,), *((n,) for n in factors))


def _four(b: Builder, x: Live) -> Live:
    """Return [batch, heads, tokens, features]: every factor in front of the tokens is a head."""
    shape = b.values[x.name].shape
    heads = math.prod(n for n in shape[1:-2] if n is not None)
    return b.reshape(b.live(x.name, _plainly(b, x)), ((None,), (heads,), (shape[-2],), (shape[-1],)))


def _added(b: Builder, mask: Any, axes: Axes) -> Live:
    """Return a mask as what is added to scores: 0, and -inf where a boolean one is false."""
    if isinstance(mask, Const):
        if mask.dtype == torch.bool:
            zero = [torch.zeros(t.shape, dtype=torch.float64).masked_fill(~t, -math.inf) for t in mask.at]
            mask = Const(tuple(zero), mask.origin)
        lead = Const(
            tuple(t.reshape((1,) * (len(axes) - t.ndim) + tuple(t.shape)) for t in mask.at), mask.origin
        )
        ones: Axes = tuple(axis if None in axis else (1,) for axis in axes)
        made = b.made_live(lead, ones)
    else:
        made = live(mask)
        require(len(made.laid) <= len(axes))
        made = b.floating(b.reshape(made, ((1,),) * (len(axes) - len(made.laid)) + made.laid))
        if mask.dtype == torch.bool:
            made = b.live(b.emit("activation", [made.name], activation=["log"]), made.laid)
    for own, wide in zip(made.laid, axes):
        fits = len(own) == len(wide) and all(f in (1, g) for f, g in zip(own, wide))
        require(fits or (own == (1,) and None not in wide), "a mask with another batch")
    return made


# -- norms ----------------------------------------------------------------------------------------------------------------------


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(
    b: Builder, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any, eps: Any,
    training: Any = False,
) -> Any:  # fmt: skip
    require(not training, "batch norm by the batch's own statistics")
    x = live(input)
    axis = b.axis(x, 1)
    mean, variance = (to_numpy(const(t).value).astype(np.float64) for t in (running_mean, running_var))
    scale = 1 / np.sqrt(variance + float(number(eps)))
    if weight is not None:
        scale = scale * to_numpy(const(weight).value)
    shift = -mean * scale
    if bias is not None:
        shift = shift + to_numpy(const(bias).value)
    prefix = (weight or running_mean).origin or b.source
    keys = {"scale": b.weight(scale, f"{prefix}.scale"), "shift": b.weight(shift, f"{prefix}.shift")}
    return b.live(b.emit("affine", [b.floating(x).name], keys, axis=axis), x.laid)


@rule("layer_norm", "native_layer_norm")
def _layer_norm(b: Builder, input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any) -> Live:
    return _over_last(b, "layer", input, normalized_shape, weight, bias, float(number(eps)))


@rule("rms_norm")
def _rms_norm(b: Builder, input: Any, normalized_shape: Any, weight: Any, eps: Any) -> Live:
    eps = torch.finfo(live(input).dtype).eps if eps is None else float(number(eps))
    return _over_last(b, "rms", input, normalized_shape, weight, None, eps)


def _over_last(b: Builder, kind: str, input: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Live:
    x = live(input)
    for axis in range(-len(shape), 0):
        b.axis(x, axis)
    keys = _weights(b, scale=optional(weight), shift=optional(bias))
    name = b.emit("norm", [b.floating(x).name], keys, kind=kind, axes=len(shape), eps=eps)
    return b.live(name, x.laid)


@rule("group_norm")
def _group_norm(b: Builder, input: Any, num_groups: Any, weight: Any, bias: Any, eps: Any) -> Live:
    x = b.plain(input)
    keys = _weights(b, scale=optional(weight), shift=optional(bias))
    return _as(
        b, b.emit("norm", [x.name], keys, kind="group", groups=whole(num_groups), eps=float(number(eps)))
    )


@rule("instance_norm")
def _instance_norm(
    b: Builder, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: Any, momentum: Any,
    eps: Any,
) -> Live:  # fmt: skip
    if not use_input_stats:
        return _batch_norm(b, input, weight, bias, running_mean, running_var, momentum, eps)
    x = b.plain(input, 3, 4)
    keys = _weights(b, scale=optional(weight), shift=optional(bias))
    channels = b.values[x.name].shape[1]
    return _as(b, b.emit("norm", [x.name], keys, kind="instance", groups=channels, eps=float(number(eps))))


@rule("softmax", "_softmax")
def _softmax(b: Builder, self: Any, dim: Any, dtype: Any = None) -> Live:
    return _over_axis(b, self, dim, dtype, False)


@rule("log_softmax", "_log_softmax")
def _log_softmax(b: Builder, self: Any, dim: Any, dtype: Any = None) -> Live:
    return _over_axis(b, self, dim, dtype, True)


def _over_axis(b: Builder, self: Any, dim: Any, dtype: Any, log: bool) -> Live:
    real(dtype)
    x = live(self)
    name = b.emit("softmax", [b.floating(x).name], axis=b.axis(x, dim), log=log)
    return b.live(name, x.laid)


# -- windows --------------------------------------------------------------------------------------------------------------------


@rule("max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices")
def _max_pool(
    b: Builder, self: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> Live:
    x = b.plain(self, 3, 4)
    planes = b.rank(x) - 2
    kernel = many(kernel_size, planes)
    name = b.emit(
        "pool", [x.name], kind="max", kernel=kernel, stride=many(stride, planes) if stride else kernel,
        padding=both_sides(many(padding, planes)), dilation=many(dilation, planes), ceil=bool(ceil_mode), count_padding=False,
    )  # fmt: skip
    return _as(b, name)


@rule("avg_pool1d", "avg_pool2d")
def _avg_pool(
    b: Builder, self: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any, count_include_pad: Any,
    divisor_override: Any = None,
) -> Live:  # fmt: skip
    require(divisor_override is None)
    x = b.plain(self, 3, 4)
    planes = b.rank(x) - 2
    kernel = many(kernel_size, planes)
    name = b.emit(
        "pool", [x.name], kind="mean", kernel=kernel, stride=many(stride, planes) if stride else kernel,
        padding=both_sides(many(padding, planes)), dilation=[1] * planes, ceil=bool(ceil_mode),
        count_padding=bool(count_include_pad),
    )  # fmt: skip
    return _as(b, name)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(b: Builder, self: Any, output_size: Any) -> Live:
    return _adaptive(b, "mean", self, output_size)


@rule("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(b: Builder, self: Any, output_size: Any) -> Live:
    return _adaptive(b, "max", self, output_size)


def _adaptive(b: Builder, kind: str, self: Any, output_size: Any) -> Live:
    x = b.plain(self, 3, 4)
    return _as(b, b.emit("adaptive_pool", [x.name], kind=kind, size=many(output_size, b.rank(x) - 2)))


@rule("upsample_nearest1d", "upsample_nearest2d")
def _nearest(
    b: Builder, input: Any = None, self: Any = None, output_size: Any = None, scale_factors: Any = None, scales: Any = None,
    scales_h: Any = None, scales_w: Any = None,
) -> Live:  # fmt: skip
    apart = [scales] if scales is not None else [scales_h, scales_w]
    return _upsample(b, "nearest", self if input is None else input, output_size, scale_factors, apart, False)


@rule("upsample_bilinear2d")
def _bilinear(
    b: Builder, input: Any = None, self: Any = None, output_size: Any = None, align_corners: Any = False,
    scale_factors: Any = None, scales_h: Any = None, scales_w: Any = None,
) -> Live:  # fmt: skip
    x = self if input is None else input
    return _upsample(b, "bilinear", x, output_size, scale_factors, [scales_h, scales_w], bool(align_corners))


def _upsample(
    b: Builder, mode: str, input: Any, output_size: Any, factors: Any, apart: Any, corners: bool
) -> Live:
    x = b.plain(input, 3, 4)
    planes = b.rank(x) - 2
    apart = [s for s in apart if s is not None]
    given = [float(number(s)) for s in (factors or apart)] or None
    require(given is None or len(given) == planes)
    if output_size is not None:
        size = many(output_size, planes)
    else:
        require(given is not None)
        size = [math.floor((n or 0) * s) for n, s in zip(b.values[x.name].shape[2:], given or ())]
    return _as(b, b.emit("upsample", [x.name], mode=mode, size=size, scale=given, align_corners=corners))
