"""|w|: the size of the weight itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewound.evidence import Computed, Evidence


def magnitude(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score = |w|. The paper's criterion (Renda et al. 2020, Algorithm 1); Han et al. 2015.

    Needs nothing but the model. The scores are computed piece by piece when they are read.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[-3.0, 2.0]])
    >>> magnitude(Evidence(layer))["weight"]
    tensor([[3., 2.]])
    """
    weights = evidence.weights
    return Computed(evidence.names, torch.abs, lambda name: (weights[name],))
