"""EIE's format of a layer (Han et al. 2016, "EIE: Efficient Inference Engine on Compressed Deep Neural Network", section 3).

The matrix [out, in] is stored by columns, as its survivors: for each one four bits that index a codebook of 16 values, of which
the first is zero, and four bits that say how many zeros come before it in its column. Where more than 15 do, padding zeros are
stored (``relative.py``). Rows are dealt to processing elements in turn (row mod elements), each of which has its own columns.

    bits = 8 * entries + pointer bits * elements * (columns + 1) + 16 * 16

entries: survivors and padding zeros. Pointers have 16 bits, as in the paper, or 32 where an element has 65,536 entries or
more; values of the codebook have 16 bits as in the paper's arithmetic, though here they are float32 and exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewound.runtime.codec.codebook import kmeans, nearest
from rewound.runtime.codec.relative import gaps_of, padded, padding

LEVELS = 16  # zero among them
_RUN_BITS = 4


@dataclass(frozen=True)
class Element:
    """What one processing element stores. pointers: [columns + 1] into the entries. codes, runs: 0 to 15, [entries]."""

    pointers: NDArray[np.int64]
    codes: NDArray[np.uint8]
    runs: NDArray[np.uint8]


@dataclass(frozen=True)
class Encoded:
    """A matrix in EIE's format. shape: (out, in). codebook: float32 [16], the first is zero."""

    shape: tuple[int, int]
    codebook: NDArray[np.float32]
    elements: tuple[Element, ...]

    @property
    def entries(self) -> int:
        """Stored entries: survivors and padding zeros."""
        return sum(len(element.codes) for element in self.elements)

    @property
    def pads(self) -> int:
        """Padding zeros."""
        return sum(int((element.codes == 0).sum()) for element in self.elements)

    @property
    def bits(self) -> int:
        """Size by the formula of this module."""
        pointer = 16 if all(len(element.codes) < 2**16 for element in self.elements) else 32
        pointers = pointer * len(self.elements) * (self.shape[1] + 1)
        return 2 * _RUN_BITS * self.entries + pointers + 16 * LEVELS


@dataclass(frozen=True)
class Work:
    """Multiplications of one matrix-vector product. entries: padding zeros too, since EIE multiplies by them.

    dense: rows x columns. weights: one for each survivor. useful: for each survivor whose activation is not zero. entries:
    stored entries whose activation is not zero. cycles: of the element that has most to do, activations waiting in queues of
    any length; lockstep: without queues, every element waits after each activation for the slowest.
    """

    dense: int
    weights: int
    useful: int
    entries: int
    cycles: int
    lockstep: int

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.astuple(), other.astuple())))

    def astuple(self) -> tuple[int, ...]:
        """The six numbers in their order."""
        return (self.dense, self.weights, self.useful, self.entries, self.cycles, self.lockstep)


