"""A weight in parts, as an engine's file stores it: values, places, codebook; each the smallest of its codes.

    form      what the graph gets        parts
    "sparse"  weights.Sparse             values of the survivors; their places (none where all are kept); codebook
    "dense"   an array                   all values; or, where smaller, those that are not zero with a bit map; codebook

A dense array may have zeros too: a layer that no kernel gains from is still smaller on the disk. Its zeros are told by their
bits, so that minus zero stays what it is. Arrays of other types (integers that a torch operator reads, say) are stored as
they are, under their type's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewound.runtime.codec import places as places_codec
from rewound.runtime.codec import values as values_codec
from rewound.runtime.weights import Sparse, Weight

_OTHER_TYPES = {
    name: np.dtype(name).newbyteorder("<") for name in ("float64", "int64", "int32", "int16", "int8", "uint8")
}


@dataclass(frozen=True)
class Part:
    """codec: as ``places.py`` and ``values.py`` name them. data: uint8."""

    codec: str
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """count: values stored. away: how many survivors were rounded to zero. parts: "values", "places"?, "codebook"?."""

    form: str
    shape: tuple[int, ...]
    count: int
    away: int
    parts: Mapping[str, Part]


def encode(weight: Weight, values: str = "float32") -> Stored:
    """Return a weight in parts. ``ValueError`` where ``values`` cannot hold it, or a Sparse is not what weights.Sparse says.

    >>> weight = np.diag(np.arange(1, 1001, dtype=np.float32))
    >>> stored = encode(weight)
    >>> stored.form, stored.count, {name: (part.codec, len(part.data)) for name, part in stored.parts.items()}
    ('dense', 1000, {'values': ('float32', 4000), 'places': ('bitmap', 125000)})
    >>> bool((decode(stored) == weight).all())
    True
    """
    return _encode_sparse(weight, values) if isinstance(weight, Sparse) else _encode_dense(weight, values)


def decode(stored: Stored) -> Weight:
    """Return the weight; ``ValueError`` says which part is wrong, and how. Values that were not coded are a view.

    The parts may be anything; that ``stored`` asks for no more memory than there is, the caller sees to (:func:`memory`).
    """
    size, parts = math.prod(stored.shape), stored.parts
    if stored.form == "dense" and parts["values"].codec in ("bool", *_OTHER_TYPES):
        return _decode_other(parts["values"], size).reshape(stored.shape)
    codebook = None
    if "codebook" in parts:
        book = parts["codebook"]
        with _naming("codebook"):
            codebook = values_codec.decode(book.codec, book.data, len(book.data) // 4)
    with _naming("values"):
        values = values_codec.decode(parts["values"].codec, parts["values"].data, stored.count, codebook)
    if "places" not in parts and stored.count != size:
        raise ValueError(f"there are {stored.count:,} values of {size:,}, and no places")
    if stored.form == "dense":
        if "places" not in parts:
            return values.reshape(stored.shape)
        with _naming("places"):
            return _scatter(parts["places"], values, size).reshape(stored.shape)
    rows, row = stored.shape[0], math.prod(stored.shape[1:])
    if row > places_codec.LARGEST_ROW:
        raise ValueError(f"a row has {row:,} places, and at most {places_codec.LARGEST_ROW:,} are possible")
    with _naming("values"):
        if _count_zeros(values):
            raise ValueError("a survivor is zero")
    if "places" not in parts:
        starts = np.arange(rows + 1, dtype=np.int64) * row
        return Sparse(stored.shape, starts, np.tile(np.arange(row, dtype=np.int32), rows), values)
    with _naming("places"):
        starts, where = places_codec.decode(
            parts["places"].codec, parts["places"].data, rows, row, stored.count
        )
    return Sparse(stored.shape, starts, where, values)


def memory(stored: Stored) -> int:
    """Bytes that the decoded weight takes beside its parts."""
    if stored.form == "sparse":
        return 8 * (stored.shape[0] + 1) + 8 * stored.count
    view = "places" not in stored.parts and stored.parts["values"].codec == "float32"
    return 0 if view else 4 * (math.prod(stored.shape) + stored.count)


def _count_zeros(numbers: NDArray[np.float32]) -> int:
    """How many are zero, minus zero too. By bits: a comparison may warn of a NaN (a signalling one), and a file holds any."""
    return int(np.count_nonzero(numbers.view(np.uint32) << np.uint32(1) == 0))


def _encode_sparse(weight: Sparse, values: str) -> Stored:
    _require_sound(weight)
    rounded = values_codec.round_to(weight.values, values)
    starts, where = weight.starts, weight.places
    left = rounded.view(np.uint32) << np.uint32(1) != 0
    away = len(rounded) - int(np.count_nonzero(left))
    if away:
        before = np.concatenate([[0], np.cumsum(left)])
        starts, where, rounded = before[starts], where[left], rounded[left]
    parts = _value_parts(rounded, values)
    if len(where) < weight.size:
        parts["places"] = Part(*places_codec.encode(starts, where, weight.row))
    return Stored("sparse", weight.shape, len(where), away, parts)


def _encode_dense(weight: NDArray[np.float32], values: str) -> Stored:
    if weight.dtype != np.float32:
        return _encode_other(weight, values)
    flat = np.ascontiguousarray(weight).reshape(-1)
    kept = np.flatnonzero(flat.view(np.uint32))
    rounded = values_codec.round_to(flat[kept], values)
    away = _count_zeros(rounded) - _count_zeros(flat[kept])
    parts = _value_parts(rounded, values)
    count = len(kept)
    if count < flat.size:
        parts["places"] = Part("bitmap", places_codec.encode_bitmap(kept, flat.size))
        if not values.startswith("codebook"):  # whose zeros are places at any rate: k-means would move them
            whole = np.zeros_like(flat)
            whole[kept] = rounded
            everything = _value_parts(whole, values)
            if _size(everything) <= _size(parts):
                parts, count = everything, flat.size
    return Stored("dense", weight.shape, count, away, parts)


def _encode_other(array: NDArray[Any], values: str) -> Stored:
    name = str(array.dtype)
    if name not in ("bool", *_OTHER_TYPES):
        raise TypeError(
            f"arrays of {', '.join(('float32', 'bool', *_OTHER_TYPES))} can be written (got {name})"
        )
    if values != "float32":
        raise TypeError(
            f"'values' is about float32 weights (got {values!r} for {name}): round the graph first, graph.rounded(graph)"
        )
    stored = array.astype(_OTHER_TYPES.get(name, np.uint8)).reshape(-1)
    return Stored("dense", array.shape, array.size, 0, {"values": Part(name, stored.view(np.uint8))})


def _decode_other(part: Part, size: int) -> NDArray[Any]:
    kind = _OTHER_TYPES.get(part.codec, np.dtype(np.uint8))
    if len(part.data) != size * kind.itemsize:
        raise ValueError(
            f"values: it has {len(part.data):,} bytes where {size:,} numbers take {size * kind.itemsize:,}"
        )
    if part.codec == "bool":
        return part.data != 0
    return part.data.view(kind).astype(np.dtype(part.codec), copy=False)


def _value_parts(rounded: NDArray[np.float32], values: str) -> dict[str, Part]:
    coded = values_codec.encode(rounded, values)
    parts = {"values": Part(coded.codec, coded.data)}
    if coded.codebook is not None:
        parts["codebook"] = Part("float32", coded.codebook.astype("<f4", copy=False).view(np.uint8))
    return parts


def _size(parts: Mapping[str, Part]) -> int:
    return sum(len(part.data) for part in parts.values())


def _scatter(part: Part, values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    if part.codec != "bitmap":
        raise ValueError(f"the places of an array are coded as 'bitmap' (got {part.codec[:40]!r})")
    if len(part.data) != places_codec.bitmap_size(1, size):
        raise ValueError(f"it has {len(part.data):,} bytes for {size:,} places")
    kept = np.unpackbits(part.data, count=size, bitorder="little").view(np.bool_)
    if np.count_nonzero(kept) != len(values):
        raise ValueError(f"it has {np.count_nonzero(kept):,} entries where there are {len(values):,} values")
    out = np.zeros(size, np.float32)
    out[kept] = values
    return out


def _require_sound(weight: Sparse) -> None:
    starts, where, count = weight.starts, weight.places, len(weight.values)
    rows, row = weight.shape[0] if weight.shape else -1, weight.row
    sound = len(starts) == rows + 1 and starts[0] == 0 and starts[-1] == count == len(where)
    sound = sound and bool((np.diff(starts) >= 0).all()) and row <= places_codec.LARGEST_ROW
    if sound and count:
        inside = bool((where >= 0).all() and (where < row).all())
        # A row's first place may be anything; all others are above the one before.
        first = np.zeros(count + 1, np.bool_)
        first[starts] = True
        sound = (
            inside and bool((np.diff(where) > 0)[~first[1:count]].all()) and not _count_zeros(weight.values)
        )
    if not sound:
        raise ValueError(
            f"a Sparse of shape {weight.shape} is not sound: starts of rows + 1, places ascending in each row and inside it, "
            "values not zero are asked for (weights.sparse makes one of a dense array)"
        )


class _naming:
    """Put the part's name before what is wrong with it."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self.part}: {error}") from error
