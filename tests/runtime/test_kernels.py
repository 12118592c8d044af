"""Products with fixed weights against a float64 reference: odd shapes, densities from none to all, every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest

_native = pytest.importorskip("rewound.runtime._native", reason="built without a compiler")

SETS = _native.instruction_sets()
EPS = np.finfo(np.float32).eps


@pytest.fixture(params=SETS)
def kernels(request):
    before = _native.instruction_set()
    _native.use_instruction_set(request.param)
    _native.use_task_size(16)  # small products are split as well
    yield request.param
    _native.use_task_size(16384)
    _native.use_instruction_set(before)


def up(n, multiple=16):
    return -(-n // multiple) * multiple


def csr(weight):
    flat = weight.reshape(len(weight), -1)
    rows, places = np.nonzero(flat)
    starts = np.zeros(len(weight) + 1, np.int64)
    starts[1:] = np.cumsum(np.bincount(rows, minlength=len(weight)))
    return starts, places.astype(np.int32), flat[rows, places]


def weight_of(rng, shape, density):
    if density == "one":
        weight = np.zeros(shape, np.float32)
        weight.reshape(-1)[rng.integers(weight.size)] = 1.5
        return weight
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def reference(x, weight, bias, stride, padding, dilation, groups):
    """The convolution in float64, and the sum of magnitudes that its rounding errors grow with."""
    images, _, height, width = x.shape
    out, each, kh, kw = weight.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    rows = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((images, out, rows, columns))
    size = np.zeros_like(y)
    for o, i, a, b in np.argwhere(weight):
        channel = o // (out // groups) * each + i
        top, left = a * dilation[0], b * dilation[1]
        part = (
            padded[
                :,
                channel,
                top : top + stride[0] * (rows - 1) + 1 : stride[0],
                left : left + stride[1] * (columns - 1) + 1 : stride[1],
            ]
            * weight[o, i, a, b]
        )
        y[:, o] += part
        size[:, o] += np.abs(part)
    return y + bias[:, None, None].astype(np.float64), size + np.abs(bias)[:, None, None]


class Planar:
    """One convolution as a program: input to planes, phases where there is a stride, the product, planes to output."""

    def __init__(self, x, weight, bias, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, residual=None, dense=False,
                 activation=None, schedule=None, at=None):  # fmt: skip
        """at: rows so far apart, without a guard to the left and right."""
        self.x = x
        images, channels, height, width = x.shape
        out, _, kh, kw = weight.shape
        rows = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
        columns = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
        strided = stride != (1, 1)
        reach = [(k - 1) * d // s for k, d, s in zip((kh, kw), dilation, stride)]
        if strided:  # phase planes hold their own padding
            inner = (rows + reach[0], columns + reach[1])
            pitch, lead, planes = inner[1], 0, channels * stride[0] * stride[1]
        else:
            inner = (height, width)
            guard = max(padding[1], columns - 1 + reach[1] - padding[1] - (width - 1), 0)
            above = max(padding[0], rows - 1 + reach[0] - padding[0] - (height - 1), 0)
            pitch, planes = max(width, columns) + guard, channels
            lead = above * pitch + guard
        inside = (0, 0) if strided else padding
        if at is not None:
            if strided:  # phase planes hold no padding
                inner, inside = tuple(-(-n // s) for n, s in zip((height, width), stride)), padding
            pitch, lead = at, up(at, math.lcm(at, 16)) if images == 1 else at
        plane = lead + (max(inner[0], rows) + (at is not None)) * pitch
        stride_of = up(images * plane)
        take, self.give = images * channels * height * width, (images, out, rows, columns)
        sizes = [up(planes * stride_of + lead), up(out * stride_of + lead)]
        self.floats = out * stride_of + lead
        ports = [("float32", take)] + ([("float32", math.prod(self.give))] if residual is not None else [])
        self.program = p = _native.Program(
            sum(sizes), ports, [("float32", math.prod(self.give)), ("float32", self.floats)]
        )
        given = p.input(
            0, 0, channels, images, height, width, width, channels * height * width, height * width
        )
        xs = p.value(0, planes, images, *inner, pitch, lead, plane, stride_of)
        self.y = y = p.value(sizes[0], out, images, rows, columns, pitch, lead, plane, stride_of)
        flat = (columns, out * rows * columns, rows * columns)
        if strided:
            p.phases(given, xs, stride, (0, 0) if at is not None else padding)
        else:
            p.unary(given, xs, None)
        self.arrays = [x]
        if residual is not None:  # stands where the result will stand
            p.unary(p.input(1, 0, out, images, rows, columns, *flat), y, None)
            self.arrays.append(residual)
        p.conv(
            xs, y, weight if dense else csr(weight), weight.shape, bias, y if residual is not None else None, groups=groups,
            stride=stride, padding=inside, dilation=dilation, activation=activation, schedule=schedule,
        )  # fmt: skip
        p.unary(y, p.output(0, 0, out, images, rows, columns, *flat), None)
        p.copy(
            y,
            p.output(1, 0, 1, 1, 1, self.floats, self.floats, self.floats, self.floats),
            [self.floats],
            [1],
            [1],
        )

    def run(self, threads=1):
        y, memory = np.empty(self.give, np.float32), np.empty(self.floats, np.float32)
        self.program.run(self.arrays, [y, memory], threads=threads)
        return y, memory


# channels, out, (height, width), kernel, stride, padding, dilation, groups, images
SHAPES = {
    "one pixel": (5, 7, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
    "one pixel, batch": (17, 3, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1, 5),
    "one pixel, 3x3": (3, 4, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1), 1, 2),
    "width one": (3, 5, (9, 1), (3, 1), (1, 1), (1, 0), (1, 1), 1, 1),
    "one channel": (1, 1, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    "7x7": (17, 13, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    "7x7, three images": (6, 9, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 3),
    "14x14, 1x1": (19, 21, (14, 14), (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
    "no padding": (3, 6, (9, 8), (5, 3), (1, 1), (0, 0), (1, 1), 1, 2),
    "wide padding": (2, 3, (4, 5), (7, 7), (1, 1), (3, 3), (1, 1), 1, 1),
    "dilated": (4, 5, (11, 9), (3, 3), (1, 1), (2, 2), (2, 2), 1, 1),
    "stride 2": (3, 8, (15, 14), (7, 7), (2, 2), (3, 3), (1, 1), 1, 1),
    "stride 2, images": (4, 5, (8, 9), (3, 3), (2, 2), (1, 1), (1, 1), 1, 3),
    "stride 3, dilated": (2, 4, (17, 16), (3, 3), (3, 3), (1, 1), (2, 2), 1, 1),
    "stride 2 by 1": (3, 4, (9, 8), (3, 3), (2, 1), (1, 1), (1, 1), 1, 1),
    "groups": (12, 20, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1), 4, 2),
    "depthwise": (11, 11, (9, 10), (3, 3), (1, 1), (1, 1), (1, 1), 11, 1),
    "depthwise, doubled, stride 2": (5, 10, (9, 10), (3, 3), (2, 2), (1, 1), (1, 1), 5, 1),
    "1-D": (7, 6, (1, 40), (1, 5), (1, 1), (0, 2), (1, 1), 1, 2),
    "many channels": (300, 40, (3, 3), (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
    "tokens": (48, 65, (1, 33), (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("density", [0, "one", 0.1, 0.5, 1])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_a_reference(kernels, name, density):
    channels, out, (height, width), kernel, stride, padding, dilation, groups, images = SHAPES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, channels, height, width)).astype(np.float32)
    weight = weight_of(rng, (out, channels // groups, *kernel), density)
    bias = rng.standard_normal(out).astype(np.float32)
    expected, size = reference(x, weight, bias, stride, padding, dilation, groups)
    made = Planar(x, weight, bias, stride, padding, dilation, groups)
    for _ in range(2):  # a second run finds the arena as the first has left it
        y, memory = made.run()
    assert (np.abs(y - expected) <= 4 * EPS * size).all()
    assert np.count_nonzero(memory) <= y.size, "guards are zero"
    assert np.abs(memory).sum(dtype=np.float64) == pytest.approx(np.abs(y).sum(dtype=np.float64))
    for threads in (2, 3):
        again, _ = made.run(threads)
        np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize(
    "schedule", [(1, 1, 1), (1, 3, 9), (1, 8, 18), (2, 2, 9), (4, 1, 36), (4, 2, 0), (6, 1, 0)]
)
def test_every_schedule_computes_the_same(kernels, schedule):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 10, 9, 11)).astype(np.float32)
    weight = weight_of(rng, (13, 10, 3, 3), 0.3)
    bias = rng.standard_normal(13).astype(np.float32)
    residual = rng.standard_normal((2, 13, 9, 11)).astype(np.float32)
    expected, size = reference(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    expected = np.maximum(expected + residual, 0)
    y, _ = Planar(
        x, weight, bias, padding=(1, 1), residual=residual, activation=["relu"], schedule=schedule
    ).run()
    assert (np.abs(y - expected) <= 6 * EPS * (size + np.abs(residual))).all()


def test_blocks_share_their_taps(kernels):
    """Rows that were pruned in blocks are computed in blocks, and a dense weight in blocks of all rows."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 32, 8, 8)).astype(np.float32)
    blocks = np.repeat(rng.random((8, 32, 3, 3)) < 0.1, 4, axis=0)
    weight = (rng.standard_normal(blocks.shape) * blocks).astype(np.float32)
    bias = np.zeros(32, np.float32)
    made = Planar(x, weight, bias, padding=(1, 1))
    assert made.program.operators()[1]["schedule"][0] == 4
    full = rng.standard_normal(blocks.shape).astype(np.float32)
    dense = Planar(x, full, bias, padding=(1, 1), dense=True)
    assert dense.program.operators()[1]["schedule"][0] >= 4
    for planar, values in ((made, weight), (dense, full)):
        expected, size = reference(x, values, bias, (1, 1), (1, 1), (1, 1), 1)
        assert (np.abs(planar.run()[0] - expected) <= 4 * EPS * size).all()


