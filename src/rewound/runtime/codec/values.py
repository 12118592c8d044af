"""What the survivors of a weight are, in an engine's file.

    float32        as they are, to the bit                                              4 bytes each
    bfloat16       the upper half of a float32, rounded to nearest even                 2 bytes
    float16        IEEE half precision, rounded to nearest even                         2 bytes
    codebook:K     an index into at most K shared values (2 to 65,536), k-means of them ceil(log2 K) bits, and the values

What rounds to zero is a zero from then on: it leaves the places too, so that density stays kept / total (and is reported).
A weight of few distinct values, such as one trained to a codebook, is stored by index without loss whatever was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewound.runtime.codec import native
from rewound.runtime.codec.bits import filling, pack, packed_size, unpack
from rewound.runtime.codec.codebook import kmeans, nearest

MOST_LEVELS = 65_536
_SPELLING = f"'float32', 'bfloat16', 'float16' or 'codebook:K' with K from 2 to {MOST_LEVELS:,} shared values"
_FEW = 256  # distinct values that are looked for without being asked


@dataclass(frozen=True)
class Coded:
    """codec: "float32", "bfloat16", "float16" or "codes:BITS". codebook: the shared values of "codes", else None."""

    codec: str
    data: NDArray[np.uint8]
    codebook: NDArray[np.float32] | None = None


def parse(values: str) -> tuple[str, int]:
    """Return (kind, K); K is 0 but for codebooks. ``ValueError`` for another spelling."""
    kind, _, number = values.partition(":")
    if values in ("float32", "bfloat16", "float16"):
        return kind, 0
    if kind == "codebook" and number.isdecimal() and len(number) < 6 and 2 <= int(number) <= MOST_LEVELS:
        return kind, int(number)
    raise ValueError(f"'values' must be {_SPELLING} (got {values!r})")


def round_to(numbers: NDArray[np.float32], values: str) -> NDArray[np.float32]:
    """Return the numbers that a file written with ``values`` gives back, in float32.

    ``ValueError``: a finite number too large for float16; infinities or NaN with a codebook.

    >>> round_to(np.array([1.001, -3e-9], np.float32), "float16")
    array([ 1.0009766, -0.       ], dtype=float32)
    """
    kind, levels = parse(values)
    if kind == "bfloat16":
        return _widen(_bfloat16(numbers))
    if kind == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            half = numbers.astype(np.float16).astype(np.float32)
        if (np.isinf(half) & np.isfinite(numbers)).any():
            largest = float(np.abs(numbers[np.isfinite(numbers)]).max())
            raise ValueError(
                f"float16 ends at 65,504, and a weight is {largest:.6g}: write it with values='bfloat16'"
            )
        return half
    if kind == "codebook" and _distinct(numbers, levels) is None:
        book = kmeans(numbers, levels)
        return book[nearest(numbers, book)]
    return numbers


def encode(rounded: NDArray[np.float32], values: str) -> Coded:
    """Return numbers that :func:`round_to` gave, coded: exactly."""
    kind, levels = parse(values)
    book = _distinct(rounded, max(levels, _FEW))
    width = {"float32": 32, "codebook": 32, "bfloat16": 16, "float16": 16}[kind]
    if book is not None:
        bits = max(1, (len(book) - 1).bit_length())
        # Where it is smaller, the codebook itself counted.
        if packed_size(len(rounded), bits) + 4 * len(book) < packed_size(len(rounded), width):
            codes = np.searchsorted(book.view(np.uint32), rounded.view(np.uint32))
            return Coded(f"codes:{bits}", pack(codes, bits), book)
    if kind == "bfloat16":
        return Coded(kind, _bytes(_bfloat16(rounded).astype("<u2")))
    if kind == "float16":
        with np.errstate(invalid="ignore"):
            return Coded(kind, _bytes(rounded.astype("<f2")))
    return Coded("float32", _bytes(rounded.astype("<f4", copy=False)))


def decode(
    codec: str, data: NDArray[np.uint8], count: int, codebook: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return ``count`` numbers; ``ValueError`` says what is wrong with the bytes. float32 is a view of ``data``."""
    kind, bits = parse_codec(codec)
    if len(data) != packed_size(count, bits):
        raise ValueError(
            f"it has {len(data):,} bytes where {count:,} numbers take {packed_size(count, bits):,}"
        )
    if kind == "codes":
        if codebook is None:
            raise ValueError("it has no codebook")
        if native.decode_codes is not None:
            return native.decode_codes(data, bits, codebook, count)
        return decode_codes(data, bits, codebook, count)
    if kind == "bfloat16":
        return _widen(data.view("<u2").astype(np.uint16, copy=False))
    if kind == "float16":
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return data.view("<f2").astype(np.float32)
    return data.view("<f4").astype(np.float32, copy=False)


def parse_codec(codec: str) -> tuple[str, int]:
    """Return (kind, bits a number); ``ValueError`` for an unknown codec."""
    kind, _, bits = codec.partition(":")
    width = {"float32": 32, "bfloat16": 16, "float16": 16}.get(codec)
    if width is not None:
        return kind, width
    if kind == "codes" and bits.isdecimal() and bits.isascii() and len(bits) < 3 and 1 <= int(bits) <= 16:
        return kind, int(bits)
    raise ValueError(
        f"values are coded as 'float32', 'bfloat16', 'float16' or 'codes:1' to 'codes:16' (got {codec[:40]!r})"
    )


def decode_codes(
    data: NDArray[np.uint8], bits: int, codebook: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    """The native decoder of indices in numpy."""
    codes = unpack(data, bits)[:count]
    if len(codes) and int(codes.max()) >= len(codebook):
        raise ValueError("an entry lies outside the codebook")
    if not filling(data, count * bits):
        raise ValueError("its last byte has bits that mean nothing")
    return codebook[codes]


def _distinct(numbers: NDArray[np.float32], most: int) -> NDArray[np.float32] | None:
    """Return the distinct bit patterns in ascending order if there are at most ``most``."""
    integers = np.ascontiguousarray(numbers).view(np.uint32)
    if len(np.unique(integers[: 16 * most])) > most:  # as good as always decides it
        return None
    found = np.unique(integers)
    return found.view(np.float32) if len(found) <= most else None


def _bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    whole = np.ascontiguousarray(numbers).view(np.uint32)
    # Half a unit in the last place less one, and one more where the last place is odd: ties go to even.
    rounded = (whole + np.uint32(0x7FFF) + (whole >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    # The sum would carry a NaN into infinity; its quiet bit keeps it one.
    return np.where(np.isnan(numbers), whole >> np.uint32(16) | np.uint32(0x40), rounded).astype(np.uint16)


def _widen(upper: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bytes(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8)
