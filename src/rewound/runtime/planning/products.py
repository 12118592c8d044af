"""Lowering of products: convolutions, linear layers, attention, matrix products, tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rewound.runtime.graph import Node
from rewound.runtime.planning.layout import Form, View
from rewound.runtime.planning.lower import Lowering, Unplanned, rule, whole
from rewound.runtime.planning.steps import Product, Reach
from rewound.runtime.weights import Sparse, Weight

Native = Any  # _native.NativeWeight


def native(weight: Weight) -> Native:
    """Return a weight as the native module takes it."""
    if isinstance(weight, Sparse):
        return (weight.starts, weight.places, weight.values)
    return np.ascontiguousarray(weight, np.float32)


def tap(weight: Weight, place: int, window: int) -> Weight:
    """Return [out, in] of one place of the window of a convolution."""
    rows = weight.shape[0]
    if not isinstance(weight, Sparse):
        return np.ascontiguousarray(weight.reshape(rows, -1, window)[:, :, place])
    kept = weight.places % window == place
    counts = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=counts[1:])
    places = (weight.places[kept] // window).astype(np.int32)
    return Sparse((rows, weight.row // window), counts[weight.starts], places, weight.values[kept])


@rule("linear")
def _linear(lower: Lowering, node: Node) -> None:
    name, rank = node.inputs[0], len(lower.shape(node.inputs[0]))
    given = lower.form_of(name)
    beside = [i for i in given.channels if i != rank - 1 and lower.shape(name)[i] != 1]
    if rank - 1 in given.channels and not beside:
        form = Form((rank - 1,), given.rows, given.columns)
    else:
        form = Form((rank - 1,), (), tuple(range(rank - 1)))
    product(lower, node, lower.graph.weights[node.weights["weight"]], lower.arranged(name, form), form)


def product(lower: Lowering, node: Node, weight: Weight, x: View, form: Form) -> None:
    """y = weight x, for each pixel; x in the form, and so y."""
    out, width = weight.shape[0], math.prod(weight.shape[1:])
    a = node.attributes
    y = lower.new(node.output, form)
    reads = [x]
    if len(node.inputs) > 1:
        reads.append(lower.arranged(node.inputs[1], form))
    arguments: dict[str, Any] = {
        "weight": native(weight),
        "bias": lower.weight(node, "bias"),
        "activation": a.get("activation"),
    }
    shared = range(1, len(reads))
    if y.buffer.vector and lower.images == 1:
        lower.step("matvec", reads, y, shared, shape=(out, width), **arguments)
    else:
        reach = Reach(0, 0, 0, 0, y.buffer.height, y.buffer.width)
        lower.step("conv", reads, y, shared, reach, shape=(out, width, 1, 1), **arguments)


@rule("conv")
def _conv(lower: Lowering, node: Node) -> None:
    a, weight = node.attributes, lower.graph.weights[node.weights["weight"]]
    name, x_shape, y_shape = node.inputs[0], lower.shape(node.inputs[0]), lower.shape(node.output)
    plane = len(x_shape) == 3
    form = Form((0,), (1,), (2,)) if plane else Form((0,), (), (1,))

    def two(pair: Any) -> tuple[int, int]:
        return (int(pair[0]), int(pair[1])) if plane else (1, int(pair[0]))

    kernel, stride, dilation = two(weight.shape[2:]), two(a["stride"]), two(a["dilation"])
    padding = (a["padding"][0], a["padding"][2]) if plane else (0, a["padding"][0])
    size, out = two(x_shape[1:]) if plane else (1, x_shape[1]), two(y_shape[1:]) if plane else (1, y_shape[1])
    groups, window = int(a["groups"]), kernel[0] * kernel[1]
    per_pixel = groups == 1 and out == (1, 1)

    if per_pixel and size == (1, 1):  # one tap of the window meets the pixel
        ky, kx = padding[0] // dilation[0], padding[1] // dilation[1]
        meets = (ky * dilation[0], kx * dilation[1]) == padding and ky < kernel[0] and kx < kernel[1]
        if meets:
            only = tap(weight, ky * kernel[1] + kx, window) if window > 1 else weight
            product(lower, node, only, lower.arranged(name, form), form)
            return
    if per_pixel and size == kernel and padding == (0, 0) and dilation == (1, 1) and lower.images == 1:
        # the window is the whole plane: a linear layer over all of it
        flat = Form(tuple(range(len(x_shape))), (), ())
        product(lower, node, weight, lower.arranged(name, flat), form)
        return

    x = (
        lower.arranged(name, form, wide=True)
        if isinstance(lower.value(name), np.ndarray)
        else lower.value(name)
    )
    assert isinstance(x, View)
    shape = (weight.shape[0], weight.shape[1], *kernel)
    arguments: dict[str, Any] = {
        "weight": native(weight),
        "bias": lower.weight(node, "bias"),
        "groups": groups,
        "activation": a.get("activation"),
        "shape": shape,
    }
    if stride != (1, 1) and kernel == (1, 1) and padding == (0, 0):  # the other pixels are not wanted
        for axis, step in enumerate(stride[-len(x_shape) + 1 :], 1):
            x = x.sliced(axis, 0, y_shape[axis], step)
        source = lower.placed(x, form, wide=True).span()
        stride, size = (1, 1), out
    elif stride != (1, 1):
        size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
        if not x.buffer.raw or (x.axes[-1][1] != 1 and x_shape[-1] != 1):
            x = lower.arranged(name, form, wide=True)
        source = lower.phases(x if plane else x.split([[x_shape[0]], [1, x_shape[1]]]), stride, (0, 0), size)
    else:
        source = lower.arranged(name, form, wide=True).span()
    y = lower.new(node.output, form, wide=True)
    reads = [source]
    if len(node.inputs) > 1:
        reads.append(lower.arranged(node.inputs[1], form, wide=True).span())
    first = [-(padding[i] // stride[i]) - (padding[i] % stride[i] > 0) for i in range(2)]
    last = [((kernel[i] - 1) * dilation[i] - padding[i]) // stride[i] for i in range(2)]
    reach = Reach(first[0], first[1], last[0], last[1], *out)
    lower.step(
        "conv",
        reads,
        y,
        range(1, len(reads)),
        reach,
        stride=stride,
        padding=padding,
        dilation=dilation,
        **arguments,
    )


@rule("embedding")
def _embedding(lower: Lowering, node: Node) -> None:
    name, shape = node.inputs[0], lower.shape(node.inputs[0])
    port = lower.port(name, "int64")
    if len(shape) > 2:
        raise Unplanned("ids with more than two axes besides the batch")
    rows, columns = ((0,), (1,)) if len(shape) == 2 else ((), (0,) if shape else ())
    y = lower.new(node.output, Form((len(shape),), rows, columns))
    width = shape[-1] if shape else 1
    lower.step(
        "embedding",
        (),
        y,
        index=port,
        table=lower.weight(node, "table"),
        image_stride=math.prod(shape),
        row_stride=width,
        pixel_stride=1,
    )


# -- products of values ---------------------------------------------------------------------------------------------------------


@rule("attention")
def _attention(lower: Lowering, node: Node) -> None:
    heads_of = Form((0, 2), (), (1,))
    q, k, v = (lower.arranged(name, heads_of) for name in node.inputs[:3])
    y = lower.new(node.output, heads_of)
    reads = [q, k, v]
    if len(node.inputs) > 3:
        reads.append(lower.arranged(node.inputs[3], Form((0,), (1,), (2,))))
    lower.steps.append(
        _with_mask(lower, [read.span() for read in reads], y, node.attributes, q.shape[0], k.shape[0])
    )


def _with_mask(lower: Lowering, reads: list[Any], y: View, a: Any, heads: int, kv_heads: int) -> Any:
    from rewound.runtime.planning.steps import Step

    arguments = {"heads": heads, "kv_heads": kv_heads, "scale": float(a["scale"]), "causal": a["causal"]}
    return Step("attention", tuple(reads), y.span(), arguments, node=lower.node)


@rule("matmul")
def _matmul(lower: Lowering, node: Node) -> None:
    a, b = (lower.view(name) for name in node.inputs)
    if a.buffer.raw or b.buffer.raw:
        a, b = (lower.placed(x, _packed(x.shape)) if x.buffer.raw else x for x in (a, b))
    if len(a.shape) > 5:
        raise Unplanned("matrix products of more than six axes")
    y = lower.new(node.output, _packed(lower.shape(node.output)))
    reads = tuple(whole(x.buffer) for x in (a, b))
    lower.steps.append(Product("matmul", reads, whole(y.buffer), node=lower.node, views=(a, b, y)))


def _packed(shape: tuple[int, ...]) -> Form:
    axes = tuple(range(len(shape)))
    return Form(axes[:-2], axes[-2:-1], axes[-1:])
