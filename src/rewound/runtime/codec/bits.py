"""Numbers of a few bits each, packed: the first in the lowest bits of the first byte, the last byte filled with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 20  # numbers spread into bits at a time: a multiple of 8, so that each part fills its bytes


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` numbers of ``bits`` bits: ceil(count * bits / 8)."""
    return (count * bits + 7) // 8


def pack(numbers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the packed bytes of whole numbers below 2^bits (1 to 16 bits).

    >>> pack(np.array([1, 2, 3]), 4)
    array([33,  3], dtype=uint8)
    """
    parts = [
        np.packbits(_spread(numbers[at : at + _AT_ONCE], bits), bitorder="little")
        for at in range(0, len(numbers), _AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint16]:
    """Return as many whole numbers as fit: up to 7 / bits too many zeros at the end, where the last byte was filled.

    >>> unpack(np.array([33, 3], np.uint8), 4)
    array([1, 2, 3, 0], dtype=uint16)
    """
    count = 8 * len(packed) // bits
    out = np.zeros(count, np.uint16)
    for at in range(0, count, _AT_ONCE):
        some = min(_AT_ONCE, count - at)
        first = at * bits // 8
        spread = np.unpackbits(
            packed[first : first + packed_size(some, bits)], count=some * bits, bitorder="little"
        )
        columns = spread.reshape(some, bits)
        for bit in range(bits):
            out[at : at + some] |= columns[:, bit].astype(np.uint16) << np.uint16(bit)
    return out


def filling(packed: NDArray[np.uint8], used: int) -> bool:
    """Return whether the bits after the first ``used``, all in the last byte, are zero."""
    return used % 8 == 0 or int(packed[-1]) >> (used % 8) == 0


def _spread(numbers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    shifts = np.arange(bits, dtype=np.uint16)
    return (numbers.astype(np.uint16)[:, None] >> shifts & 1).astype(np.uint8)