@pytest.mark.parametrize("activation", [["gelu"], ["sigmoid"], ["clamp", -0.5, 0.25], ["tanh"], ["exp"]])
def test_activations_are_applied_once_and_leave_guards_alone(kernels, activation):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 40, 5, 5)).astype(np.float32)
    weight, bias = weight_of(rng, (9, 40, 3, 3), 0.2), rng.standard_normal(9).astype(np.float32)
    expected, _ = reference(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    f = {
        "gelu": lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)), "clamp": lambda v: np.clip(v, -0.5, 0.25), "tanh": np.tanh, "exp": np.exp,
    }[activation[0]]  # fmt: skip
    y, memory = Planar(x, weight, bias, padding=(1, 1), activation=activation, schedule=(1, 2, 90)).run()
    np.testing.assert_allclose(y, f(expected), rtol=2e-4, atol=2e-5)
    assert np.count_nonzero(memory) <= y.size


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_reach_what_reads_them_and_nothing_else(kernels, value):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
    weight, bias = weight_of(rng, (5, 4, 3, 3), 0.5), np.zeros(5, np.float32)
    weight[2, 1, 1, 1] = value
    y, memory = Planar(x, weight, bias, padding=(1, 1), schedule=(1, 0, 0)).run()
    assert not np.isfinite(y[:, 2]).any()
    assert np.isfinite(np.delete(y, 2, axis=1)).all()
    assert np.isfinite(memory).sum() == memory.size - 36, "guards are zero"


