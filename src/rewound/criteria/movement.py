"""Movement: weights that training moves away from zero stay."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rewound.evidence import Evidence


def movement(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score = -sum over training steps of lr * gradient * weight. Sanh et al. 2020, section 3.

    Needs ``Evidence(model, movement=watch_movement(optimizer, model))``, watched while the model trained.
    Scores may be negative: such weights moved towards zero.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> movement(Evidence(layer, movement={"weight": torch.tensor([[1.0, -2.0]])}))["weight"]
    tensor([[ 1., -2.]])
    """
    return evidence.movement
