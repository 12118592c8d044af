"""A graph that is not sound is refused, with the operator and where it came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewound.runtime import fallback, operators, reference
from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import sparse

_CONV = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}


def _graph(node: Node, *inputs: tuple[Any, ...], made: tuple[Any, ...], **weights: Any) -> Graph:
    names = [f"x{i}" for i in range(len(inputs))]
    values = {name: Value(shape) for name, shape in zip(names, inputs)}
    node = replace(
        node, inputs=tuple(names), output="y", weights={role: role for role in weights}, source="layer1.0"
    )
    return Graph({**values, "y": Value(made)}, (node,), tuple(names), ("y",), weights)


def _node(op: str, **attributes: Any) -> Node:
    return Node(op, (), "", {}, attributes)


def _zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


_IMAGE = (None, 4, 6, 6)


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        (_graph(_node("convolve"), (None, 3), made=(None, 3)), "no operator 'convolve'"),
        (
            _graph(_node("conv", **_CONV), _IMAGE, made=(None, 2, 4, 4), weight=_zeros(2, 3, 3, 3)),
            r"weight is \[2, 3, 3, 3\]",
        ),
        (
            _graph(_node("conv", **_CONV), _IMAGE, made=(None, 2, 5, 4), weight=_zeros(2, 4, 3, 3)),
            "declared float32",
        ),
        (
            _graph(_node("conv", **{**_CONV, "groups": 3}), _IMAGE, made=_IMAGE, weight=_zeros(3, 1, 3, 3)),
            "in 3 groups",
        ),
        (
            _graph(
                _node("conv", **{**_CONV, "stride": [0, 1]}), _IMAGE, made=_IMAGE, weight=_zeros(2, 4, 3, 3)
            ),
            "stride is",
        ),
        (
            _graph(_node("conv", **_CONV), _IMAGE, made=_IMAGE, weight=_zeros(4, 4, 9, 9)),
            "a window of 9 over 6",
        ),
        (
            _graph(_node("conv", **_CONV, pad=1), _IMAGE, made=_IMAGE, weight=_zeros(4, 4, 1, 1)),
            "no attribute 'pad'",
        ),
        (
            _graph(_node("linear"), (None, 3), made=(None, 2), weight=_zeros(2, 3), extra=_zeros(1)),
            "no weight 'extra'",
        ),
        (_graph(_node("linear"), (None, 3), made=(None, 2)), "it has no weight"),
        (
            _graph(_node("linear"), (None, 3), (None, 5), made=(None, 2), weight=_zeros(2, 3)),
            "the residual is",
        ),
        (
            _graph(_node("linear", activation=["swoosh"]), (None, 3), made=(None, 2), weight=_zeros(2, 3)),
            "no activation",
        ),
        (_graph(_node("activation", activation=["clamp", 0]), (None, 3), made=(None, 3)), "takes 2 numbers"),
        (_graph(_node("binary", kind="add"), (None, 3), (None, 4), made=(None, 4)), "do not go together"),
        (_graph(_node("binary", kind="add"), (None, 3), (7, 3), made=(None, 3)), "batches of None and 7"),
        (_graph(_node("binary", kind="xor", scalar=1), (None, 3), made=(None, 3)), "no kind 'xor'"),
        (_graph(_node("reshape", shape=[None, 5]), (None, 2, 3), made=(None, 5)), r"as \[None, 5\]"),
        (_graph(_node("permute", axes=[1, 0]), (None, 2), made=(2, None)), "is \\[2, None\\]"),
        (_graph(_node("permute", axes=[0, 2, 2]), (None, 2, 3), made=(None, 2, 3)), "axes"),
        (
            _graph(_node("slice", axis=1, start=0, stop=4, step=1), (None, 3), made=(None, 4)),
            "0:4:1 of axis 1",
        ),
        (_graph(_node("reduce", kind="mean", axes=[0], keepdim=True), (None, 3), made=(1, 3)), "axes"),
        (_graph(_node("pad", widths=[[1, 0], [0, 0]], value=0), (None, 3), made=(None, 3)), "widths"),
        (_graph(_node("concat", axis=1), (None, 3), (None, 3, 1), made=(None, 6)), "beside"),
        (_graph(_node("matmul"), (None, 3, 2), (None, 3, 2), made=(None, 3, 2)), "2 is not 3"),
        (
            _graph(
                _node("attention", scale=1.0, causal=False), *[(None, 3, 5, 2)] * 2, (None, 2, 5, 2), made=()
            ),
            "keys",
        ),
        (_graph(_node("norm", kind="group", groups=3, eps=0.1), _IMAGE, made=_IMAGE), "in 3 groups"),
        (_graph(_node("norm", kind="layer", axes=1, eps=-1), (None, 3), made=(None, 3)), "eps is -1"),
        (
            _graph(_node("upsample", mode="cubic", size=[1, 1]), _IMAGE, made=(None, 4, 1, 1)),
            "no mode 'cubic'",
        ),
        (_graph(_node("constant"), made=(None, 2), value=_zeros(3, 2)), "size 1 there"),
        (_graph(_node("torch", target="relu", arguments={}), (None, 3), made=(None, 3)), "target is 'relu'"),
        (
            _graph(_node("embedding"), (None, 3), made=(None, 3, 2), table=sparse(_zeros(5, 2))),
            "table is sparse",
        ),
    ],
)
def test_unsound_operators_are_refused(graph, told):
    with pytest.raises(ValueError, match=told):
        operators.check(graph)


def test_refusals_name_the_operator_and_its_module():
    graph = _graph(_node("linear"), (None, 3), made=(None, 2), weight=_zeros(2, 4))
    with pytest.raises(ValueError, match=r"'linear' that makes 'y' \(from layer1.0\)"):
        operators.check(graph)
    sound = _graph(_node("linear"), (None, 3), made=(None, 2), weight=_zeros(2, 3))
    operators.check(sound)
    with pytest.raises(ValueError, match="reads 'z', which nothing before it makes"):
        operators.check(replace(sound, nodes=(replace(sound.nodes[0], inputs=("z",)),)))
    with pytest.raises(ValueError, match="output 'z' is made by nothing"):
        operators.check(replace(sound, outputs=("z",)))
    with pytest.raises(ValueError, match="'y' is there already"):
        operators.check(replace(sound, nodes=sound.nodes * 2))
    with pytest.raises(ValueError, match="no weight 'none'"):
        operators.check(replace(sound, nodes=(replace(sound.nodes[0], weights={"weight": "none"}),)))


@pytest.mark.parametrize(
    "target",
    ["aten.from_file.default", "aten.add_.Tensor", "aten.nothing.default", "a.b.c", "aten.rand.default"],
)
def test_a_file_cannot_call_what_does_more_than_compute(target):
    with pytest.raises(ValueError, match=r"more than compute|no operator"):
        fallback.resolve(target)


def test_reference_of_every_activation_agrees_with_torch():
    import torch
    import torch.nn.functional as F

    theirs = {
        "relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.1), "elu": lambda x: F.elu(x, 0.7), "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "erf": torch.erf,
        "abs": torch.abs, "neg": torch.neg, "softplus": F.softplus, "mish": F.mish, "square": torch.square, "sin": torch.sin,
        "cos": torch.cos, "reciprocal": torch.reciprocal, "identity": lambda x: x, "clamp": lambda x: x.clamp(-0.5, 2),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "log": torch.log,
    }  # fmt: skip
    assert set(theirs) == set(operators.ACTIVATIONS)
    numbers = {"leaky_relu": [0.1], "elu": [0.7], "clamp": [-0.5, 2.0]}
    x = np.concatenate([np.linspace(-30, 30, 101), [0.5, -0.25]])
    for name, function in theirs.items():
        positive = np.abs(x) + 0.1 if name in ("sqrt", "rsqrt", "log") else x
        with np.errstate(all="ignore"):
            made = reference.activate([name, *numbers.get(name, [])], positive)
            np.testing.assert_allclose(
                made, function(torch.from_numpy(positive)).numpy(), rtol=1e-12, atol=1e-15, err_msg=name
            )


def test_attention_that_sees_nothing_is_zero():
    node = Node("attention", (), "y", {}, {"scale": 1.0, "causal": False})
    q = np.ones((1, 1, 2, 3))
    mask = np.array([[[[0.0, 0.0], [-np.inf, -np.inf]]]])
    y = reference.compute(node, [q, q, q, mask], {}, 1, np.float64)
    assert y[0, 0].tolist() == [[1, 1, 1], [0, 0, 0]]
