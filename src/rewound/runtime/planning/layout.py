"""Where the elements of a value stand: which of its axes are channels, rows and columns of planes.

A buffer has channels, each of height x width pixels an image (csrc/planes.h). A view is a value in a buffer: for each of its
axes (the batch left out) the group it runs along, "c", "h" or "w", and how many steps of the group one step of the axis makes.
So tokens [N, T, 8, 64] may stand with (heads, features) as channels and T as columns:

    axes    T: ("w", 1)    heads: ("c", 64)    features: ("c", 1)

Permuting, splitting an axis, merging neighbours that follow upon each other, slicing and repeating are then other views of the
same buffer, and cost nothing. Arrays of the user are buffers too: their one group is "r", raw floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class Buffer:
    """Planes, or an array of the user's.

    kind: "arena", "constant" (then ``array`` [channels, height, width]), "input" or "output" (then ``port`` is its number and
    ``width`` the elements of an image). images: an image each, or one for all. wide: one pixel with the room that convolutions
    ask for, instead of a plain vector. parent: the buffer whose channels, from the number on, are this one's memory.
    """

    channels: int
    height: int = 1
    width: int = 1
    kind: str = "arena"
    images: bool = True
    wide: bool = False
    port: int = 0
    array: NDArray[np.float32] | None = None
    parent: tuple[Buffer, int] | None = None

    @property
    def raw(self) -> bool:
        return self.kind in ("input", "output")

    @property
    def vector(self) -> bool:
        """One pixel an image, one after the other."""
        return self.height == self.width == 1 and not self.wide

    def root(self) -> tuple[Buffer, int]:
        """The buffer that owns the memory, and the channel of it where this one starts."""
        buffer, first = self, 0
        while buffer.parent is not None:
            buffer, more = buffer.parent
            first += more
        return buffer, first


class Form(NamedTuple):
    """Axes that are channels, rows and columns, the slowest first."""

    channels: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


class Span(NamedTuple):
    """Neighbouring channels of a buffer: what an operator reads or writes."""

    buffer: Buffer
    first: int
    channels: int


GROUPS = "chwr"
Axis = tuple[str, int]


@dataclass(frozen=True)
class View:
    """A value: shape without the batch; axes: (group, step) of each; start: first place in each of "chwr"."""

    buffer: Buffer
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    start: tuple[int, int, int, int] = (0, 0, 0, 0)

    def permuted(self, order: Sequence[int]) -> View:
        return replace(
            self, shape=tuple(self.shape[i] for i in order), axes=tuple(self.axes[i] for i in order)
        )

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View:
        group, unit = self.axes[axis]
        at = GROUPS.index(group)
        return View(
            self.buffer,
            (*self.shape[:axis], count, *self.shape[axis + 1 :]),
            (*self.axes[:axis], (group, unit * step), *self.axes[axis + 1 :]),
            (*self.start[:at], self.start[at] + start * unit, *self.start[at + 1 :]),  # type: ignore[arg-type]
        )

    def expanded(self, shape: Sequence[int]) -> View:
        axes = tuple(
            axis if n == m else (axis[0], 0) for axis, n, m in zip(self.axes, self.shape, shape, strict=True)
        )
        return replace(self, shape=tuple(shape), axes=axes)

    def split(self, atoms: Sequence[Sequence[int]]) -> View:
        """Each axis in factors, the slowest first: a view with an axis for each factor."""
        shape: list[int] = []
        axes: list[Axis] = []
        for (group, unit), factors in zip(self.axes, atoms, strict=True):
            for i, n in enumerate(factors):
                shape.append(n)
                axes.append((group, unit * math.prod(factors[i + 1 :])))
        return replace(self, shape=tuple(shape), axes=tuple(axes))

    def merged(self, counts: Sequence[int]) -> View | None:
        """Neighbouring axes made one, so many at a time; ``None`` where they do not follow upon each other."""
        shape: list[int] = []
        axes: list[Axis] = []
        at = 0
        for count in counts:
            sizes, parts = self.shape[at : at + count], self.axes[at : at + count]
            at += count
            real = [(n, axis) for n, axis in zip(sizes, parts) if n != 1]
            for (_, (outer, step)), (n, (inner, unit)) in zip(real, real[1:]):
                if outer != inner or step != n * unit:
                    return None
            shape.append(math.prod(sizes))
            axes.append(real[-1][1] if real else (parts[-1] if parts else ("c", 1)))
        return replace(self, shape=tuple(shape), axes=tuple(axes))

    def form(self) -> Form | None:
        """The form of a view that takes all of its buffer's pixels and neighbouring channels, each once."""
        ordered: list[list[int]] = [[], [], []]
        for group, found in zip("chw", ordered):
            inside = [i for i, n in enumerate(self.shape) if n != 1 and self.axes[i][0] == group]
            found.extend(sorted(inside, key=lambda i: -self.axes[i][1]))
        form = Form(*(tuple(found) for found in ordered))
        return form if self.stands(form) else None

    def stands(self, form: Form) -> bool:
        """Whether an operator can take this view as planes of that form (axes of size 1 may be anywhere)."""
        if self.buffer.raw:
            return False
        placed = 0
        for at, (group, axes) in enumerate(zip("chw", form)):
            unit = 1
            for i in reversed(axes):
                if self.shape[i] == 1:
                    continue
                if self.axes[i] != (group, unit):
                    return False
                unit *= self.shape[i]
                placed += 1
            if group == "h" and (unit != self.buffer.height or self.start[at]):
                return False
            if group == "w" and (unit != self.buffer.width or self.start[at]):
                return False
        if placed != sum(n != 1 for n in self.shape):
            return False
        return not self.buffer.vector or self.start[0] % 16 == 0  # a vector's parts start on a cache line

    def span(self) -> Span:
        """The channels that a view with a form takes."""
        pixels = self.buffer.height * self.buffer.width
        return Span(self.buffer, self.start[0], math.prod(self.shape) // pixels)


def sized(shape: Sequence[int], form: Form) -> tuple[int, int, int]:
    """Return channels, height and width of a shape in a form.

    >>> sized((12, 64, 128), Form((0, 1), (), (2,)))
    (768, 1, 128)
    """
    channels, height, width = (math.prod(shape[i] for i in axes) for axes in form)
    return channels, height, width


def laid_out(shape: Sequence[int], form: Form, **options: Any) -> View:
    """Return a view of a new buffer, in a form."""
    channels, height, width = sized(shape, form)
    buffer = Buffer(channels, height, width, **options)
    axes: list[Axis] = [("c", 0)] * len(shape)
    for group, inside in zip("chw", form):
        unit = 1
        for i in reversed(inside):
            axes[i] = (group, unit)
            unit *= shape[i]
    return View(buffer, tuple(shape), tuple(axes))


def array_of_user(kind: str, port: int, shape: Sequence[int]) -> View:
    """Return a view of an array of the user's, row by row."""
    axes: list[Axis] = []
    unit = math.prod(shape)
    for n in shape:
        unit = unit // n if n else 0
        axes.append(("r", unit))
    return View(Buffer(1, 1, math.prod(shape), kind=kind, port=port), tuple(shape), tuple(axes))


def usual(shape: Sequence[int]) -> Form:
    """Return the form of a value nobody has placed yet: [C], [C, L], [C, H, W], and more axes as channels.

    >>> usual((3, 224, 224))
    Form(channels=(0,), rows=(1,), columns=(2,))
    """
    axes = tuple(range(len(shape)))
    if len(axes) <= 1:
        return Form(axes, (), ())
    return Form(axes[:1], (), axes[1:]) if len(axes) == 2 else Form(axes[:-2], axes[-2:-1], axes[-1:])


def atoms_of(old: Sequence[int], new: Sequence[int]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Return the factors of both shapes' axes, the same in the same order, or ``None`` where sizes do not split so.

    >>> atoms_of((6, 4), (2, 12))
    ([[2, 3], [4]], [[2], [3, 4]])
    """
    left: list[list[int]] = [[] for _ in old]
    right: list[list[int]] = [[] for _ in new]
    i = j = 0
    a = old[0] if old else 1
    b = new[0] if new else 1
    while i < len(old) and j < len(new):
        if a % b and b % a:
            return None
        atom = min(a, b)
        if atom != 1:
            left[i].append(atom)
            right[j].append(atom)
        a, b = a // atom, b // atom
        if a == 1:
            i += 1
            a = old[i] if i < len(old) else 1
        if b == 1:
            j += 1
            b = new[j] if j < len(new) else 1
    return left, right
