"""Native programs of one operator in an arena full of rubbish, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rewound.runtime import _native

Geometry = tuple[int, int, int, int, int, int, int, int]


def up(number: int, step: int = 16) -> int:
    return -(-number // step) * step


def tight(c: int, i: int, h: int, w: int) -> Geometry:
    return (c, i, h, w, w, 0, h * w, i * h * w)


def guarded(c: int, i: int, h: int, w: int, right: int = 1, lead: int = 0, below: int = 0) -> Geometry:
    lead = lead or w + right + 1
    plane = lead + h * (w + right) + below
    return (c, i, h, w, w + right, lead, plane, up(i * plane))


def vectors(c: int, i: int) -> Geometry:
    return (c, i, 1, 1, 1, 0, 1, i if i == 1 else up(i))


def floats(g: Geometry) -> int:
    return g[0] * g[7] + g[5]


def view(raw: np.ndarray, g: Geometry) -> np.ndarray:
    c, i, h, w, pitch, lead, plane, stride = g
    return np.lib.stride_tricks.as_strided(
        raw[lead:], (c, i, h, w), [4 * s for s in (stride, plane, pitch, 1)]
    )


def planar(array: np.ndarray, g: Geometry) -> np.ndarray:
    raw = np.zeros(floats(g), np.float32)
    view(raw, g)[...] = array
    return raw


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(1, 0, 2, 3))).double()


def back(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().transpose(1, 0, 2, 3)


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


ROOM = 256  # floats around a result that nobody may write
Build = Callable[[Any, list[int], int], None]


def apply(arrays: Sequence[tuple[np.ndarray, Geometry]], out: Geometry, build: Build) -> np.ndarray:
    """Run one operator in an arena full of rubbish; check that its guards are zero, and that the bits are the same where it
    is split into many tasks for 3 threads."""
    raw = _run(arrays, out, build, threads=1)
    _native.use_task_size(16)
    try:
        split = _run(arrays, out, build, threads=3)
    finally:
        _native.use_task_size(16384)
    np.testing.assert_array_equal(raw.view(np.int32), split.view(np.int32))
    result = view(raw, out).copy()
    view(raw, out)[...] = 0
    assert not raw.any(), "guards are not zero"
    return result


def _run(
    arrays: Sequence[tuple[np.ndarray, Geometry]], out: Geometry, build: Build, threads: int
) -> np.ndarray:
    sizes = [up(floats(g)) for _, g in arrays]
    inputs = [("float32", floats(g)) for _, g in arrays] + [("float32", up(floats(out)))]
    program = _native.Program(sum(sizes) + up(floats(out)), inputs, [("float32", floats(out))])
    ids, offset = [], 0
    for index, (_, g) in enumerate(arrays):
        ids.append(program.value(offset, *g))
        offset += sizes[index]
        flat = program.input(index, 0, 1, 1, 1, floats(g), floats(g), floats(g), floats(g))
        program.copy(flat, ids[-1], [floats(g)], [1], [1])
    y = program.value(offset, *out)
    n = floats(out)
    program.copy(program.input(len(arrays), 0, 1, 1, 1, n, n, n, n), y, [n], [1], [1])
    build(program, ids, y)
    program.copy(y, program.output(0, 0, 1, 1, 1, n, n, n, n), [n], [1], [1])
    around = np.full(n + 2 * ROOM, 7.5, np.float32)
    feed = [planar(a, g) for a, g in arrays] + [np.full(up(n), 7.5, np.float32)]
    program.run(feed, [around[ROOM : ROOM + n]], threads=threads)
    assert (around[:ROOM] == 7.5).all()
    assert (around[ROOM + n :] == 7.5).all()
    return around[ROOM : ROOM + n]


def close(result: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * scale)


SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 5, 7),
    (5, 2, 1, 33),
    (7, 3, 1, 1),
    (33, 1, 1, 1),
    (4, 1, 14, 14),
    (6, 2, 3, 16),
    (2, 1, 70, 65),
    (1, 2, 130, 131),  # more tasks than channels
]


def layouts(c: int, i: int, h: int, w: int) -> list[Geometry]:
    found = [tight(c, i, h, w), guarded(c, i, h, w), guarded(c, i, h, w, right=0, lead=16, below=3)]
    if h == w == 1:
        found.append(vectors(c, i))
    return found


def pairs(c: int, i: int, h: int, w: int) -> list[tuple[Geometry, Geometry]]:
    same = [(g, g) for g in layouts(c, i, h, w)]
    return same + [
        (tight(c, i, h, w), guarded(c, i, h, w)),
        (guarded(c, i, h, w, right=2), tight(c, i, h, w)),
    ]


def conv_geometries(
    c: int, o: int, i: int, h: int, w: int, oh: int, ow: int, reach: int
) -> tuple[Geometry, Geometry]:
    pitch = max(w, ow) + reach
    lead = up(reach * (pitch + 1), 16)
    plane = lead + max(h, oh) * pitch + reach * (pitch + 1)
    return (c, i, h, w, pitch, lead, plane, up(i * plane)), (o, i, oh, ow, pitch, lead, plane, up(i * plane))


def network(channels: int = 24, size: int = 20) -> Any:
    """A small network of many kinds of operators, [3, size, size] -> [10]."""
    rng = np.random.default_rng(20)
    pitch = size + 1
    lead = up(pitch + 1)
    plane = lead + size * pitch + pitch
    stride = up(plane)
    program = _native.Program(4 * channels * stride, [("float32", 3 * size * size)], [("float32", 10)])
    geometry = (1, size, size, pitch, lead, plane, stride)
    a = program.value(0, 3, *geometry)
    b, c, d = (program.value(i * up(channels * stride + lead), channels, *geometry) for i in (1, 2, 0))
    program.unary(program.input(0, 0, 3, 1, size, size, size, 3 * size * size, size * size), a, None)
    program.conv(
        a, b, random(rng, channels, 3, 3, 3), (channels, 3, 3, 3), padding=(1, 1), activation=["relu"]
    )
    program.conv(
        b,
        c,
        random(rng, channels, channels, 3, 3) / 9,
        (channels, channels, 3, 3),
        padding=(1, 1),
        residual=b,
    )
    program.norm(c, d, 4, True, False, 1e-5)
    program.pool(d, b, "max", (3, 3), (1, 1), (1, 1, 1, 1))
    program.softmax(b, c, "channels")
    program.binary(b, c, c, "mul", ["gelu"])
    mean = program.value(0, channels, 1, 1, 1, 1, 0, 1, 1)
    program.adaptive_pool(c, mean, "mean")
    logits = program.value(64, 10, 1, 1, 1, 1, 0, 1, 1)
    program.matvec(mean, logits, random(rng, 10, channels), (10, channels))
    program.unary(logits, program.output(0, 0, 10, 1, 1, 1, 1, 1, 1), None)
    return program
