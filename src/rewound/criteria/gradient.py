"""|w * g|: how much the loss changes, to first order, when the weight goes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rewound.evidence import Computed, Evidence


def gradient(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score = |w * g|, g the gradient of the mean loss over the batches. SNIP, Lee et al. 2019, section 4.

    Needs ``Evidence(model, batches=..., loss=...)``. SNIP's division by the sum of the scores is left
    out: it does not change their order.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[-3.0, 2.0]])
    >>> batches = [(torch.tensor([[1.0, 5.0]]), None)]
    >>> gradient(Evidence(layer, batches=batches, loss=lambda output, target: output.sum()))["weight"]
    tensor([[ 3., 10.]])
    """
    weights, gradients = evidence.weights, evidence.gradients
    return Computed(
        evidence.names,
        lambda w, g: (w.to(g.dtype) * g).abs_(),
        lambda name: (weights[name], gradients[name]),
    )
