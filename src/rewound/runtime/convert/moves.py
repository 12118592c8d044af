"""Rules: what only moves elements, or does nothing."""

from __future__ import annotations

import math
from typing import Any

import torch

from rewound.runtime.convert.build import PROBES, Builder, Const, Live, Unknown
from rewound.runtime.convert.rules import const, live, number, require, rule, whole
from rewound.runtime.convert.sizes import Axes, Batch, reshaped


@rule(
    "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "alpha_dropout", "lift_fresh_copy", "identity",
    "lift_fresh", "detach_copy", "native_dropout",
)  # fmt: skip
def _same(b: Builder, self: Any = None, input: Any = None, train: Any = False, p: Any = None) -> Live:
    require(not train, "dropout in training")
    return live(self if input is None else input)


@rule("to", "_to_copy", "type_as", "float", "double", "bool")
def _to(b: Builder, self: Any, dtype: Any = None, other: Any = None) -> Live:
    x = live(self)
    wanted = (
        dtype if isinstance(dtype, torch.dtype) else other.dtype if isinstance(other, (Live, Const)) else None
    )
    if wanted is None or wanted == x.dtype:
        return x
    if wanted == torch.bool:
        from rewound.runtime.convert.elementwise import _truth

        truth = _truth(b, x)
        return Live(truth.name, truth.axes, torch.bool, truth.shape)
    if wanted.is_floating_point:
        y = b.floating(x)
        return Live(y.name, y.axes, wanted, y.shape)
    # integers among themselves, and booleans that stay float32 until something needs integers
    require(not x.dtype.is_floating_point, "floats cut off to integers")
    require(torch.iinfo(wanted).bits >= 32 or x.dtype == torch.bool)
    return Live(x.name, x.axes, wanted, x.shape)


def viewed(b: Builder, x: Any, shape: Any) -> Live:
    x = live(x)
    shape = list(shape)
    if any(isinstance(n, int) and n == -1 for n in shape):
        at = shape.index(-1)
        rest = [n for i, n in enumerate(shape) if i != at]
        known = math.prod(n.factor if isinstance(n, Batch) else n for n in rest)
        total = math.prod(n.factor if isinstance(n, Batch) else n for n in x.shape)
        require(known > 0 and total % known == 0)
        holds = any(isinstance(n, Batch) for n in rest)
        shape[at] = total // known if holds or b.images is not None else Batch(total // known)
    axes = reshaped(x.laid, shape, b.images)
    if axes is None:
        raise Unknown("a view that mixes the batch with other axes")
    return b.reshape(x, axes)


@rule("view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy")
def _view(b: Builder, self: Any, size: Any = None, shape: Any = None, dtype: Any = None) -> Live:
    require(dtype is None and (size is not None or shape is not None))
    return viewed(b, self, size if size is not None else shape)


@rule("view_as", "reshape_as")
def _view_as(b: Builder, self: Any, other: Any) -> Live:
    return viewed(b, self, other.shape)


@rule("flatten")
def _flatten(b: Builder, self: Any, start_dim: Any, end_dim: Any) -> Live:
    x = live(self)
    shape = list(x.shape)
    start, end = start_dim % len(shape), end_dim % len(shape)
    middle = math.prod(n.factor if isinstance(n, Batch) else n for n in shape[start : end + 1])
    grows = any(isinstance(n, Batch) for n in shape[start : end + 1])
    return viewed(b, x, [*shape[:start], Batch(middle) if grows else middle, *shape[end + 1 :]])


