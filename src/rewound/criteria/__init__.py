"""Criteria: one file, one pure function each, from Evidence to scores (higher = keep).

A criterion of your own is any function that takes an Evidence and returns a mapping name -> scores, one
floating-point tensor of the weight's shape for every name in ``evidence.names``; pass it in place of a
name. One that scores channels, heads or hidden units as such is decorated with ``of_units`` and returns group name ->
scores [units] for the groups of ``evidence.units``. ``charged`` makes one that subtracts what a weight's FLOPs cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from rewound.criteria.batch_norm_scale import batch_norm_scale
from rewound.criteria.charged import charged
from rewound.criteria.filter_norm import l1, l2
from rewound.criteria.geometric_median import fpgm
from rewound.criteria.gradient import gradient
from rewound.criteria.magnitude import magnitude
from rewound.criteria.movement import movement
from rewound.criteria.random import random
from rewound.criteria.taylor import taylor, taylor_gates, taylor_weights
from rewound.evidence import Evidence
from rewound.spelling import unknown

Criterion: TypeAlias = Callable[[Evidence], Mapping[str, Tensor]]

__all__ = [
    "CRITERIA",
    "Criterion",
    "as_criterion",
    "batch_norm_scale",
    "charged",
    "fpgm",
    "gradient",
    "l1",
    "l2",
    "magnitude",
    "movement",
    "random",
    "taylor",
    "taylor_gates",
    "taylor_weights",
]

CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "gradient": gradient,
    "movement": movement,
    # of units: channels, heads, hidden units
    "l1": l1,
    "l2": l2,
    "batch-norm scale": batch_norm_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "taylor-weights": taylor_weights,
    "taylor-gates": taylor_gates,
}


def as_criterion(criterion: str | Criterion) -> Criterion:
    """Return the criterion of that name, or the function itself; ValueError with the nearest name if
    there is none.

    >>> as_criterion("magnitude") is magnitude
    True
    """
    if callable(criterion):
        return criterion
    if criterion not in CRITERIA:
        raise ValueError(unknown("criterion", criterion, CRITERIA, also="a function of Evidence"))
    return CRITERIA[criterion]
