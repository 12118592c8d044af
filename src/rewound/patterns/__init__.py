"""What one decision is about: a weight, a block of weights, n of m neighbours, or a unit of the structure.

    "weight"                          each by itself
    "2x1", "4x1", "1x4", "4x4", ...   rows x columns of the weight seen as a matrix [out, everything else]: blocks.py
    "2:4", "1:4", ...                 n of every m along the input axis: n_of_m.py
    "channel", "filter", "hidden unit", "head", "unit", ...   what leaves a network together: structures.py

Text becomes a pattern here; ``units.py`` is what a pattern means in one model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from rewound.compaction.units import Structure
from rewound.patterns.blocks import Blocks
from rewound.patterns.n_of_m import NofM
from rewound.patterns.structures import FAMILIES, Kinds
from rewound.patterns.units import Weights
from rewound.spelling import unknown

Pattern: TypeAlias = "Weights | Blocks | NofM | Kinds"

_ALSO = (
    "blocks such as '4x1'; n:m such as '2:4'; a tuple of those kinds and of names of groups; or a Structure"
)


def as_pattern(pattern: Any, groups: Iterable[str] = ()) -> Pattern:
    """Return the pattern that a text, a tuple of texts or a Structure stands for.

    groups: names of groups that a text may also be, where the structure is known. ValueError with the nearest name for what
    is none; TypeError for another type.

    >>> as_pattern("4x1"), as_pattern("2:4")
    (Blocks(rows=4, columns=1), NofM(n=2, m=4))
    >>> print(as_pattern(("channel", "layer1.*")))
    channel, layer1.*
    """
    if isinstance(pattern, Weights | Blocks | NofM | Kinds):
        return pattern
    if isinstance(pattern, Structure):
        return Kinds((), pattern)
    if isinstance(pattern, tuple | list) and pattern and all(isinstance(each, str) for each in pattern):
        return Kinds(tuple(pattern))
    if not isinstance(pattern, str):
        raise TypeError(f"'pattern' must be a text, a tuple of texts or a Structure (got {pattern!r})")
    if pattern == "weight":
        return Weights()
    if pattern in FAMILIES or pattern in set(groups):
        return Kinds((pattern,))
    if match := re.fullmatch(r"(\d+)x(\d+)", pattern):
        return Blocks(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(\d+):(\d+)", pattern):
        return NofM(int(match[1]), int(match[2]))
    raise ValueError(unknown("pattern", pattern, ["weight", *FAMILIES, *groups], also=_ALSO))
