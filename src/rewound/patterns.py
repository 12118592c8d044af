"""Units that live or die together: from the scores of weights to the scores of units, and back to a mask
of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rewound.spelling import unknown

Scores: TypeAlias = Mapping[str, Tensor]  # higher = keep


@dataclass(frozen=True)
class Pattern:
    """What one decision is about.

    unit_scores: scores of the weights -> scores of the units. unit_mask: a mask of weights -> which units
    are still there. weight_mask: (mask of the units of one tensor, shape of the tensor) -> mask of its
    weights.

    >>> import torch
    >>> PATTERNS["weight"].weight_mask(torch.tensor([True, False]), torch.Size([1, 2]))
    tensor([[ True, False]])
    """

    name: str
    unit_scores: Callable[[Scores], Scores]
    unit_mask: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    weight_mask: Callable[[Tensor, torch.Size], Tensor]


PATTERNS: dict[str, Pattern] = {
    "weight": Pattern(
        name="weight",
        unit_scores=lambda scores: scores,
        unit_mask=lambda mask: mask,
        weight_mask=lambda units, shape: units.reshape(shape),
    ),
}


def as_pattern(pattern: str) -> Pattern:
    """Return the pattern of that name; ValueError with the nearest name if there is none.

    >>> as_pattern("weight").name
    'weight'
    """
    if pattern not in PATTERNS:
        raise ValueError(unknown("pattern", pattern, PATTERNS))
    return PATTERNS[pattern]
