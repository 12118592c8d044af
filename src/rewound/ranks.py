"""What a process must know about its fellow processes: one file, so that everything else reads as if there were one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together (1 without torch.distributed)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if world_size() > 1 else 0


def from_first(value: T) -> T:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """Return every rank's value, by rank, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[T | None] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box  # type: ignore[return-value]


def together(action: Callable[[], T]) -> T:
    """Do ``action`` on every rank; where it fails on one, fail on all, so that none waits for that one for ever.

    The rank that failed raises its own error, the others a ``RuntimeError`` that tells of it.
    """
    if world_size() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    told = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [f"rank {number}: {text}" for number, text in enumerate(told) if text is not None]
    if failed:
        raise RuntimeError(f"this rank stops because another one failed ({'; '.join(failed)})")
    return result  # type: ignore[return-value]
