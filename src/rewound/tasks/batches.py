"""Batches of tensors that already lie in memory, in an order that is a pure function of a few integers.

No worker processes and no Python per item: one ``index_select`` a batch. The order never touches the global
random generator, so that the epoch number alone says which examples come when (a rewound epoch sees its
batches again).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DATA_ORDERS = ("rewind", "fresh")


def check_data_order(data_order: str) -> str:
    """Return ``data_order`` if it is one of ``DATA_ORDERS``; raise ``ValueError`` if not.

    >>> check_data_order("rewind")
    'rewind'
    """
    if data_order not in DATA_ORDERS:
        raise ValueError(f"'data_order' must be 'rewind' or 'fresh' (got {data_order!r})")
    return data_order


def generator(purpose: str, seed: int, epoch: int, round: int = 0, *more: int) -> torch.Generator:
    """Return a new CPU generator seeded by a hash of everything given.

    Hashing keeps neighbouring (seed, epoch) pairs apart: ``seed + epoch`` would give seed 1 the epochs of
    seed 0.

    >>> generator("order", 0, 1).initial_seed() == generator("order", 1, 0).initial_seed()
    False
    """
    text = ",".join([purpose, *(str(int(n)) for n in (seed, epoch, round, *more))])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def order(n: int, seed: int, epoch: int, round: int = 0, data_order: str = "rewind") -> Tensor:
    """Return the order of ``n`` examples: int64 [n].

    ``"rewind"``: a function of (seed, epoch); every round sees the original run's order again. ``"fresh"``: a
    function of (seed, round, epoch), as in the code of Renda et al. 2020, where each retraining shuffles
    anew. In round 0 (the original run) the two agree, so that both share one original run.

    >>> bool((order(100, 0, 3, round=2) == order(100, 0, 3)).all())
    True
    >>> bool((order(100, 0, 3, round=2, data_order="fresh") == order(100, 0, 3)).all())
    False
    """
    round = 0 if check_data_order(data_order) == "rewind" else round
    return torch.randperm(n, generator=generator("order", seed, epoch, round))


def count(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Return the number of batches an epoch has; raise ``ValueError`` where there would be none.

    >>> count(10, 4), count(10, 4, drop_last=True)
    (3, 2)
    """
    if batch_size < 1:
        raise ValueError(f"'batch_size' must be at least 1 (got {batch_size})")
    batches = n // batch_size if drop_last else math.ceil(n / batch_size)
    if batches == 0:
        raise ValueError(
            f"no batch of {batch_size} in {n} examples: use a smaller 'batch_size' or drop_last=False"
        )
    return batches


def batches(
    inputs: Tensor,
    targets: Tensor,
    batch_size: int,
    epoch: int,
    seed: int,
    round: int = 0,
    *,
    data_order: str = "rewind",
    drop_last: bool = False,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled training batches ``(inputs [b, ...], targets [b, ...])``.

    Parameters
    ----------
    inputs, targets
        The examples along the first axis; made contiguous once by the caller for speed.
    data_order
        See :func:`order`. Augmentation is seeded in the same way, apart from the order.
    drop_last
        Leave out a last batch that is smaller than the others (kept by default).
    augment
        Called as ``augment(batch, generator)``, all examples of a batch at once.
    prepare
        Called on each batch after ``augment``; for example ``uint8`` images to normalised floats.

    >>> x = torch.arange(5.0)
    >>> [len(b) for b, _ in batches(x, x, 2, epoch=0, seed=0)]
    [2, 2, 1]
    """
    n, steps = len(targets), count(len(targets), batch_size, drop_last)
    indices = order(n, seed, epoch, round, data_order)
    noise = generator("augment", seed, epoch, 0 if data_order == "rewind" else round)
    for step in range(steps):
        index = indices[step * batch_size : (step + 1) * batch_size]
        x = inputs.index_select(0, index)
        if augment is not None:
            x = augment(x, noise)
        yield (x if prepare is None else prepare(x)), targets.index_select(0, index)


def in_order(
    inputs: Tensor, targets: Tensor, batch_size: int, prepare: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all examples once, unshuffled and unaugmented: the batches that evaluation reads.

    >>> [b.tolist() for b, _ in in_order(torch.arange(3), torch.arange(3), 2)]
    [[0, 1], [2]]
    """
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size)):
        yield (x if prepare is None else prepare(x)), y


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return each image [N, C, H, W] cropped at random out of its zero-padded self, and mirrored with chance
    1/2.

    The augmentation of He et al. 2016 (section 4.2) for CIFAR, all images at once.

    >>> crop_and_flip(torch.ones(2, 3, 8, 8), torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top = torch.randint(2 * padding + 1, (n, 1), generator=generator)
    left = torch.randint(2 * padding + 1, (n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = torch.arange(width)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    item = torch.arange(n)[:, None, None]
    # the three index tensors broadcast to [N, H, W]; the channel axis between them comes last and is moved
    # back
    return padded[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
