"""How far apart the pixels, rows and channels of each buffer stand: one geometry for all planes of one size.

Convolutions read and write planes of the same pitch, so sizes that a convolution connects share one. Guards of zeros are as
wide as the widest window that looks over an edge, and are left out where none does. Windows that look one pixel to the left and
right at most need no guard there where rows stand on whole vectors (csrc/conv.h), and are quicker then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewound.runtime.planning.layout import Buffer, View
from rewound.runtime.planning.steps import Reach, Step

VECTOR = 16  # floats of a cache line, and of the longest vectors
HALF = 8
_WIDEST = 56  # a row of pixels on whole vectors has to fit the registers of every instruction set
_ROOM = 1.3  # such rows may be longer than plain ones by this factor: loads that are not aligned cost more
Size = tuple[int, int]


class Geometry(NamedTuple):
    """Floats from a row to the next, before the first row, from an image to the next, from a channel to the next."""

    pitch: int
    lead: int
    plane: int
    stride: int

    def floats(self, channels: int) -> int:
        return channels * self.stride + self.lead


@dataclass
class _Class:
    sizes: set[Size] = field(default_factory=set)
    reaches: list[tuple[Size, Reach]] = field(default_factory=list)
    pitch: int = 1
    lead: int = 0
    aligned: bool = False


class Geometries:
    """The geometry of every buffer of some steps, for groups of so many images."""

    def __init__(self, steps: Iterable[Step], images: int) -> None:
        self.images = images
        self._classes: dict[Size, _Class] = {}
        for step in steps:
            for span in (*step.reads, step.write):
                if not span.buffer.raw and not span.buffer.vector:
                    self._class(_size(span.buffer))
            if step.reach is not None and not step.write.buffer.vector:
                x, y = _size(step.reads[0].buffer), _size(step.write.buffer)
                self._join(x, y)
                self._class(x).reaches.append((x, step.reach))
        for each in {id(c): c for c in self._classes.values()}.values():
            each.pitch, each.aligned = _pitch(each)
            lead = _lead(each)
            if images == 1:
                each.lead = _up(lead)  # rows begin on a line
            else:  # aligned: rows of all images at multiples of the pitch
                each.lead = -(-lead // each.pitch) * each.pitch if each.aligned else lead

    def __getitem__(self, buffer: Buffer) -> Geometry:
        images = self.images if buffer.images else 1
        if buffer.vector:
            return Geometry(1, 0, 1, 1 if images == 1 else _up(images))
        found = self._class(_size(buffer))
        plane = found.lead + found.pitch * max(height for height, _ in found.sizes)
        stride = _up(images * plane + (HALF if found.aligned and found.pitch < HALF else 0))  # whole vectors
        if stride >= 16 * VECTOR and stride // VECTOR % 2 == 0:  # channels fall on all sets of a cache
            stride += VECTOR
        return Geometry(found.pitch, found.lead, plane, stride)

    def _class(self, size: Size) -> _Class:
        found = self._classes.setdefault(size, _Class())
        found.sizes.add(size)
        return found

    def _join(self, a: Size, b: Size) -> None:
        first, second = self._class(a), self._class(b)
        if first is second:
            return
        first.sizes |= second.sizes
        first.reaches += second.reaches
        for size in second.sizes:
            self._classes[size] = first


def _size(buffer: Buffer) -> Size:
    return buffer.height, buffer.width


def _up(n: int) -> int:
    return -(-n // VECTOR) * VECTOR


def _pitch(c: _Class) -> tuple[int, bool]:
    """Return the pitch, and whether it is one of whole vectors without guards."""
    widest = pitch = max(width for _, width in c.sizes)
    far = looks = False
    for (height, width), reach in c.reaches:
        if height > 1 or reach.height > 1:
            beyond = reach.width - 1 + reach.right - (width - 1)
            pitch = max(pitch, width + max(0, -reach.left, beyond))
            looks = looks or reach.left != 0 or reach.right != 0
            far = far or reach.left < -1 or reach.right > 1
    if not looks or far or widest > _WIDEST:
        return pitch, False
    aligned = _aligned(widest)
    return (aligned, True) if aligned <= _ROOM * pitch else (pitch, False)


def _aligned(width: int) -> int:
    """Return a row's length on whole vectors, or on a part of one that divides it.

    >>> [_aligned(n) for n in (2, 3, 7, 14, 28, 56)]
    [2, 4, 8, 16, 32, 56]
    """
    if width <= HALF // 2:
        return 1 << (width - 1).bit_length()
    return -(-width // HALF) * HALF


def _lead(c: _Class) -> int:
    lead = 0
    for (height, _), reach in c.reaches:
        before = -reach.top * c.pitch - (0 if c.aligned else reach.left)
        last = (reach.height - 1 + reach.bottom) * c.pitch + reach.width - 1 + reach.right
        lead = max(lead, before, last + 1 - height * c.pitch)
    return lead


# -- where elements stand -------------------------------------------------------------------------------------------------------


def steps_of(view: View, geometry: Geometry | None) -> tuple[int, tuple[int, ...], int]:
    """Return the first element's place in its buffer, floats from element to element along each axis, and from image to
    image. geometry: of the buffer; ``None``: an array of the user's."""
    if geometry is None:
        return view.start[3], tuple(unit for _, unit in view.axes), view.buffer.width
    scale = {"c": geometry.stride, "h": geometry.pitch, "w": 1, "r": 1}
    start = geometry.lead + sum(at * scale[group] for at, group in zip(view.start, "chw"))
    return (
        start,
        tuple(unit * scale[group] for group, unit in view.axes),
        (geometry.plane if view.buffer.images else 0),
    )


def filled(buffer: Buffer, geometry: Geometry) -> NDArray[np.float32]:
    """Return a constant's memory."""
    assert buffer.array is not None
    memory = np.zeros(geometry.floats(buffer.channels), np.float32)
    place = np.lib.stride_tricks.as_strided(
        memory[geometry.lead :],
        (buffer.channels, buffer.height, buffer.width),
        (4 * geometry.stride, 4 * geometry.pitch, 4),
    )
    place[:] = buffer.array
    return memory