# -- rows of pixels on whole vectors: no guard to the left and right of a window of up to three columns ---------------------

# channels, out, (height, width), kernel, stride, padding, images, pitch
ALIGNED = {
    "8": (17, 13, (8, 8), (3, 3), (1, 1), (1, 1), 1, 8),
    "7 of 8": (17, 13, (7, 7), (3, 3), (1, 1), (1, 1), 1, 8),
    "7 of 16": (5, 6, (7, 7), (3, 3), (1, 1), (1, 1), 1, 16),
    "16, images": (6, 9, (5, 16), (3, 3), (1, 1), (1, 1), 3, 16),
    "14 of 16": (9, 10, (14, 14), (3, 3), (1, 1), (1, 1), 1, 16),
    "28 of 32": (4, 7, (28, 28), (3, 3), (1, 1), (1, 1), 1, 32),
    "32": (5, 6, (9, 32), (3, 3), (1, 1), (1, 1), 2, 32),
    "56": (3, 4, (5, 56), (3, 3), (1, 1), (1, 1), 1, 56),
    "4": (11, 8, (4, 4), (3, 3), (1, 1), (1, 1), 1, 4),
    "4, images": (11, 8, (5, 4), (3, 3), (1, 1), (1, 1), 3, 4),
    "2": (11, 8, (2, 2), (3, 3), (1, 1), (1, 1), 1, 2),
    "1": (5, 3, (6, 1), (3, 3), (1, 1), (1, 1), 1, 1),
    "a row of three": (5, 3, (1, 24), (1, 3), (1, 1), (0, 1), 2, 24),
    "stride 2": (6, 5, (16, 32), (3, 3), (2, 2), (1, 1), 1, 16),
    "stride 2, images": (6, 5, (14, 14), (3, 3), (2, 2), (1, 1), 2, 8),
    "to the left alone": (6, 5, (8, 16), (2, 2), (1, 1), (1, 1), 1, 24),
    "depthwise": (11, 11, (9, 16), (3, 3), (1, 1), (1, 1), 1, 16),
}  # fmt: skip


@pytest.mark.parametrize("density", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("name", ALIGNED)
def test_aligned_rows_equal_a_reference(kernels, name, density):
    channels, out, (height, width), kernel, stride, padding, images, pitch = ALIGNED[name]
    groups = channels if name == "depthwise" else 1
    rng = np.random.default_rng(6)
    x = rng.standard_normal((images, channels, height, width)).astype(np.float32)
    weight = weight_of(rng, (out, channels // groups, *kernel), density)
    bias = rng.standard_normal(out).astype(np.float32)
    expected, size = reference(x, weight, bias, stride, padding, (1, 1), groups)
    made = Planar(x, weight, bias, stride, padding, groups=groups, schedule=(0, 0, 0, 0, 2), at=pitch)
    assert made.program.operators()[1]["schedule"][4] == 2
    for _ in range(2):
        y, memory = made.run()
    assert (np.abs(y - expected) <= 4 * EPS * size).all()
    assert np.count_nonzero(memory) <= y.size, "guards are zero"
    assert np.abs(memory).sum(dtype=np.float64) == pytest.approx(np.abs(y).sum(dtype=np.float64))
    for threads in (2, 3):
        np.testing.assert_array_equal(made.run(threads)[0], y)


@pytest.mark.parametrize(
    "schedule", [(1, 2, 18), (1, 8, 0), (1, 14, 0), (2, 2, 9), (2, 6, 0), (4, 2, 36), (6, 2, 0)]
)
@pytest.mark.parametrize(("width", "pitch"), [(16, 16), (13, 16), (32, 32)])
def test_every_aligned_schedule_computes_the_same(kernels, width, pitch, schedule):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 10, 9, width)).astype(np.float32)
    weight = weight_of(rng, (13, 10, 3, 3), 0.3)
    bias = rng.standard_normal(13).astype(np.float32)
    residual = rng.standard_normal((1, 13, 9, width)).astype(np.float32)
    expected, size = reference(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    expected = np.maximum(expected + residual, 0)
    rows, vectors, block = schedule
    held = 32 if _native.lanes() == 16 else 16
    row = pitch // _native.lanes()
    vectors = max(vectors // row, 1) * row
    given = (rows, vectors, block, _native.lanes(), 2)
    options = {
        "padding": (1, 1),
        "residual": residual,
        "activation": ["relu"],
        "schedule": given,
        "at": pitch,
    }
    if rows > 1 and rows * vectors + vectors + 1 > held:
        with pytest.raises(ValueError, match="no kernel"):
            Planar(x, weight, bias, **options)
        return
    made = Planar(x, weight, bias, **options)
    assert tuple(made.program.operators()[2]["schedule"][i] for i in (0, 4)) == (schedule[0], 2)
    y, _ = made.run()
    assert (np.abs(y - expected) <= 6 * EPS * (size + np.abs(residual))).all()


# -- a matrix and one vector ----------------------------------------------------------------------------------------


def matvec(x, weight, bias=None, activation=None, dense=False, threads=1):
    out, size = weight.shape
    at = up(size)
    p = _native.Program(at + up(out), [("float32", size)], [("float32", out)])
    xs = p.value(0, size, 1, 1, 1, 1, 0, 1, 1)
    y = p.value(at, out, 1, 1, 1, 1, 0, 1, 1)
    p.unary(p.input(0, 0, size, 1, 1, 1, 1, size, 1), xs, None)
    p.matvec(xs, y, weight if dense else csr(weight), weight.shape, bias, activation=activation)
    p.unary(y, p.output(0, 0, out, 1, 1, 1, 1, out, 1), None)
    found = np.empty(out, np.float32)
    p.run([x], [found], threads=threads)
    return found


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("density", [0, "one", 0.05, 0.5, 1])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (300, 784), (1030, 65), (10, 100), (6, 20000)])
@pytest.mark.parametrize(
    "zeros", [0, 0.5, 0.9]
)  # of x: sums go by rows, or by the columns of what is not zero
def test_matvec_equals_a_reference(kernels, shape, density, dense, zeros):
    rng = np.random.default_rng(5)
    weight, bias = weight_of(rng, shape, density), rng.standard_normal(shape[0]).astype(np.float32)
    x = (rng.standard_normal(shape[1]) * (rng.random(shape[1]) >= zeros)).astype(np.float32)
    exact = weight.astype(np.float64) @ x + bias
    y = matvec(x, weight, bias, dense=dense)
    size = np.abs(weight).astype(np.float64) @ np.abs(x) + np.abs(bias)
    assert (np.abs(y - exact) <= 8 * EPS * size).all()
    for threads in (2, 3):
        np.testing.assert_array_equal(matvec(x, weight, bias, dense=dense, threads=threads), y)
    np.testing.assert_array_equal(matvec(x, weight, bias, ["relu"], dense), np.maximum(y, 0))


def test_zero_activations_are_skipped_but_never_hide_a_weight_that_is_no_number(kernels):
    weight = np.array([[1.0, np.inf], [2.0, 0.0]], np.float32)
    y = matvec(np.array([1.0, 0.0], np.float32), weight)
    assert np.isnan(y[0]), "0 * inf is NaN, as in torch"
    assert y[1] == 2.0


def test_rows_that_are_filled_up_do_not_meet_an_infinite_activation(kernels):
    weight = np.zeros((7, 50), np.float32)
    weight[0, :5], weight[2, 3] = 1, 2  # lengths 5, 0, 1, 0 ...
    y = matvec(np.array([np.inf, *range(1, 50)], np.float32), weight)
    np.testing.assert_array_equal(y, [np.inf, 0, 6, 0, 0, 0, 0])


# -- what is refused -------------------------------------------------------------------------------------------------


def one(weight, shape, **given):
    p = _native.Program(4096, [], [])
    x = p.value(0, 2, 1, 4, 4, 5, 16, 48, 48)
    y = p.value(1024, 3, 1, 4, 4, 5, 16, 48, 48)
    p.conv(x, y, weight, shape, **given)


def survivors(starts, places):
    return np.array(starts), np.array(places, np.int32), np.ones(len(places), np.float32)


GOOD = np.ones((3, 2, 3, 3), np.float32)


def test_the_refusals_below_are_of_what_would_work():
    one(GOOD, GOOD.shape, padding=(1, 1))
    one(csr(GOOD), GOOD.shape, padding=(1, 1))


@pytest.mark.parametrize(
    ("weight", "shape", "given", "said"),
    [
        (GOOD, (3, 2, 3, 3), {"padding": (2, 2)}, "guard has"),
        (GOOD, (3, 2, 3, 3), {"padding": (1, 1), "dilation": (4, 4)}, "guard has"),
        (GOOD, (3, 2, 3, 3), {"padding": (1, 1), "groups": 2}, "do not divide"),
        (GOOD, (3, 3, 3, 3), {"padding": (1, 1)}, "a dense weight of 54"),
        (GOOD, (2, 3, 3, 3), {"padding": (1, 1)}, "channels, the weight"),
        (GOOD, (3, 2, 3, 3), {"padding": (1, 1), "schedule": (3, 1, 1)}, "no kernel of 3 rows"),
        (GOOD, (3, 2, 3, 3), {"padding": (1, 1), "schedule": (6, 9, 1)}, "no kernel of 6 rows by 9"),
        (GOOD, (3, 2, 3, 3), {"padding": (1, 1), "bias": np.ones(2, np.float32)}, "a bias of 2"),
        (survivors([0, 1, 1, 1], [18]), (3, 2, 3, 3), {"padding": (1, 1)}, "ascending"),
        (survivors([0, 2, 2, 2], [1, 1]), (3, 2, 3, 3), {"padding": (1, 1)}, "ascending"),
        (survivors([0, 2, 1, 2], [1, 2]), (3, 2, 3, 3), {"padding": (1, 1)}, "ends before"),
    ],
)  # fmt: skip
def test_what_would_read_elsewhere_is_refused(weight, shape, given, said):
    with pytest.raises(ValueError, match=said):
        one(weight, shape, **given)
