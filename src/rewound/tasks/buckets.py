"""Batches of sentences of about one length, so that little of a batch is padding.

The order is a pure function of a few integers, as in ``batches.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rewound.tasks.batches import generator, order

POOL = 20  # batches that are sorted together: of more, a batch would know one length alone, and learn more slowly


def bucketed(
    lengths: Tensor, batch_size: int, epoch: int, seed: int, round: int = 0, data_order: str = "rewind"
) -> Iterator[Tensor]:
    """Yield the indices of an epoch's batches, int64 [batch_size] (the last one made may be smaller).

    ``lengths`` int64 [n]. All examples are shuffled; within each ``POOL`` batches they are sorted by length and cut;
    the batches of a pool come shuffled. Every epoch has ceil(n / batch_size) batches and every example once.

    >>> lengths = torch.tensor([3, 1, 2, 3, 2, 1])
    >>> sorted(sorted(lengths[batch].tolist()) for batch in bucketed(lengths, 2, epoch=0, seed=0))
    [[1, 1], [2, 2], [3, 3]]
    """
    shuffled = order(len(lengths), seed, epoch, round, data_order)
    noise = generator("buckets", seed, epoch, 0 if data_order == "rewind" else round)
    for pool in shuffled.split(POOL * batch_size):
        cut = pool[lengths[pool].argsort(stable=True)].split(batch_size)
        for i in torch.randperm(len(cut), generator=noise).tolist():
            yield cut[i]


def within(costs: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield the indices of batches, cheapest first: size times its dearest example is at most ``budget`` (or it has one).

    >>> list(within([9, 1, 2, 3], budget=6))
    [[1, 2], [3], [0]]
    """
    batch: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], i)):
        if batch and costs[i] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
