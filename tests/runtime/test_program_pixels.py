"""Operators of native programs over pixels or channels: pooling, reductions, normalisation, softmax."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.runtime.programs import (
    apply,
    back,
    close,
    guarded,
    nchw,
    pairs,
    random,
    tight,
    vectors,
)


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_pool(isa: str, kind: str) -> None:
    rng = np.random.default_rng(9)
    cases = [
        ((112, 30), 3, 2, 1, 1),
        ((7, 7), 2, 2, 0, 1),
        ((9, 33), 3, 1, 1, 1),
        ((8, 8), 5, 3, 2, 1),
        ((20, 20), 3, 2, 1, 2),
        ((1, 1), 1, 1, 0, 1),
    ]
    for (h, w), kernel, stride, pad, dilation in cases:
        if kind == "mean" and dilation > 1:
            continue
        for ceil, count in ((False, True), (True, True), (True, False)):
            x = random(rng, 3, 2, h, w)
            if kind == "max":
                x[0, 0, h // 2, w // 2] = np.nan
                torch_result = F.max_pool2d(nchw(x), kernel, stride, pad, dilation, ceil_mode=ceil)
            else:
                torch_result = F.avg_pool2d(
                    nchw(x), kernel, stride, pad, ceil_mode=ceil, count_include_pad=count
                )
            expected = back(torch_result)
            for g, o in pairs(3, 2, h, w)[:2]:
                del o
                result = apply(
                    [(x, g)],
                    guarded(*expected.shape),
                    lambda p, v, y, a=((kernel,) * 2, (stride,) * 2, (pad,) * 4, count, (dilation,) * 2): (
                        p.pool(v[0], y, kind, *a)
                    ),
                )
                close(result, expected)


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_adaptive_pool(isa: str, kind: str) -> None:
    rng = np.random.default_rng(10)
    function = F.adaptive_max_pool2d if kind == "max" else F.adaptive_avg_pool2d
    for (h, w), size in [
        ((7, 7), (1, 1)),
        ((112, 65), (1, 1)),
        ((10, 13), (3, 4)),
        ((2, 3), (4, 5)),
        ((1, 1), (1, 1)),
    ]:
        x = random(rng, 5, 2, h, w)
        expected = back(function(nchw(x), size))
        for g, _ in pairs(5, 2, h, w):
            o = vectors(5, 2) if size == (1, 1) else guarded(*expected.shape)
            close(apply([(x, g)], o, lambda p, v, y: p.adaptive_pool(v[0], y, kind)), expected)


def test_global_max_of_nan(isa: str) -> None:
    x = np.zeros((2, 1, 5, 7), np.float32)
    x[0, 0, 4, 6] = np.nan
    result = apply([(x, guarded(2, 1, 5, 7))], vectors(2, 1), lambda p, v, y: p.adaptive_pool(v[0], y, "max"))
    assert np.isnan(result[0])
    assert result[1] == 0


@pytest.mark.parametrize("kind", ["mean", "sum", "max", "min"])
def test_reduce(isa: str, kind: str) -> None:
    rng = np.random.default_rng(11)
    x = random(rng, 6, 2, 5, 40)
    for channels, h, w in itertools.product((6, 3, 2, 1), (5, 1), (40, 1)):
        grouped = x.astype(float).reshape(channels, 6 // channels, 2, 5, 40)
        axes = (1, *((3,) if h == 1 else ()), *((4,) if w == 1 else ()))
        expected = getattr(np, kind)(grouped, axis=axes, keepdims=True)[:, 0]
        for g, _ in pairs(6, 2, 5, 40)[:2]:
            close(
                apply([(x, g)], guarded(channels, 2, h, w), lambda p, v, y: p.reduce(v[0], y, kind)), expected
            )


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("pixels", [False, True])
def test_norm(isa: str, pixels: bool, rms: bool) -> None:
    rng = np.random.default_rng(12)
    for shape, groups in [
        ((48, 2, 1, 70), 1),
        ((6, 2, 5, 7), 3),
        ((40, 3, 1, 1), 2),
        ((64, 1, 1, 1), 1),
        ((5, 1, 4, 4), 5),
    ]:
        x = random(rng, *shape) * 3 + 1
        scale, shift = random(rng, shape[0]), random(rng, shape[0])
        z = x.astype(float).reshape(groups, shape[0] // groups, *shape[1:])
        axes = (1, 3, 4) if pixels else (1,)
        z = z - (0 if rms else z.mean(axes, keepdims=True))
        z = (z / np.sqrt((z**2).mean(axes, keepdims=True) + 1e-5)).reshape(shape)
        for g, o in pairs(*shape):
            result = apply(
                [(x, g)],
                o,
                lambda p, v, y, n=groups, a=scale, b=shift: p.norm(v[0], y, n, pixels, rms, 1e-5, a, b),
            )
            close(result, z * scale[:, None, None, None] + shift[:, None, None, None], 1e-5)
            close(
                apply([(x, g)], o, lambda p, v, y, n=groups: p.norm(v[0], y, n, pixels, rms, 1e-5)), z, 1e-5
            )


def test_norm_of_a_large_offset_is_stable(isa: str) -> None:
    rng = np.random.default_rng(13)
    x = random(rng, 64, 1, 1, 40) + 1000
    z = x.astype(float) - x.astype(float).mean(0)
    for pixels in (False, True):
        w = x.astype(float) - x.astype(float).mean() if pixels else z
        result = apply(
            [(x, tight(64, 1, 1, 40))],
            tight(64, 1, 1, 40),
            lambda p, v, y, q=pixels: p.norm(v[0], y, 1, q, False, 1e-5),
        )
        close(result, w / np.sqrt((w**2).mean(None if pixels else 0) + 1e-5), 1e-4)


@pytest.mark.parametrize("over", ["channels", "rows", "planes"])
@pytest.mark.parametrize("log", [False, True])
def test_softmax(isa: str, over: str, log: bool) -> None:
    rng = np.random.default_rng(14)
    for shape, groups in [
        ((12, 2, 3, 40), 1),
        ((12, 1, 5, 7), 3),
        ((1000, 1, 1, 1), 1),
        ((10, 5, 1, 1), 1),
        ((2, 1, 4, 2100), 1),
    ]:
        x = random(rng, *shape) * 10
        groups = groups if over == "channels" else 1
        t = torch.from_numpy(x).double()
        if over == "channels":
            z = torch.softmax(t.reshape(groups, -1, *shape[1:]), 1).reshape(shape)
        else:
            z = torch.softmax(t, 3) if over == "rows" else torch.softmax(t.flatten(2), 2).reshape(shape)
        expected = (torch.log(z) if log else z).numpy()
        for g, o in pairs(*shape):
            close(apply([(x, g)], o, lambda p, v, y, n=groups: p.softmax(v[0], y, over, n, log)), expected)


def test_softmax_of_nan_and_infinity(isa: str) -> None:
    x = np.array([[1, -np.inf, 2], [np.nan, 1, 2], [-np.inf] * 3, [np.inf, 1, 2]], np.float32)
    expected = torch.softmax(torch.from_numpy(x), 1).numpy()
    rows = x[:, None, None, :]
    g = tight(*rows.shape)
    np.testing.assert_allclose(
        apply([(rows, g)], g, lambda p, v, y: p.softmax(v[0], y, "rows"))[:, 0, 0], expected, rtol=1e-6
    )
    columns = x.T[:, None, None, :]
    g = tight(*columns.shape)
    result = apply([(columns, g)], g, lambda p, v, y: p.softmax(v[0], y, "channels"))
    np.testing.assert_allclose(result[:, 0, 0].T, expected, rtol=1e-6)
