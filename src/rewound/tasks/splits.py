"""Training, validation and test examples: three sets that never share an example.

Every choice (a technique, t, a density, when to stop) is made on validation; test is read when its split is
asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Examples = tuple[Tensor, Tensor]
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Data:
    """The examples of a task; ``test`` is a function, so that nothing reads the test set without meaning
    to."""

    train: Examples
    validation: Examples
    test: Callable[[], Examples]

    def split(self, name: str) -> Examples:
        """Return the examples of the split "validation" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"'split' must be 'validation' or 'test' (got {name!r})")
        return self.validation if name == "validation" else self.test()


def hold_out(n: int, size: int, classes: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (indices that stay, indices held out), both sorted int64, ``size`` of ``n`` held out.

    With ``classes`` [n] each class keeps its share (largest remainders round up). ``seed`` belongs to the
    split, not to the training: every replicate validates on the same examples.

    >>> stay, out = hold_out(10, 4, classes=torch.tensor([0] * 5 + [1] * 5))
    >>> len(stay), (out < 5).sum().item()
    (6, 2)
    """
    if not 0 < size < n:
        raise ValueError(f"cannot hold out {size} of {n} examples")
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if classes is None:
        held = shuffled[:size]
    else:
        in_class = [shuffled[classes[shuffled] == c] for c in classes.unique()]
        share = torch.tensor([len(members) * size / n for members in in_class], dtype=torch.float64)
        quota = share.floor().long()
        remainders = torch.argsort(share - quota, descending=True, stable=True)
        quota[remainders[: size - int(quota.sum())]] += 1
        held = torch.cat([members[:q] for members, q in zip(in_class, quota.tolist())])
    stays = torch.ones(n, dtype=torch.bool)
    stays[held] = False
    return stays.nonzero().flatten(), held.sort().values
