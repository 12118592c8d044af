"""Relative indices of a few bits with padding zeros: what Deep Compression and EIE store for the places (Han et al. 2016).

An entry is (zeros before it, value). With ``bits`` bits an entry has at most 2^bits - 1 zeros before it; where a run is longer,
entries of value zero are put in, each of which stands for 2^bits places: the 2^bits - 1 zeros before it and itself.

    padding(run) = floor(run / 2^bits)          4 bits: a run of 15 needs none, of 16 one, of 31 one, of 32 two
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def gaps_of(lines: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the zeros before each survivor; the count begins anew in each line (a column of EIE).

    lines, places: of each survivor, in ascending order.

    >>> gaps_of(np.array([0, 0, 1]), np.array([2, 5, 1]))
    array([2, 2, 1])
    """
    gaps = np.diff(places, prepend=-1) - 1
    first = np.diff(lines, prepend=-1) != 0
    gaps[first] = places[first]
    return gaps


def padding(gaps: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return how many padding zeros stand before each survivor.

    >>> padding(np.array([0, 15, 16, 31, 32]), 4)
    array([0, 0, 1, 1, 2])
    """
    return gaps >> bits


def padded(
    gaps: NDArray[np.int64], codes: NDArray[np.integer], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return (codes, runs) of all stored entries; ``codes`` of padding zeros are 0. At most 8 bits.

    >>> padded(np.array([17]), np.array([3]), 4)
    (array([0, 3], dtype=uint8), array([15,  1], dtype=uint8))
    """
    extra = padding(gaps, bits)
    at = np.cumsum(extra + 1) - 1
    stored = len(gaps) + int(extra.sum())
    all_codes = np.zeros(stored, np.uint8)
    runs = np.full(stored, (1 << bits) - 1, np.uint8)
    all_codes[at], runs[at] = codes, gaps & ((1 << bits) - 1)
    return all_codes, runs
