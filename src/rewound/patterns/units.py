"""What a pattern means in one model: its units, their scores, and the mask that follows from which of them stay.

Each of the classes has, for the units of one model by name (of a tensor, or of a group of the structure):

    what              the word for them
    shapes            name -> how they are laid out
    covers            name -> shape of the tensors that a mask of them has
    tensors, aliases  what a ``Budget`` says of them
    scores(scores, mask)  from the scores of weights to those of units
    alive(mask)           which units an earlier mask has left
    masks(kept, mask)     from which units stay to the mask of each tensor, nested in ``mask``
    weights(name, mask)   of weights and blocks: how many weights each unit of a tensor has left (None: one)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from rewound.compaction.units import Structure, alive, each_mask, mean_over_writers
from rewound.patterns.blocks import Blocks

Scores: TypeAlias = Mapping[str, Tensor]  # higher = keep
Named: TypeAlias = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Weights:
    """The pattern "weight": each lives or dies by itself."""

    def __str__(self) -> str:
        return "weight"


@dataclass(frozen=True)
class EachWeight:
    """Single weights: nothing is copied, and scores are read in pieces."""

    shapes: Mapping[str, torch.Size]
    what: str = "weights"
    tensors: None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def covers(self) -> Mapping[str, torch.Size]:
        return self.shapes

    def scores(self, scores: Scores, mask: Mapping[str, Tensor] | None) -> Scores:
        return scores

    def alive(self, mask: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return mask

    def masks(self, kept: Named, mask: Mapping[str, Tensor] | None) -> Named:
        return ((name, units.reshape(self.shapes[name])) for name, units in kept)

    def weights(self, name: str, mask: Mapping[str, Tensor] | None) -> None:
        return None


@dataclass(frozen=True)
class EachBlock:
    """Blocks of the tensors in ``covers``; ``turned`` names those stored [in, out, ...]."""

    blocks: Blocks
    covers: Mapping[str, torch.Size]
    turned: frozenset[str]
    what: str = "blocks"
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        return {name: self.blocks.grid(shape, name in self.turned) for name, shape in self.covers.items()}

    @property
    def tensors(self) -> Mapping[str, torch.Size]:
        return self.covers

    def scores(self, scores: Scores, mask: Mapping[str, Tensor] | None) -> Scores:
        return {name: self.blocks.mean(scores[name], name in self.turned) for name in self.covers}

    def alive(self, mask: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self.blocks.any(mask[name], name in self.turned) for name in self.covers}

    def masks(self, kept: Named, mask: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        for name, units in kept:
            spread = self.blocks.spread(units, self.covers[name], name in self.turned)
            yield name, spread if mask is None else spread & mask[name].to(spread.device)

    def weights(self, name: str, mask: Mapping[str, Tensor] | None) -> Tensor:
        alive = torch.ones(self.covers[name], dtype=torch.bool) if mask is None else mask[name]
        return self.blocks.count(alive, name in self.turned)


class EachUnit:
    """The units of a structure whose groups are all candidates; ``order`` is that of the model's parameters."""

    what = "units"

    def __init__(self, structure: Structure, order: Iterable[str]) -> None:
        self.structure = structure
        self.shapes = {group.name: torch.Size([group.size]) for group in structure}
        touched = {s.tensor for group in structure for s in group.slices} & structure.parameters
        self.covers = {name: structure.shapes[name] for name in order if name in touched}
        self.tensors: dict[str, torch.Size] = {}
        self.aliases = {group.name: _called(s.tensor for s in group.writers) for group in structure}

    def scores(self, scores: Scores, mask: Mapping[str, Tensor] | None) -> Scores:
        return mean_over_writers(self.structure, scores, mask)

    def alive(self, mask: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return alive(self.structure, mask)

    def masks(self, kept: Named, mask: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        before = mask or {}
        for name, entries in each_mask(self.structure, dict(kept)):
            yield name, entries & before[name].to(entries.device) if name in before else entries
        # What an earlier mask prunes outside of these units (single weights of another layer) stays pruned.
        yield from ((name, tensor) for name, tensor in before.items() if name not in self.covers)


Units: TypeAlias = EachWeight | EachBlock | EachUnit


def _called(weights: Iterable[str]) -> tuple[str, ...]:
    """The writers' own names, and their modules'."""
    names = list(weights)
    return tuple(dict.fromkeys([*names, *(name.rpartition(".")[0] for name in names if "." in name)]))
