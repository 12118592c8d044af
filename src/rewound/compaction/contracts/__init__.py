"""One rule an operator: which indices of which axes leave together, which can never leave, and what a dead slice holds.

A rule is a function (Reading, *arguments of the operator, **keywords) -> what is known of the result. Arguments that are tensors
arrive as ``Value``, everything else as it stands in the graph. An operator without a rule is never guessed at: what it reads is
fixed, by name (``coupling.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewound.compaction.contracts import (
    attention,
    contraction,
    movement,
    normalization,
    pointwise,
    recurrent,
    reduction,
    spatial,
)

RULES: dict[str, Callable[..., Any]] = {
    **movement.RULES,
    **pointwise.RULES,
    **contraction.RULES,
    **attention.RULES,
    **normalization.RULES,
    **reduction.RULES,
    **spatial.RULES,
    **recurrent.RULES,
}
