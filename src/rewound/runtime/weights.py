"""Weights of an engine: dense arrays, or the survivors alone with their places."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sparse:
    """A weight by its nonzeros, row by row: a convolution's [out, in / groups, kh, kw], a linear layer's [out, in].

    starts: int64 [out + 1]. places: int32, for each nonzero its position in the flattened rest of the shape, ascending in a
    row. values: float32. Nothing that is stored is zero, so ``density`` is ``len(values) / size``.
    """

    shape: tuple[int, ...]
    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    values: NDArray[np.float32]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        return len(self.values) / self.size if self.size else 1.0

    @property
    def row(self) -> int:
        """How many places a row has."""
        return math.prod(self.shape[1:])


Weight = NDArray[np.float32] | Sparse


def sparse(dense: NDArray[np.float32]) -> Sparse:
    """Return the nonzeros of a dense weight [out, ...]. Minus zero is a zero, NaN is not.

    >>> sparse(np.array([[0, 2.0], [0, 0]], np.float32)).places
    array([1], dtype=int32)
    """
    flat = np.ascontiguousarray(dense, np.float32).reshape(dense.shape[0], -1)
    rows, places = np.nonzero(flat)
    starts = np.zeros(flat.shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=flat.shape[0]), out=starts[1:])
    return Sparse(tuple(dense.shape), starts, places.astype(np.int32), flat[rows, places])


def dense(weight: Weight) -> NDArray[np.float32]:
    """Return a weight as a dense array.

    >>> dense(sparse(np.array([[0, 2.0]], np.float32)))
    array([[0., 2.]], dtype=float32)
    """
    if not isinstance(weight, Sparse):
        return weight
    out = np.zeros((weight.shape[0], weight.row), np.float32)
    rows = np.repeat(np.arange(weight.shape[0]), np.diff(weight.starts))
    out[rows, weight.places] = weight.values
    return out.reshape(weight.shape)


def density(weight: Weight) -> float:
    """Return kept / total."""
    if isinstance(weight, Sparse):
        return weight.density
    return float(np.count_nonzero(weight)) / weight.size if weight.size else 1.0
