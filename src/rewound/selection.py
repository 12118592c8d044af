"""Keep exactly the best scores of many tensors, in little memory and time.

The scores are read in small pieces, twice. A sample tells between which two values the threshold (the
lowest kept score) lies; the first pass counts what lies above and collects the few scores between; the
threshold is found among those; the second pass writes the masks. The counts prove the bracket, so the
sample decides how long it takes, never what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

# Scores read at once. The temporaries of a piece stay in the cache, and torch works on so few on one thread:
# on more, the threads would wait for each other after every operation, which costs dear on a busy machine.
_PIECE = 1 << 15
_SAMPLE = 1 << 17  # scores looked at to find the bracket
_COLLECT = 1 << 20  # scores collected inside the bracket at most, or 1/32 of all


def select_best(
    scores: Mapping[str, Tensor],
    count: int,
    *,
    among: Mapping[str, Tensor] | None = None,
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, bool mask of the scores' shape) that together keep exactly the ``count`` highest scores.

    Among equal scores the earlier position is kept: first by the order of ``names`` (default: of
    ``scores``), then by the index in the flattened tensor. With ``among`` (name -> bool tensor) only
    scores that are True there can be kept, and the others are not looked at. Scores of different
    floating-point dtypes are compared exactly.

    A mapping with a method ``open(name) -> (shape, read)``, ``read`` a function from a slice or an index
    tensor of the flattened tensor to scores, is read in pieces and never as a whole.

    Raises ValueError if there are fewer than ``count`` scores to keep, or one of them is NaN; TypeError
    for integer scores.

    >>> import torch
    >>> scores = {"a": torch.tensor([1.0, 3.0, 2.0]), "b": torch.tensor([2.0, 0.5])}
    >>> {name: mask.tolist() for name, mask in select_best(scores, 2)}
    {'a': [False, True, True], 'b': [False, False]}
    """
    sources = _exactly([_source(scores, name, among) for name in (scores if names is None else names)])
    total = sum(source.able for source in sources)
    if not 0 <= count <= total:
        raise ValueError(f"cannot keep {count:,} of {total:,} scores")
    if count in (0, total):
        for source in sources:
            yield source.name, _all_or_nothing(source, keep=count > 0)
        return
    cut = _cut(sources, count)
    spare = count - cut.above  # so many of the scores at the threshold are kept: the earliest
    for source in sources:
        if spare == cut.equal:
            yield source.name, _at_least(source, cut.threshold)
        else:
            mask, spare = _above_and_some(source, cut.threshold, spare)
            yield source.name, mask


# -- reading ---------------------------------------------------------------------------------------------


_Read: TypeAlias = Callable[["slice | Tensor"], Tensor]


