"""Which buffers share memory: moves that move nothing, parts written into their whole, results over what they replace.

A buffer with a ``parent`` is some channels of another, or the same pixels seen otherwise. Only exact twins of geometry share.
"""

from __future__ import annotations

from collections import Counter

from rewound.runtime.planning.geometry import Geometries, steps_of
from rewound.runtime.planning.layout import Buffer
from rewound.runtime.planning.steps import Move, Step

_LINE = 16  # channels of a plain vector that are a cache line: where a part of one may start


def shared(steps: list[Step], geometries: Geometries) -> list[Step]:
    """Give buffers their parents; return the steps that are left to do."""
    writers = Counter(id(step.write.buffer) for step in steps)
    filled = {id(step.write.buffer) for step in steps if step.method == "fill"}
    kept = [
        step
        for step in steps
        if not (isinstance(step, Move) and step.method == "copy" and _same(step, geometries, writers, filled))
    ]
    _reuse(kept, geometries)
    return kept


def _same(step: Move, geometries: Geometries, writers: Counter[int], filled: set[int]) -> bool:
    """Whether source and target can be the same memory; then they are from now on."""
    source, target = step.source, step.target
    assert source is not None and target is not None
    a, b = source.buffer, target.buffer
    if a.kind != "arena" or b.kind != "arena" or a.images != b.images:
        return False
    one, two = geometries[a], geometries[b]
    if one.lead != two.lead or one.stride != two.stride or one.plane != two.plane:
        return False
    offset = _offset(step, geometries)
    if offset is None:
        return False
    if a.height * a.width != b.height * b.width or not _covers(step):
        return False
    whole = b.channels == a.channels and offset == 0
    if whole and writers[id(b)] == 1 and b.parent is None:
        b.parent = (a, 0)  # another way to look at it
        return True
    if id(b) in filled:  # which would wipe out what was written into it before
        return False
    if one != two or a.parent is not None or a.root()[0] is b.root()[0]:
        return False
    if a.vector and offset % _LINE:
        return False
    a.parent = (b, offset)  # a part, written into its whole
    return True


def _offset(step: Move, geometries: Geometries) -> int | None:
    """Return the target's channel where the source's channel 0 stands, if all elements keep their distances."""
    source, target = step.source, step.target
    assert source is not None and target is not None
    geometry = geometries[source.buffer]
    start, moves, _ = steps_of(source, geometry)
    begin, wanted, _ = steps_of(target, geometries[target.buffer])
    if any(n != 1 and m != w for n, m, w in zip(source.shape, moves, wanted)):
        return None
    between = begin - start
    if between % geometry.stride:
        return None
    offset = between // geometry.stride
    return offset if offset >= 0 and offset + source.buffer.channels <= target.buffer.channels else None


def _covers(step: Move) -> bool:
    """Whether the source is all of its buffer."""
    assert step.source is not None
    buffer = step.source.buffer
    size = 1
    for n in step.source.shape:
        size *= n
    return size == buffer.channels * buffer.height * buffer.width and not any(step.source.start)


def _reuse(steps: list[Step], geometries: Geometries) -> None:
    """Let results stand where an input stood that nobody reads again."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        for span in (*step.reads, step.write):
            last[id(span.buffer.root()[0])] = i
    for i, step in enumerate(steps):
        y = step.write.buffer
        mixes = step.method in ("conv", "matvec")  # an element of y depends on others than its own
        if y.parent is not None or y.kind != "arena" or step.write.channels != y.channels:
            continue
        for place in step.shared:
            x = step.reads[place]
            root, first = x.buffer.root()
            others = [read for k, read in enumerate(step.reads) if k != place]
            fits = (
                root.kind == "arena"
                and last[id(root)] == i
                and root is not y
                and x.channels == y.channels
                and x.buffer.images == y.images
                and (x.buffer.height, x.buffer.width, x.buffer.wide) == (y.height, y.width, y.wide)
                and (not y.vector or (first + x.first) % _LINE == 0)
                and not any(read.buffer.root()[0] is root and (mixes or read != x) for read in others)
            )
            if fits:
                y.parent = (x.buffer, x.first)
                last[id(root)] = max(last.get(id(y), i), last[id(root)])
                break


def lifetimes(steps: list[Step]) -> dict[Buffer, tuple[int, int]]:
    """Return buffers of the arena that own memory -> first and last step that touches them or their parts."""
    found: dict[Buffer, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for span in (*step.reads, step.write):
            root = span.buffer.root()[0]
            if root.kind == "arena":
                found[root] = (found.get(root, (i, i))[0], i)
    return found
