"""The widths that a group may have, and what each loses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewound.patterns.widths import allowed

Floats = NDArray[np.float64]


def widths_allowed(size: int, survivors: int, least: int, multiple: int, most: int) -> NDArray[np.int64]:
    """Return at most about ``most`` of the counts that a group may keep, rising; round ones, and always the ends.

    >>> widths_allowed(64, 64, 4, 1, 8).tolist()
    [4, 8, 16, 24, 32, 40, 48, 56, 64]
    """
    counts = np.array(allowed(size, survivors, least, multiple))
    if len(counts) <= most:
        return counts
    step = 1
    while (counts[-1] - counts[0]) / step > most:
        step *= 2
    round_ = counts % step == 0
    round_[[0, -1]] = True
    return counts[round_]


def lost_shares(scores: Tensor, alive: Tensor | None) -> Floats:
    """Return [survivors + 1]: the share of a group's importance that is lost when only the best n units stay.

    A unit's importance is its score (above the lowest, where scores are negative) over the sum of those that are alive.

    >>> lost_shares(torch.tensor([3.0, 1.0, 4.0]), None).tolist()
    [1.0, 0.5, 0.125, 0.0]
    """
    values = (
        (scores if alive is None else scores[alive.to(scores.device)]).detach().double().cpu().reshape(-1)
    )
    if bool(values.isnan().any()):
        raise ValueError(f"{int(values.isnan().sum())} of {values.numel()} scores of units are NaN")
    finite = values[values.isfinite()]
    top = float(finite.abs().max()) if len(finite) else 1.0
    values = values.nan_to_num(posinf=4 * (top or 1.0) * max(1, len(values)), neginf=-(top or 1.0))
    values = values - min(0.0, float(values.min()) if len(values) else 0.0)
    if not float(values.sum()):
        values = torch.ones_like(values)
    kept = np.r_[0.0, np.cumsum(values.sort(descending=True).values.numpy() / float(values.sum()))]
    lost = np.clip(1.0 - kept, 0.0, 1.0)
    lost[-1] = 0.0
    return lost


def losses(
    widths: Mapping[str, NDArray[np.int64]], lost: Mapping[str, Floats], sensitivity: Mapping[str, float]
) -> dict[str, Floats]:
    """Return name -> loss at each width: sensitivity x lost^2 / kept, where lost + kept = 1 are shares of the importance.

    The square is SPDY's prior: the first units of a layer go cheaply, its last ones dearly. The quotient keeps one layer from
    paying for all others: what loses everything passes nothing on, whatever the rest of the network keeps.

    >>> losses({"a": np.array([1, 2, 4])}, {"a": np.array([1.0, 0.75, 0.5, 0.25, 0.0])}, {"a": 1.0})["a"].tolist()
    [2.25, 0.5, 0.0]
    """
    found = {}
    for name, counts in widths.items():
        gone = lost[name][counts]
        found[name] = sensitivity[name] * gone**2 / np.maximum(1.0 - gone, 1e-6)
    return found
