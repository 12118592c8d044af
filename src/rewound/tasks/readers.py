"""Read the files that image data sets come in: idx (MNIST's format) and CIFAR-10's two formats.

Such files come from strangers. A damaged one is an error that names it, and the pickled form of CIFAR-10 is
read without giving it the power to run anything.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CIFAR_PIXELS = 3 * 32 * 32
_RECORD = 1 + _CIFAR_PIXELS  # CIFAR-10 binary: one byte of label, then the red, green and blue planes


def read_idx(path: str | Path) -> np.ndarray:
    """Return the array in an idx file, plain or gzip-compressed (told by its first bytes, not by its name).

    Raises ``ValueError`` naming the file if it is not idx, or shorter or longer than its header says.
    """
    content = _read(Path(path))
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{path} is not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}")
    kind, axes = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{path} is truncated: it ends within its header")
    shape = struct.unpack(f">{axes}I", content[4:start])
    wanted, there = int(np.prod(shape, dtype=object)) * kind.itemsize, len(content) - start
    if there != wanted:
        raise ValueError(
            f"{path} is damaged: {there} bytes of data where its header {shape} asks for {wanted}"
        )
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def read_cifar_binary(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [N, 3, 32, 32], labels int64 [N]) of a ``*.bin`` file of CIFAR-10's binary
    version."""
    content = Path(path).read_bytes()
    if not content or len(content) % _RECORD:
        raise ValueError(
            f"{path} is damaged: {len(content)} bytes are no whole number of {_RECORD}-byte images"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return _checked(path, records[:, 1:], records[:, 0])


def read_cifar_python(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [N, 3, 32, 32], labels int64 [N]) of a batch file of CIFAR-10's python version.

    Raises ``ValueError`` naming the file if it is damaged, or if its pickle asks for anything but arrays.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(Path(path).read_bytes()), encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path} is not a batch of CIFAR-10's python version ({error})") from error
    return _checked(path, pixels, labels)


class _ArraysOnly(pickle.Unpickler):
    """Unpickle dicts, lists, bytes, numbers and numpy arrays; refuse every other name, which could run
    code."""

    def find_class(self, module: str, name: str) -> Any:
        where = module.replace("numpy._core", "numpy.core")
        if (where, name) in _ADMITTED:
            return _ADMITTED[where, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into old pickles; admitted for this one encoding."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which is refused")
    return text.encode("latin1")


# numpy's own reconstruction functions, taken from an array since their module's name differs between versions
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def _checked(path: str | Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _CIFAR_PIXELS:
        raise ValueError(f"{path}: images must be uint8 [N, 3072] (got {pixels.dtype} {pixels.shape})")
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise ValueError(
            f"{path}: labels must be {len(pixels)} whole numbers (got {labels.dtype} {labels.shape})"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path}: labels must lie in 0..9")
    return np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from error
