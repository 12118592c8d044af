"""Rules: transposed convolutions, as convolutions of what the Graph has."""

from __future__ import annotations

from typing import Any

import torch

from rewound.runtime.convert.build import Builder, Const, Live
from rewound.runtime.convert.rules import const, many, optional, require, rule, whole
from rewound.runtime.convert.sizes import Axes


@rule("conv_transpose1d", "conv_transpose2d")
def conv_transpose(
    b: Builder, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Live:  # fmt: skip
    w = const(weight)
    planes = w.value.ndim - 2
    x = b.plain(input, planes + 2)
    stride, padding, dilation = many(stride, planes), many(padding, planes), many(dilation, planes)
    more, groups = many(output_padding, planes), whole(groups)
    kernel = list(w.value.shape[2:])
    require(all(axis[0] for axis in x.laid[1:]), "an image of no size")
    if kernel == stride and groups == 1 and not any(padding) and not any(more) and dilation == [1] * planes:
        return _apart(b, x, w, optional(bias), kernel)
    return _spread(b, x, w, optional(bias), stride, padding, more, groups, dilation)


def _apart(b: Builder, x: Live, w: Const, bias: Const | None, kernel: list[int]) -> Live:
    """Windows that do not meet: each pixel becomes one of ``kernel``'s size, by a layer over channels."""
    inputs, outputs = w.value.shape[:2]
    planes = len(kernel)
    taps = w.value.movedim(0, -1).reshape(-1, inputs, *(1,) * planes)  # [outputs * taps, inputs, 1, 1]
    count = len(taps) // outputs
    keys = {"weight": b.weight(taps, w.origin, "weight")}
    if bias is not None:
        keys["bias"] = b.weight(bias.value.repeat_interleave(count), bias.origin, "bias")
    y = _conv(b, x, keys, [0] * (2 * planes), [1] * planes, 1)
    sizes = [axis[0] or 0 for axis in x.laid[2:]]
    y = b.reshape(y, ((None,), (outputs,), *((k,) for k in kernel), *((n,) for n in sizes)))
    order = [0, 1, *(axis for i in range(planes) for axis in (2 + planes + i, 2 + i))]
    return b.reshape(b.permute(y, order), ((None,), (outputs,), *((n * k,) for n, k in zip(sizes, kernel))))


def _spread(
    b: Builder, x: Live, w: Const, bias: Const | None, stride: list[int], padding: list[int], more: list[int], groups: int,
    dilation: list[int],
) -> Live:  # fmt: skip
    """Zeros between the pixels, then the convolution whose kernel is turned round."""
    planes = len(stride)
    kernel = w.value.shape[2:]
    sides: list[int] = []
    for p, d, k, m in zip(padding, dilation, kernel, more):
        sides += [d * (k - 1) - p, d * (k - 1) - p + m]
    require(min(sides) >= 0, "a transposed convolution that cuts more than it pads")
    sizes = [axis[0] or 0 for axis in x.laid[2:]]
    for i, s in enumerate(stride):
        if s == 1:
            continue
        axes = x.laid
        at = 2 + i
        apart: Axes = (*axes[: at + 1], (1,), *axes[at + 1 :])
        wide = [[0, 0] for _ in apart]
        wide[at + 1] = [0, s - 1]
        padded = b.emit("pad", [b.reshape(x, apart).name], widths=wide, value=0.0)
        joined: Axes = (*axes[:at], (sizes[i] * s,), *axes[at + 1 :])
        x = b.reshape(b.live(padded, (*axes[: at + 1], (s,), *axes[at + 1 :])), joined)
        name = b.emit("slice", [x.name], axis=at, start=0, stop=(sizes[i] - 1) * s + 1, step=1)
        x = b.live(name, (*axes[:at], ((sizes[i] - 1) * s + 1,), *axes[at + 1 :]))
    inputs, outputs = w.value.shape[0], w.value.shape[1]
    turned = w.value.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
    turned = torch.flip(
        turned.reshape(groups * outputs, inputs // groups, *kernel), list(range(2, 2 + planes))
    )
    keys = {"weight": b.weight(turned, w.origin, "weight")}
    if bias is not None:
        keys["bias"] = b.weight(bias.value, bias.origin, "bias")
    return _conv(b, x, keys, sides, dilation, groups)


def _conv(
    b: Builder, x: Live, keys: dict[str, str], padding: list[int], dilation: list[int], groups: int
) -> Live:
    stride = [1] * len(dilation)
    name = b.emit("conv", [x.name], keys, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return b.live(name, ((None,), *((n,) for n in b.values[name].shape[1:])))
