"""Rules that recognise what models write by hand: activations, norms, attention. Only where the arithmetic is the same."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from rewound.runtime.graph import Node
from rewound.runtime.simplify.work import Rule, Work

_EXACT = 1e-12  # relative: constants are the double or they are another function


def _is(value: float | None, wanted: float) -> bool:
    return value is not None and math.isclose(value, wanted, rel_tol=_EXACT)


def _scalar(w: Work, name: str, kind: str) -> tuple[str, float] | None:
    """Return x and c if a value is x kind c."""
    node = w.made(name, "binary")
    if node is None or node.attributes.get("activation") or node.attributes.get("reverse"):
        return None
    a = node.attributes
    return (node.inputs[0], a["scalar"]) if a["kind"] == kind and "scalar" in a else None


def _activated(w: Work, name: str, activation: str) -> str | None:
    """Return x if a value is activation(x)."""
    node = w.made(name, "activation")
    return node.inputs[0] if node is not None and node.attributes["activation"][0] == activation else None


def _product(w: Work, name: str, depth: int = 4) -> tuple[float, list[str]]:
    """Return a value as a number times values."""
    node = w.made(name, "binary") if depth else None
    if node is None or node.attributes.get("activation") or "constant" in node.weights:
        return 1.0, [name]
    a = node.attributes
    if "scalar" in a and not a.get("reverse") and a["kind"] in ("mul", "div") and a["scalar"] != 0:
        factor, parts = _product(w, node.inputs[0], depth - 1)
        return (factor * a["scalar"] if a["kind"] == "mul" else factor / a["scalar"]), parts
    if a["kind"] == "mul" and len(node.inputs) == 2 and "scalar" not in a:
        left, right = (_product(w, n, depth - 1) for n in node.inputs)
        return left[0] * right[0], left[1] + right[1]
    return 1.0, [name]


def _times(w: Work, name: str, x: str) -> float | None:
    """Return c if a value is c * x."""
    factor, parts = _product(w, name)
    return factor if parts == [x] else None


# -- activations ----------------------------------------------------------------------------------------------------------------


def _gated(w: Work, node: Node) -> bool:
    """x * gate(x)."""
    factor, parts = _product(w, node.output)
    if len(parts) != 2:
        return False
    for x, gate in (parts, parts[::-1]):
        found = _gate(w, x, gate, factor)
        if found is not None:
            return w.put(node, Node("activation", (x,), "", {}, {"activation": [found]}, node.source))
    return False


def _gate(w: Work, x: str, gate: str, factor: float) -> str | None:
    inside = _activated(w, gate, "sigmoid")
    if inside is not None and _is(factor, 1):
        times = _times(w, inside, x)
        return "silu" if _is(times, 1) else "quick_gelu" if _is(times, 1.702) else None
    if _activated(w, gate, "hardsigmoid") == x and _is(factor, 1):
        return "hardswish"
    inside = _activated(w, gate, "tanh")
    if inside is not None and _is(factor, 1) and _activated(w, inside, "softplus") == x:
        return "mish"
    node = w.made(gate, "activation")
    if node is not None and list(node.attributes["activation"]) == ["clamp", 0.0, 6.0] and _is(factor, 1 / 6):
        shifted = _scalar(w, node.inputs[0], "add")
        return "hardswish" if shifted is not None and shifted == (x, 3.0) else None
    plus = _scalar(w, gate, "add")
    if plus is None or plus[1] != 1 or not _is(factor, 0.5):
        return None
    inside = _activated(w, plus[0], "erf")
    if inside is not None:
        return "gelu" if _is(_times(w, inside, x), math.sqrt(0.5)) else None
    inside = _activated(w, plus[0], "tanh")
    return "gelu_tanh" if inside is not None and _is_cubic(w, inside, x) else None


def _is_cubic(w: Work, name: str, x: str) -> bool:
    """sqrt(2 / pi) * (x + 0.044715 x^3)."""
    factor, parts = _product(w, name)
    total = w.made(parts[0], "binary") if len(parts) == 1 else None
    if (
        total is None
        or total.attributes["kind"] != "add"
        or len(total.inputs) != 2
        or not _is(factor, math.sqrt(2 / math.pi))
    ):
        return False
    for left, right in (total.inputs, total.inputs[::-1]):
        times, cubes = _product(w, right)
        cube = _scalar(w, cubes[0], "pow") if len(cubes) == 1 else None
        third = cube == (x, 3.0) or cubes == [x, x, x]
        if left == x and third and _is(times, 0.044715):
            return True
    return False


# -- norms ----------------------------------------------------------------------------------------------------------------------


def _spread(w: Work, name: str) -> tuple[str, float, str] | None:
    """Return the kind ("rsqrt" or "sqrt"), eps, and v of a value that is rsqrt(v + eps) or sqrt(v + eps)."""
    for kind in ("rsqrt", "sqrt"):
        inside = _activated(w, name, kind)
        plus = _scalar(w, inside, "add") if inside is not None else None
        if plus is not None and plus[1] >= 0:
            return kind, plus[1], plus[0]
    return None


def _mean(w: Work, name: str) -> tuple[str, tuple[int, ...]] | None:
    node = w.made(name, "reduce")
    if node is None or node.attributes["kind"] != "mean" or not node.attributes["keepdim"]:
        return None
    return node.inputs[0], tuple(sorted(node.attributes["axes"]))


def _squared(w: Work, name: str) -> str | None:
    inside = _activated(w, name, "square")
    if inside is not None:
        return inside
    factor, parts = _product(w, name, 1)
    return parts[0] if factor == 1 and len(parts) == 2 and parts[0] == parts[1] else None


def _normalized(w: Work, node: Node) -> bool:
    """y * rsqrt(mean(y^2) + eps), y the tensor (rms) or what is left of it without its mean (layer norm)."""
    if len(node.inputs) != 2 or node.attributes.get("activation"):
        return False
    orders = [node.inputs] if node.attributes["kind"] == "div" else [node.inputs, node.inputs[::-1]]
    for y, divisor in orders:
        spread = _spread(w, divisor)
        if spread is None or (spread[0] == "sqrt") != (node.attributes["kind"] == "div"):
            continue
        mean = _mean(w, spread[2])
        if mean is None or _squared(w, mean[0]) != y:
            continue
        axes, eps, x, kind = mean[1], spread[1], y, "rms"
        centred = w.made(y, "binary")
        if centred is not None and centred.attributes["kind"] == "sub" and len(centred.inputs) == 2:
            own = _mean(w, centred.inputs[1])
            if own == (centred.inputs[0], axes) and not centred.attributes.get("activation"):
                x, kind = centred.inputs[0], "layer"
        return _norm(w, node, x, kind, axes, eps)
    return False


def _norm(w: Work, node: Node, x: str, kind: str, axes: tuple[int, ...], eps: float) -> bool:
    rank = len(w.shape(x))
    norm = Node("norm", (x,), "", {}, {"kind": kind, "axes": len(axes), "eps": float(eps)}, node.source)
    if axes == tuple(range(rank - len(axes), rank)):
        return w.put(node, norm)
    if axes != (1,):
        return False
    # over the channels of an image: they go last meanwhile
    there, back = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    first = w.before(node, Node("permute", (x,), "", {}, {"axes": there}, node.source))
    second = w.before(node, replace(norm, inputs=(first,))) if first is not None else None
    return second is not None and w.put(node, Node("permute", (second,), "", {}, {"axes": back}, node.source))


# -- attention ------------------------------------------------------------------------------------------------------------------


def _attention(w: Work, node: Node) -> bool:
    """softmax(q @ k^T * scale + mask) @ v."""
    softmax = w.only(node.inputs[0], node, "softmax")
    if (
        softmax is None
        or softmax.attributes.get("log")
        or softmax.attributes["axis"] != 3
        or len(w.shape(node.output)) != 4
    ):
        return False
    reader, scores, mask, scale = softmax, w.only(softmax.inputs[0], softmax), None, 1.0
    while scores is not None and scores.op == "binary" and not scores.attributes.get("activation"):
        a = scores.attributes
        if "scalar" in a and a["kind"] in ("mul", "div") and not a.get("reverse") and a["scalar"] != 0:
            scale = scale * a["scalar"] if a["kind"] == "mul" else scale / a["scalar"]
            inner = scores.inputs[0]
        elif a["kind"] == "add" and mask is None and scale == 1 and "scalar" not in a:
            if "constant" in scores.weights:
                weights = {"value": scores.weights["constant"]}
                constant = Node("constant", (), "", weights, {}, scores.source)
                mask, inner = w.before(node, constant), scores.inputs[0]
            else:
                products = [n for n in scores.inputs if _is_product(w, n)]
                if len(products) != 1:
                    return False
                inner = products[0]
                other = next(n for n in scores.inputs if n != inner)
                mask = other
        else:
            return False
        reader, scores = scores, w.only(inner, scores)
    if scores is None or scores.op != "matmul" or not w.private(scores.output, reader):
        return False
    q, kt = scores.inputs
    v = node.inputs[1]
    if not (len(w.shape(q)) == 4 and w.shape(q)[1] == w.shape(kt)[1] == w.shape(v)[1]):
        return False
    k = w.before(node, Node("permute", (kt,), "", {}, {"axes": [0, 1, 3, 2]}, node.source))
    inputs = [q, k or "", v]
    if mask is not None:
        inputs.append(mask)
    attributes = {"scale": float(scale), "causal": False}
    return k is not None and w.put(node, Node("attention", tuple(inputs), "", {}, attributes, node.source))


def _is_product(w: Work, name: str) -> bool:
    """Whether a value is a product of two values, scaled or not."""
    node = w.made(name, "matmul", "binary")
    while node is not None and node.op == "binary" and "scalar" in node.attributes:
        node = w.made(node.inputs[0], "matmul", "binary")
    return node is not None and node.op == "matmul"


def _mask(w: Work, node: Node) -> bool:
    """A constant mask of zeros is none; one that hides the future is ``causal``."""
    constant = w.made(node.inputs[3], "constant") if len(node.inputs) == 4 else None
    mask = w.array(constant, "value") if constant is not None else None
    if mask is None:
        return False
    if not np.any(mask):
        return w.put(node, replace(node, inputs=node.inputs[:3]))
    t, s = w.shape(node.inputs[0])[2] or 0, w.shape(node.inputs[1])[2] or 0
    if node.attributes["causal"] or mask.shape != (1, 1, t, s):
        return False
    seen = np.tri(t, s, dtype=bool)
    # a number beyond float32's half is as good as -inf, because every row has a key that is seen
    hidden = mask[0, 0] < -1e37
    if not np.array_equal(~hidden, seen) or np.any(mask[0, 0][seen]):
        return False
    return w.put(node, replace(node, inputs=node.inputs[:3], attributes={**node.attributes, "causal": True}))


def _grouped(w: Work, node: Node) -> bool:
    """Keys and values that were repeated for groups of queries' heads are not."""
    k, v = (_unrepeated(w, name) for name in node.inputs[1:3])
    if k is None or v is None or w.shape(k)[1] != w.shape(v)[1]:
        return False
    return w.put(node, replace(node, inputs=(node.inputs[0], k, v, *node.inputs[3:])))


def _unrepeated(w: Work, name: str) -> str | None:
    joined = w.made(name, "reshape")
    wide = w.made(joined.inputs[0], "expand") if joined is not None else None
    apart = w.made(wide.inputs[0], "reshape") if wide is not None else None
    if joined is None or wide is None or apart is None:
        return None
    shape, outside = w.shape(apart.inputs[0]), w.shape(wide.output)
    if len(shape) != 4 or len(outside) != 5 or w.shape(wide.inputs[0]) != (*shape[:2], 1, *shape[2:]):
        return None
    repeated = outside[:2] == shape[:2] and outside[3:] == shape[2:]
    return apart.inputs[0] if repeated and w.shape(name)[2:] == shape[2:] else None


def _binary(w: Work, node: Node) -> bool:
    return node.attributes["kind"] in ("mul", "div") and (_gated(w, node) or _normalized(w, node))


PATTERNS: dict[str, tuple[Rule, ...]] = {
    "binary": (_binary,),
    "matmul": (_attention,),
    "attention": (_mask, _grouped),
}
