"""A criterion minus what the weight costs: Molchanov's FLOP regulariser, for single weights and blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rewound.evidence import Computed, Evidence


def charged(
    criterion: Callable[[Evidence], Mapping[str, Tensor]], *, flops: float
) -> Callable[[Evidence], Mapping[str, Tensor]]:
    """Return the criterion score - flops * (millions of FLOPs that the weight causes). Molchanov et al. 2017, section 2.2,
    "FLOPs regularized pruning", for weights.

    A weight of a convolution causes two FLOPs at every position of the output, for each example (a row of ``example``, which
    the pruning needs). flops: in the scores' own measure, and to be found by trying; allocation "cost" and
    ``for_multiply_adds`` find it by themselves. Under allocation "global" a layer of costly weights keeps fewer; within a
    layer nothing changes. For criteria of units, ``taylor`` has the option itself.

    >>> import rewound
    >>> from rewound.criteria import charged, magnitude
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Flatten(), torch.nn.Linear(400, 1))
    >>> for p in model.parameters():
    ...     _ = p.data.fill_(0.5)
    >>> how = charged(magnitude, flops=1000.0)          # 2 * 400 positions = 0.0008 million FLOPs
    >>> how(rewound.Evidence(model, example=torch.ones(1, 1, 20, 20)))["0.weight"].item()
    -0.30000001192092896
    """
    if isinstance(flops, bool) or not isinstance(flops, int | float) or not flops >= 0:
        raise ValueError(f"'flops' must be a number from 0: score per million FLOPs (got {flops!r})")
    if not callable(criterion):
        raise TypeError(
            f"'criterion' must be a function of Evidence (got {criterion!r}): take it from rewound.criteria.CRITERIA"
        )
    if getattr(criterion, "of_units", False):
        raise ValueError(
            "'charged' is for scores of single weights, and this criterion scores units: taylor(flops=...) has the option itself"
        )

    def scores(evidence: Evidence) -> Mapping[str, Tensor]:
        found, each = criterion(evidence), evidence.multiply_adds

        def inputs(name: str) -> tuple[Tensor, Tensor]:
            own = found[name]
            charge = torch.tensor(2e-6 * flops * each[name], dtype=own.dtype, device=own.device)
            return own, charge.expand(own.shape)

        return Computed(evidence.names, torch.sub, inputs)

    scores.__name__ = scores.__qualname__ = (
        f"charged({getattr(criterion, '__name__', criterion)}, flops={flops:g})"
    )
    return scores
