"""Zimmer, Spiegel and Pokutta 2023, "How I Learned to Stop Worrying and Love Retraining": BIMP, pruning within a budget.

The epochs of everything are given, the dense phase included: T0 epochs of dense training, then n phases of t epochs, each
pruning the same share of the survivors and retraining by an adaptive linear restart (ALLR). In these terms BIMP is a run of T0
epochs with the technique "adaptive-linear-restart:t".
"""

from __future__ import annotations

import math
from typing import Any

from rewound.techniques import adaptive_linear_restart


def budgeted(total: int, density: float, *, rounds: int, dense: int | None = None) -> dict[str, Any]:
    """Return what ``Run`` takes so that dense training and ``rounds`` phases of pruning and retraining take ``total`` epochs.

    ``Run(model, optimizer, **budgeted(60, 0.1, rounds=3))``. Build the scheduler for the ``epochs`` in it, T0: the authors'
    falls linearly to zero, and any will do. dense: T0; left out, about half of the budget (our choice, they tune it). The phases
    are equally long; epochs that cannot be shared out train the dense network. A phase prunes 1 - density^(1/rounds).

    >>> found = budgeted(60, 0.125, rounds=3)
    >>> found["epochs"], str(found["technique"]), found["rate"], found["until"]
    (30, 'adaptive-linear-restart:10ep', 0.5, 0.125)

    Raises ``ValueError`` where the budget leaves a phase without an epoch, or phases longer than T0.
    """
    if not 0 < density < 1:
        raise ValueError(f"'density' must be in (0, 1) (got {density!r})")
    if rounds < 1 or total < rounds + 1:
        raise ValueError(
            f"a budget must have an epoch for the dense phase and one for each round, of which there is at least 1 "
            f"(got total={total}, rounds={rounds})"
        )
    for_rounds = total // 2 if dense is None else total - dense
    t = max(1, for_rounds // rounds) if dense is None else for_rounds // rounds
    first = total - rounds * t
    if t < 1 or first < t:
        raise ValueError(
            f"{dense} of {total} epochs for the dense phase leave {for_rounds} to {rounds} rounds; each needs one at least, "
            "and none may be longer than the dense phase"
        )
    rate = float(f"{1 - math.exp(math.log(density) / rounds):.12g}")
    return {"epochs": first, "technique": adaptive_linear_restart(t), "rate": rate, "until": density}
