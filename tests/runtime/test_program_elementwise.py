"""Elementwise operators of native programs, on every instruction set: against torch and numpy, in every layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.runtime.programs import (
    SHAPES,
    apply,
    close,
    guarded,
    layouts,
    pairs,
    planar,
    random,
    tight,
)

from rewound.runtime import _native


def reference_activation(activation: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    name, *numbers = activation
    table: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "clamp": lambda x: x.clamp(*numbers),
        "leaky_relu": lambda x: F.leaky_relu(x, *numbers),
        "elu": lambda x: F.elu(x, *numbers),
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "silu": F.silu,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "softplus": F.softplus,
        "mish": F.mish,
        **{
            n: getattr(torch, n)
            for n in "sigmoid tanh exp erf sqrt rsqrt neg abs log reciprocal square sin cos".split()
        },
    }
    return table[name](x)


NUMBERS = {"clamp": [-0.5, 1.5], "leaky_relu": [0.1], "elu": [1.5]}


@pytest.mark.parametrize("name", _native.activations())
def test_activations_are_as_exact_as_torch(isa: str, name: str) -> None:
    activation = [name, *NUMBERS.get(name, [])]
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [np.linspace(-110, 110, 4001), np.linspace(-4, 4, 4001), rng.standard_normal(4000) * 1e-3]
    )
    if name in ("sin", "cos"):
        x = x[np.abs(x) < 50]
    x = x[: len(x) // 3 * 3].astype(np.float32).reshape(3, 1, 1, -1)
    g = tight(*x.shape)
    result = apply([(x, g)], g, lambda p, v, y: p.unary(v[0], y, activation))
    exact = reference_activation(activation, torch.from_numpy(x).double()).numpy()
    theirs = reference_activation(activation, torch.from_numpy(x)).numpy()
    finite = np.isfinite(exact) & (np.abs(exact) < 3e38) & np.isfinite(theirs)
    result, exact, theirs = result[finite].astype(float), exact[finite], theirs[finite].astype(float)
    # Units in the last place; results near zero of functions that are not small there by themselves count by a thousandth.
    floor = 1e-3 if "gelu" in name or name in ("mish", "silu", "sin", "cos") else 1e-36
    unit = np.spacing(np.maximum(np.abs(exact), floor).astype(np.float32)).astype(np.float64)
    ours, other = (np.abs(result - exact) / unit).max(), (np.abs(theirs - exact) / unit).max()
    assert ours <= max(4.0, 4 * other), (ours, other)


@pytest.mark.parametrize("name", _native.activations())
def test_activations_of_nan_and_infinity(isa: str, name: str) -> None:
    activation = [name, *NUMBERS.get(name, [])]
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38], np.float32).reshape(1, 1, 1, 8)
    x = np.tile(x, 3)
    g = tight(*x.shape)
    result = apply([(x, g)], g, lambda p, v, y: p.unary(v[0], y, activation))
    expected = reference_activation(activation, torch.from_numpy(x)).numpy()
    if name in ("sin", "cos"):
        result, expected = result[..., :6], expected[..., :6]
    if name in (
        "quick_gelu",
        "gelu",
        "gelu_tanh",
        "elu",
    ):  # infinity times zero, differently in torch's own versions
        assert np.isnan(result[np.isnan(x)]).all()
        keep = np.isfinite(expected)
        result, expected = result[keep], expected[keep]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("shape", SHAPES)
def test_unary_affine_and_scalar_in_every_layout(isa: str, shape: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(2)
    x, scale, shift = random(rng, *shape), random(rng, shape[0]), random(rng, shape[0])
    c = (slice(None), None, None, None)
    for g, h in pairs(*shape):
        np.testing.assert_array_equal(apply([(x, g)], h, lambda p, v, y: p.unary(v[0], y, None)), x)
        np.testing.assert_array_equal(
            apply([(x, g)], h, lambda p, v, y: p.unary(v[0], y, ["relu"])), np.maximum(x, 0)
        )
        close(
            apply([(x, g)], h, lambda p, v, y: p.unary(v[0], y, ["sigmoid"])),
            1 / (1 + np.exp(-x.astype(float))),
        )
        close(
            apply([(x, g)], h, lambda p, v, y: p.affine(v[0], y, scale, shift, ["relu"])),
            np.maximum(x.astype(float) * scale[c] + shift[c], 0),
        )
        close(apply([(x, g)], h, lambda p, v, y: p.affine(v[0], y, scale, None)), x * scale[c])
        close(apply([(x, g)], h, lambda p, v, y: p.affine(v[0], y, None, shift)), x + shift[c])
        np.testing.assert_array_equal(
            apply([(x, g)], h, lambda p, v, y: p.scalar(v[0], y, "add", 2.5)), x + np.float32(2.5)
        )
        np.testing.assert_array_equal(
            apply([(x, g)], h, lambda p, v, y: p.scalar(v[0], y, "div", 2.0, reverse=True)), np.float32(2) / x
        )
        close(apply([(x, g)], h, lambda p, v, y: p.scalar(v[0], y, "pow", 2.0)), x.astype(float) ** 2)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_binary_broadcasts(isa: str, shape: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(3)
    cuts = [
        tuple(1 if cut else n for cut, n in zip(mask, shape)) for mask in itertools.product((0, 1), repeat=4)
    ]
    others = sorted({(shape, cut) for cut in cuts} | {(cut, shape) for cut in cuts})
    for number, (a_shape, b_shape) in enumerate(others):
        kind = list(BINARY)[number % len(BINARY)]
        a, b = random(rng, *a_shape), random(rng, *b_shape)
        expected = BINARY[kind](a, b)
        for a_layouts, b_layouts, out in zip(
            itertools.cycle(layouts(*a_shape)), itertools.cycle(layouts(*b_shape)), layouts(*shape)
        ):
            result = apply(
                [(a, a_layouts), (b, b_layouts)],
                out,
                lambda p, v, y, kind=kind: p.binary(v[0], v[1], y, kind),
            )
            np.testing.assert_array_equal(result, expected)


def test_maximum_keeps_nan_and_residuals_are_activated(isa: str) -> None:
    a = np.array([np.nan, 1, 2, -3] * 9, np.float32).reshape(1, 1, 4, 9)
    b = np.array([1, np.nan, -2, 1] * 9, np.float32).reshape(1, 1, 4, 9)
    g = guarded(1, 1, 4, 9)
    for kind in ("maximum", "minimum"):
        result = apply([(a, g), (b, g)], g, lambda p, v, y, kind=kind: p.binary(v[0], v[1], y, kind))
        np.testing.assert_array_equal(result, BINARY[kind](a, b))
    result = apply([(a, g), (b, g)], g, lambda p, v, y: p.binary(v[0], v[1], y, "add", ["relu"]))
    np.testing.assert_array_equal(result, torch.relu(torch.from_numpy(a + b)).numpy())


def test_elementwise_in_place_and_constants(isa: str) -> None:
    rng = np.random.default_rng(4)
    x, k = random(rng, 3, 1, 4, 5), random(rng, 3, 1, 1, 1)
    g, h = guarded(3, 1, 4, 5), tight(3, 1, 1, 1)

    def build(p: Any, v: list[int], y: int) -> None:
        p.unary(v[0], y, None)
        p.binary(y, p.constant(planar(k, h), h), y, "mul")
        p.scalar(y, y, "add", 1.0)

    np.testing.assert_array_equal(apply([(x, g)], g, build), x * k + np.float32(1))


def test_clear_and_fill(isa: str) -> None:
    for g in layouts(3, 2, 4, 5):
        assert (apply([], g, lambda p, v, y: p.fill(y, 3.0)) == 3).all()
        assert (apply([], g, lambda p, v, y: p.clear(y)) == 7.5).all()
        assert not apply([], g, lambda p, v, y: p.clear(y, everything=True)).any()
