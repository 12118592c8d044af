"""Random scores: the control that every criterion has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rewound.evidence import Evidence


def random(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score = a uniform number in [0, 1), a function of (evidence.seed, tensor name, shape) alone.

    Tensors do not influence each other: another scope leaves the scores as they are. Pass another
    ``seed`` for each round, else every round ranks the same way. Drawn on the CPU in float64, so that
    ties practically do not occur.

    Where ``evidence.structure`` asks for units, one number for each unit: the mean over a unit's weights would lie so near 1/2
    in a large layer that a global ranking would tell layers apart by their size.

    >>> import torch
    >>> layer = torch.nn.Linear(3, 1)
    >>> bool((random(Evidence(layer, seed=1))["weight"] == random(Evidence(layer, seed=1))["weight"]).all())
    True
    """
    if evidence.structure is not None:
        return _Drawn(evidence.seed, {group.name: torch.Size([group.size]) for group in evidence.structure})
    return _Drawn(evidence.seed, evidence.shapes)


class _Drawn(Mapping[str, Tensor]):
    # drawn anew whenever read: a few draws cost less than 8 bytes a weight
    def __init__(self, seed: int, shapes: Mapping[str, torch.Size]) -> None:
        self._seed, self._shapes = seed, shapes

    def __getitem__(self, name: str) -> Tensor:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(self._shapes[name], generator=generator, dtype=torch.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
