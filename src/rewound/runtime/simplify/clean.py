"""Rules that remove what does nothing: identities, moves that undo each other, what depends on constants alone, repetitions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from rewound.runtime import reference
from rewound.runtime.graph import Node
from rewound.runtime.simplify.work import Rule, Work


def _identity(w: Work, node: Node) -> bool:
    a, x = node.attributes, node.inputs[0] if node.inputs else ""
    same = len(node.inputs) == 1 and w.shape(x) == w.shape(node.output)
    if node.op == "activation":
        nothing = a["activation"][0] == "identity" and w.values[x].dtype == "float32"
    elif node.op == "permute":
        nothing = list(a["axes"]) == list(range(len(a["axes"])))
    elif node.op == "binary":
        one = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0, "pow": 1.0}.get(a["kind"])
        nothing = "scalar" in a and a["scalar"] == one and not a.get("reverse") and not a.get("activation")
    else:
        nothing = node.op in ("reshape", "expand", "slice", "pad", "concat") and same
    return nothing and same and w.alias(node, x)


def _permute_of_permute(w: Work, node: Node) -> bool:
    before = w.made(node.inputs[0], "permute")
    if before is None:
        return False
    axes = [before.attributes["axes"][i] for i in node.attributes["axes"]]
    return w.put(node, replace(node, inputs=before.inputs, attributes={"axes": axes}))


def _permute_of_ones(w: Work, node: Node) -> bool:
    """Moving axes of size 1 about is a reshape."""
    shape = w.shape(node.inputs[0])
    wide = [i for i in node.attributes["axes"] if i == 0 or shape[i] != 1]
    if wide != sorted(wide):
        return False
    target = [None, *w.shape(node.output)[1:]]
    return w.put(node, Node("reshape", node.inputs, "", {}, {"shape": target}, node.source))


def _permute_without_ones(w: Work, node: Node) -> bool:
    """An axis of size 1 is left out while the others move, so that the reshapes in front and behind may go."""
    inside, outside = w.shape(node.inputs[0]), w.shape(node.output)
    wide = [i for i, n in enumerate(inside) if i == 0 or n != 1]
    if len(wide) == len(inside):
        return False
    narrow = Node(
        "reshape", node.inputs, "", {}, {"shape": [None, *(inside[i] for i in wide[1:])]}, node.source
    )
    first = w.before(node, narrow)
    axes = [wide.index(i) for i in node.attributes["axes"] if i in wide]
    moved = w.before(node, replace(node, inputs=(first or "",), attributes={"axes": axes})) if first else None
    back = Node("reshape", (moved or "",), "", {}, {"shape": [None, *outside[1:]]}, node.source)
    return moved is not None and w.put(node, back)


def _reshape_of_reshape(w: Work, node: Node) -> bool:
    before = w.made(node.inputs[0], "reshape")
    shape = [None, *w.shape(node.output)[1:]]
    return before is not None and w.put(
        node, replace(node, inputs=before.inputs, attributes={"shape": shape})
    )


def _slice_of_slice(w: Work, node: Node) -> bool:
    before = w.made(node.inputs[0], "slice")
    a = node.attributes
    if before is None or before.attributes["axis"] != a["axis"]:
        return False
    b = before.attributes
    count = w.shape(node.output)[a["axis"]] or 0
    start, step = b["start"] + a["start"] * b["step"], a["step"] * b["step"]
    stop = start + (count - 1) * step + 1 if count else start
    new = {"axis": a["axis"], "start": start, "stop": stop, "step": step}
    return w.put(node, replace(node, inputs=before.inputs, attributes=new))


def _slice_of_permute(w: Work, node: Node) -> bool:
    """Take the slice first: it may then be one of a layer's channels."""
    before = w.made(node.inputs[0], "permute")
    if before is None:
        return False
    axis = before.attributes["axes"][node.attributes["axis"]]
    inner = w.before(node, replace(node, inputs=before.inputs, attributes={**node.attributes, "axis": axis}))
    return inner is not None and w.put(node, replace(before, inputs=(inner,), source=node.source))


