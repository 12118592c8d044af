"""Rules that fold scales and shifts into the weights beside them, padding into windows, and activations and sums into what
makes their input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewound.runtime.graph import Node
from rewound.runtime.simplify.work import Rule, Work, without

Array = NDArray[np.float64]


class Affine(NamedTuple):
    """x * scale + shift along an axis, or everywhere (axis ``None``, arrays of one number)."""

    axis: int | None
    scale: Array
    shift: Array


def affine_of(w: Work, node: Node) -> Affine | None:
    """Return what a node does if that is a finite scale and shift along one axis and nothing else."""
    found = _affine_of(w, node)
    return (
        found
        if found is not None and np.isfinite(found.scale).all() and np.isfinite(found.shift).all()
        else None
    )


def _affine_of(w: Work, node: Node) -> Affine | None:
    a = node.attributes
    if node.op == "activation":
        return Affine(None, np.array([-1.0]), np.zeros(1)) if list(a["activation"]) == ["neg"] else None
    if a.get("activation") is not None:
        return None
    if node.op == "affine":
        scale, shift = w.array(node, "scale"), w.array(node, "shift")
        return Affine(a["axis"], scale, shift) if scale is not None and shift is not None else None
    if node.op != "binary" or len(node.inputs) != 1:
        return None
    if "scalar" in a:
        axis, number = None, np.array([float(a["scalar"])])
    else:
        constant = w.array(node, "constant")
        if constant is None or w.shape(node.inputs[0]) != w.shape(node.output):
            return None
        wide = [i for i, n in enumerate(constant.shape) if n != 1]
        if len(wide) != 1:
            return None
        axis, number = wide[0], constant.reshape(-1)
    one, zero, kind, reverse = np.ones_like(number), np.zeros_like(number), a["kind"], a.get("reverse", False)
    if kind == "add":
        return Affine(axis, one, number)
    if kind == "sub":
        return Affine(axis, -one, number) if reverse else Affine(axis, one, -number)
    if kind == "mul":
        return Affine(axis, number, zero)
    if kind == "div" and not reverse and (number != 0).all():
        return Affine(axis, 1 / number, zero)
    return None


def _into_before(w: Work, node: Node) -> bool:
    """conv, linear, norm or affine, then a scale and shift: one."""
    before = w.only(node.inputs[0], node, "conv", "linear", "norm", "affine")
    if before is None or len(before.inputs) > 1 or before.attributes.get("activation") is not None:
        return False
    found = affine_of(w, node)
    if found is None:
        return False
    rank = len(w.shape(node.output))
    if before.op in ("norm", "affine"):
        return _into_scale(w, node, before, found)
    own = 1 if before.op == "conv" else rank - 1
    if found.axis not in (None, own):
        return False
    weight, bias = w.array(before, "weight"), w.array(before, "bias")
    assert weight is not None
    scale, shift = (np.broadcast_to(part, (len(weight),)) for part in (found.scale, found.shift))
    weights = dict(before.weights)
    if not (scale == 1).all():
        folded = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        weights["weight"] = w.keep(before.weights["weight"], np.where(weight == 0, 0.0, folded), before)
    total = shift if bias is None else bias * scale + shift
    if bias is not None or np.any(total):
        # a new name: other layers may have no bias
        weights["bias"] = w.keep(
            before.weights.get("bias", before.weights["weight"] + ".shift"), np.array(total), before
        )
    return w.put(node, replace(before, weights=weights))


def _into_scale(w: Work, node: Node, before: Node, found: Affine) -> bool:
    rank = len(w.shape(node.output))
    if before.op == "affine":
        own: int = before.attributes["axis"]
    elif before.attributes["kind"] in ("layer", "rms"):
        if before.attributes["axes"] != 1:
            return False
        own = rank - 1
    else:
        own = 1
    if found.axis not in (None, own):
        return False
    size = (w.shape(node.output)[own] or 0,)
    scale, shift = w.array(before, "scale"), w.array(before, "shift")
    more, plus = (np.broadcast_to(part, size) for part in (found.scale, found.shift))
    base = before.weights.get("scale", before.weights.get("shift", before.source + ".scale"))
    weights = dict(before.weights)
    total = more if scale is None else scale * more
    weights["scale"] = w.keep(base, np.array(total), before)
    moved = plus if shift is None else shift * more + plus
    if shift is not None or before.op == "affine" or np.any(moved):
        weights["shift"] = w.keep(before.weights.get("shift", base + ".shift"), np.array(moved), before)
    return w.put(node, replace(before, weights=weights))


def _into_after(w: Work, node: Node) -> bool:
    """A scale and shift, then a convolution or linear layer: one, unless padding would be shifted too."""
    before = w.only(node.inputs[0], node, "affine", "binary", "activation")
    if before is None or len(before.inputs) != 1 or node.attributes.get("groups", 1) < 1:
        return False
    found = affine_of(w, before)
    rank = len(w.shape(node.inputs[0]))
    own = 1 if node.op == "conv" else rank - 1
    if found is None or found.axis not in (None, own) or node.inputs.count(before.output) > 1:
        return False
    if np.any(found.shift) and any(node.attributes.get("padding", ())):
        return False
    weight, bias = w.array(node, "weight"), w.array(node, "bias")
    assert weight is not None
    groups = node.attributes.get("groups", 1)
    inputs = weight.shape[1]
    size = (w.shape(node.inputs[0])[own] or 0,)
    scale, shift = (
        np.broadcast_to(part, size).reshape(groups, 1, inputs) for part in (found.scale, found.shift)
    )
    apart = weight.reshape(groups, len(weight) // groups, inputs, -1)
    folded = np.where(apart == 0, 0.0, apart * scale[..., None])
    weights = dict(node.weights)
    if not (found.scale == 1).all():
        weights["weight"] = w.keep(node.weights["weight"], folded.reshape(weight.shape), node)
    moved = (apart * shift[..., None]).sum((2, 3)).reshape(-1)
    if np.any(moved):
        total = moved if bias is None else bias + moved
        weights["bias"] = w.keep(node.weights.get("bias", node.weights["weight"] + ".shift"), total, node)
    return w.put(node, replace(node, inputs=(before.inputs[0], *node.inputs[1:]), weights=weights))


def _pad_into_conv(w: Work, node: Node) -> bool:
    pad = w.only(node.inputs[0], node, "pad")
    if pad is None or pad.attributes["value"] != 0 or any(map(any, pad.attributes["widths"][:2])):
        return False
    sides = [n for pair in pad.attributes["widths"][2:] for n in pair]
    padding = [p + s for p, s in zip(node.attributes["padding"], sides)]
    inputs = (pad.inputs[0], *node.inputs[1:])
    return w.put(node, replace(node, inputs=inputs, attributes={**node.attributes, "padding": padding}))


def _binary_as_affine(w: Work, node: Node) -> bool:
    """A scale or shift along one axis, left over, is an affine; so are two in a row."""
    found = affine_of(w, node)
    if found is None or node.op != "binary" or found.axis in (None, 0):
        return False
    before = w.only(node.inputs[0], node, "binary")
    other = affine_of(w, before) if before is not None else None
    if before is None or other is None or other.axis not in (None, found.axis):
        return False
    scale, shift = np.broadcast_arrays(other.scale * found.scale, other.shift * found.scale + found.shift)
    key = node.weights.get("constant", node.source)
    weights = {
        "scale": w.keep(key + ".scale", np.array(scale), node),
        "shift": w.keep(key + ".shift", np.array(shift), node),
    }
    return w.put(node, Node("affine", before.inputs, "", weights, {"axis": found.axis}, node.source))


def _activation_into_before(w: Work, node: Node) -> bool:
    before = w.only(node.inputs[0], node, "conv", "linear", "affine", "binary")
    if before is None or before.attributes.get("activation") is not None:
        return False
    attributes = {**before.attributes, "activation": list(node.attributes["activation"])}
    return w.put(node, replace(before, attributes=attributes))


def _sum_into_before(w: Work, node: Node) -> bool:
    """A layer, then a sum with a tensor of its shape: the tensor is the layer's residual. The later of two layers takes it."""
    if node.attributes["kind"] != "add" or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
        return False
    order = {name: i for i, name in enumerate(w.nodes)}
    for name in sorted(node.inputs, key=lambda n: order.get(n, -1), reverse=True):
        layer = w.only(name, node, "conv", "linear")
        other = node.inputs[1] if name == node.inputs[0] else node.inputs[0]
        if layer is None or len(layer.inputs) > 1 or layer.attributes.get("activation") is not None:
            continue
        if w.shape(other) != w.shape(node.output) or w.values[other].dtype != "float32":
            continue
        activation = {k: v for k, v in node.attributes.items() if k == "activation"}
        new = replace(
            layer,
            inputs=(*layer.inputs, other),
            attributes={**without(layer.attributes, "activation"), **activation},
        )
        if w.put(node, new):
            return True
    return False


FOLD: dict[str, tuple[Rule, ...]] = {
    "affine": (_into_before,),
    "binary": (_into_before, _binary_as_affine),
    "activation": (_into_before,),
    "conv": (_pad_into_conv, _into_after),
    "linear": (_into_after,),
}
FUSE: dict[str, tuple[Rule, ...]] = {"activation": (_activation_into_before,), "binary": (_sum_into_before,)}
