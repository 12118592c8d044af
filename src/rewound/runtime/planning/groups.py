"""How a batch is cut into groups of images that a program computes at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rewound.runtime.graph import Graph
from rewound.runtime.planning.lower import Lowering

_LADDER = (16, 32, 64, 128)  # images of vectors: whole registers of pixels


class Groups(NamedTuple):
    """vectors: an image is one pixel everywhere. most: images in a group of planes."""

    vectors: bool
    most: int

    def of(self, images: int, threads: int) -> Iterator[tuple[int, int, int]]:
        """Yield (size, count, padding) until all images are in a group.

        >>> list(Groups(True, 1).of(150, 1)), list(Groups(False, 4).of(9, 1))
        ([(128, 1, 0), (32, 1, 10)], [(4, 2, 0), (1, 1, 0)])
        """
        if not self.vectors:
            most = max(1, min(self.most, images // threads))
            size = 1 << (most.bit_length() - 1)
            if images >= size:
                yield size, images // size, 0
            if images % size:
                yield 1, images % size, 0
            return
        share = -(-images // threads)
        size = next((n for n in _LADDER if n >= share), _LADDER[-1]) if images > 1 else 1
        if images >= size:
            yield size, images // size, 0
        rest = images % size
        if rest:
            last = 1 if rest == 1 else next(n for n in _LADDER if n >= rest)
            yield last, 1, last - rest


def groups_of(graph: Graph) -> Groups:
    """Return how a graph without ``torch`` nodes is best cut.  ``Unplanned``: as of ``plan``."""
    lower = Lowering(graph, 1)
    lower.run()
    buffers = [span.buffer for step in lower.steps for span in (*step.reads, step.write)]
    return Groups(all(buffer.raw or buffer.vector for buffer in buffers), 1)