def _slice_of_reshape(w: Work, node: Node) -> bool:
    """A slice of an axis that a reshape split off is a slice of the axis in front."""
    before = w.made(node.inputs[0], "reshape")
    a = node.attributes
    if before is None or a["step"] != 1:
        return False
    inside, outside = w.shape(before.inputs[0]), w.shape(before.output)
    axis = a["axis"]
    # the same axes in front, and one axis of the input is this one and all that follow, up to the input's next
    for k in range(1, min(axis + 1, len(inside))):
        if inside[1:k] != outside[1:axis] or k != axis:
            continue
        behind, width = 1, None
        for end in range(axis, len(outside)):
            behind *= outside[end] or 0
            if behind == inside[k] and inside[k + 1 :] == outside[end + 1 :]:
                width = behind // (outside[axis] or 1) if outside[axis] else None
                break
        if width is None or inside[k] == outside[axis]:
            return False
        cut = {"axis": k, "start": a["start"] * width, "stop": a["stop"] * width, "step": 1}
        inner = w.before(node, replace(node, inputs=before.inputs, attributes=cut))
        target = [None, *w.shape(node.output)[1:]]
        return inner is not None and w.put(
            node, replace(before, inputs=(inner,), attributes={"shape": target})
        )
    return False


def _constants(w: Work, node: Node) -> bool:
    """Compute what depends on constants alone."""
    made = [w.made(name, "constant") for name in node.inputs]
    if not made or any(one is None for one in made) or node.op in ("torch", "constant"):
        return False
    arrays = [np.asarray(w.array(one, "value")) for one in made if one is not None]
    roles = {role: np.asarray(w.array(node, role)) for role in node.weights}
    with np.errstate(all="ignore"):
        value = reference.compute(node, arrays, roles, 1, np.float64)
    key = next(one.weights["value"] for one in made if one is not None)
    return w.constant(node, np.ascontiguousarray(value), key)


def _constant_operand(w: Work, node: Node) -> bool:
    """A constant beside a tensor is a weight."""
    if len(node.inputs) != 2:
        return False
    for place in (1, 0):
        constant = w.made(node.inputs[place], "constant")
        if constant is None:
            continue
        attributes = dict(node.attributes)
        if place == 0 and attributes["kind"] not in ("add", "mul", "maximum", "minimum"):
            attributes["reverse"] = True
        weights = {"constant": constant.weights["value"]}
        return w.put(
            node, replace(node, inputs=(node.inputs[1 - place],), weights=weights, attributes=attributes)
        )
    return False


def _scalar_operand(w: Work, node: Node) -> bool:
    """A constant of one number is a scalar."""
    constant = w.array(node, "constant")
    if constant is None or constant.size != 1:
        return False
    attributes = {**node.attributes, "scalar": float(constant.reshape(())[()])}
    return w.put(node, replace(node, weights={}, attributes=attributes))


def share(w: Work) -> bool:
    """Let nodes that compute the same be one."""
    known: dict[Any, str] = {}
    changed = False
    for output in list(w.nodes):
        node = w.nodes[output]
        text = json.dumps([node.attributes, dict(node.weights), node.inputs], sort_keys=True, default=str)
        key = (node.op, text, w.values[output])
        if key in known and output not in w.outputs:
            changed = w.alias(node, known[key])
        else:
            known.setdefault(key, output)
    return changed


CLEAN: dict[str, tuple[Rule, ...]] = {
    "": (_identity, _constants),
    "permute": (_permute_of_permute, _permute_of_ones, _permute_without_ones),
    "reshape": (_reshape_of_reshape,),
    "slice": (_slice_of_slice, _slice_of_permute, _slice_of_reshape),
    "binary": (_constant_operand, _scalar_operand),
}