@dataclass(frozen=True)
class _Source:
    """One tensor's scores, opened anew for every pass: what is computed for it is let go again."""

    name: str
    open: Callable[[], _Read]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    mask: Tensor | None  # flat; which scores may be kept (None = all)
    able: int  # how many

    @property
    def size(self) -> int:
        return self.shape.numel()

    def pieces(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        read = self.open()
        step = _PIECE if self.device.type == "cpu" else 512 * _PIECE
        for start in range(0, self.size, step):
            where = slice(start, min(start + step, self.size))
            yield where, read(where), None if self.mask is None else self.mask[where]


def _source(scores: Mapping[str, Tensor], name: str, among: Mapping[str, Tensor] | None) -> _Source:
    shape, read = _opened(scores, name)
    first = read(slice(0, 1))
    if not first.is_floating_point():
        dtype = str(first.dtype).removeprefix("torch.")
        raise TypeError(
            f"the scores of {name!r} must be floating point (got {dtype}): return them as .double()"
        )
    mask, able = None, shape.numel()
    if among is not None:
        mask = among[name].to(first.device).reshape(-1)
        able = int(mask.count_nonzero())
        if mask.numel() != shape.numel():
            raise ValueError(f"{name!r} has {shape.numel():,} scores, its mask {mask.numel():,} weights")
    return _Source(name, lambda: _opened(scores, name)[1], shape, first.dtype, first.device, mask, able)


def _opened(scores: Mapping[str, Tensor], name: str) -> tuple[torch.Size, _Read]:
    opener = getattr(scores, "open", None)
    if opener is not None:
        return opener(name)
    tensor = scores[name].detach()
    flat = tensor.reshape(-1)
    return tensor.shape, lambda where: flat[where]


def _exactly(sources: list[_Source]) -> list[_Source]:
    """Give all scores one dtype that holds each of them without rounding."""
    dtypes = {source.dtype for source in sources}
    if len(dtypes) <= 1:
        return sources
    wide = torch.float64 if torch.float64 in dtypes else torch.float32

    return [_widened(source, wide) for source in sources]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return (
        torch.float64 if dtype is torch.float64 else torch.float32
    )  # a half has no room, and numpy no bfloat16


def _widened(source: _Source, dtype: torch.dtype) -> _Source:
    def opened() -> _Read:
        read = source.open()
        return lambda where: read(where).to(dtype)

    return replace(source, open=opened, dtype=dtype)


# -- the threshold ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    threshold: float
    above: int  # scores above the threshold
    equal: int  # scores equal to it


def _cut(sources: list[_Source], count: int) -> _Cut:
    """Return the ``count``-th highest score and how many lie above and at it."""
    low, high = -math.inf, math.inf
    total = sum(source.able for source in sources)
    sample = _sampled(sources) if total > _COLLECT else None
    for width in (
        (5.0, 80.0) if sample is not None else (math.inf,)
    ):  # in standard deviations of the sampled rank
        near_low, near_high = _bracket(sample, count / total, width)
        near_low, near_high = max(low, near_low), min(high, near_high)
        if near_low < near_high:
            found = _between(sources, count, near_low, near_high, max(_COLLECT, total // 32))
            if isinstance(found, _Cut):
                return found
        for value in {near_low, near_high}:  # a value shared by many ends the bracket, or is all of it
            above, at_least = _count(sources, value)
            if above < count <= at_least:
                return _Cut(value, above, at_least - above)
            low, high = (max(low, value), high) if count <= above else (low, min(high, value))
    return _bisected(sources, count, low, high)


def _sampled(sources: list[_Source]) -> Tensor:
    """Return about _SAMPLE scores, sorted, the same ones every time."""
    generator = torch.Generator().manual_seed(
        0
    )  # random places: regular ones could fall in step with the data
    size = sum(source.size for source in sources)
    parts = []
    for source in sources:
        places = torch.randint(source.size, (math.ceil(_SAMPLE * source.size / size),), generator=generator)
        places = places.to(source.device)
        picked = source.open()(places)
        parts.append((picked if source.mask is None else picked[source.mask[places]]).cpu())
    sample = torch.cat(parts)
    sample = sample[~sample.isnan()].to(_wide(sample.dtype))
    sample.numpy().sort()
    return sample


def _bracket(sample: Tensor | None, share: float, width: float) -> tuple[float, float]:
    """Return two values between which the score at ``share`` (counted from the highest) most likely lies."""
    if sample is None or sample.numel() == 0:
        return -math.inf, math.inf
    size = sample.numel()
    middle = size * (1 - share)
    slack = width * math.sqrt(size * share * (1 - share)) + 8
    low, high = math.floor(middle - slack), math.ceil(middle + slack)
    return (
        sample[low].item() if low >= 0 else -math.inf,
        sample[high].item() if high < size else math.inf,
    )


def _between(sources: list[_Source], count: int, low: float, high: float, most: int) -> _Cut | None:
    """Return the cut if it lies strictly between ``low`` and ``high`` and no more than ``most`` scores do."""
    above_low = from_high = held = 0
    wide = _wide(sources[0].dtype)
    inside = torch.empty(most, dtype=wide)  # one buffer: many small ones would pin the memory of the pieces
    for source in sources:
        for where, piece, able in source.pieces():
            _refuse_nan(source, where, piece, able)
            over, far = piece > low, piece >= high
            if able is not None:
                over &= able
                far &= able
            inner_over, inner_far = int(over.count_nonzero()), int(far.count_nonzero())
            above_low += inner_over
            from_high += inner_far
            start, held = held, held + inner_over - inner_far
            if start < held <= most:
                every = held - start == piece.numel()
                inside[start:held] = piece if every else piece.masked_select(over ^ far)
    if not from_high < count <= above_low or held > most:
        return None
    inside = inside[:held]
    place = above_low - count  # from the lowest
    inside.numpy().partition(place)  # in place, and many times faster than kthvalue
    threshold = inside[place].item()
    return _Cut(
        threshold,
        from_high + int((inside > threshold).count_nonzero()),
        int((inside == threshold).count_nonzero()),
    )


def _count(sources: list[_Source], value: float) -> tuple[int, int]:
    """Return how many scores lie above ``value``, and how many above or at it."""
    above = at_least = 0
    for source in sources:
        for where, piece, able in source.pieces():
            _refuse_nan(source, where, piece, able)
            over, reach = piece > value, piece >= value
            if able is not None:
                over &= able
                reach &= able
            above += int(over.count_nonzero())
            at_least += int(reach.count_nonzero())
    return above, at_least


def _bisected(sources: list[_Source], count: int, low: float, high: float) -> _Cut:
    """Return the cut by halving the floating-point numbers from ``low`` to ``high``: slow, and never wrong.

    For data on which the sample misleads. One pass over the scores a bit of the dtype, no memory.
    """
    wide = _wide(sources[0].dtype)
    sources = [_widened(source, wide) for source in sources]  # a half would round the numbers between
    bottom, top = _rank(low, wide), _rank(high, wide)
    while (
        bottom < top
    ):  # the highest number that at least ``count`` scores reach is the count-th highest score
        middle = (bottom + top + 1) // 2
        if _count(sources, _value(middle, wide))[1] >= count:
            bottom = middle
        else:
            top = middle - 1
    threshold = _value(bottom, wide)
    above, at_least = _count(sources, threshold)
    return _Cut(threshold, above, at_least - above)


def _rank(value: float, dtype: torch.dtype) -> int:
    """Number the floating-point numbers of ``dtype`` in their order (0.0 and -0.0 are 0)."""
    integer = torch.int64 if dtype is torch.float64 else torch.int32
    magnitude = int(torch.tensor(abs(value), dtype=dtype).view(integer))
    return -magnitude if value < 0 else magnitude


def _value(rank: int, dtype: torch.dtype) -> float:
    integer = torch.int64 if dtype is torch.float64 else torch.int32
    magnitude = torch.tensor(abs(rank), dtype=integer).view(dtype).item()
    return -magnitude if rank < 0 else magnitude


def _refuse_nan(source: _Source, where: slice, piece: Tensor, able: Tensor | None) -> None:
    if not bool(piece.sum().isnan()):  # one cheap read; inf - inf is NaN too, so look closely before speaking
        return
    if bool((piece.isnan() if able is None else piece.isnan() & able).any()):
        bad = sum(
            int((part.isnan() if may is None else part.isnan() & may).count_nonzero())
            for _, part, may in source.pieces()
        )
        raise ValueError(
            f"{bad:,} of {source.size:,} scores of {source.name!r} are NaN: "
            "look for NaN in its weights or gradients (a training that diverged leaves them: try a smaller lr)"
        )


# -- the masks -------------------------------------------------------------------------------------------


def _all_or_nothing(source: _Source, keep: bool) -> Tensor:
    if keep and source.mask is not None:
        return source.mask.reshape(source.shape)
    return torch.full(source.shape, keep, dtype=torch.bool, device=source.device)


def _at_least(source: _Source, threshold: float) -> Tensor:
    mask = torch.empty(source.size, dtype=torch.bool, device=source.device)
    for where, piece, able in source.pieces():
        torch.ge(piece, threshold, out=mask[where])
        if able is not None:
            mask[where] &= able
    return mask.reshape(source.shape)


def _above_and_some(source: _Source, threshold: float, spare: int) -> tuple[Tensor, int]:
    """Keep what lies above, and the first ``spare`` of what lies at the threshold; return the mask and
    the spare left."""
    mask = torch.empty(source.size, dtype=torch.bool, device=source.device)
    for where, piece, able in source.pieces():
        torch.gt(piece, threshold, out=mask[where])
        if able is not None:
            mask[where] &= able
        if spare:
            ties = piece == threshold if able is None else (piece == threshold) & able
            places = ties.nonzero().reshape(-1)[:spare]
            mask[where][places] = True
            spare -= places.numel()
    return mask.reshape(source.shape), spare
