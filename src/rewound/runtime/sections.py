"""A file of sections: what an engine's file is before anybody asks what is in it.

    at    bytes
    0     8      magic: 89 52 57 44 0D 0A 1A 0A (as PNG's, so that a transfer in text mode is noticed)
    8     4      version of the format
    12    4      CRC-32 of the header
    16    8      bytes of the header
    24    8      bytes of the file
    32    28     zeros
    60    4      CRC-32 of the 60 bytes before
    64           the header: JSON in UTF-8, and in it "sections": name -> [codec, offset from the first section, bytes, CRC-32]
    ...          the sections, each at a multiple of 64 bytes, zeros between

All numbers are little-endian. Nothing in a file is code. A file is written whole or not at all, and read by mapping it into
memory: do not write into a file that is in use; replacing it, as ``write`` does, is safe.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x89RWD\r\n\x1a\n"
VERSION = 1
_PRELUDE = struct.Struct("<8sIIQQ28x")
_ALIGN = 64
_LARGEST_HEADER = 64 << 20


@dataclass(frozen=True)
class Section:
    """data: uint8; on reading a view of the mapped file, read-only."""

    name: str
    codec: str
    data: NDArray[np.uint8]


def write(path: Path, header: Mapping[str, Any], sections: Sequence[Section]) -> int:
    """Write header (JSON values) and sections; the whole file or none of it. Return its bytes."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path.parent)!r} to save {path.name!r} in: make it first"
        )
    # Offsets are counted from the first section, so that they do not depend on the header's length.
    table, end = {}, 0
    for section in sections:
        table[section.name] = [section.codec, end, len(section.data), zlib.crc32(section.data.data)]
        end += _aligned(len(section.data))
    text = json.dumps({**header, "sections": table}, separators=(",", ":")).encode()
    if len(text) > _LARGEST_HEADER:
        raise ValueError(
            f"the header would have {len(text):,} bytes; at most {_LARGEST_HEADER:,} are read back"
        )
    first = _ALIGN + _aligned(len(text))
    prelude = _PRELUDE.pack(MAGIC, VERSION, zlib.crc32(text), len(text), first + end)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(prelude + struct.pack("<I", zlib.crc32(prelude)))
            file.write(text + bytes(_aligned(len(text)) - len(text)))
            for section in sections:
                file.write(section.data.data)
                file.write(bytes(_aligned(len(section.data)) - len(section.data)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return first + end


def read(path: Path, *, data: bool = True) -> tuple[dict[str, Any], dict[str, Section], int]:
    """Return the header without its table, the sections by name, and the bytes of the file. All checksums are compared.

    data: False leaves the sections' bytes unread and unchecked. ``ValueError``, naming the file and the section, if it
    is foreign, of a later version, truncated or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    everything = np.frombuffer(mapped, np.uint8)
    length, checksum = _read_prelude(path, everything)
    text = everything[_ALIGN : _ALIGN + length]
    if zlib.crc32(text.data) != checksum:
        raise ValueError(f"'{path}' is damaged: the header does not match its checksum. Write it again")
    try:
        header = json.loads(text.tobytes())
        table = header.pop("sections")
        sections = {}
        for name, row in table.items():
            section, expected = _section(everything, _ALIGN + _aligned(length), name, row)
            if data and zlib.crc32(section.data.data) != expected:
                raise _Damaged(
                    f"section {name!r} ({section.codec}, {len(section.data):,} bytes) does not match its checksum"
                )
            sections[name] = section
    except _Damaged as error:
        raise ValueError(f"'{path}' is damaged: {error}. Write it again") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"'{path}' was not written by rewound: its header is not one ({error!r})") from error
    return header, sections, len(everything)


def _read_prelude(path: Path, everything: NDArray[np.uint8]) -> tuple[int, int]:
    """Return length and checksum of the header, which lies inside the file."""
    start = everything[:_ALIGN].tobytes()
    if start[: len(MAGIC)] != MAGIC:
        if start and MAGIC.startswith(start):
            raise ValueError(f"'{path}' is truncated: it has {len(start)} bytes. Write it again")
        begins = f"begins with {start[:8]!r}" if start else "is empty"
        raise ValueError(f"'{path}' is not an engine's file: it {begins}")
    if len(start) < _ALIGN:
        raise ValueError(f"'{path}' is truncated: it has {len(start)} bytes. Write it again")
    _, version, checksum, length, size = _PRELUDE.unpack(start[:60])
    sound = zlib.crc32(start[:60]) == struct.unpack("<I", start[60:])[0]
    if version > VERSION and (sound or version < 1 << 16):
        raise ValueError(
            f"'{path}' is of format {version}, and this version of rewound reads formats up to {VERSION}: update rewound to "
            "load it (or it is damaged)"
        )
    if not sound or version < 1:
        raise ValueError(
            f"'{path}' is damaged: its first {_ALIGN} bytes do not match their checksum. Write it again"
        )
    if size != len(everything):
        wrong = "is truncated" if size > len(everything) else "has something appended"
        raise ValueError(f"'{path}' {wrong}: it has {len(everything):,} bytes of {size:,}. Write it again")
    if length > min(_LARGEST_HEADER, size - _ALIGN):
        raise ValueError(f"'{path}' is damaged: it asks for a header of {length:,} bytes")
    return length, checksum


def _section(everything: NDArray[np.uint8], first: int, name: str, row: Sequence[Any]) -> tuple[Section, int]:
    codec, at, length, checksum = row
    if not isinstance(codec, str) or any(type(number) is not int for number in (at, length, checksum)):
        raise TypeError(f"section {name!r} is described by {str(row)[:80]}")
    if at < 0 or at % _ALIGN or length < 0 or first + at + length > len(everything):
        raise ValueError(f"section {name!r} lies outside the file")
    return Section(name, codec, everything[first + at : first + at + length]), checksum


class _Damaged(Exception):
    pass


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN
