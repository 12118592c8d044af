"""Bad input to native programs is refused and never crashes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.runtime.programs import (
    network,
    up,
)

from rewound.runtime import _native


def test_arrays_of_a_run_are_checked() -> None:
    program = network(8, 9)
    x, y = np.zeros((3, 9, 9), np.float32), np.zeros(10, np.float32)
    for inputs, outputs, message in [
        ([], [y], "0 arrays for 1 inputs"),
        ([x[:2].copy()], [y], "162 elements"),
        ([x.astype(np.float64)], [y], "not float32"),
        ([x], [np.zeros(11, np.float32)], "11 elements"),
    ]:
        with pytest.raises(ValueError, match=message):
            program.run(inputs, outputs)
    for groups, threads in ((0, 1), (-1, 1), (1, 0), (2**40, 1), (1, 10**6)):
        with pytest.raises(ValueError):
            program.run([x], [y], groups=groups, threads=threads)
    with pytest.raises(TypeError):
        program.run([x.transpose(0, 2, 1)], [y])  # not contiguous: nothing is copied silently
    frozen = np.zeros(10, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        program.run([x], [frozen])
    x.flags.writeable = False
    program.run([x], [y])
    with pytest.raises(ValueError, match="has run"):
        program.fill(0, 1.0)


def test_messages_say_what_is_wrong() -> None:
    p = _native.Program(1000, [("float32", 10), ("int64", 10)], [("float32", 10)])
    x = p.value(0, 4, 1, 3, 3, 4, 5, 17, 32)
    v = p.value(160, 4, 1, 1, 1, 1, 0, 1, 1)
    weight = np.ones((4, 4, 3, 3), np.float32)
    for call, message in [
        (lambda: p.value(3, 1, 1, 1, 1, 1, 0, 1, 1), "multiple of 16"),
        (lambda: p.value(0, 1000, 1, 3, 3, 4, 5, 17, 32), "does not fit"),
        (lambda: p.value(0, 2**62, 1, 3, 3, 4, 5, 17, 32), "size"),
        (lambda: p.value(0, 4, 1, 3, 3, 2, 5, 17, 32), "pitch 2"),
        (lambda: p.input(1, 0, 1, 1, 1, 10, 10, 10, 10), "only embedding"),
        (lambda: p.input(0, 1, 1, 1, 1, 10, 10, 10, 10), "reaches"),
        (lambda: p.unary(x, 77, None), "no value 77"),
        (lambda: p.unary(x, v, None), "expected 4, 1 of 3 x 3"),
        (lambda: p.unary(x, x, ["relux"]), "no activation 'relux'"),
        (lambda: p.unary(x, x, ["clamp", 1.0]), "lacks a number"),
        (lambda: p.unary(x, x, ["clamp", "a", "b"]), "number"),
        (lambda: p.binary(x, x, x, "plus"), "no kind 'plus'"),
        (lambda: p.binary(x, x, v, "add"), "broadcast"),
        (lambda: p.affine(x, x, np.ones(3, np.float32), None), "3 numbers for 4 channels"),
        (lambda: p.norm(x, x, 3, True, False, 1e-5), "groups"),
        (lambda: p.pool(x, x, "max", (9, 9), (1, 1)), "window"),
        (lambda: p.conv(x, x, weight, (4, 4, 3, 3)), "tap"),
        (lambda: p.conv(x, x, weight, (4, 4, 3, 2)), "288|144"),
        (lambda: p.conv(x, x, "weight", (4, 4, 3, 3)), "float32"),
        (lambda: p.matvec(x, v, np.ones((4, 4), np.float32), (4, 4)), "expected 4, 1 of 1 x 1"),
        (lambda: p.embedding(0, x, np.ones((4, 4), np.float32)), "int64"),
        (lambda: p.copy(x, x, [40], [4], [1]), "reaches"),
        (lambda: p.matmul(x, x, x, (200, 1, 1), (1, 1), (1, 1), (1, 1)), "reaches"),
        (lambda: p.attention(x, x, x, x, 2, 2, 1.0), "1 x 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert p.operators() == []


ODD = [
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    16,
    17,
    31,
    32,
    64,
    100,
    2**20,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
]


class Descriptors:
    """Random numbers for descriptors: mostly likely ones, sometimes any."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def number(self, *likely: int) -> int:
        if self.rng.random() < 0.93:
            return int(self.rng.choice(likely or (1, 2, 3, 4)))
        return ODD[int(self.rng.integers(len(ODD)))]

    def numbers(self, count: int, *likely: int) -> tuple[int, ...]:
        return tuple(self.number(*likely) for _ in range(count))

    def value(self) -> int:
        return self.number(*range(12))

    def geometry(self) -> list[int]:
        n = self.number
        c, i, h, w = n(1, 2, 4, 8, 9), n(1, 1, 2), n(1, 1, 2, 5), n(1, 4, 7)
        pitch, lead = n(w, w, w + 1, w + 2), n(0, 8, 16)
        plane = n(*(lead + h * pitch + k for k in (0, 0, 3, 9) if abs(h * pitch) < 2**60), 20)
        stride = n(*(up(i * plane + k) for k in (0, 0, 16) if abs(i * plane) < 2**60), 48)
        return [max(-(2**63), min(2**63 - 1, number)) for number in (c, i, h, w, pitch, lead, plane, stride)]

    def array(self, *shape: int) -> np.ndarray:
        return np.ones([min(max(n, 0), 9) for n in shape], np.float32)

    def call(self, p: Any) -> None:
        """One call of a method with such numbers."""
        n, ns, v, a = self.number, self.numbers, self.value, self.array
        port = [g for k, g in enumerate(self.geometry()) if k != 5]
        sparse_weight = (np.array([0, n(), 2]), np.array([n() % 9, n() % 9], np.int32), a(2))
        calls: list[Callable[[], Any]] = [
            lambda: p.value(n(*range(0, 2048, 16)), *self.geometry()),
            lambda: p.constant(a(n(), 8), tuple(self.geometry())),
            lambda: p.input(n(0, 1), n(0, 5), *port),
            lambda: p.output(0, n(0, 5), *port),
            lambda: p.conv(v(), v(), a(4, 4, 3, 3), (4, 4, 3, 3), None, None, n(1), ns(2, 1, 2), ns(2, 0, 1), ns(2, 1)),
            lambda: p.conv(v(), v(), a(n(), n()), (n(), n(), 1, 1), residual=v(), schedule=ns(n(3, 5) % 8, 0, 1, 2, 4, 8)),
            lambda: p.conv(v(), v(), sparse_weight, (2, n(), n(1), n(1)), padding=ns(2, 0, 1)),
            lambda: p.matvec(v(), v(), a(4, 4), ns(2, 4)),
            lambda: p.phases(v(), v(), ns(2, 1, 2), ns(2, 0, 1)),
            lambda: p.copy(v(), v(), ns(3), ns(3), ns(3), n(0, 1), n(0, 1)),
            lambda: p.clear(v()),
            lambda: p.fill(v(), 1.0),
            lambda: p.unary(v(), v(), ["gelu"]),
            lambda: p.affine(v(), v(), a(n(4, 8)), None),
            lambda: p.scalar(v(), v(), "pow", 2.0),
            lambda: p.binary(v(), v(), v(), "div"),
            lambda: p.pool(v(), v(), "mean", ns(2, 1, 2, 3), ns(2, 1, 2), ns(4, 0, 1), True, ns(2, 1)),
            lambda: p.adaptive_pool(v(), v(), "max"),
            lambda: p.reduce(v(), v(), "sum"),
            lambda: p.norm(v(), v(), n(1, 2), bool(n() % 2), False, 1e-5),
            lambda: p.softmax(v(), v(), "channels", n(1, 2)),
            lambda: p.attention(v(), v(), v(), v(), n(1, 2), n(1), 1.0, True, v()),
            lambda: p.matmul(v(), v(), v(), ns(3), ns(2), ns(2), ns(2), *([n()] for _ in range(4)), ns(3, 0, 1)),
            lambda: p.embedding(n(1), v(), a(n(), n(1, 2, 4, 8)), *ns(3, 0, 1), n(1)),
            lambda: p.upsample(v(), v(), "bilinear", True, (2.0, 0.5)),
        ]  # fmt: skip
        calls[int(self.rng.integers(len(calls)))]()


@pytest.fixture(params=[64, 16384])
def task_size(request: pytest.FixtureRequest) -> Iterator[int]:
    _native.use_task_size(request.param)
    yield request.param
    _native.use_task_size(16384)


def test_random_descriptors_are_refused_or_run(isa: str, task_size: int) -> None:
    found = Descriptors(24 + task_size)
    accepted = refused = 0
    for _ in range(80):
        program = _native.Program(4096, [("float32", 256), ("int64", 16)], [("float32", 256)])
        for _ in range(12):
            with contextlib.suppress(ValueError):
                program.value(found.number(*range(0, 2048, 16)), *found.geometry())
        for _ in range(60):
            try:
                found.call(program)
                accepted += 1
            except ValueError:
                refused += 1
        program.run(
            [np.ones(256, np.float32), np.zeros(16, np.int64)], [np.zeros(256, np.float32)], threads=2
        )
    assert accepted > 300
    assert refused > 300
