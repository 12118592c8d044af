"""The operators of a Graph: what each may be given, and the shape that it makes. Says whether any Graph is sound.

x is [batch, ...], its batch ``None``, or a number where the batch is fixed; "axis" counts from 0 = the batch, which no
operator but ``torch`` mixes. Two inputs of one operator have the same number of axes. Weights stand after the name, ?: may be
missing. Pairs are [height, width], or one number for the 1-D form ([batch, channels, length]).

    conv           x[, residual]; weight [O, I / groups, kh, kw], bias? [O]; stride, padding [top, bottom, left, right],
                   dilation, groups, activation?: activation(conv(x) + bias + residual)
    linear         x[, residual]; weight [O, I], bias? [O]; activation?: over the last axis
    affine         x; scale, shift of the size of ``axis``; axis, activation?: x * scale + shift
    activation     x; activation
    binary         a, b; or a and constant (of a's rank, size 1 as batch); or a and attribute scalar; kind add, sub, mul, div,
                   maximum, minimum or pow; reverse?: constant or scalar stand on the left; activation?
    pool           x; kind max or mean, kernel, stride, padding, ceil, count_padding, dilation
    adaptive_pool  x; kind, size
    reduce         x; kind mean, sum, max or min, axes, keepdim
    norm           x; scale?, shift?; kind layer or rms (over the last ``axes`` axes, scale of their sizes), group or instance
                   (channel axis 1, scale [C]; groups), eps
    softmax        x; axis, log
    matmul         a [batch, ..., m, k], b [batch, ..., k, n]
    attention      q [batch, heads, T, d], k [batch, kv heads, S, d], v [batch, kv heads, S, e][, mask: added, broadcasts to
                   [batch, heads, T, S]]; scale, causal (query t sees keys 0 ... t). A row whose mask is -inf all along is 0
    embedding      ids (int64); table [rows, features]
    reshape, expand   x; shape (its first the batch; reshape: at most one -1)
    permute        x; axes (the first 0)
    slice          x; axis, start, stop, step;    concat: any number; axis;    pad: widths [[before, after] an axis], value
    upsample       x; mode nearest or bilinear, size, scale? (what the user gave), align_corners
    constant       value [1, ...]: the same for every image
    torch          any number; weights that ``arguments`` name; target, arguments (fallback.py): runs in torch

Integers come as int64 and booleans as "bool" (an input) and are read by ``embedding``, by ``torch`` and by ``activation``
["identity"], which makes float32 of them. A value whose first size is a number in a graph with a free batch has no batch axis:
``torch`` made it and ``torch`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import Sparse

ACTIVATIONS = {  # name -> how many numbers follow it
    "identity": 0, "relu": 0, "clamp": 2, "leaky_relu": 1, "elu": 1, "gelu": 0, "gelu_tanh": 0, "quick_gelu": 0, "silu": 0,
    "hardswish": 0, "hardsigmoid": 0, "sigmoid": 0, "tanh": 0, "exp": 0, "erf": 0, "sqrt": 0, "rsqrt": 0, "neg": 0, "abs": 0,
    "log": 0, "softplus": 0, "mish": 0, "reciprocal": 0, "square": 0, "sin": 0, "cos": 0,
}  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "pow")
Shape = tuple["int | None", ...]
_LARGEST = 1 << 48  # elements of a value, an image


def check(graph: Graph) -> None:
    """``ValueError``, naming operator and source, if a graph is not sound: it may come from a file that anybody wrote."""
    known = set(graph.inputs)
    _say(len(known) == len(graph.inputs), "an input is named twice")
    batches = {
        graph.values[name].shape[0]
        for name in graph.inputs
        if name in graph.values and graph.values[name].shape
    }
    for name in graph.inputs:
        _say(name in graph.values, f"input {name!r} has no value")
        _size(graph.values[name], f"input {name!r}")
        _say(
            graph.values[name].dtype in ("float32", "int64", "bool"),
            f"input {name!r} is {graph.values[name].dtype}",
        )
    _say(None not in batches or graph.inputs != (), "a free batch needs an input")
    for node in graph.nodes:
        try:
            for name in node.inputs:
                _say(name in known, f"it reads {name!r}, which nothing before it makes")
            _say(node.output not in known, f"{node.output!r} is there already")
            for role, key in node.weights.items():
                _say(key in graph.weights, f"there is no {role} {key!r}")
            _say(node.output in graph.values, f"{node.output!r} has no value")
            declared = graph.values[node.output]
            _size(declared, f"{node.output!r}")
            made = infer(node, graph.values, graph.weights)
            _say(
                made == declared, f"it makes {_told(made)}, and {node.output!r} is declared {_told(declared)}"
            )
        except ValueError as error:
            raise ValueError(
                f"{node.op!r} that makes {node.output!r} (from {node.source or 'nowhere told'}): {error}"
            ) from None
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{node.op!r} that makes {node.output!r} (from {node.source or 'nowhere told'}): {error!r}"
            ) from None
        known.add(node.output)
    for name in graph.outputs:
        _say(name in known, f"output {name!r} is made by nothing")


def infer(node: Node, values: Mapping[str, Value], weights: Mapping[str, Any]) -> Value:
    """Return the value that a node makes, having checked everything about it. ``ValueError`` says what is wrong."""
    _say(isinstance(node.op, str) and node.op in OPERATORS, f"there is no operator {node.op!r}")
    if node.op in ("torch", "constant"):
        return OPERATORS[node.op](
            node, [values[name] for name in node.inputs], _Weights(node, weights), values[node.output]
        )
    known, (fewest, most) = _ATTRIBUTES[node.op], _INPUTS[node.op]
    unknown = sorted(set(node.attributes) - set(known))
    _say(
        not unknown,
        f"it has no attribute {unknown[0] if unknown else ''!r}; its attributes: {', '.join(known)}",
    )
    _say(fewest <= len(node.inputs) <= most, f"it reads {len(node.inputs)} values")
    given = [values[name] for name in node.inputs]
    plain = node.op == "embedding" or node.attributes.get("activation") == ["identity"]
    for name, value in zip(node.inputs, given):
        _say(len(value.shape) > 0, f"{name!r} has no axes")
        _say(plain or value.dtype == "float32", f"{name!r} is {value.dtype}, not float32")
        _say(value.shape[0] == given[0].shape[0], f"batches of {given[0].shape[0]} and {value.shape[0]}")
    found = _Weights(node, weights)
    if (activation := node.attributes.get("activation")) is not None:
        check_activation(activation)
    shape = OPERATORS[node.op](node, [value.shape for value in given], found, _Attributes(node.attributes))
    found.require_all_read()
    return Value(tuple(shape))


def check_activation(activation: Any) -> None:
    """``ValueError`` unless it is a list of a name and its numbers."""
    sound = isinstance(activation, (list, tuple)) and len(activation) > 0 and isinstance(activation[0], str)
    _say(sound and activation[0] in ACTIVATIONS, f"there is no activation {activation!r}")
    numbers = activation[1:]
    _say(
        len(numbers) == ACTIVATIONS[activation[0]] and all(_number(n) and not math.isnan(n) for n in numbers),
        f"activation {activation[0]!r} takes {ACTIVATIONS[activation[0]]} numbers, not {list(numbers)}",
    )


class _Attributes(dict[str, Any]):
    """A node's attributes, ``None`` where there is none."""

    def __missing__(self, name: str) -> None:
        return None


