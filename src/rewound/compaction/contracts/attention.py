"""Scaled dot-product attention: the axis that is a batch of both products is the head axis, the summed one the head dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewound.compaction.contracts.pointwise import broadcast
from rewound.compaction.reading import Reading, product
from rewound.compaction.units import Certificate
from rewound.compaction.values import HEAD, HEAD_DIM, Dead, Dim, Value


def scaled_dot_product_attention(
    reading: Reading, query: Value, key: Value, value: Value, mask: Value | None = None, dropout: float = 0.0,
    causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """query [..., heads, n, d], key [..., heads, m, d], value [..., heads, m, e] -> [..., heads, n, e]."""
    if enable_gqa:
        key, value = (_repeated(x, query) for x in (key, value))
    batch = broadcast(
        reading,
        [Value(x.dims[:-2]) for x in (query, key, value)],
        lambda states: states[2] if states[2] is Dead.ZERO else Dead.ANYTHING,
    ).dims
    reading.tie(query.dims[-1], key.dims[-1])
    if Dead.ZERO not in (query.dims[-1].dead, key.dims[-1].dead):
        reading.mark(query.dims[-1], Certificate.APPROXIMATE, "is summed over, and a dead slice is not zero")
    if scale is None:
        reading.mark(
            query.dims[-1],
            Certificate.EXACT_AFTER_RESCALE,
            "the attention's scale follows the head dimension",
        )
        reading.rescaled(query.dims[-1], "attention")
    for dim in (query.dims[-1], value.dims[-1]) if any(dim.tracked for dim in batch) else ():
        reading.be(dim, HEAD_DIM)
    for dim in batch:
        reading.be(dim, HEAD)
    reading.tie(key.dims[-2], value.dims[-2])
    reading.fix(key.dims[-2], "is attended over")
    if mask is not None:
        broadcast(reading, [Value((*batch, query.dims[-2], key.dims[-2])), mask], max)
    n, m = len(query.dims[-2]), len(key.dims[-2])
    front = product([len(dim) for dim in batch])
    reading.work(front * n * m * len(query.dims[-1]), *batch, query.dims[-1])
    reading.work(front * n * m * len(value.dims[-1]), *batch, value.dims[-1])
    return Value((*batch, query.dims[-2], value.dims[-1]))


def _repeated(x: Value, query: Value) -> Value:
    """Keys or values with a head for every query head (grouped-query attention)."""
    heads = x.dims[-3]
    times = len(query.dims[-3]) // len(heads)
    return Value((*x.dims[:-3], Dim(np.repeat(heads.cells, times, axis=0), heads.dead), *x.dims[-2:]))


RULES: dict[str, Any] = {"scaled_dot_product_attention": scaled_dot_product_attention}
