"""Random graphs of every native operator, planned and run for several groups, against numpy in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rewound.runtime import _native, operators, reference
from rewound.runtime.graph import Graph, Node, Value, rounded
from rewound.runtime.planning.emit import plan
from rewound.runtime.planning.lower import Unplanned

Shape = tuple[int, ...]


class Maker:
    """Grows a graph, one random operator on a random earlier value at a time."""

    def __init__(self, seed: int) -> None:
        self.random, self.numpy = random.Random(seed), np.random.default_rng(seed)
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.weights: dict[str, Any] = {}
        shape = self.random.choice(
            [(5,), (6, 9), (9, 6), (3, 8, 8), (4, 5, 7), (2, 3, 4, 5), (40, 1, 1), (1, 9, 6)]
        )
        self.values["x"] = Value((None, *shape))

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def shape(self, name: str) -> Shape:
        return tuple(int(n or 0) for n in self.values[name].shape[1:])

    def weight(self, *shape: int, density: float = 1.0) -> str:
        key = f"w{len(self.weights)}"
        kept = self.numpy.random(shape) < density
        self.weights[key] = (self.numpy.standard_normal(shape) * kept).astype(np.float32)
        return key

    def add(self, op: str, inputs: tuple[str, ...], weights: dict[str, str], **attributes: Any) -> bool:
        node = Node(op, inputs, f"v{len(self.nodes)}", weights, attributes)
        try:
            made = operators.infer(node, {**self.values, node.output: Value((None,))}, self.weights)
        except ValueError:
            return False
        if math.prod(n or 1 for n in made.shape) not in range(1, 5000):
            return False
        self.values[node.output] = made
        self.nodes.append(node)
        return True

    def pick(self) -> str:
        names = list(self.values)
        return self.random.choice(names[-3:] if self.random.random() < 0.8 else names)

    def activation(self) -> dict[str, Any]:
        options: list[Any] = [None, None, ["relu"], ["clamp", -0.5, 0.7], ["gelu"], ["sigmoid"], ["silu"]]
        chosen = self.random.choice(options)
        return {} if chosen is None else {"activation": chosen}


def conv(m: Maker, x: str, shape: Shape) -> bool:
    if len(shape) not in (2, 3):
        return False
    planes = len(shape) - 1
    groups = m.random.choice([g for g in (1, 1, 1, 2, shape[0]) if shape[0] % g == 0])
    out = groups * m.number(1, 4)
    kernel = [m.number(1, 3) for _ in range(planes)]
    weights = {
        "weight": m.weight(out, shape[0] // groups, *kernel, density=m.random.choice([0.0, 0.1, 0.5, 1.0]))
    }
    if m.random.random() < 0.5:
        weights["bias"] = m.weight(out)
    attributes = {
        "stride": [m.number(1, 3) for _ in range(planes)] if m.random.random() < 0.5 else [1] * planes,
        "padding": [m.number(0, 2) for _ in range(2 * planes)],
        "dilation": [m.number(1, 2) for _ in range(planes)],
        "groups": groups,
    }
    same = m.random.choice(list(m.values))
    inputs = (x, same) if m.random.random() < 0.3 else (x,)
    attributes |= m.activation()
    return m.add("conv", inputs, weights, **attributes) or m.add("conv", (x,), weights, **attributes)


def linear(m: Maker, x: str, shape: Shape) -> bool:
    out = m.number(1, 20)
    weights = {"weight": m.weight(out, shape[-1], density=m.random.choice([0.1, 1.0])), "bias": m.weight(out)}
    others = [name for name in m.values if m.shape(name) == (*shape[:-1], out)]
    inputs = (x, m.random.choice(others)) if others else (x,)
    return m.add("linear", inputs, weights, **m.activation())


def binary(m: Maker, x: str, shape: Shape) -> bool:
    kind = m.random.choice(["add", "sub", "mul", "maximum", "minimum"])
    options = {"kind": kind, **m.activation()}
    way = m.random.random()
    if way < 0.2:
        return m.add("binary", (x,), {}, scalar=m.random.uniform(-2, 2), reverse=way < 0.1, **options)
    if way < 0.6:
        sizes = [n if m.random.random() < 0.6 else 1 for n in shape]
        return m.add("binary", (x,), {"constant": m.weight(1, *sizes)}, reverse=way < 0.4, **options)
    others = [name for name in m.values if len(m.shape(name)) == len(shape)]
    return m.add("binary", m.random.choice([(x, y) for y in others]), {}, **options)


def reshape(m: Maker, x: str, shape: Shape) -> bool:
    factors: list[int] = []
    for n in shape:
        for p in (2, 3, 5, 7):
            while n % p == 0:
                factors.append(p)
                n //= p
        if n > 1:
            factors.append(n)
    sizes = [1] * m.number(1, 4)
    at = 0
    for factor in factors if m.random.random() < 0.7 else m.random.sample(factors, len(factors)):
        at = min(len(sizes) - 1, at + (m.random.random() < 0.4))
        sizes[at] *= factor
    return m.add("reshape", (x,), {}, shape=[None, *sizes])


def norm(m: Maker, x: str, shape: Shape) -> bool:
    kind = m.random.choice(["layer", "rms", "group"])
    if kind == "group":
        groups = m.random.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
        weights = {"scale": m.weight(shape[0]), "shift": m.weight(shape[0])}
        if math.prod(shape) // groups < 2:
            return False
        return m.add("norm", (x,), weights, kind=kind, groups=groups, eps=0.1)
    axes = m.number(1, len(shape))
    weights = {"scale": m.weight(*shape[-axes:])} if m.random.random() < 0.7 else {}
    return m.add("norm", (x,), weights, kind=kind, axes=axes, eps=0.1)


def moved(m: Maker, x: str, shape: Shape) -> bool:
    axis = m.number(1, len(shape))
    n = shape[axis - 1]
    way = m.number(0, 5)
    if way == 0:
        order = m.random.sample(range(1, len(shape) + 1), len(shape))
        return m.add("permute", (x,), {}, axes=[0, *order])
    if way == 1:
        start = m.number(0, n - 1)
        return m.add(
            "slice", (x,), {}, axis=axis, start=start, stop=m.number(start + 1, n), step=m.number(1, 2)
        )
    if way == 2:
        widths = [[0, 0], *([m.number(0, 2), m.number(0, 2)] for _ in shape)]
        return m.add("pad", (x,), {}, widths=widths, value=m.random.choice([0.0, -1.5]))
    if way == 3:
        sizes = [m.number(1, 3) if size == 1 else size for size in shape]
        return m.add("expand", (x,), {}, shape=[None, *sizes])
    names = [y for y in m.values if len(m.shape(y)) == len(shape)]
    names = [
        y for y in names if all(a == b for i, (a, b) in enumerate(zip(m.shape(y), shape)) if i != axis - 1)
    ]
    return m.add("concat", tuple(m.random.choice(names) for _ in range(m.number(1, 3))), {}, axis=axis)


def pooled(m: Maker, x: str, shape: Shape) -> bool:
    planes = len(shape) - 1
    if planes not in (1, 2):
        return False
    kind = m.random.choice(["max", "mean"])
    way = m.number(0, 2)
    if way == 0:
        return m.add("adaptive_pool", (x,), {}, kind=kind, size=[m.number(1, 3) for _ in range(planes)])
    if way == 1:
        size = [n * m.number(1, 2) for n in shape[1:]]
        return m.add(
            "upsample",
            (x,),
            {},
            mode="bilinear" if planes == 2 else "nearest",
            size=size,
            align_corners=False,
        )
    kernel = [m.number(1, 3) for _ in range(planes)]
    padding = [m.number(0, k - 1) for k in kernel for _ in range(2)]
    stride = [m.number(1, 2) for _ in range(planes)]
    ceil = m.random.random() < 0.5
    return m.add("pool", (x,), {}, kind=kind, kernel=kernel, stride=stride, padding=padding, ceil=ceil)


def reduced(m: Maker, x: str, shape: Shape) -> bool:
    way = m.number(0, 3)
    axis = m.number(1, len(shape))
    if way == 0:
        return m.add("softmax", (x,), {}, axis=axis, log=m.random.random() < 0.3)
    if way == 1:
        weights = {"scale": m.weight(shape[axis - 1]), "shift": m.weight(shape[axis - 1])}
        return m.add("affine", (x,), weights, axis=axis, **m.activation())
    axes = sorted(m.random.sample(range(1, len(shape) + 1), m.number(1, len(shape))))
    kind = m.random.choice(["mean", "sum", "max", "min"])
    return m.add(
        "reduce", (x,), {}, kind=kind, axes=axes, keepdim=m.random.random() < 0.5 or len(axes) == len(shape)
    )


def products(m: Maker, x: str, shape: Shape) -> bool:
    if len(shape) == 3 and m.random.random() < 0.5:
        return m.add("attention", (x, x, x), {}, scale=0.3, causal=m.random.random() < 0.5)
    names = [y for y in m.values if len(m.shape(y)) == len(shape) >= 2 and m.shape(y)[-2] == shape[-1]]
    return bool(names) and m.add("matmul", (x, m.random.choice(names)), {})


KINDS: list[Callable[[Maker, str, Shape], bool]] = [
    conv, conv, conv, linear, binary, binary, reshape, reshape, norm, moved, moved, moved, pooled, reduced, products,
]  # fmt: skip


def made(seed: int, count: int) -> Graph:
    m = Maker(seed)
    while len(m.nodes) < count:
        x = m.pick()
        m.random.choice(KINDS)(m, x, m.shape(x))
    read = {name for node in m.nodes for name in node.inputs}
    outputs = tuple(node.output for node in m.nodes if node.output not in read or m.random.random() < 0.1)
    return rounded(Graph(m.values, tuple(m.nodes), ("x",), outputs, m.weights))


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_random_graphs(start: int) -> None:
    refused = 0
    for seed in range(start, start + 20):
        graph = made(seed, 3 + seed % 9)
        operators.check(graph)
        for images in (1, 3, 16):
            try:
                planned = plan(graph, images, _native)
            except Unplanned:  # odd windows; an engine has numpy for them
                refused += 1
                continue
            x = (
                np.random.default_rng(seed)
                .standard_normal((2 * images, *graph.values["x"].shape[1:]))
                .astype(np.float32)
            )
            results = [
                np.full((2 * images, *graph.values[name].shape[1:]), np.nan, np.float32)
                for name in graph.outputs
            ]
            planned.program.run([x], results, 2, 1)
            with np.errstate(all="ignore"):
                right = reference.run(graph, [x], np.float64)
            for name, mine, exact in zip(graph.outputs, results, right):
                scale = max(1.0, float(np.abs(exact).max()))
                wrong = float(np.abs(mine - exact).max())
                assert wrong <= 2e-4 * scale, (seed, images, name, wrong, scale)
    assert refused <= 3
