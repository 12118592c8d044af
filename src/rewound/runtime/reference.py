"""What a Graph computes, in numpy: in float64 the oracle of every test, in float32 the slow path where there is no native
module. Vectorised: a convolution is one product over all windows of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from rewound.runtime import fallback
from rewound.runtime.graph import Graph, Node
from rewound.runtime.weights import dense

Array = NDArray[Any]


def run(
    graph: Graph, inputs: Mapping[str, Array] | Sequence[Array], dtype: DTypeLike = np.float64
) -> list[Array]:
    """Return the arrays of ``graph.outputs``, computed in ``dtype``. Integer inputs stay integers. ``torch`` nodes need torch.

    inputs: by name, or in the order of ``graph.inputs``.

    >>> from rewound.runtime.graph import Node, Value
    >>> node = Node("activation", ("x",), "y", {}, {"activation": ["relu"]})
    >>> graph = Graph({"x": Value((None, 2)), "y": Value((None, 2))}, (node,), ("x",), ("y",), {})
    >>> run(graph, [np.array([[-1.0, 2.0]])])
    [array([[0., 2.]])]
    """
    given = inputs if isinstance(inputs, Mapping) else dict(zip(graph.inputs, inputs))
    known = {}
    for name in graph.inputs:
        array = np.asarray(given[name])
        known[name] = array.astype(dtype) if graph.values[name].dtype == "float32" else array
    images = len(known[graph.inputs[0]]) if graph.inputs else 1
    weights: dict[str, Array] = {}
    left = {name: sum(name in node.inputs for node in graph.nodes) for name in graph.values}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            for key in node.weights.values():
                if key not in weights:
                    weights[key] = dense(graph.weights[key]).astype(dtype)
            x = [known[name] for name in node.inputs]
            if node.op == "torch":
                known[node.output] = _torch(graph, node, x, dtype, images)
            else:
                roles = {role: weights[key] for role, key in node.weights.items()}
                known[node.output] = compute(node, x, roles, images, dtype)
            for name in set(node.inputs):
                left[name] -= node.inputs.count(name) and 1
                if left[name] == 0 and name not in graph.outputs:
                    del known[name]
    return [known[name] for name in graph.outputs]


def compute(node: Node, x: list[Array], weights: Mapping[str, Array], images: int, dtype: DTypeLike) -> Array:
    """Return what one node other than ``torch`` makes of arrays."""
    a = node.attributes
    if node.op == "constant":
        return np.broadcast_to(weights["value"], (images, *weights["value"].shape[1:]))
    y = _COMPUTE[node.op](x, weights, a)
    if a.get("activation") is not None:
        y = activate(a["activation"], y.astype(dtype) if y.dtype.kind != "f" else y)
    return y.astype(dtype, copy=False) if y.dtype.kind == "f" else y


def _torch(graph: Graph, node: Node, x: list[Array], dtype: DTypeLike, images: int) -> Array:
    import torch

    tensors = [torch.from_numpy(np.array(one)) for one in x]
    floats = torch.float64 if np.dtype(dtype) == np.float64 else torch.float32
    return fallback.run(node, graph.values[node.output], tensors, graph.weights, floats).numpy()


# -- activations ----------------------------------------------------------------------------------------------------------------

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """The error function, to the last bits of float64."""
    return np.asarray(_erf(x)).astype(x.dtype) if x.size else x


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(x: Array) -> Array:
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def _clip(x: Array, low: float, high: float) -> Array:
    return np.clip(x, low, high)


_ACTIVATE: dict[str, Callable[..., Array]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "clamp": _clip,
    "leaky_relu": lambda x, slope: np.where(x > 0, x, x * slope),
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: 0.5 * x * (1 + erf(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "erf": erf,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "neg": np.negative,
    "abs": np.abs,
    "log": np.log,
    "softplus": _softplus,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "reciprocal": lambda x: 1 / x,
    "square": np.square,
    "sin": np.sin,
    "cos": np.cos,
}


def activate(activation: Sequence[Any], x: Array) -> Array:
    """Return an activation of an array, in its dtype."""
    return _ACTIVATE[activation[0]](x, *activation[1:]).astype(x.dtype, copy=False)


# -- products -------------------------------------------------------------------------------------------------------------------


def _conv(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    weight, groups, one = weights["weight"], a["groups"], len(a["stride"]) == 1
    image = x[0][:, :, None] if one else x[0]
    weight = weight[:, :, None] if one else weight
    stride, dilation = ([1, *a["stride"]], [1, *a["dilation"]]) if one else (a["stride"], a["dilation"])
    padding = [0, 0, *a["padding"]] if one else a["padding"]
    n, channels = image.shape[:2]
    out, _, kh, kw = weight.shape
    image = np.pad(image, [(0, 0), (0, 0), tuple(padding[:2]), tuple(padding[2:])])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, (kh, kw))]
    windows = sliding_window_view(image, reach, axis=(2, 3))  # [n, c, h, w, kh, kw]
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    h, w = windows.shape[2:4]
    columns = windows.reshape(n, groups, channels // groups, h, w, kh, kw).transpose(1, 2, 5, 6, 0, 3, 4)
    columns = np.ascontiguousarray(columns).reshape(groups, -1, n * h * w)
    y = weight.reshape(groups, out // groups, -1) @ columns
    y = y.reshape(out, n, h, w).transpose(1, 0, 2, 3)
    if "bias" in weights:
        y = y + weights["bias"][:, None, None]
    y = y[:, :, 0] if one else y
    return y + x[1] if len(x) > 1 else y


def _linear(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    y = x[0] @ weights["weight"].T
    if "bias" in weights:
        y = y + weights["bias"]
    return y + x[1] if len(x) > 1 else y


def _affine(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    shape = [-1 if i == a["axis"] else 1 for i in range(x[0].ndim)]
    return x[0] * weights["scale"].reshape(shape) + weights["shift"].reshape(shape)


def _matmul(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    return x[0] @ x[1]


def _attention(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    q, k, v = x[:3]
    if k.shape[1] != q.shape[1]:
        k, v = (np.repeat(t, q.shape[1] // t.shape[1], axis=1) for t in (k, v))
    scores = q @ k.swapaxes(-1, -2) * a["scale"]
    if len(x) > 3:
        scores = scores + x[3]
    if a["causal"]:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return (e / np.where(total == 0, 1, total)) @ v  # nothing but -inf: 0, as torch makes of it


# -- elementwise and reductions -------------------------------------------------------------------------------------------------

_BINARY: dict[str, Callable[[Any, Any], Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum, "minimum": np.minimum,
    "pow": np.power,
}  # fmt: skip
_REDUCE: dict[str, Callable[..., Array]] = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min}


def _binary(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    left: Any = x[0]
    right: Any = (
        x[1] if len(x) > 1 else weights["constant"] if "constant" in weights else left.dtype.type(a["scalar"])
    )
    return _BINARY[a["kind"]](*((right, left) if a.get("reverse") else (left, right)))


def _reduce(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    return _REDUCE[a["kind"]](x[0], axis=tuple(a["axes"]), keepdims=a["keepdim"])


def _norm(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    y = x[0]
    if a["kind"] in ("layer", "rms"):
        axes = tuple(range(y.ndim - a["axes"], y.ndim))
        along = (1,) * (y.ndim - a["axes"]) + y.shape[y.ndim - a["axes"] :]
        y = _normalized(y, axes, a["kind"] == "rms", a["eps"])
    else:
        apart = y.reshape(y.shape[0], a["groups"], -1)
        along = (1, y.shape[1]) + (1,) * (y.ndim - 2)
        y = _normalized(apart, (2,), False, a["eps"]).reshape(y.shape)
    if "scale" in weights:
        y = y * weights["scale"].reshape(along)
    return y + weights["shift"].reshape(along) if "shift" in weights else y


def _normalized(x: Array, axes: tuple[int, ...], rms: bool, eps: float) -> Array:
    if not rms:
        x = x - x.mean(axes, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axes, keepdims=True) + x.dtype.type(eps))


def _softmax(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    moved = x[0] - x[0].max(a["axis"], keepdims=True)
    e = np.exp(moved)
    total = e.sum(a["axis"], keepdims=True)
    return moved - np.log(total) if a.get("log") else e / total


# -- windows --------------------------------------------------------------------------------------------------------------------


def _pool(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    one, mean = len(a["kernel"]) == 1, a["kind"] == "mean"

    def two(name: str, front: list[int]) -> list[int]:
        return [*front, *a[name]] if one else list(a[name])

    kernel, stride, padding = two("kernel", [1]), two("stride", [1]), two("padding", [0, 0])
    dilation = [1, *a.get("dilation", [1])] if one else list(a.get("dilation", [1, 1]))
    image = x[0][:, :, None] if one else x[0]
    from rewound.runtime.operators import pooled

    counts, outside = [], []
    for i in range(2):
        reach = dilation[i] * (kernel[i] - 1) + 1
        before, after = padding[2 * i : 2 * i + 2]
        counts.append(pooled(image.shape[2 + i], reach, stride[i], before, after, a.get("ceil", False)))
        outside.append(max(0, (counts[i] - 1) * stride[i] + reach - image.shape[2 + i] - before - after))
    sides = [(padding[2 * i], padding[2 * i + 1]) for i in range(2)]

    def windows(array: Array, sides: list[tuple[int, int]], fill: float) -> Array:
        array = np.pad(array, [(0, 0), (0, 0), *sides], constant_values=fill)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
        found = sliding_window_view(array, reach, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]
        return found[:, :, : counts[0], : counts[1], :: dilation[0], :: dilation[1]]

    wide = [(b, e + o) for (b, e), o in zip(sides, outside)]
    if not mean:
        y = windows(image, wide, -np.inf).max((4, 5))
    else:
        counted = np.ones((1, 1, *image.shape[2:]), image.dtype)
        if a.get("count_padding", True):
            counted = np.pad(counted, [(0, 0), (0, 0), *sides], constant_values=1)
            ones = windows(counted, [(0, o) for o in outside], 0)
        else:
            ones = windows(counted, wide, 0)
        y = windows(image, wide, 0).sum((4, 5)) / ones.sum((4, 5))
    return y[:, :, 0] if one else y


def _adaptive_pool(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    y = x[0]
    for i, count in enumerate(a["size"]):
        size, axis = y.shape[2 + i], 2 + i
        parts = []
        for cell in range(count):
            part = np.take(y, range(cell * size // count, -(-(cell + 1) * size // count)), axis)
            parts.append((part.mean if a["kind"] == "mean" else part.max)(axis, keepdims=True))
        y = np.concatenate(parts, axis)
    return y


def _upsample(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    y = x[0]
    for i, count in enumerate(a["size"]):
        size, axis = y.shape[2 + i], 2 + i
        step = 1 / a["scale"][i] if a.get("scale") else size / count
        at = np.arange(count)
        if a["mode"] == "nearest":
            step = float(np.float32(step)) if a.get("scale") else step
            y = np.take(y, np.minimum((at * step).astype(np.int64), size - 1), axis)
            continue
        if a.get("align_corners"):
            place = at * ((size - 1) / (count - 1) if count > 1 else 0.0)
        else:
            place = np.maximum((at + 0.5) * step - 0.5, 0)
        low = np.minimum(place.astype(np.int64), size - 1)
        high = np.minimum(low + 1, size - 1)
        part = (place - low).astype(y.dtype).reshape([-1 if k == axis else 1 for k in range(y.ndim)])
        y = np.take(y, low, axis) * (1 - part) + np.take(y, high, axis) * part
    return y


# -- moving ---------------------------------------------------------------------------------------------------------------------


def _slice(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    return x[0][(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a["step"]),)]


def _reshape(x: list[Array], weights: Mapping[str, Array], a: Mapping[str, Any]) -> Array:
    sizes = list(a["shape"][1:])
    if -1 in sizes:
        sizes[sizes.index(-1)] = math.prod(x[0].shape[1:]) // math.prod(n for n in sizes if n != -1)
    return x[0].reshape(len(x[0]), *sizes)


_COMPUTE: dict[str, Callable[[list[Array], Mapping[str, Array], Mapping[str, Any]], Array]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "activation": lambda x, weights, a: x[0],
    "binary": _binary,
    "pool": _pool,
    "adaptive_pool": _adaptive_pool,
    "reduce": _reduce,
    "norm": _norm,
    "softmax": _softmax,
    "matmul": _matmul,
    "attention": _attention,
    "embedding": lambda x, weights, a: weights["table"][x[0]],
    "reshape": _reshape,
    "expand": lambda x, weights, a: np.broadcast_to(x[0], (len(x[0]), *a["shape"][1:])),
    "permute": lambda x, weights, a: x[0].transpose(a["axes"]),
    "slice": _slice,
    "concat": lambda x, weights, a: np.concatenate(x, a["axis"]),
    "pad": lambda x, weights, a: np.pad(x[0], a["widths"], constant_values=a["value"]),
    "upsample": _upsample,
}
