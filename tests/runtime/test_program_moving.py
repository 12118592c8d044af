"""Operators of native programs that move."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from tests.runtime.programs import (
    apply,
    back,
    close,
    floats,
    guarded,
    nchw,
    random,
    tight,
    up,
)

from rewound.runtime import _native


def test_copy_permutes_slices_and_repeats(isa: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        axes = int(rng.integers(1, 6))
        shape = [int(n) for n in rng.integers(1, [40, 20, 9, 6, 4][axes - 1], axes)]
        source = random(rng, *shape)
        starts = [int(rng.integers(0, n)) for n in shape]
        steps = [int(rng.choice([1, 1, 2, -1])) for _ in shape]
        cut = source[tuple(slice(s, None, step) for s, step in zip(starts, steps))]
        if rng.random() < 0.3:
            cut = np.broadcast_to(cut, (3, *cut.shape))
        order = rng.permutation(cut.ndim)
        moved = cut.transpose(order)
        expected = np.ascontiguousarray(moved)
        target = expected.size
        program = _native.Program(0, [("float32", source.size)], [("float32", target)])
        x = program.input(0, 0, 1, 1, 1, source.size, source.size, source.size, source.size)
        y = program.output(0, 0, 1, 1, 1, target, target, target, target)
        start = sum(s * st // 4 for s, st in zip(starts, source.strides))
        program.copy(
            x,
            y,
            list(moved.shape),
            [s // 4 for s in moved.strides],
            [s // 4 for s in expected.strides],
            start,
        )
        out = np.full(expected.shape, np.nan, np.float32)
        program.run([source], [out], threads=2)
        np.testing.assert_array_equal(out, expected)


def test_copy_of_more_tasks_than_the_first_axis_has(isa: str) -> None:
    source = random(np.random.default_rng(25), 5, 3, 60, 70)
    for order in ((0, 1, 2, 3), (1, 0, 2, 3), (3, 0, 2, 1), (1, 3, 2, 0)):
        moved = source.transpose(order)
        cut = moved[:, :, ::2, ::2]
        for taken in (moved, cut):
            expected = np.ascontiguousarray(taken)
            n, room = expected.size, 4096
            program = _native.Program(0, [("float32", source.size)], [("float32", n)])
            x = program.input(0, 0, 1, 1, 1, source.size, source.size, source.size, source.size)
            y = program.output(0, 0, 1, 1, 1, n, n, n, n)
            program.copy(
                x, y, taken.shape, [s // 4 for s in taken.strides], [s // 4 for s in expected.strides]
            )
            around = np.full(n + 2 * room, 7.5, np.float32)
            program.run([source], [around[room : room + n]], threads=3)
            np.testing.assert_array_equal(around[room : room + n].reshape(expected.shape), expected)
            assert (around[:room] == 7.5).all()
            assert (around[room + n :] == 7.5).all()


def test_phases(isa: str) -> None:
    rng = np.random.default_rng(6)
    for (c, i, h, w), stride, pad in [
        ((3, 2, 7, 9), (2, 2), (0, 0)),
        ((2, 1, 8, 8), (2, 2), (1, 1)),
        ((1, 1, 1, 20), (1, 3), (0, 2)),
    ]:
        x = random(rng, c, i, h, w)
        out = (c * stride[0] * stride[1], i, -(-(h + pad[0]) // stride[0]), -(-(w + pad[1]) // stride[1]) + 1)
        big = np.zeros((c, i, out[2] * stride[0], out[3] * stride[1]), np.float32)
        big[:, :, pad[0] : pad[0] + h, pad[1] : pad[1] + w] = x
        expected = (
            big.reshape(c, i, out[2], stride[0], out[3], stride[1]).transpose(0, 3, 5, 1, 2, 4).reshape(out)
        )
        for g, o in ((tight(c, i, h, w), guarded(*out)), (guarded(c, i, h, w), guarded(*out, right=3))):
            result = apply([(x, g)], o, lambda p, v, y, s=stride, q=pad: p.phases(v[0], y, s, q))
            np.testing.assert_array_equal(result, expected)


def test_embedding(isa: str) -> None:
    rng = np.random.default_rng(7)
    table = random(rng, 11, 37)
    ids = rng.integers(0, 11, (3, 9))
    g = guarded(37, 3, 1, 9, lead=2)
    program = _native.Program(up(floats(g)), [("int64", 27)], [("float32", 37 * 27)])
    y = program.value(0, *g)
    program.embedding(0, y, table, image_stride=9)
    program.unary(y, program.output(0, 0, 37, 3, 1, 9, 9, 9, 27), None)
    out = np.empty((37, 3, 9), np.float32)
    program.run([ids], [out], threads=2)
    np.testing.assert_array_equal(out, table[ids].transpose(2, 0, 1))
    for bad in (-1, 11, 2**40):
        with pytest.raises(IndexError, match="rows 0 to 10"):
            program.run([np.where(ids == ids[1, 2], bad, ids)], [out])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsample(isa: str, mode: str) -> None:
    rng = np.random.default_rng(8)
    for (h, w), (oh, ow) in [((4, 5), (8, 10)), ((1, 1), (3, 2)), ((7, 6), (5, 17)), ((3, 3), (1, 1))]:
        x = random(rng, 3, 2, h, w)
        for align in (False, True) if mode == "bilinear" else (False,):
            for scale in (None, (oh / h, ow / w)):
                result = apply(
                    [(x, guarded(3, 2, h, w))],
                    guarded(3, 2, oh, ow),
                    lambda p, v, y, s=scale, a=align: p.upsample(v[0], y, mode, align_corners=a, scale=s),
                )
                expected = F.interpolate(
                    nchw(x), (oh, ow), mode=mode, align_corners=align if mode == "bilinear" else None
                )
                close(result, back(expected))
    x = random(
        rng, 1, 1, 6, 6
    )  # a scale whose product is cut off: torch divides by the scale, not by the sizes
    result = apply(
        [(x, tight(1, 1, 6, 6))],
        tight(1, 1, 9, 9),
        lambda p, v, y: p.upsample(v[0], y, mode, scale=(1.6, 1.6)),
    )
    close(result, back(F.interpolate(nchw(x), scale_factor=1.6, mode=mode)))
