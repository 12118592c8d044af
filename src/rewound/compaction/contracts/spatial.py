"""Pooling, upsampling, patches: channels go through, places do not leave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rewound.compaction.contracts.pointwise import broadcast
from rewound.compaction.reading import Reading, product
from rewound.compaction.values import Dead, Dim, Value, plain


def over_space(reading: Reading, x: Value, *_: Any, places: int, keeps_constant: bool, **__: Any) -> Any:
    """The last ``places`` axes change; of the others nothing does. A second result says where each maximum was, which is not
    zero where all are."""
    for dim in x.dims[-places:]:
        reading.fix(dim, "is an axis of space")
    front = [
        d if d.dead is not Dead.CONSTANT or keeps_constant else d.be(Dead.ANYTHING) for d in x.dims[:-places]
    ]
    space = tuple(plain(n) for n in reading.shape[-places:])
    result = Value((*front, *space))
    if len(reading.shapes) == 1:
        return result
    return [result, Value((*(d.be(Dead.ANYTHING) for d in front), *space))]


def unpooled(reading: Reading, x: Value, index: Value, *_: Any, places: int, **__: Any) -> Value:
    """max_unpool: every map is put among zeros, at the places that a map of indices of its own has."""
    for value in (x, index):
        for dim in value.dims[-places:]:
            reading.fix(dim, "is an axis of space")
    front = broadcast(
        reading,
        [Value(value.dims[:-places]) for value in (x, index)],
        lambda states: states[0] if states[0] is Dead.ZERO else Dead.ANYTHING,
    ).dims
    return Value((*front, *(plain(n) for n in reading.shape[-places:])))


def unfold_patches(reading: Reading, x: Value, kernel: list[int], *_: Any, **__: Any) -> Value:
    """im2col: [n, c, h, w] -> [n, c * kernel, places]."""
    channel = x.dims[1]
    cells = np.repeat(channel.cells, product(kernel if isinstance(kernel, list) else [kernel] * 2), axis=0)
    return Value((x.dims[0], Dim(cells, channel.dead), plain(reading.shape[-1])))


def unfold(reading: Reading, x: Value, dim: int, size: int, step: int) -> Value:
    """Tensor.unfold: windows along one axis."""
    reading.fix(x.dims[dim], "is cut into windows")
    at = dim % len(x.dims)
    return Value((*x.dims[:at], plain(reading.shape[at]), *x.dims[at + 1 :], plain(size)))


def sampled(reading: Reading, x: Value, grid: Value, *_: Any, **__: Any) -> Value:
    """grid_sample: places are chosen by the grid."""
    reading.untouched(grid, what="says where to sample")
    return Value((*x.dims[:2], *(plain(n) for n in reading.shape[2:])))


_POOLS = {f"{kind}_pool{n}d": n for n in (1, 2, 3) for kind in ("avg", "adaptive_avg", "max", "adaptive_max")}
_POOLS |= {f"max_pool{n}d_with_indices": n for n in (1, 2, 3)}
_SCALED = {"upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "_upsample_nearest_exact2d": 2,
           "upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3,
           "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2}  # fmt: skip

RULES: dict[str, Callable[..., Any]] = {
    # an average that counts padding is no constant at the border
    **{
        name: partial(over_space, places=n, keeps_constant="max" in name or "adaptive" in name)
        for name, n in _POOLS.items()
    },
    **{name: partial(over_space, places=n, keeps_constant=True) for name, n in _SCALED.items()},
    # of a line too: torch makes an image of it
    "max_unpool2d": partial(unpooled, places=2),
    "max_unpool3d": partial(unpooled, places=3),
    "im2col": unfold_patches,
    "unfold": unfold,
    "grid_sampler": sampled,
    "grid_sampler_2d": sampled,
}