def share(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the matrix with its survivors moved to at most 15 shared values, k-means of them; zeros stay.

    Values that are 15 or fewer already are left to the bit.

    >>> len(np.unique(share(np.arange(100, dtype=np.float32).reshape(10, 10))))
    16
    """
    kept = matrix != 0
    survivors = matrix[kept]
    book = np.unique(survivors)
    if len(book) >= LEVELS:
        book = kmeans(survivors, LEVELS - 1)
    out = np.zeros_like(matrix)
    out[kept] = book[nearest(survivors, book)] if len(book) else 0
    return out


def encode(matrix: NDArray[np.float32], elements: int = 1) -> Encoded:
    """Return a matrix of at most 15 distinct values besides zero in EIE's format; see :func:`share`.

    matrix: [out, in], float32. elements: processing elements that the rows are dealt to; EIE has 64.
    ``ValueError`` for more values, and for NaN, which no index finds.

    >>> matrix = np.zeros((40, 2), np.float32)
    >>> matrix[33, 1] = 0.5
    >>> coded = encode(matrix)
    >>> coded.elements[0].pointers, coded.elements[0].codes, coded.elements[0].runs, coded.bits
    (array([0, 0, 3]), array([0, 0, 1], dtype=uint8), array([15, 15,  1], dtype=uint8), 328)
    >>> bool((decode(coded) == matrix).all())
    True
    """
    if matrix.ndim != 2 or type(elements) is not int or elements < 1:
        raise ValueError(
            f"a matrix [out, in] and at least one element are needed (got {matrix.shape} and {elements!r})"
        )
    found = np.unique(matrix[matrix != 0])
    if len(found) >= LEVELS or np.isnan(found).any():
        raise ValueError(
            f"EIE indexes {LEVELS - 1} values besides zero, and the matrix has "
            f"{'NaN' if np.isnan(found).any() else f'{len(found):,}'}: share them first, eie.share(matrix)"
        )
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + len(found)] = found
    return Encoded(
        (matrix.shape[0], matrix.shape[1]),
        codebook,
        tuple(_element(matrix[first::elements], found) for first in range(elements)),
    )


def decode(coded: Encoded) -> NDArray[np.float32]:
    """Return the matrix: exactly what :func:`encode` was given, but for the sign of zeros."""
    matrix = np.zeros(coded.shape, np.float32)
    for first, element in enumerate(coded.elements):
        columns, rows = _positions(element)
        values = coded.codebook[element.codes]
        real = element.codes != 0
        matrix[first :: len(coded.elements)][rows[real], columns[real]] = values[real]
    return matrix


def multiply(coded: Encoded, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], Work]:
    """Return W x as EIE computes it, column by column of the activations that are not zero, and what that took.

    x: [in], float32; the sums are made in float64.

    >>> y, work = multiply(encode(np.eye(4, dtype=np.float32)), np.array([1, 0, 0, 2], np.float32))
    >>> y, work.dense, work.weights, work.useful
    (array([1., 0., 0., 2.], dtype=float32), 16, 4, 2)
    """
    if x.shape != coded.shape[1:]:
        raise ValueError(f"the matrix has {coded.shape[1]} columns, and x is of shape {x.shape}")
    y = np.zeros(coded.shape[0])
    active = x != 0
    per_element = np.zeros((len(coded.elements), coded.shape[1]), np.int64)
    useful = 0
    for first, element in enumerate(coded.elements):
        columns, rows = _positions(element)
        used = active[columns]
        products = coded.codebook[element.codes[used]].astype(np.float64) * x[columns[used]]
        np.add.at(y[first :: len(coded.elements)], rows[used], products)
        per_element[first] = np.diff(element.pointers)
        useful += int((element.codes[used] != 0).sum())
    busy = per_element[:, active]
    work = Work(
        coded.shape[0] * coded.shape[1],
        coded.entries - coded.pads,
        useful,
        int(busy.sum()),
        int(busy.sum(axis=1).max()),
        int(busy.max(axis=0).sum()),
    )
    return y.astype(np.float32), work


def _element(matrix: NDArray[np.float32], found: NDArray[np.float32]) -> Element:
    columns, rows = np.nonzero(matrix.T)
    gaps = gaps_of(columns, rows)
    codes, runs = padded(gaps, np.searchsorted(found, matrix[rows, columns]) + 1, _RUN_BITS)
    stored = np.zeros(matrix.shape[1], np.int64)
    np.add.at(stored, columns, padding(gaps, _RUN_BITS) + 1)
    return Element(np.concatenate([[0], np.cumsum(stored)]), codes, runs)


def _positions(element: Element) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the column and the row (among the element's own) of each entry."""
    counts = np.diff(element.pointers)
    columns = np.repeat(np.arange(len(counts)), counts)
    steps = np.cumsum(element.runs.astype(np.int64) + 1)
    before = np.concatenate([[0], steps])[element.pointers[:-1]]
    return columns, steps - 1 - before[columns]