class _Weights:
    """A node's weights by role; remembers which were asked for."""

    def __init__(self, node: Node, weights: Mapping[str, Any]) -> None:
        self.node, self.all, self.read = node, weights, set[str]()

    def shape(
        self, role: str, wanted: Sequence[int | None] | None = None, optional: bool = False
    ) -> tuple[int, ...] | None:
        self.read.add(role)
        if role not in self.node.weights:
            _say(optional, f"it has no {role}")
            return None
        weight = self.all[self.node.weights[role]]
        shape = tuple(weight.shape)
        if isinstance(weight, Sparse):
            _say(role == "weight", f"its {role} is sparse")
        if wanted is not None:
            fits = len(shape) == len(wanted) and all(w is None or w == s for w, s in zip(wanted, shape))
            _say(fits, f"its {role} is {list(shape)}, not {['any' if w is None else w for w in wanted]}")
        return shape

    def require_all_read(self) -> None:
        stray = sorted(set(self.node.weights) - self.read)
        _say(not stray, f"it has no weight {stray[0] if stray else ''!r}")


# -- products with weights ------------------------------------------------------------------------------------------------------


def _conv(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    planes = len(x) - 2
    _say(planes in (1, 2), f"a convolution of a value with {len(x)} axes")
    stride, dilation = _numbers(a, "stride", planes, 1), _numbers(a, "dilation", planes, 1)
    padding = _numbers(a, "padding", 2 * planes, 0)
    (groups,) = _numbers({"groups": [a["groups"]]}, "groups", 1, 1)
    channels = _fixed(x[1])
    _say(channels % groups == 0, f"{channels} channels in {groups} groups")
    weight = weights.shape("weight", [None, channels // groups] + [None] * planes) or ()
    _say(weight[0] % groups == 0, f"{weight[0]} output channels in {groups} groups")
    weights.shape("bias", [weight[0]], optional=True)
    sizes = []
    for i in range(planes):
        _say(weight[2 + i] > 0, "a kernel of no size")
        reach = dilation[i] * (weight[2 + i] - 1) + 1
        sizes.append((_fixed(x[2 + i]) + padding[2 * i] + padding[2 * i + 1] - reach) // stride[i] + 1)
        _say(sizes[-1] > 0, f"a window of {reach} over {x[2 + i]}, padded by {padding[2 * i : 2 * i + 2]}")
    return _with_residual((x[0], weight[0], *sizes), shapes)


def _linear(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    _say(len(shapes[0]) >= 2, "a linear layer needs an axis of features")
    weight = weights.shape("weight", [None, shapes[0][-1]]) or ()
    weights.shape("bias", [weight[0]], optional=True)
    return _with_residual((*shapes[0][:-1], weight[0]), shapes)


def _with_residual(made: Shape, shapes: list[Shape]) -> Shape:
    _say(
        len(shapes) == 1 or shapes[1] == made, f"the residual is {list(shapes[-1])}, the result {list(made)}"
    )
    return made


def _affine(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    axis = _axis(a, "axis", shapes[0])
    weights.shape("scale", [shapes[0][axis]])
    weights.shape("shift", [shapes[0][axis]])
    return shapes[0]


def _embedding(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    table = weights.shape("table", [None, None]) or ()
    return (*shapes[0], table[1])


# -- elementwise ----------------------------------------------------------------------------------------------------------------


def _activation(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    _say("activation" in a, "it says no activation")
    return shapes[0]


def _binary(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    _say(a["kind"] in BINARY, f"there is no kind {a.get('kind')!r}; kinds: {', '.join(BINARY)}")
    _say(isinstance(a.get("reverse", False), bool), "'reverse' is true or false")
    constant = weights.shape("constant", optional=True)
    operands = len(shapes) + (constant is not None) + ("scalar" in a)
    _say(operands == 2, f"it has {operands} operands")
    if "scalar" in a:
        _say(_number(a["scalar"]), f"its scalar is {a['scalar']!r}")
        return shapes[0]
    if constant is not None:
        _say(
            len(constant) > 0 and constant[0] == 1,
            f"its constant is {list(constant)}: the batch has size 1 there",
        )
        shapes = [shapes[0], (shapes[0][0], *constant[1:])]
    return broadcast(*shapes)


def broadcast(*shapes: Shape) -> Shape:
    """Return the common shape of values of the same rank."""
    _say(len({len(shape) for shape in shapes}) == 1, f"shapes of different rank: {[list(s) for s in shapes]}")
    made: list[int | None] = [shapes[0][0]]
    for sizes in list(zip(*shapes))[1:]:
        wide = {size for size in sizes if size != 1}
        _say(len(wide) <= 1, f"{[list(s) for s in shapes]} do not go together")
        made.append(wide.pop() if wide else 1)
    return tuple(made)


# -- pooling, reducing, normalizing ---------------------------------------------------------------------------------------------


def _pool(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    planes = len(x) - 2
    _say(planes in (1, 2), f"pooling of a value with {len(x)} axes")
    _say(a["kind"] in ("max", "mean"), f"there is no pooling by {a.get('kind')!r}")
    kernel, stride = _numbers(a, "kernel", planes, 1), _numbers(a, "stride", planes, 1)
    dilation = _numbers({"dilation": a.get("dilation", [1] * planes)}, "dilation", planes, 1)
    padding = _numbers(a, "padding", 2 * planes, 0)
    for flag in ("ceil", "count_padding"):
        _say(isinstance(a.get(flag, False), bool), f"{flag!r} is true or false")
    _say(a["kind"] == "max" or dilation == [1] * planes, "a mean over a dilated window")
    sizes = []
    for i in range(planes):
        before, after = padding[2 * i : 2 * i + 2]
        reach = dilation[i] * (kernel[i] - 1) + 1
        _say(before < reach and after < reach, f"padding {before}, {after} of a window of {reach}")
        sizes.append(pooled(_fixed(x[2 + i]), reach, stride[i], before, after, a.get("ceil", False)))
        _say(sizes[-1] > 0, f"a window of {reach} over {x[2 + i]}, padded by {before}, {after}")
    return (x[0], x[1], *sizes)


def pooled(size: int, reach: int, stride: int, before: int, after: int, ceil: bool) -> int:
    """Return how many windows there are; with ``ceil`` the last may stick out, but starts inside."""
    room = size + before + after - reach
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def _adaptive_pool(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    _say(len(x) in (3, 4), f"pooling of a value with {len(x)} axes")
    _say(a["kind"] in ("max", "mean"), f"there is no pooling by {a.get('kind')!r}")
    _say(all(_fixed(n) > 0 for n in x[2:]), "pooling over nothing")
    return (*x[:2], *_numbers(a, "size", len(x) - 2, 1))


def _reduce(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    _say(a["kind"] in ("mean", "sum", "max", "min"), f"there is no reduction {a.get('kind')!r}")
    _say(isinstance(a["keepdim"], bool), "'keepdim' is true or false")
    axes = a["axes"]
    sound = (
        isinstance(axes, (list, tuple)) and len(axes) > 0 and all(_whole(i) and 0 < i < len(x) for i in axes)
    )
    _say(sound and len(set(axes)) == len(axes), f"axes {axes} of {list(x)}")
    _say(a["kind"] == "sum" or all(_fixed(x[i]) > 0 for i in axes), f"a {a['kind']} over nothing")
    if a["keepdim"]:
        return tuple(1 if i in axes else n for i, n in enumerate(x))
    return tuple(n for i, n in enumerate(x) if i not in axes)


def _norm(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x, kind = shapes[0], a["kind"]
    _say(_number(a["eps"]) and 0 <= a["eps"] < math.inf, f"eps is {a.get('eps')!r}")
    if kind in ("layer", "rms"):
        (axes,) = _numbers({"axes": [a["axes"]]}, "axes", 1, 1)
        _say(axes < len(x), f"a norm over the last {axes} axes of {list(x)}")
        wanted: list[int | None] = list(x[-axes:])
    else:
        _say(kind in ("group", "instance") and len(x) >= 2, f"there is no norm {kind!r} of {list(x)}")
        (groups,) = _numbers({"groups": [a.get("groups", 1)]}, "groups", 1, 1)
        _say(_fixed(x[1]) % groups == 0, f"{x[1]} channels in {groups} groups")
        wanted = [x[1]]
    weights.shape("scale", wanted, optional=True)
    weights.shape("shift", wanted, optional=True)
    return x


def _softmax(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    _axis(a, "axis", shapes[0])
    _say(isinstance(a.get("log", False), bool), "'log' is true or false")
    return shapes[0]


# -- products of values ---------------------------------------------------------------------------------------------------------


def _matmul(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    left, right = shapes
    _say(
        len(left) == len(right) >= 3,
        f"a product of {list(left)} and {list(right)}: equally many axes, 3 or more",
    )
    _say(left[-1] == right[-2], f"a product of {list(left)} and {list(right)}: {left[-1]} is not {right[-2]}")
    return (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])


def _attention(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    q, k, v = shapes[:3]
    _say(len(q) == len(k) == len(v) == 4, "attention takes [batch, heads, tokens, features]")
    _say(q[3] == k[3], f"queries of {q[3]} features and keys of {k[3]}")
    _say(k[1:3] == v[1:3], f"{list(k[1:3])} keys and {list(v[1:3])} values")
    _say(_fixed(k[1]) > 0 and _fixed(q[1]) % _fixed(k[1]) == 0, f"{q[1]} heads of queries and {k[1]} of keys")
    _say(_number(a["scale"]), f"scale is {a.get('scale')!r}")
    _say(isinstance(a["causal"], bool), "'causal' is true or false")
    if len(shapes) == 4:
        _say(
            broadcast(shapes[3], (q[0], q[1], q[2], k[2])) == (q[0], q[1], q[2], k[2]),
            f"a mask {list(shapes[3])}",
        )
    return (*q[:3], v[3])


# -- moving ---------------------------------------------------------------------------------------------------------------------


def _reshape(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x, shape = shapes[0], _target(a, shapes[0], -1)
    size = math.prod(_fixed(n) for n in x[1:])
    open_axes = [i for i, n in enumerate(shape) if n == -1 and i > 0]
    rest = math.prod(_fixed(n) for i, n in enumerate(shape) if i > 0 and n != -1)
    _say(len(open_axes) <= 1, "two sizes are -1")
    if open_axes:
        _say(rest > 0 and size % rest == 0, f"{list(x)} as {list(shape)}")
        shape[open_axes[0]] = size // rest
    _say(math.prod(_fixed(n) for n in shape[1:]) == size, f"{list(x)} as {list(shape)}")
    return tuple(shape)


def _expand(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x, shape = shapes[0], _target(a, shapes[0], 0)
    _say(len(x) == len(shape), f"{list(x)} expanded to {list(shape)}: equally many axes")
    _say(all(n in (1, m) for n, m in zip(x[1:], shape[1:])), f"{list(x)} expanded to {list(shape)}")
    return tuple(shape)


def _target(a: _Attributes, x: Shape, least: int) -> list[int | None]:
    shape = a["shape"]
    sound = isinstance(shape, (list, tuple)) and 0 < len(shape) <= 32 and shape[0] in (None, x[0])
    _say(sound and all(_whole(n) and n >= least for n in shape[1:]), f"{list(x)} as {shape!r}")
    return [x[0], *shape[1:]] if shape else []


def _permute(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    axes, x = a["axes"], shapes[0]
    sound = (
        isinstance(axes, (list, tuple))
        and all(_whole(i) for i in axes)
        and sorted(axes) == list(range(len(x)))
    )
    _say(sound and axes[0] == 0, f"axes {axes!r} of {list(x)}")
    return tuple(x[i] for i in axes)


def _slice(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    axis = _axis(a, "axis", x)
    start, stop, step = (a[name] for name in ("start", "stop", "step"))
    sound = (
        _whole(start) and _whole(stop) and _whole(step) and step > 0 and 0 <= start <= stop <= _fixed(x[axis])
    )
    _say(sound, f"{start}:{stop}:{step} of axis {axis} of {list(x)}")
    return (*x[:axis], -((start - stop) // step), *x[axis + 1 :])


def _concat(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    axis = _axis(a, "axis", x)
    for other in shapes[1:]:
        _say(len(other) == len(x), f"{list(x)} beside {list(other)}")
        _say(
            all(m == n for i, (m, n) in enumerate(zip(x, other)) if i != axis),
            f"{list(x)} beside {list(other)}",
        )
    return (*x[:axis], sum(_fixed(other[axis]) for other in shapes), *x[axis + 1 :])


def _pad(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x, widths = shapes[0], a["widths"]
    _say(_number(a["value"]), f"value is {a.get('value')!r}")
    sound = isinstance(widths, (list, tuple)) and len(widths) == len(x) and list(widths[0]) == [0, 0]
    sound = sound and all(
        len(w) == 2 and all(_whole(n) and 0 <= n < _LARGEST for n in w) for w in widths or ()
    )
    _say(sound, f"widths {widths!r} of {list(x)}")
    return (x[0], *(_fixed(n) + before + after for n, (before, after) in list(zip(x, widths or ()))[1:]))


def _upsample(node: Node, shapes: list[Shape], weights: _Weights, a: _Attributes) -> Shape:
    x = shapes[0]
    _say(len(x) in (3, 4), f"upsampling of a value with {len(x)} axes")
    _say(
        a["mode"] == "nearest" or (a["mode"] == "bilinear" and len(x) == 4),
        f"there is no mode {a.get('mode')!r}",
    )
    _say(isinstance(a.get("align_corners", False), bool), "'align_corners' is true or false")
    scale = a["scale"]
    sound = scale is None or (
        len(scale) == len(x) - 2 and all(_number(s) and 0 < s < math.inf for s in scale)
    )
    _say(sound and all(_fixed(n) > 0 for n in x[2:]), f"scale {scale!r} of {list(x)}")
    return (*x[:2], *_numbers(a, "size", len(x) - 2, 1))


def _constant(node: Node, given: list[Value], weights: _Weights, declared: Value) -> Value:
    _say(not node.inputs and not node.attributes, "a constant reads nothing")
    value = weights.shape("value") or ()
    weights.require_all_read()
    _say(len(value) > 0 and value[0] == 1, f"its value is {list(value)}: the batch has size 1 there")
    return Value((declared.shape[0] if declared.shape else None, *value[1:]))


def _torch(node: Node, given: list[Value], weights: _Weights, declared: Value) -> Value:
    target, arguments = node.attributes.get("target"), node.attributes.get("arguments")
    _say(isinstance(target, str) and target.count(".") == 2, f"its target is {target!r}")
    _say(isinstance(arguments, (list, tuple, dict)), f"its arguments are {arguments!r:.80}")
    _say(declared.dtype in ("float32", "int64"), f"it makes {declared.dtype}")
    return declared


# -- what is told of sizes ------------------------------------------------------------------------------------------------------


def _numbers(a: Mapping[str, Any], name: str, count: int, least: int) -> list[int]:
    found: Any = a.get(name)
    sound = (
        isinstance(found, (list, tuple))
        and len(found) == count
        and all(_whole(n) and n >= least for n in found)
    )
    _say(
        sound and all(n < 1 << 31 for n in found or ()),
        f"{name} is {found!r}, not {count} numbers of at least {least}",
    )
    return list(found or ())


def _axis(a: Mapping[str, Any], name: str, x: Shape) -> int:
    axis: Any = a.get(name)
    _say(_whole(axis) and 0 < axis < len(x), f"{name} {axis!r} of {list(x)}")
    return int(axis)


def _size(value: Value, name: str) -> None:
    sound = len(value.shape) <= 32 and all(n is None or (_whole(n) and n >= 0) for n in value.shape)
    _say(
        sound and None not in value.shape[1:],
        f"{name} is {list(value.shape)}: sizes are numbers, the batch may be open",
    )
    _say(math.prod(max(1, n or 1) for n in value.shape) < _LARGEST, f"{name} is {list(value.shape)}")


def _fixed(n: int | None) -> int:
    _say(n is not None, "a size besides the batch is open")
    return int(n or 0)


def _whole(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool)


def _number(n: Any) -> bool:
    return isinstance(n, (int, float)) and not isinstance(n, bool)


def _told(value: Value) -> str:
    return f"{value.dtype} {list(value.shape)}"


def _say(sound: Any, otherwise: str) -> None:
    if not sound:
        raise ValueError(otherwise[:400])


OPERATORS: dict[str, Callable[..., Any]] = {
    "conv": _conv, "linear": _linear, "affine": _affine, "embedding": _embedding, "activation": _activation, "binary": _binary,
    "pool": _pool, "adaptive_pool": _adaptive_pool, "reduce": _reduce, "norm": _norm, "softmax": _softmax, "matmul": _matmul,
    "attention": _attention, "reshape": _reshape, "expand": _expand, "permute": _permute, "slice": _slice, "concat": _concat,
    "pad": _pad, "upsample": _upsample, "constant": _constant, "torch": _torch,
}  # fmt: skip
_INPUTS = {  # name -> fewest and most values that it reads
    **dict.fromkeys(OPERATORS, (1, 1)), "conv": (1, 2), "linear": (1, 2), "binary": (1, 2), "matmul": (2, 2),
    "attention": (3, 4), "concat": (1, 1 << 16),
}  # fmt: skip
_ATTRIBUTES = {
    "conv": ("stride", "padding", "dilation", "groups", "activation"), "linear": ("activation",),
    "affine": ("axis", "activation"), "embedding": (), "activation": ("activation",),
    "binary": ("kind", "scalar", "reverse", "activation"),
    "pool": ("kind", "kernel", "stride", "padding", "ceil", "count_padding", "dilation"), "adaptive_pool": ("kind", "size"),
    "reduce": ("kind", "axes", "keepdim"), "norm": ("kind", "eps", "groups", "axes"), "softmax": ("axis", "log"),
    "matmul": (), "attention": ("scale", "causal"), "reshape": ("shape",), "expand": ("shape",), "permute": ("axes",),
    "slice": ("axis", "start", "stop", "step"), "concat": ("axis",), "pad": ("widths", "value"),
    "upsample": ("mode", "size", "scale", "align_corners"),
}  # fmt: skip
