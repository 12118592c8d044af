"""Where buffers stand in the arena: those that live at the same time stand beside each other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Life(NamedTuple):
    """first, last: the steps between which (both included) the memory is needed. floats: how much."""

    first: int
    last: int
    floats: int


def offsets(lives: Mapping[Key, Life], line: int = 16) -> tuple[dict[Key, int], int]:
    """Return the offset of each, multiples of ``line``, and the size of the arena.

    The largest are placed first, each into the smallest gap that fits between those whose lives meet its own.

    >>> offsets({"a": Life(0, 1, 32), "b": Life(1, 2, 16), "c": Life(2, 3, 32)})
    ({'a': 0, 'c': 0, 'b': 32}, 48)
    """
    placed: dict[Key, tuple[int, int, Life]] = {}
    for key, life in sorted(lives.items(), key=lambda item: -item[1].floats):
        size = -(-life.floats // line) * line
        busy = sorted(
            (start, end)
            for start, end, other in placed.values()
            if other.first <= life.last and life.first <= other.last
        )
        best, room, at = None, None, 0
        for start, end in busy:
            if start - at >= size and (room is None or start - at < room):
                best, room = at, start - at
            at = max(at, end)
        where = at if best is None else best
        placed[key] = (where, where + size, life)
    total = max((end for _, end, _ in placed.values()), default=0)
    return {key: start for key, (start, _, _) in placed.items()}, total
