"""Lowering of products: convolutions, linear layers, attention, matrix products, tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rewound.runtime.graph import Node
from rewound.runtime.planning.layout import Form, Span, View
from rewound.runtime.planning.lower import Lowering, Unplanned, rule, whole
from rewound.runtime.planning.steps import Product, Reach
from rewound.runtime.weights import Sparse, Weight

Native = Any  # _native.NativeWeight
_SPARSE = 0.3  # density below which a product is by single weights anyhow


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


class _Window(NamedTuple):
    """A convolution's numbers as [height, width]; 1-D: one row."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]
    size: tuple[int, int]  # of what is read
    out: tuple[int, int]
    form: Form

    @property
    def apart(self) -> bool:
        """Whether it reads phase planes."""
        return self.stride != (1, 1) and not self.picks

    @property
    def picks(self) -> bool:
        """Whether it reads some of the pixels, each by itself."""
        inside = all(
            (n - 1) * s < m for n, s, m in zip(self.out, self.stride, self.size)
        )  # no padding at all
        return self.stride != (1, 1) and self.kernel == (1, 1) and self.padding == (0, 0) and inside

    @property
    def split(self) -> tuple[int, int]:
        """Size of phase planes."""
        return -(-self.size[0] // self.stride[0]), -(-self.size[1] // self.stride[1])

    @property
    def reach(self) -> Reach:
        (top, bottom), (left, right) = (
            (-(p // s) - (p % s > 0), ((k - 1) * d - p) // s)
            for k, d, p, s in zip(self.kernel, self.dilation, self.padding, self.stride)
        )
        return Reach(top, left, bottom, right, *self.out)


def _window(lower: Lowering, node: Node) -> _Window:
    a, weight = node.attributes, lower.graph.weights[node.weights["weight"]]
    plane = len(weight.shape) == 4

    def two(pair: Sequence[int]) -> tuple[int, int]:
        return (int(pair[0]), int(pair[1])) if plane else (1, int(pair[0]))

    padding = (int(a["padding"][0]), int(a["padding"][2])) if plane else (0, int(a["padding"][0]))
    size, out = (two(lower.shape(name)[1:]) for name in (node.inputs[0], node.output))
    form = Form((0,), (1,), (2,)) if plane else Form((0,), (), (1,))
    return _Window(two(weight.shape[2:]), two(a["stride"]), padding, two(a["dilation"]), size, out, form)


@rule("conv")
def _conv(lower: Lowering, node: Node) -> None:
    a, weight, w = node.attributes, lower.graph.weights[node.weights["weight"]], _window(lower, node)
    name, groups = node.inputs[0], int(a["groups"])
    if groups == 1 and w.out == (1, 1) and name not in lower.phased and _as_linear(lower, node, weight, w):
        return
    if w.kernel == w.stride == (1, 1) and (stride := _better_split(lower, node, weight)):
        _split_first(lower, node, weight, stride)
        return
    if name in lower.phased:
        source = lower.phased[name]
    elif w.picks:
        x = lower.view(name)
        planes = len(x.shape) - 1
        for axis, step, count in zip((1, 2), w.stride[-planes:], w.out[-planes:]):
            x = x.sliced(axis, 0, count, step)
        source, w = lower.placed(x, w.form, wide=True).span(), w._replace(stride=(1, 1), size=w.out)
    elif w.apart:
        source = _phases(lower, name, w.form, w.stride, w.split)
    else:
        source = lower.arranged(name, w.form, wide=True).span()
    y = lower.new(node.output, w.form, wide=True)
    reads = [source]
    if len(node.inputs) > 1:
        reads.append(lower.arranged(node.inputs[1], w.form, wide=True).span())
    lower.step(
        "conv",
        reads,
        y,
        range(1, len(reads)),
        w.reach,
        weight=native(weight),
        bias=lower.weight(node, "bias"),
        groups=groups,
        activation=a.get("activation"),
        shape=(weight.shape[0], weight.shape[1], *w.kernel),
        stride=w.stride,
        padding=w.padding,
        dilation=w.dilation,
    )


def _phases(lower: Lowering, name: str, form: Form, stride: tuple[int, int], size: tuple[int, int]) -> Span:
    """Return a value split into phase planes, an array of the user's as it stands if its columns follow upon each other."""
    value = lower.value(name)
    if isinstance(value, View) and value.buffer.raw and (value.axes[-1][1] == 1 or value.shape[-1] == 1):
        rows = value.split([[value.shape[0]], [1, value.shape[1]]]) if len(value.shape) == 2 else value
        return lower.phases(rows, stride, (0, 0), size)
    return lower.phases(lower.arranged(name, form, wide=True), stride, (0, 0), size)


def _as_linear(lower: Lowering, node: Node, weight: Weight, w: _Window) -> bool:
    """Do a convolution with a result of one pixel as a linear layer, if it is one."""
    name = node.inputs[0]
    if w.size == (1, 1):  # one place of the window meets the pixel
        ky, kx = w.padding[0] // w.dilation[0], w.padding[1] // w.dilation[1]
        if (ky * w.dilation[0], kx * w.dilation[1]) != w.padding or ky >= w.kernel[0] or kx >= w.kernel[1]:
            return False
        window = w.kernel[0] * w.kernel[1]
        only = tap(weight, ky * w.kernel[1] + kx, window) if window > 1 else weight
        product(lower, node, only, lower.arranged(name, w.form), w.form)
        return True
    if w.size == w.kernel and w.padding == (0, 0) and w.dilation == (1, 1) and lower.images == 1:
        flat = Form(tuple(range(len(lower.shape(name)))), (), ())  # the window is the whole plane
        product(lower, node, weight, lower.arranged(name, flat), flat)
        return True
    return False


def _better_split(lower: Lowering, node: Node, weight: Weight) -> tuple[int, int] | None:
    """Return the stride of the convolutions that read what a 1x1 convolution makes, if it is better to split its narrow input
    into phase planes than its wide output: what it makes of phase planes are the phase planes of what it makes."""
    narrow = isinstance(weight, Sparse) and weight.density < _SPARSE and weight.shape[0] > weight.shape[1]
    if not narrow or len(node.inputs) > 1 or node.attributes["groups"] != 1 or len(weight.shape) != 4:
        return None
    readers = lower.readers.get(node.output, [])
    if not readers or node.output in lower.graph.outputs:
        return None
    if any(r.op != "conv" or node.output in r.inputs[1:] for r in readers):
        return None
    windows = [_window(lower, reader) for reader in readers]
    stride, size = windows[0].stride, windows[0].size
    if any(not w.apart or w.stride != stride for w in windows):
        return None
    whole = size[0] % stride[0] == 0 and size[1] % stride[1] == 0  # no place outside of the image
    return stride if whole and windows[0].split != (1, 1) else None


def _split_first(lower: Lowering, node: Node, weight: Weight, stride: tuple[int, int]) -> None:
    """A 1x1 convolution on phase planes: row (o, phase) reads channel (i, phase) with the weight of (o, i)."""
    assert isinstance(weight, Sparse)
    count = stride[0] * stride[1]
    channels, height, width = lower.shape(node.output)
    size = (height // stride[0], width // stride[1])
    source = _phases(lower, node.inputs[0], Form((0,), (1,), (2,)), stride, size)
    kept = np.repeat(np.diff(weight.starts), count)  # of each new row
    starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    row = np.repeat(np.arange(channels * count), kept)
    entry = np.arange(starts[-1]) - starts[row] + weight.starts[row // count]
    bias = lower.weight(node, "bias")
    lower.step(
        "conv",
        [source],
        lower.split(node.output, channels * count, size),
        (),
        Reach(0, 0, 0, 0, *size),
        weight=(
            starts,
            (weight.places[entry] * count + row % count).astype(np.int32),
            weight.values[entry],
        ),
        bias=None if bias is None else np.repeat(bias, count),
        shape=(channels * count, weight.shape[1] * count, 1, 1),
        activation=node.attributes.get("activation"),
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
