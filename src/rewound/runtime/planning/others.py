"""Lowering of all that is no product: elementwise operators, norms, pooling, reductions, softmax, upsampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rewound.runtime.graph import Node
from rewound.runtime.planning.layout import Form, View, sized, usual
from rewound.runtime.planning.lower import Lowering, rule

# -- elementwise ----------------------------------------------------------------------------------------------------------------


@rule("activation")
def _activation(lower: Lowering, node: Node) -> None:
    activation = list(node.attributes["activation"])
    if activation == ["identity"]:  # a cast where the value is an integer, which arrives as float32
        lower.values[node.output] = lower.value(node.inputs[0])
        return
    form = lower.form_of(node.inputs[0])
    x = lower.arranged(node.inputs[0], form)
    lower.step("unary", [x], lower.new(node.output, form), [0], activation=activation)


@rule("affine")
def _affine(lower: Lowering, node: Node) -> None:
    axis, shape = node.attributes["axis"] - 1, lower.shape(node.output)
    form = lower.form_of(node.inputs[0])
    if axis not in form.channels:  # along pixels: scale and shift are planes
        form = Form((axis,), (), tuple(i for i in (*form.channels, *form.rows, *form.columns) if i != axis))
    scale, shift = (
        along(np.asarray(lower.weight(node, role)), [axis], shape, form) for role in ("scale", "shift")
    )
    x = lower.arranged(node.inputs[0], form)
    lower.step(
        "affine",
        [x],
        lower.new(node.output, form),
        [0],
        scale=scale,
        shift=shift,
        activation=node.attributes.get("activation"),
    )


def along(array: np.ndarray, axes: list[int], shape: tuple[int, ...], form: Form) -> np.ndarray:
    """Return an array over some axes, all of them channels of the form, as one number a channel."""
    grid = array.reshape([n if i in axes else 1 for i, n in enumerate(shape)])
    grid = np.broadcast_to(grid, [n if i in form.channels else 1 for i, n in enumerate(shape)])
    rest = [i for i in range(len(shape)) if i not in form.channels]
    return np.ascontiguousarray(grid.transpose([*form.channels, *rest]).reshape(-1), np.float32)


@rule("binary")
def _binary(lower: Lowering, node: Node) -> None:
    a, shape = node.attributes, lower.shape(node.output)
    activation, kind, reverse = a.get("activation"), a["kind"], bool(a.get("reverse"))
    if "scalar" in a:
        form = lower.form_of(node.inputs[0])
        x = lower.arranged(node.inputs[0], form)
        y = lower.new(node.output, form)
        number = float(np.float32(a["scalar"]))
        lower.step("scalar", [x], y, [0], kind=kind, number=number, reverse=reverse, activation=activation)
        return
    operands: list[Any] = [lower.value(name) for name in node.inputs]
    constant = lower.weight(node, "constant")
    if constant is not None:
        operands.append(constant[0])
    full = [x for x in operands if x.shape == shape]
    views = [x for x in full if isinstance(x, View)]
    names = [name for name in node.inputs if lower.shape(name) == shape]
    form = lower.form_of(names[0]) if views and names else usual(shape)
    parts = [_operand(lower, x, shape, form) for x in operands]
    shared = [i for i, part in enumerate(parts) if part.buffer.kind == "arena" and part.shape == shape]
    if reverse:
        parts.reverse()
        shared = [1 - i for i in shared]
    lower.step("binary", parts, lower.new(node.output, form), shared, kind=kind, activation=activation)


def _operand(lower: Lowering, x: Any, shape: tuple[int, ...], form: Form) -> View:
    """Return an operand in the form of the result, each group of its axes as wide as the result's or of size 1."""
    wide = list(x.shape)
    for axes in form:
        if any(x.shape[i] != 1 for i in axes):
            for i in axes:
                wide[i] = shape[i]
    if tuple(wide) != x.shape:
        x = np.broadcast_to(x, wide) if isinstance(x, np.ndarray) else x.expanded(wide)
    return lower.placed(x, form)


# -- normalising ----------------------------------------------------------------------------------------------------------------


@rule("norm")
def _norm(lower: Lowering, node: Node) -> None:
    a, shape = node.attributes, lower.shape(node.output)
    scale, shift = lower.weight(node, "scale"), lower.weight(node, "shift")
    rank = len(shape)
    if a["kind"] in ("group", "instance"):
        form = lower.form_of(node.inputs[0])
        if form.channels[-1:] != (0,) or any(shape[i] != 1 for i in form.channels[:-1]):
            form = usual(shape) if rank <= 3 else Form((0,), (1,), tuple(range(2, rank)))
        groups, pixels, rms = int(a["groups"]), True, False
    else:
        axes = tuple(range(rank - a["axes"], rank))
        form = lower.form_of(node.inputs[0])
        if form.channels[-len(axes) :] != axes:
            form = Form(axes, (), tuple(range(rank - a["axes"])))
        inner = math.prod(shape[i] for i in axes)
        groups, pixels, rms = sized(shape, form)[0] // inner, False, a["kind"] == "rms"
        scale, shift = (
            None if part is None else along(part, list(axes), shape, form) for part in (scale, shift)
        )
    x = lower.arranged(node.inputs[0], form)
    y = lower.new(node.output, form)
    lower.step(
        "norm", [x], y, groups=groups, pixels=pixels, rms=rms, eps=float(a["eps"]), scale=scale, shift=shift
    )