@rule("unflatten")
def _unflatten(b: Builder, self: Any, dim: Any, sizes: Any) -> Live:
    x = live(self)
    shape, dim = list(x.shape), dim % len(x.shape)
    sizes = list(sizes)
    if -1 in sizes:
        at, size = sizes.index(-1), shape[dim]
        rest = [n for i, n in enumerate(sizes) if i != at]
        known = math.prod(n.factor if isinstance(n, Batch) else n for n in rest)
        total = size.factor if isinstance(size, Batch) else size
        grows = isinstance(size, Batch) and not any(isinstance(n, Batch) for n in rest)
        sizes[at] = Batch(total // known) if grows else total // known
    return viewed(b, x, [*shape[:dim], *sizes, *shape[dim + 1 :]])


@rule("squeeze")
def _squeeze(b: Builder, self: Any, dim: Any = None) -> Live:
    x = live(self)
    rank = b.rank(x)
    asked = (
        range(rank) if dim is None else [d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
    )
    gone = [d for d in asked if x.laid[d] == (1,)]
    return b.reshape(x, tuple(axis for i, axis in enumerate(x.laid) if i not in gone))


@rule("unsqueeze")
def _unsqueeze(b: Builder, self: Any, dim: Any) -> Live:
    x = live(self)
    at = dim % (b.rank(x) + 1)
    return b.reshape(x, (*x.laid[:at], (1,), *x.laid[at:]))


@rule("permute")
def _permute(b: Builder, self: Any, dims: Any) -> Live:
    return b.permute(live(self), dims)


@rule("transpose", "swapaxes", "swapdims")
def _transpose(
    b: Builder, self: Any, dim0: Any = None, dim1: Any = None, axis0: Any = None, axis1: Any = None
) -> Live:
    x = live(self)
    order = list(range(b.rank(x)))
    i, j = (dim0, dim1) if dim0 is not None else (axis0, axis1)
    order[i], order[j] = order[j], order[i]
    return b.permute(x, order)


@rule("t", "numpy_T", "adjoint", "mT")
def _t(b: Builder, self: Any) -> Live:
    x = live(self)
    require(b.rank(x) == 2)
    return b.permute(x, [1, 0])


@rule("movedim", "moveaxis")
def _movedim(b: Builder, self: Any, source: Any, destination: Any) -> Live:
    x = live(self)
    rank = b.rank(x)
    one = not isinstance(source, (list, tuple))
    source = [n % rank for n in ([source] if one else source)]
    destination = [n % rank for n in ([destination] if one else destination)]
    order = [n for n in range(rank) if n not in source]
    for to, of in sorted(zip(destination, source)):
        order.insert(to, of)
    return b.permute(x, order)


@rule("expand", "expand_copy")
def _expand(b: Builder, self: Any, size: Any) -> Live:
    return _expanded(b, live(self), size)


@rule("expand_as")
def _expand_as(b: Builder, self: Any, other: Any) -> Live:
    return _expanded(b, live(self), other.shape)


def _expanded(b: Builder, x: Live, size: Any) -> Live:
    lead = len(size) - b.rank(x)
    require(lead >= 0)
    x = b.reshape(x, ((1,),) * lead + x.laid)
    axes: list[Any] = []
    for own, axis, wanted in zip(x.shape, x.laid, size):
        kept = wanted == -1 or wanted == own
        require(kept or (axis == (1,) and isinstance(wanted, int)), "expanding along the batch")
        axes.append(axis if kept else (wanted,))
    if tuple(axes) == x.laid:
        return x
    shape = [None, *(f for axis in axes for f in axis if f is not None)]
    return b.live(b.emit("expand", [b.floating(x).name], shape=shape), tuple(axes), x.dtype)


# -- parts ----------------------------------------------------------------------------------------------------------------------


def sliced(b: Builder, x: Any, dim: int, start: int, stop: int, step: int = 1) -> Live:
    x = live(x)
    dim = dim % b.rank(x)
    at, size = b.axis(x, dim), x.laid[dim][0] or 0
    if (start, stop, step) == (0, size, 1):
        return x
    name = b.emit("slice", [b.floating(x).name], axis=at, start=start, stop=stop, step=step)
    count = -((start - stop) // step)
    return b.live(name, (*x.laid[:dim], (count,), *x.laid[dim + 1 :]), x.dtype)


def bounds(size: int, start: Any, stop: Any) -> tuple[int, int]:
    """Return a slice's ends as torch takes them: negative from the end, cut at the ends."""
    start = 0 if start is None else whole(start)
    stop = size if stop is None else whole(stop)
    start = min(max(start + size if start < 0 else start, 0), size)
    stop = min(max(stop + size if stop < 0 else stop, start), size)
    return start, stop


@rule("slice", "slice_copy")
def _slice(b: Builder, self: Any, dim: Any, start: Any, end: Any, step: Any) -> Live:
    x = live(self)
    dim = dim % b.rank(x)
    if None in x.laid[dim]:
        everything = isinstance(end, int) and end >= (1 << 31)
        require(
            start in (0, None) and step == 1 and (end is None or everything or end == x.shape[dim]),
            "a slice of the batch",
        )
        return x
    return sliced(b, x, dim, *bounds(x.laid[dim][0] or 0, start, end), whole(step))


@rule("select", "select_copy")
def _select(b: Builder, self: Any, dim: Any, index: Any) -> Live:
    x = live(self)
    dim = dim % b.rank(x)
    b.axis(x, dim)
    size = x.laid[dim][0] or 0
    index = whole(index) % size
    y = sliced(b, x, dim, index, index + 1)
    return b.reshape(y, (*y.laid[:dim], *y.laid[dim + 1 :]))


@rule("narrow")
def _narrow(b: Builder, self: Any, dim: Any, start: Any, length: Any) -> Live:
    x = live(self)
    start = whole(start)
    if start < 0:
        b.axis(x, dim)
        start += x.laid[dim][0] or 0
    return sliced(b, x, dim, start, start + whole(length))


def _pieces(b: Builder, x: Any, dim: Any, sizes: list[int]) -> list[Live]:
    x = live(x)
    b.axis(x, dim)
    require(sum(sizes) == x.laid[dim][0])
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [sliced(b, x, dim, end - size, end) for size, end in zip(sizes, ends)]


@rule("split", "split_with_sizes", "split_copy", "unsafe_split", "unsafe_split_with_sizes")
def _split(
    b: Builder, self: Any, split_size: Any = None, split_sizes: Any = None, dim: Any = 0
) -> list[Live]:
    x = live(self)
    b.axis(x, dim)
    size, given = x.laid[dim][0] or 0, split_sizes if split_sizes is not None else split_size
    if isinstance(given, (list, tuple)):
        return _pieces(b, x, dim, [whole(n) for n in given])
    step = whole(given)
    return _pieces(b, x, dim, [min(step, size - at) for at in range(0, size, step)])


@rule("chunk", "unsafe_chunk")
def _chunk(b: Builder, self: Any, chunks: Any, dim: Any) -> list[Live]:
    x = live(self)
    b.axis(x, dim)
    size = x.laid[dim][0] or 0
    step = -(-size // whole(chunks))
    return _pieces(b, x, dim, [min(step, size - at) for at in range(0, size, step)])


@rule("tensor_split")
def _tensor_split(b: Builder, self: Any, sections: Any = None, dim: Any = 0) -> list[Live]:
    x = live(self)
    b.axis(x, dim)
    size, parts = x.laid[dim][0] or 0, whole(sections)
    return _pieces(b, x, dim, [size // parts + (i < size % parts) for i in range(parts)])


@rule("unbind")
def _unbind(b: Builder, self: Any, dim: Any) -> list[Live]:
    x = live(self)
    b.axis(x, dim)
    return [_select(b, x, dim, i) for i in range(x.laid[dim][0] or 0)]


@rule("glu")
def _glu(b: Builder, self: Any, dim: Any) -> Live:
    from rewound.runtime.convert.elementwise import activated, combined

    value, gate = _chunk(b, self, 2, dim)
    return combined(b, "mul", value, activated(b, gate, ["sigmoid"]))


# -- together -------------------------------------------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate")
def _cat(b: Builder, tensors: Any, dim: Any) -> Live:
    models = [t for t in tensors if isinstance(t, Live)]
    require(models and all(isinstance(t, (Live, Const)) for t in tensors))
    model = models[0]
    dim = dim % b.rank(model)
    b.axis(model, dim)
    parts = []
    for t in tensors:
        if isinstance(t, Const):
            axes: Axes = tuple((1,) if i == dim else axis for i, axis in enumerate(model.laid))
            sizes = t.shape
            require(len(sizes) == len(axes), "an empty constant")
            batch = [i for i, axis in enumerate(axes) if None in axis]
            require(all(sizes[i] == model.shape[i] for i in batch), "a constant of another batch")
            t = b.made_live(t, axes)
        require(len(t.laid) == len(model.laid), "tensors of different rank")
        for i, (own, axis) in enumerate(zip(t.laid, model.laid)):
            require(i == dim or own == axis, "tensors whose batches stand in different axes")
        parts.append(b.floating(t))
    at = b.axis(parts[0], dim)
    name = b.emit("concat", [t.name for t in parts], axis=at)
    size = sum(t.laid[dim][0] or 0 for t in parts)
    return b.live(name, (*model.laid[:dim], (size,), *model.laid[dim + 1 :]), model.dtype)


@rule("stack")
def _stack(b: Builder, tensors: Any, dim: Any) -> Live:
    rank = b.rank(next(t for t in tensors if isinstance(t, Live))) + 1
    at = dim % rank
    parts = [
        _unsqueeze(b, t, at) if isinstance(t, Live) else Const(tuple(v.unsqueeze(at) for v in t.at))
        for t in tensors
    ]
    return _cat(b, parts, at)


@rule("roll")
def _roll(b: Builder, self: Any, shifts: Any, dims: Any) -> Live:
    x = live(self)
    require(dims and len(dims) == len(shifts))
    for shift, dim in zip(shifts, dims):
        b.axis(x, dim)
        size = x.laid[dim][0] or 0
        at = -whole(shift) % size if size else 0
        if at:
            x = _cat(b, [sliced(b, x, dim, at, size), sliced(b, x, dim, 0, at)], dim)
    return x


@rule("repeat")
def _repeat(b: Builder, self: Any, repeats: Any) -> Live:
    x = live(self)
    x = b.reshape(x, ((1,),) * (len(repeats) - b.rank(x)) + x.laid)
    for dim, count in enumerate(repeats):
        if count != 1:
            require(whole(count) > 1)
            x = _cat(b, [x] * count, dim) if x.laid[dim] != (1,) else _expanded(
                b, x, [count if i == dim else -1 for i in range(b.rank(x))]
            )  # fmt: skip
    return x


@rule("repeat_interleave")
def _repeat_interleave(b: Builder, self: Any, repeats: Any, dim: Any = None) -> Live:
    require(dim is not None)
    x = live(self)
    dim, count = dim % b.rank(x), whole(repeats)
    b.axis(x, dim)
    wide = _expanded(
        b, _unsqueeze(b, x, dim + 1), [count if i == dim + 1 else -1 for i in range(b.rank(x) + 1)]
    )
    return b.reshape(wide, (*x.laid[:dim], ((x.laid[dim][0] or 0) * count,), *x.laid[dim + 1 :]))


@rule("slice_scatter")
def _slice_scatter(b: Builder, self: Any, src: Any, dim: Any, start: Any, end: Any, step: Any) -> Live:
    x, part = live(self), live(src)
    dim = dim % b.rank(x)
    if part.laid == x.laid:
        return part
    b.axis(x, dim)
    require(step == 1)
    size = x.laid[dim][0] or 0
    start, end = bounds(size, start, end)
    pieces = (
        [sliced(b, x, dim, 0, start)] * (start > 0) + [part] + [sliced(b, x, dim, end, size)] * (end < size)
    )
    return _cat(b, pieces, dim)


@rule("select_scatter")
def _select_scatter(b: Builder, self: Any, src: Any, dim: Any, index: Any) -> Live:
    x = live(self)
    dim = dim % b.rank(x)
    b.axis(x, dim)
    index = whole(index) % (x.laid[dim][0] or 1)
    return _slice_scatter(b, x, _unsqueeze(b, live(src), dim), dim, index, index + 1, 1)


@rule("copy")
def _copy(b: Builder, self: Any, src: Any) -> Live:
    x = live(src)
    require(x.dtype == self.dtype)
    return _expanded(b, x, self.shape)


@rule("pad", "constant_pad_nd")
def _pad(b: Builder, self: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Live:
    require(mode == "constant", f"padding by {mode}")
    x = live(self)
    widths = {b.rank(x) - 1 - i: [whole(pad[2 * i]), whole(pad[2 * i + 1])] for i in range(len(pad) // 2)}
    for dim, (before, after) in widths.items():
        if before < 0 or after < 0:
            b.axis(x, dim)
            size = x.laid[dim][0] or 0
            x = sliced(b, x, dim, max(0, -before), size - max(0, -after))
    graph = [[0, 0] for _ in b.values[x.name].shape]
    axes = list(x.laid)
    for dim, (before, after) in widths.items():
        if before > 0 or after > 0:
            at = b.axis(x, dim)
            graph[at] = [max(0, before), max(0, after)]
            axes[dim] = ((x.laid[dim][0] or 0) + sum(graph[at]),)
    if tuple(axes) == x.laid:
        return x
    name = b.emit(
        "pad", [b.floating(x).name], widths=graph, value=0.0 if value is None else float(number(value))
    )
    return b.live(name, tuple(axes), x.dtype)


@rule("pixel_shuffle")
def _pixel_shuffle(b: Builder, self: Any, upscale_factor: Any) -> Live:
    x, r = b.plain(self, 4), whole(upscale_factor)
    _, c, h, w = (axis[0] or 0 for axis in x.laid)
    apart = b.reshape(x, ((None,), (c // r**2,), (r,), (r,), (h,), (w,)))
    return b.reshape(b.permute(apart, [0, 1, 4, 2, 5, 3]), ((None,), (c // r**2,), (h * r,), (w * r,)))


@rule("pixel_unshuffle")
def _pixel_unshuffle(b: Builder, self: Any, downscale_factor: Any) -> Live:
    x, r = b.plain(self, 4), whole(downscale_factor)
    _, c, h, w = (axis[0] or 0 for axis in x.laid)
    apart = b.reshape(x, ((None,), (c,), (h // r,), (r,), (w // r,), (r,)))
    return b.reshape(b.permute(apart, [0, 1, 3, 5, 2, 4]), ((None,), (c * r**2,), (h // r,), (w // r,)))


@rule("channel_shuffle")
def _channel_shuffle(b: Builder, self: Any, groups: Any) -> Live:
    x, g = b.plain(self, 4), whole(groups)
    _, c, h, w = (axis[0] or 0 for axis in x.laid)
    apart = b.reshape(x, ((None,), (g,), (c // g,), (h,), (w,)))
    return b.reshape(b.permute(apart, [0, 2, 1, 3, 4]), x.laid)


@rule("index_select")
def _index_select(b: Builder, self: Any, dim: Any, index: Any) -> Live:
    x = live(self)
    b.axis(x, dim)
    return _taken(b, x, dim % b.rank(x), const(index).value.tolist())


@rule("index")
def _index(b: Builder, self: Any, indices: Any) -> Live:
    """Indices that each count along an axis of their own (what ``mask[arange(n)[:, None], arange(t)]`` is): slices."""
    x = live(self)
    given = [(dim, const(i)) for dim, i in enumerate(indices) if i is not None]
    require(given and all(not i.dtype.is_floating_point and i.dtype != torch.bool for _, i in given))
    if len(given) == 1 and len(given[0][1].shape) == 1:
        return _taken(b, x, given[0][0], given[0][1].value.tolist())
    require([dim for dim, _ in given] == list(range(len(given))), "indices behind an axis without one")
    rank = max(len(i.shape) for _, i in given)
    made: list[Any] = [(1,)] * rank
    last = -1
    for dim, index in given:
        sizes = (1,) * (rank - len(index.shape)) + index.shape
        along = [i for i, n in enumerate(sizes) if n != 1]
        require(len(along) <= 1, "an index of several axes")
        if not along:
            at = int(index.value.reshape(-1)[0])
            size = x.laid[dim][0]
            require(size is not None and len(x.laid[dim]) == 1)
            x = sliced(b, x, dim, at % (size or 1), at % (size or 1) + 1)
            continue
        require(along[0] > last)
        last = along[0]
        if None in x.laid[dim]:
            counts = all(torch.equal(t.reshape(-1), torch.arange(t.numel())) for t in index.at)
            require(counts and sizes[along[0]] == x.shape[dim], "an index into the batch")
        else:
            x = _taken(b, x, dim, index.value.reshape(-1).tolist())
        made[along[0]] = x.laid[dim]
    return b.reshape(x, (*made, *x.laid[len(given) :]))


def _taken(b: Builder, x: Live, dim: int, indices: list[int]) -> Live:
    """Return the slices of x along an axis that evenly stepping indices name."""
    b.axis(x, dim)
    size = x.laid[dim][0] or 0
    indices = [i % size for i in indices]
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if indices and step > 0 and indices == list(range(indices[0], indices[-1] + 1, step)):
        return sliced(b, x, dim, indices[0], indices[-1] + 1, step)
    starts = [i for i in range(len(indices)) if i == 0 or indices[i] != indices[i - 1] + 1]
    require(0 < len(starts) <= 16, "indices in too many runs")
    ends = [*starts[1:], len(indices)]
    return _cat(b, [sliced(b, x, dim, indices[i], indices[j - 1] + 1) for i, j in zip(starts, ends)], dim)


def _constant_like(like: Any, shape: Any, value: Any, dtype: Any) -> Const:
    """What depends on a tensor's shape alone is a constant."""
    sizes = [tuple(n.at(probe) if isinstance(n, Batch) else n for n in shape) for probe in PROBES]
    made = [torch.full(size, number(value), dtype=dtype or like.dtype) for size in sizes]
    return Const(tuple(made) if sizes[0] != sizes[1] else (made[0],))


@rule("zeros_like")
def _zeros_like(b: Builder, self: Any, dtype: Any = None) -> Const:
    return _constant_like(self, self.shape, 0, dtype)


@rule("ones_like")
def _ones_like(b: Builder, self: Any, dtype: Any = None) -> Const:
    return _constant_like(self, self.shape, 1, dtype)


@rule("full_like")
def _full_like(b: Builder, self: Any, fill_value: Any, dtype: Any = None) -> Const:
    return _constant_like(self, self.shape, fill_value, dtype)


@rule("new_zeros")
def _new_zeros(b: Builder, self: Any, size: Any, dtype: Any = None) -> Const:
    return _constant_like(self, size, 0, dtype)


@rule("new_ones")
def _new_ones(b: Builder, self: Any, size: Any, dtype: Any = None) -> Const:
    return _constant_like(self, size, 1, dtype)


@rule("new_full")
def _new_full(b: Builder, self: Any, size: Any, fill_value: Any, dtype: Any = None) -> Const:
    return _constant_like(self, size, fill_value, dtype)
