"""Where the survivors of a weight stand, in an engine's file: a bit map or the zeros between them, whichever is smaller.

    bitmap     one bit a weight, rows one after the other, the first in the lowest bit:           ceil(size / 8) bytes
    deltas:B   the zeros before each survivor, over the rows' borders, in units of B bits: the largest number 2^B - 1 stands
               for that many zeros and no survivor, so a gap of g takes 1 + floor(g / (2^B - 1)) units

B is chosen for each weight. At a density of .1 the best (B = 4) is 7 % above the entropy of independent places, a bit map
2.1 times it. A weight that keeps all of its places has no section for them.

Decoding is native where the module is there (csrc/decode.cc) and the same in numpy elsewhere; both refuse the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rewound.runtime.codec import native
from rewound.runtime.codec.bits import filling, pack, packed_size, unpack

Decoded = tuple[
    NDArray[np.int64], NDArray[np.int32]
]  # starts [rows + 1], places [count]: as in weights.Sparse
MOST_BITS = 16
LARGEST_ROW = 2**31 - 1


def encode(starts: NDArray[np.int64], places: NDArray[np.int32], row: int) -> tuple[str, NDArray[np.uint8]]:
    """Return the name of the smaller code, such as "bitmap" or "deltas:4", and its bytes.

    starts, places: as in :class:`~rewound.runtime.weights.Sparse`; ``row``: how many places a row has.

    >>> name, coded = encode(np.array([0, 1, 2]), np.array([3, 99], np.int32), 100)
    >>> name, len(coded)
    ('deltas:8', 2)
    >>> [found.tolist() for found in decode(name, coded, rows=2, row=100, count=2)]
    [[0, 1, 2], [3, 99]]
    """
    rows = len(starts) - 1
    if not len(places):
        return "deltas:1", np.zeros(0, np.uint8)
    flat = np.repeat(np.arange(rows, dtype=np.int64) * row, np.diff(starts)) + places
    gaps = np.diff(flat, prepend=-1) - 1
    bits = min(range(1, MOST_BITS + 1), key=lambda bits: deltas_size(gaps, bits))
    if deltas_size(gaps, bits) < bitmap_size(rows, row):
        return f"deltas:{bits}", encode_deltas(gaps, bits)
    return "bitmap", encode_bitmap(flat, rows * row)


def decode(name: str, coded: NDArray[np.uint8], rows: int, row: int, count: int) -> Decoded:
    """Return (starts, places) of ``count`` survivors; ``ValueError`` says what is wrong with the bytes.

    Memory: 8 bytes a row and 4 a survivor, taken before the bytes are looked at; a caller bounds both.
    """
    kind, bits = parse(name)
    if kind == "bitmap":
        if native.decode_bitmap is not None:
            return native.decode_bitmap(coded, rows, row, count)
        return decode_bitmap(coded, rows, row, count)
    if native.decode_deltas is not None:
        return native.decode_deltas(coded, bits, rows, row, count)
    return decode_deltas(coded, bits, rows, row, count)


def parse(name: str) -> tuple[str, int]:
    """Return ("bitmap", 0) or ("deltas", bits); ``ValueError`` for another name."""
    kind, _, bits = name.partition(":")
    if name == "bitmap":
        return kind, 0
    if (
        kind == "deltas"
        and bits.isdecimal()
        and bits.isascii()
        and len(bits) < 3
        and 1 <= int(bits) <= MOST_BITS
    ):
        return kind, int(bits)
    raise ValueError(
        f"places are coded as 'bitmap' or 'deltas:1' to 'deltas:{MOST_BITS}' (got {name[:40]!r})"
    )


def bitmap_size(rows: int, row: int) -> int:
    """Bytes of a bit map: ceil(rows * row / 8)."""
    return (rows * row + 7) // 8


def deltas_size(gaps: NDArray[np.int64], bits: int) -> int:
    """Bytes of ``gaps``, the zeros before each survivor, in units of ``bits`` bits."""
    units = len(gaps) + int((gaps // ((1 << bits) - 1)).sum())
    return packed_size(units, bits)


def encode_bitmap(flat: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return one bit for each of ``size`` places, set at ``flat``."""
    kept = np.zeros(size, np.bool_)
    kept[flat] = True
    return np.packbits(kept, bitorder="little")


def encode_deltas(gaps: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Return the zeros before each survivor in units of ``bits`` bits."""
    go_on = (1 << bits) - 1
    jumps = gaps // go_on
    last = np.cumsum(jumps + 1) - 1
    units = np.full(len(gaps) + int(jumps.sum()), go_on, np.uint16)
    units[last] = gaps - jumps * go_on
    return pack(units, bits)


def decode_bitmap(coded: NDArray[np.uint8], rows: int, row: int, count: int) -> Decoded:
    """The native decoder of bit maps in numpy."""
    size = rows * row
    if len(coded) != bitmap_size(rows, row):
        raise ValueError(_TOO_SHORT if len(coded) < bitmap_size(rows, row) else _TOO_LONG)
    if not filling(coded, size):
        raise ValueError(_PADDING)
    flat = np.flatnonzero(np.unpackbits(coded, count=size, bitorder="little"))
    if len(flat) != count:
        raise ValueError(_MORE if len(flat) > count else _FEWER)
    return _by_row(flat, rows, row)


def decode_deltas(coded: NDArray[np.uint8], bits: int, rows: int, row: int, count: int) -> Decoded:
    """The native decoder of deltas in numpy."""
    go_on = (1 << bits) - 1
    units = unpack(coded, bits)
    survivor = units != go_on
    if count:
        ends = np.flatnonzero(survivor)
        used = int(ends[count - 1]) + 1 if len(ends) >= count else len(units)
    else:
        used = 0
    # Each unit moves on by its zeros, and a survivor by itself.
    after = np.cumsum(units[:used] + survivor[:used].astype(np.int64))
    flat = after[survivor[:used]] - 1
    if used and (after - survivor[:used] >= rows * row).any():
        raise ValueError(_OUTSIDE)
    if len(flat) < count:
        raise ValueError(_TOO_SHORT)
    if len(coded) > packed_size(used, bits):
        raise ValueError(_TOO_LONG)
    if not filling(coded, used * bits):
        raise ValueError(_PADDING)
    return _by_row(flat, rows, row)


def _by_row(flat: NDArray[np.int64], rows: int, row: int) -> Decoded:
    starts = np.searchsorted(flat, np.arange(rows + 1, dtype=np.int64) * row).astype(np.int64)
    return starts, (flat % max(row, 1)).astype(np.int32)


_TOO_SHORT = "it ends too early"
_TOO_LONG = "it goes on after its last entry"
_PADDING = "its last byte has bits that mean nothing"
_OUTSIDE = "an entry lies outside the weight"
_MORE = "it has more entries than the table says"
_FEWER = "it has fewer entries than the table says"
