"""Canonical Huffman codes (Huffman 1952): the last stage of Deep Compression (Han et al. 2016, section 4).

Frequent symbols get short codes. The code is canonical: symbols by (length, symbol), codes counted up, so that the lengths alone
say all codes, and are all that is stored of them.

    bits = sum over symbols of count * length;   entropy <= bits / count < entropy + 1
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """lengths: of each symbol's code, 0 where it does not occur, uint8 [symbols]. data: codes one after the other, the first
    bit of a code in the highest free bit of a byte. count: symbols coded."""

    lengths: NDArray[np.uint8]
    data: NDArray[np.uint8]
    count: int

    @property
    def bytes(self) -> int:
        """Codes and lengths, a byte each."""
        return len(self.data) + len(self.lengths)


def lengths_of(counts: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the length of each symbol's code; a symbol alone in the world has a code of one bit.

    counts: how often each symbol occurs; fewer than 2^40 in all, so that no code has more than 56 bits.

    >>> lengths_of(np.array([5, 0, 1, 2]))
    array([1, 0, 2, 2], dtype=uint8)
    """
    lengths = np.zeros(len(counts), np.uint8)
    # (count, smallest symbol below, symbols below): ties go to the smaller symbol, so the lengths depend on the counts alone.
    heap = [(int(count), symbol, [symbol]) for symbol, count in enumerate(counts) if count]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
        return lengths
    heapq.heapify(heap)
    while len(heap) > 1:
        (some, first, below), (more, second, others) = heapq.heappop(heap), heapq.heappop(heap)
        below = below + others
        lengths[below] += 1
        heapq.heappush(heap, (some + more, min(first, second), below))
    return lengths


def size_bits(symbols: NDArray[np.integer]) -> int:
    """Return the bits of a sequence's codes, without the lengths.

    >>> size_bits(np.array([0, 0, 0, 0, 0, 3, 3, 2]))
    11
    """
    counts = np.bincount(symbols) if len(symbols) else np.zeros(0, np.int64)
    return int((counts * lengths_of(counts)).sum())


def encode(symbols: NDArray[np.integer], alphabet: int) -> Encoded:
    """Return a sequence of whole numbers below ``alphabet`` in its own Huffman code.

    >>> coded = encode(np.array([0, 0, 0, 0, 0, 3, 3, 2]), 4)
    >>> coded.bytes
    6
    >>> decode(coded)
    array([0, 0, 0, 0, 0, 3, 3, 2])
    """
    lengths = lengths_of(np.bincount(symbols, minlength=alphabet))
    codes = np.zeros(alphabet, np.uint64)
    ordered, first = _canonical(lengths)
    codes[ordered] = first
    stream = []
    for at in range(0, len(symbols), _AT_ONCE):
        some = symbols[at : at + _AT_ONCE]
        size = lengths[some].astype(np.int64)
        ends = np.cumsum(size)
        # Bit i of a code of n bits is that of weight 2^(n - 1 - i).
        weight = np.repeat(ends, size) - 1 - np.arange(ends[-1])
        stream.append(
            (np.repeat(codes[some], size) >> weight.astype(np.uint64) & np.uint64(1)).astype(np.uint8)
        )
    return Encoded(
        lengths, np.packbits(np.concatenate(stream)) if stream else np.zeros(0, np.uint8), len(symbols)
    )


def decode(coded: Encoded) -> NDArray[np.int64]:
    """Return the sequence; ``ValueError`` for lengths that are no code, or data that end too early."""
    ordered, first = _canonical(coded.lengths)
    if not coded.count:
        return np.zeros(0, np.int64)
    sizes = coded.lengths[ordered].astype(np.int64)
    longest = int(sizes[-1]) if len(sizes) else 0
    if not 0 < longest <= 56 or int((1 << (longest - sizes)).sum()) > 1 << longest:
        raise ValueError("these lengths are not those of a Huffman code")
    # What begins at each bit, as if a code began there: its place among the codes, aligned to the longest.
    aligned = first << (longest - sizes).astype(np.uint64)
    bits = np.unpackbits(coded.data)
    end = len(bits)
    bits = np.concatenate([bits, np.zeros(longest, np.uint8)])
    found = np.zeros(end, np.int64)
    for at in range(0, end, _AT_ONCE):
        some = min(_AT_ONCE, end - at)
        window = np.zeros(some, np.uint64)
        for bit in range(longest):
            window = window << np.uint64(1) | bits[at + bit : at + bit + some]
        found[at : at + some] = np.searchsorted(aligned, window, side="right") - 1
    steps = sizes[found].tolist()
    starts, here = [], 0
    for _ in range(coded.count):
        if here >= end:
            raise ValueError("the data end too early")
        starts.append(here)
        here += steps[here]
    if here > end:
        raise ValueError("the data end too early")
    return ordered[found[starts]]


def _canonical(lengths: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the symbols that occur by (length, symbol), and their codes."""
    ordered = np.argsort(lengths, kind="stable")
    ordered = ordered[lengths[ordered] > 0]
    codes, code, before = [], 0, 0
    for size in lengths[ordered].tolist():
        code <<= size - before
        codes.append(code)
        code, before = code + 1, size
    if code > 1 << before or before > 64:
        raise ValueError("these lengths are not those of a Huffman code")
    return ordered, np.array(codes, np.uint64)
