"""Products in native programs: attention, matrices, convolutions, vectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.runtime.programs import (
    apply,
    back,
    close,
    conv_geometries,
    guarded,
    nchw,
    random,
    tight,
    vectors,
)

from rewound.runtime import _native
from rewound.runtime.weights import sparse


@pytest.mark.parametrize("masked", ["none", "row", "full", "heads", "causal"])
def test_attention(isa: str, masked: str) -> None:
    rng = np.random.default_rng(15)
    for heads, kv, d, e, images, t, s in [
        (2, 2, 5, 5, 2, 9, 9),
        (4, 2, 8, 3, 1, 130, 130),
        (1, 1, 16, 16, 1, 1, 20),
        (3, 1, 4, 4, 2, 70, 33),
    ]:
        q, k, v = (
            random(rng, heads * d, images, 1, t),
            random(rng, kv * d, images, 1, s),
            random(rng, kv * e, images, 1, s),
        )
        shape = {"row": (1, images, 1, s), "full": (1, images, t, s), "heads": (heads, 1, t, s)}.get(masked)
        mask = None
        if shape:
            mask = np.where(rng.random(shape) < 0.3, -np.inf, random(rng, *shape)).astype(np.float32)

        def heads_of(x: np.ndarray, n: int) -> torch.Tensor:
            return torch.from_numpy(
                x[:, :, 0].reshape(n, -1, *x.shape[1:2], x.shape[3]).transpose(2, 0, 3, 1).copy()
            ).double()

        scores = heads_of(q, heads) @ heads_of(k, kv).repeat_interleave(heads // kv, 1).transpose(2, 3) * 0.3
        if mask is not None:
            scores = scores + torch.from_numpy(mask.transpose(1, 0, 2, 3).copy()).double()
        if masked == "causal":
            scores = scores + torch.full((t, s), -math.inf).triu(1)
        weights = torch.softmax(scores, 3).nan_to_num(0.0)
        y = weights @ heads_of(v, kv).repeat_interleave(heads // kv, 1)  # [images, heads, t, e]
        expected = y.numpy().transpose(1, 3, 0, 2).reshape(heads * e, images, 1, t)
        for layout in (tight, lambda *a: guarded(*a, lead=16)):
            arrays = [(a, layout(*a.shape)) for a in (q, k, v)] + (
                [(mask, tight(*mask.shape))] if mask is not None else []
            )
            result = apply(
                arrays,
                layout(*expected.shape),
                lambda p, i, o, h=heads, g=kv: p.attention(
                    i[0], i[1], i[2], o, h, g, 0.3, masked == "causal", i[3] if len(i) > 3 else None
                ),
            )
            close(result, expected)


def test_matmul(isa: str) -> None:
    rng = np.random.default_rng(16)
    for m, n, k, batch in [
        (1, 1, 1, ()),
        (5, 7, 9, (3,)),
        (70, 3, 33, (2, 2)),
        (33, 130, 600, ()),
        (1, 40, 40, (4,)),
    ]:
        for turned in itertools.product((False, True), repeat=3):
            arrays = [random(rng, *batch, *size) for size in ((m, k), (k, n), (m, n))]
            a, b, y = (x.swapaxes(-1, -2).copy().swapaxes(-1, -2) if t else x for x, t in zip(arrays, turned))
            program = _native.Program(0, [("float32", a.size), ("float32", b.size)], [("float32", y.size)])
            views = [
                program.input(i, 0, 1, 1, 1, x.size, x.size, x.size, x.size) for i, x in enumerate((a, b))
            ]
            out = program.output(0, 0, 1, 1, 1, y.size, y.size, y.size, y.size)
            step = [tuple(s // 4 for s in x.strides) for x in (a, b, y)]
            program.matmul(
                *views,
                out,
                (m, n, k),
                step[0][-2:],
                step[1][-2:],
                step[2][-2:],
                batch,
                *(s[:-2] for s in step),
                factor=0.5,
            )
            flat = [x.swapaxes(-1, -2) if t else x for x, t in zip((a, b, y), turned)]
            program.run(flat[:2], flat[2:], threads=2)
            close(y, 0.5 * (a.astype(float) @ b.astype(float)), 2e-6 * math.sqrt(k))


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_conv(isa: str, density: float) -> None:
    rng = np.random.default_rng(17)
    cases = [
        # out, in, images, size, kernel, stride, padding, dilation, groups
        (5, 3, 1, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        (16, 40, 2, (7, 7), (1, 1), (1, 1), (0, 0), (1, 1), 1),
        (6, 6, 1, (9, 9), (3, 3), (2, 2), (1, 1), (1, 1), 3),
        (8, 8, 3, (5, 6), (3, 3), (1, 1), (2, 2), (2, 2), 8),
        (4, 2, 1, (1, 30), (1, 5), (1, 1), (0, 2), (1, 1), 1),
        (7, 3, 1, (12, 12), (7, 7), (2, 2), (3, 3), (1, 1), 1),
        (3, 2, 2, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ]
    for o, c, i, (h, w), kernel, stride, pad, dilation, groups in cases:
        x, bias = random(rng, c, i, h, w), random(rng, o)
        weight = random(rng, o, c // groups, *kernel)
        weight[rng.random(weight.shape) >= density] = 0
        z = F.conv2d(
            nchw(x),
            torch.from_numpy(weight).double(),
            torch.from_numpy(bias).double(),
            stride,
            pad,
            dilation,
            groups,
        )
        residual = random(rng, *back(z).shape)
        expected = np.maximum(back(z) + residual, 0)
        oh, ow = z.shape[2:]
        reach = max((k - 1) * d for k, d in zip(kernel, dilation)) + 1
        phases = (c * stride[0] * stride[1], i, -(-h // stride[0]), -(-w // stride[1]))
        g, out = conv_geometries(phases[0], o, i, *phases[2:], oh, ow, reach)
        split = np.zeros((c, i, phases[2] * stride[0], phases[3] * stride[1]), np.float32)
        split[:, :, :h, :w] = x
        split = (
            split.reshape(c, i, phases[2], stride[0], phases[3], stride[1])
            .transpose(0, 3, 5, 1, 2, 4)
            .reshape(phases)
        )
        s = sparse(weight)
        for given, schedule in itertools.product(
            (weight, (s.starts, s.places, s.values)), (None, [1, 2, 7], [2, 1, 5], [4, 2, 0])
        ):
            options = {
                "groups": groups,
                "stride": stride,
                "padding": pad,
                "dilation": dilation,
                "schedule": schedule,
            }
            result = apply(
                [(split, g), (residual, out)],
                out,
                lambda p, v, y, a=(given, weight.shape, bias), b=options: p.conv(
                    v[0], y, *a, residual=v[1], activation=["relu"], **b
                ),
            )
            close(result, expected, 4e-6)


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_matvec(isa: str, density: float) -> None:
    rng = np.random.default_rng(18)
    for out, inside in [(1, 1), (10, 33), (300, 784), (1200, 70)]:
        weight, bias, x, residual = (
            random(rng, out, inside),
            random(rng, out),
            random(rng, inside),
            random(rng, out),
        )
        weight[rng.random(weight.shape) >= density] = 0
        x[rng.random(inside) < 0.5] = 0
        s = sparse(weight)
        expected = np.tanh(weight.astype(float) @ x + bias + residual)
        for given in (weight, (s.starts, s.places, s.values)):
            result = apply(
                [
                    (x.reshape(-1, 1, 1, 1), vectors(inside, 1)),
                    (residual.reshape(-1, 1, 1, 1), vectors(out, 1)),
                ],
                vectors(out, 1),
                lambda p, v, y, a=(given, weight.shape, bias): p.matvec(v[0], y, *a, v[1], ["tanh"]),
            )
            close(result[:, 0, 0, 0], expected, 1e-5)
