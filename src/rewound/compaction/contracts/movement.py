"""Operators that only move data: they are carried out on the cells themselves, so the result is the index map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rewound.compaction.atoms import Cells, joined, merged
from rewound.compaction.reading import Reading, positive, product
from rewound.compaction.values import Dead, Dim, Value, plain, plain_value


def same(reading: Reading, x: Value, *_: Any, **__: Any) -> Value:
    """clone, contiguous, dropout in evaluation mode, casts: the tensor itself."""
    return x


def permute(reading: Reading, x: Value, dims: list[int]) -> Value:
    order = [positive(d, len(x.dims)) for d in dims]
    return _picked(x, order)


def transpose(reading: Reading, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.dims)))
    a, b = positive(a, len(order)), positive(b, len(order))
    order[a], order[b] = order[b], order[a]
    return _picked(x, order)


def t(reading: Reading, x: Value) -> Value:
    return _picked(x, list(range(len(x.dims)))[::-1])


def matrix_transpose(reading: Reading, x: Value) -> Value:
    return transpose(reading, x, -2, -1)


def movedim(reading: Reading, x: Value, source: Any, destination: Any) -> Value:
    sources = [positive(s, len(x.dims)) for s in ([source] if isinstance(source, int) else source)]
    targets = [
        positive(d, len(x.dims)) for d in ([destination] if isinstance(destination, int) else destination)
    ]
    order: list[int | None] = [None] * len(x.dims)
    for s, d in zip(sources, targets):
        order[d] = s
    rest = iter(i for i in range(len(x.dims)) if i not in sources)
    return _picked(x, [next(rest) if o is None else o for o in order])


def unsqueeze(reading: Reading, x: Value, dim: int) -> Value:
    at = positive(dim, len(x.dims) + 1)
    axes = (*x.axes[:at], None, *x.axes[at:]) if x.origin else ()
    return Value((*x.dims[:at], plain(1), *x.dims[at:]), x.origin, axes)


def squeeze(reading: Reading, x: Value, dim: Any = None) -> Value:
    asked = range(len(x.dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {positive(d, len(x.dims)) for d in asked if len(x.dims[d]) == 1}
    return _picked(x, [i for i in range(len(x.dims)) if i not in gone])


def reshape(reading: Reading, x: Value, *_: Any, **__: Any) -> Value:
    """view, reshape, flatten, unflatten: the shape of the result is in the graph."""
    return reshaped(reading, x, reading.shape)


def reshaped(reading: Reading, x: Value, shape: tuple[int, ...]) -> Value:
    """Return ``x`` seen in another shape."""
    if shape == x.shape:
        return x
    dims: list[Dim] = []
    given, wanted = list(x.dims), list(shape)
    while given or wanted:  # the smallest stretches of axes of the same size on both sides
        before, after = given[:1], wanted[:1]
        del given[:1], wanted[:1]
        while (left := product([len(dim) for dim in before])) != (right := product(after)):
            if left < right:
                before.append(given.pop(0))
            else:
                after.append(wanted.pop(0))
        dims += _regrouped(reading, before, after)
    return Value(tuple(dims))


def _regrouped(reading: Reading, before: list[Dim], after: list[int]) -> list[Dim]:
    before = [dim for dim in before if len(dim) != 1]
    inner = [n for n in after if n != 1]
    if [len(dim) for dim in before] == inner:
        found = iter(before)
    elif not any(dim.tracked for dim in before):
        found = iter([plain(n) for n in inner])
    else:
        flat = before[0]
        for dim in before[1:]:
            dead = (
                max(d.dead for d in (flat, dim) if d.tracked)
                if flat.tracked or dim.tracked
                else Dead.ANYTHING
            )
            flat = Dim(merged(flat.cells, dim.cells), dead)
        parts, rest = [], flat
        for k, n in enumerate(inner[:-1]):
            part, rest = reading.split(rest, n, product(inner[k + 1 :]))
            parts.append(part)
        found = iter([*parts, rest])
    return [plain(1) if n == 1 else next(found) for n in after]


def expand(reading: Reading, x: Value, *_: Any, **__: Any) -> Value:
    """A repeated slice is like any other, so what it is tied to decides."""
    shape = reading.shape
    more = len(shape) - len(x.dims)
    dims = [reading.free(n) for n in shape[:more]]
    for dim, n in zip(x.dims, shape[more:]):
        dims.append(dim if len(dim) == n else reading.free(n))
    return Value(tuple(dims), x.origin, (*[None] * more, *x.axes) if x.origin else ())


def repeat(reading: Reading, x: Value, repeats: list[int]) -> Value:
    more = len(repeats) - len(x.dims)
    dims = [reading.free(n) for n in repeats[:more]]
    for dim, times in zip(x.dims, repeats[more:]):
        if len(dim) == 1:
            dims.append(reading.free(times))
        else:
            dims.append(Dim(np.tile(dim.cells, (times, 1)), dim.dead))
    return Value(tuple(dims), x.origin, (*[None] * more, *x.axes) if x.origin else ())


def tile(reading: Reading, x: Value, times: list[int]) -> Value:
    """As ``repeat``, but for axes in front it may say nothing."""
    return repeat(reading, x, [1] * (len(x.dims) - len(times)) + list(times))


def repeat_interleave(reading: Reading, x: Value, repeats: Any, dim: int | None = None, **_: Any) -> Value:
    if not isinstance(repeats, int) or dim is None:
        reading.untouched(x, what="its entries are repeated a computed number of times")
        return plain_value(reading.shape)
    at = positive(dim, len(x.dims))
    copies = reading.free(repeats)
    return _with(x, at, Dim(merged(x.dims[at].cells, copies.cells), x.dims[at].dead))


def cat(reading: Reading, tensors: list[Value], dim: int = 0) -> Value:
    tensors = [x for x in tensors if x.shape != (0,)]
    at = positive(dim, len(tensors[0].dims))
    dims = list(tensors[0].dims)
    for other in tensors[1:]:
        for k, (mine, theirs) in enumerate(zip(dims, other.dims)):
            if k != at:
                reading.tie(mine, theirs)
                dims[k] = mine.be(max(mine.dead, theirs.dead)) if mine.tracked else theirs
    parts = [x.dims[at] for x in tensors]
    tracked = [part.dead for part in parts if part.tracked]
    dims[at] = Dim(joined([part.cells for part in parts]), max(tracked, default=Dead.ANYTHING))
    return Value(tuple(dims))


def stack(reading: Reading, tensors: list[Value], dim: int = 0) -> Value:
    return cat(reading, [unsqueeze(reading, x, dim) for x in tensors], dim)


def split(reading: Reading, x: Value, size: Any, dim: int = 0) -> list[Value]:
    """split and split_with_sizes; equal pieces (a number, not a list) stay equal, since the code says so."""
    at = positive(dim, len(x.dims))
    n = len(x.dims[at])
    sizes = size if isinstance(size, list) else [min(size, n - start) for start in range(0, n, size)]
    return _pieces(reading, x, at, sizes, equal=not isinstance(size, list))


def tensor_split(reading: Reading, x: Value, where: Any, dim: int = 0) -> list[Value]:
    """Into a number of pieces that differ by one at most, or before each of these places."""
    n = len(x.dims[dim])
    if isinstance(where, int):
        return _pieces(
            reading,
            x,
            positive(dim, len(x.dims)),
            [n // where + (i < n % where) for i in range(where)],
            equal=True,
        )
    places = [min(max(0, p + n if p < 0 else p), n) for p in where]
    sizes = [max(0, b - a) for a, b in zip([0, *places], [*places, n])]
    return _pieces(reading, x, positive(dim, len(x.dims)), sizes, equal=False)


def narrow(reading: Reading, x: Value, dim: int, start: Any, length: Any) -> Value:
    end = start + length if isinstance(start, int) and isinstance(length, int) else None
    return slice_(reading, x, dim, start, end)


def glu(reading: Reading, x: Value, dim: int = -1) -> Value:
    """a * sigmoid(b) of two halves; a product with a dead half is zero."""
    at = positive(dim, len(x.dims))
    first, _ = _pieces(reading, x, at, [len(x.dims[at]) // 2] * 2, equal=True)
    return Value(first.dims)


def chunk(reading: Reading, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return split(reading, x, -(-len(x.dims[dim]) // chunks), dim)


def _pieces(reading: Reading, x: Value, at: int, sizes: list[int], equal: bool) -> list[Value]:
    starts = np.cumsum([0, *sizes])
    pieces = [_part(reading, x, at, slice(a, b)) for a, b in zip(starts[:-1], starts[1:])]
    if equal and x.dims[at].tracked:
        for piece in pieces[1:]:
            if len(piece.dims[at]) == sizes[0]:
                reading.tie(pieces[0].dims[at], piece.dims[at], "is cut into equal pieces")
            else:
                reading.fix(x.dims[at], "is cut into pieces of which the last is smaller")
    return pieces


def unbind(reading: Reading, x: Value, dim: int = 0) -> list[Value]:
    at = positive(dim, len(x.dims))
    reading.fix(x.dims[at], "is taken apart entry by entry")
    return [_picked(x, [i for i in range(len(x.dims)) if i != at]) for _ in range(len(x.dims[at]))]


def select(reading: Reading, x: Value, dim: int, index: int) -> Value:
    at = positive(dim, len(x.dims))
    if x.dims[at].tracked:
        reading.fix(x.dims[at], "one entry of it is picked by number")
    return _picked(x, [i for i in range(len(x.dims)) if i != at])


def slice_(
    reading: Reading, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    at = positive(dim, len(x.dims))
    if not all(isinstance(bound, (int, type(None))) for bound in (start, end, step)):
        reading.fix(x.dims[at], "is cut at a computed place")
        return _with(x, at, plain(reading.shape[at]))
    if step != 1:
        reading.fix(x.dims[at], f"every {step}th entry of it is picked")
    return _part(reading, x, at, slice(start, end, step))


def flip(reading: Reading, x: Value, dims: list[int]) -> Value:
    for dim in dims:
        x = _with(x, positive(dim, len(x.dims)), x.dims[dim].rows(slice(None, None, -1)))
    return x


def roll(reading: Reading, x: Value, shifts: Any, dims: Any = ()) -> Value:
    dims = [dims] if isinstance(dims, int) else dims
    for dim in dims:
        if x.dims[dim].tracked:
            reading.fix(x.dims[dim], "is rolled by a fixed number of places")
    if not dims:
        reading.untouched(x, what="is rolled by a fixed number of places")
    return Value(x.dims)


def pad(reading: Reading, x: Value, widths: list[int], mode: Any = "constant", value: Any = None) -> Value:
    """What is padded never leaves, and so neither does what it is added to."""
    dims = list(x.dims)
    for k in range(len(widths) // 2):
        at, before, after = len(dims) - 1 - k, widths[2 * k], widths[2 * k + 1]
        if before == after == 0:
            continue
        dim = dims[at]
        if dim.tracked and isinstance(mode, str) and mode != "constant":
            reading.fix(dim, f"is padded by {mode}")
        if min(before, after) < 0:
            reading.fix(dim, "is cropped at fixed places")
        cells = dim.cells[max(0, -before) : len(dim) - max(0, -after)]
        dims[at] = Dim(np.pad(cells, ((max(0, before), max(0, after)), (0, 0))), dim.dead)
    return Value(tuple(dims))


def index_select(reading: Reading, x: Value, dim: int, index: Value) -> Value:
    at = positive(dim, len(x.dims))
    reading.fix(x.dims[at], "its entries are picked by number")
    return _with(x, at, plain(reading.shape[at]))


def index(reading: Reading, x: Value, indices: list[Value | None]) -> Value:
    """x[..., idx, ...]: an indexed axis is picked from by number; the others go on. Rows of a parameter, one expert's weights for
    every token, are still that parameter."""
    used = [i for i, index in enumerate(indices) if index is not None]
    for i in used:
        reading.fix(x.dims[i], "its entries are picked by number")
    ndim = len(reading.shape) - (len(x.dims) - len(used))
    rest = [i for i in range(len(x.dims)) if i not in used]
    adjacent = used == list(range(used[0], used[0] + len(used))) if used else True
    at = used[0] if used and adjacent else 0
    picked = [plain(n) for n in reading.shape[at : at + ndim]]
    kept = _picked(x, rest)
    axes = (*kept.axes[:at], *[None] * ndim, *kept.axes[at:]) if x.origin else ()
    return Value((*kept.dims[:at], *picked, *kept.dims[at:]), x.origin, axes)


def index_add(reading: Reading, x: Value, dim: int, index: Value, source: Value, **_: Any) -> Value:
    """x with rows of ``source`` added where the index says: along ``dim`` by number, along all other axes entry by entry."""
    at = positive(dim, len(x.dims))
    for value in (x, source):
        reading.fix(value.dims[at], "its entries are picked by number")
    dims = []
    for axis, (mine, theirs) in enumerate(zip(x.dims, source.dims)):
        if axis != at:
            reading.tie(mine, theirs)
            # of constants too nobody knows how many are added where
            zero = mine.dead is theirs.dead is Dead.ZERO
            mine = (mine if mine.tracked else theirs).be(Dead.ZERO if zero else Dead.ANYTHING)
        dims.append(mine)
    for value in (x, source):
        for axis in range(len(value.dims)):
            reading.role(value, axis, "affine")
    return Value(tuple(dims))


def gather(reading: Reading, x: Value, dim: int, index: Value, **_: Any) -> Value:
    reading.untouched(x, index, what="its entries are picked by number")
    return plain_value(reading.shape)


def copy_(reading: Reading, target: Value, source: Value, *_: Any) -> Value:
    """Writing into a tensor (or a part of one) ties it to what is written."""
    more = len(target.dims) - len(source.dims)
    dims = list(target.dims[:more])
    for mine, theirs in zip(target.dims[more:], source.dims):
        if len(theirs) == len(mine):
            reading.tie(mine, theirs)
        dims.append(mine.be(Dead.ANYTHING if len(theirs) != len(mine) else theirs.dead))
    return Value(tuple(dims))


def slice_scatter(
    reading: Reading, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    part = slice_(reading, x, dim, start, end, step)
    copy_(reading, part, source)
    dims = [d.be(max(d.dead, s.dead)) for d, s in zip(x.dims, source.dims)]
    return Value(tuple(dims))


def select_scatter(reading: Reading, x: Value, source: Value, dim: int, index: int) -> Value:
    return slice_scatter(reading, x, unsqueeze(reading, source, dim), dim, index, index + 1)


def made(reading: Reading, *_: Any, **__: Any) -> Value:
    """zeros, ones, full: all slices are alike."""
    zero = "zeros" in reading.operator
    return Value(tuple(reading.free(n, Dead.ZERO if zero else Dead.CONSTANT) for n in reading.shape))


def numbers(reading: Reading, *_: Any, **__: Any) -> Value:
    """arange, comparisons of positions, random numbers: nothing of this can leave."""
    return plain_value(reading.shape)


def pixel_shuffle(reading: Reading, x: Value, factor: int) -> Value:
    kept, inner = reading.split(x.dims[-3], len(x.dims[-3]) // factor**2, factor**2)
    reading.fix(inner, "becomes positions of an image")
    height, width = reading.shape[-2:]
    return Value((*x.dims[:-3], kept, plain(height), plain(width)))


def pixel_unshuffle(reading: Reading, x: Value, factor: int) -> Value:
    dim = x.dims[-3]
    cells: Cells = np.repeat(dim.cells, factor**2, axis=0)
    return Value((*x.dims[:-3], Dim(cells, dim.dead), *(plain(n) for n in reading.shape[-2:])))


def channel_shuffle(reading: Reading, x: Value, groups: int) -> Value:
    n, *rest = x.shape[1:]
    apart = reshaped(reading, x, (x.shape[0], groups, n // groups, *rest))
    reading.grouped(apart.dims[1])
    return reshaped(reading, transpose(reading, apart, 1, 2), x.shape)


def _picked(x: Value, order: list[int]) -> Value:
    axes = tuple(x.axes[i] for i in order) if x.origin else ()
    return Value(tuple(x.dims[i] for i in order), x.origin, axes)


def _part(reading: Reading, x: Value, at: int, where: slice) -> Value:
    part = x.dims[at].rows(where)
    if (
        len(part) == 1 < len(x.dims[at])
    ):  # without its one entry nothing would be there to go on with, or to broadcast
        reading.fix(part, "a single entry is cut out of it")
    return _with(x, at, part)


def _with(x: Value, at: int, dim: Dim) -> Value:
    # Part of a parameter is still that parameter: its axes keep their roles.
    return Value((*x.dims[:at], dim, *x.dims[at + 1 :]), x.origin, x.axes)


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("clone", "contiguous", "dropout", "dropout_", "alias", "detach", "detach_", "to", "_to_copy", "type_as", "lift_fresh",
         "lift_fresh_copy", "feature_dropout", "alpha_dropout", "float", "expand_as_self", "requires_grad_", "positive",
         "_conj", "resolve_conj", "resolve_neg", "cpu", "view_as_self", "cudnn_is_acceptable", "native_dropout_eval"),
        same,
    ),
    "permute": permute,
    "transpose": transpose,
    "swapaxes": transpose,
    "swapdims": transpose,
    "t": t,
    "numpy_T": t,
    "matrix_H": matrix_transpose,
    "mT": matrix_transpose,
    "adjoint": matrix_transpose,
    "movedim": movedim,
    "moveaxis": movedim,
    "unsqueeze": unsqueeze,
    "unsqueeze_": unsqueeze,
    "squeeze": squeeze,
    "squeeze_": squeeze,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"), reshape),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "repeat": repeat,
    "tile": tile,
    "repeat_interleave": repeat_interleave,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), split),
    "tensor_split": tensor_split,
    "narrow": narrow,
    "glu": glu,
    "chunk": chunk,
    "unsafe_chunk": chunk,
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "flip": flip,
    "roll": roll,
    "pad": pad,
    "constant_pad_nd": lambda reading, x, widths, value=0: pad(reading, x, widths),
    **dict.fromkeys(
        ("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
        lambda reading, x, widths: pad(reading, x, widths, "reflect"),
    ),
    "index_select": index_select,
    "index": index,
    "index_add": index_add,
    "gather": gather,
    "copy_": copy_,
    "copy": copy_,
    "slice_scatter": slice_scatter,
    "select_scatter": select_scatter,
    **dict.fromkeys(
        ("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
         "new_full", "new_empty", "scalar_tensor"),
        made,
    ),
    **dict.fromkeys(
        ("arange", "linspace", "eye", "rand", "randn", "rand_like", "randn_like", "randint", "tril_indices", "one_hot",
         "bucketize"),
        numbers,
    ),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
}  # fmt: skip
