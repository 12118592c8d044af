"""Shared weights: k-means in one dimension, as Deep Compression uses it (Han et al. 2016, section 3).

The values are sorted once; then every cluster is a stretch of them, found by bisection, and its mean comes from running sums:
a round of Lloyd's algorithm costs O(k log n).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 300


def kmeans(values: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Return at most ``levels`` centroids, ascending: a local minimum of sum (w - nearest centroid)^2.

    Begins with centroids equally spaced from the smallest to the largest value ("linear initialisation", which the paper
    found best, since it has centroids where the few large weights are) and makes Lloyd's rounds until no value changes its
    cluster. Clusters that are empty at the end are left out. ``ValueError`` for NaN or infinite values.

    >>> kmeans(np.array([-1.0, -1.2, 0.5, 0.7], np.float32), 2)
    array([-1.1,  0.6], dtype=float32)
    """
    if not np.isfinite(values).all():
        raise ValueError("shared values need finite weights, and there is a NaN or an infinity among them")
    if not len(values):
        return np.zeros(0, np.float32)
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], levels)
    ends: NDArray[np.int64] | None = None
    for _ in range(_ROUNDS):
        middles = (centroids[1:] + centroids[:-1]) / 2
        previous, ends = ends, np.searchsorted(ordered, middles, side="right")
        if previous is not None and np.array_equal(ends, previous):
            break
        first, last = np.concatenate([[0], ends]), np.concatenate([ends, [len(ordered)]])
        counts = last - first
        some = counts > 0
        centroids[some] = (sums[last] - sums[first])[some] / counts[some]
        centroids.sort()  # an empty cluster stays where it is, and a neighbour's mean may pass it
    rounded = centroids.astype(np.float32)
    used = np.bincount(nearest(values, np.unique(rounded)), minlength=1) > 0
    return np.unique(rounded)[: len(used)][used]


def nearest(values: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return for each value the index of the nearest of the ascending ``centroids``; halfway, of the lower one.

    >>> nearest(np.array([0.1, 0.9], np.float32), np.array([0.0, 1.0], np.float32))
    array([0, 1])
    """
    wide = centroids.astype(np.float64)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values, side="left").astype(np.int64)