@rule("softmax")
def _softmax(lower: Lowering, node: Node) -> None:
    axis, shape = node.attributes["axis"] - 1, lower.shape(node.output)
    log = bool(node.attributes.get("log"))
    form = lower.form_of(node.inputs[0])
    others = tuple(i for i in range(len(shape)) if i != axis)
    if form.channels[-1:] == (axis,):
        over, groups = "channels", sized(shape, form)[0] // shape[axis]
    else:
        if form.columns != (axis,):
            form = Form(others, (), (axis,)) if len(others) < 2 else Form(others[:-1], others[-1:], (axis,))
        over, groups = "rows", 1
    x = lower.arranged(node.inputs[0], form)
    lower.step("softmax", [x], lower.new(node.output, form), over=over, groups=groups, log=log)


# -- over pixels ----------------------------------------------------------------------------------------------------------------


def _image(lower: Lowering, node: Node) -> tuple[View, View, bool]:
    """Return a pooling's x and y as planes, and whether these have rows."""
    plane = len(lower.shape(node.inputs[0])) == 3
    form = Form((0,), (1,), (2,)) if plane else Form((0,), (), (1,))
    return lower.arranged(node.inputs[0], form), lower.new(node.output, form), plane


@rule("pool")
def _pool(lower: Lowering, node: Node) -> None:
    a = node.attributes
    x, y, plane = _image(lower, node)
    front = [] if plane else [1]
    sides = list(a["padding"]) if plane else [0, 0, *a["padding"]]
    lower.step(
        "pool",
        [x],
        y,
        kind=a["kind"],
        kernel=(*front, *a["kernel"]),
        stride=(*front, *a["stride"]),
        padding=(sides[0], sides[2], sides[1], sides[3]),
        count_padding=bool(a.get("count_padding", True)),
        dilation=(*front, *a.get("dilation", [1] * len(a["kernel"]))),
    )


@rule("adaptive_pool")
def _adaptive_pool(lower: Lowering, node: Node) -> None:
    x, y, _ = _image(lower, node)
    lower.step("adaptive_pool", [x], y, kind=node.attributes["kind"])


@rule("upsample")
def _upsample(lower: Lowering, node: Node) -> None:
    a = node.attributes
    x, y, plane = _image(lower, node)
    scale = a.get("scale")
    both = None if scale is None else tuple(float(s) for s in (scale if plane else [1.0, *scale]))
    lower.step("upsample", [x], y, mode=a["mode"], align_corners=bool(a.get("align_corners")), scale=both)


@rule("reduce")
def _reduce(lower: Lowering, node: Node) -> None:
    a, shape = node.attributes, lower.shape(node.inputs[0])
    axes = {i - 1 for i in a["axes"] if shape[i - 1] != 1}
    form = lower.form_of(node.inputs[0])
    inner = [i for i in form.channels if i in axes]
    apart = form.channels[len(form.channels) - len(inner) :] != tuple(inner)
    for group in (form.rows, form.columns):
        found = [i in axes for i in group if shape[i] != 1]
        apart = apart or (any(found) and not all(found))
    if apart:
        kept = tuple(i for i in range(len(shape)) if i not in axes)
        form = Form(kept, (), tuple(sorted(axes)))
    x = lower.arranged(node.inputs[0], form)
    narrow = tuple(1 if i in axes else n for i, n in enumerate(shape))
    y = _reduced(lower, narrow, form)
    if (
        a["kind"] == "mean"
        and not inner
        and (y.buffer.height, y.buffer.width) == (1, 1)
        and not x.buffer.vector
    ):
        lower.step("adaptive_pool", [x], y, kind="mean")  # whole planes: quicker
    else:
        lower.step("reduce", [x], y, kind=a["kind"])
    gone = {i - 1 for i in a["axes"]}
    if not a["keepdim"]:
        left = [i for i in range(len(shape)) if i not in gone]
        y = View(y.buffer, tuple(y.shape[i] for i in left), tuple(y.axes[i] for i in left), y.start)
    lower.values[node.output] = y


def _reduced(lower: Lowering, shape: tuple[int, ...], form: Form) -> View:
    from rewound.runtime.planning.layout import laid_out

    return laid_out(shape, form)
