"""Do two techniques find the same network? Overlap of masks beside what chance gives, and signs that training turned.

Gadhikar and Burkholz 2024 ("Masks, Signs, and Learning Rate Rewinding") explain the edge of learning-rate rewinding by signs: it
can turn them early and inherit them, where weight rewinding goes back to the old ones in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewound.mask import Mask


@dataclass(frozen=True)
class Overlap:
    """Weights that both masks keep, ``shared``, of those that one of them does, ``either``. ``jaccard`` is shared / either;
    ``by_chance`` the same for masks drawn independently with these densities, tensor by tensor; ``by_tensor`` that of
    each."""

    shared: int
    either: int
    by_chance: float
    by_tensor: Mapping[str, float]

    @property
    def jaccard(self) -> float:
        """Intersection over union; 1 for equal masks."""
        return self.shared / self.either if self.either else 1.0

    @property
    def beyond_chance(self) -> float:
        """0 for masks as alike as random ones of the same layer densities, 1 for equal ones (Cohen's kappa in its form)."""
        return 1.0 if self.by_chance == 1 else (self.jaccard - self.by_chance) / (1 - self.by_chance)


def overlap(one: Mask, other: Mask) -> Overlap:
    """Compare two masks of the same tensors; ``ValueError`` where they are not.

    >>> a = Mask({"w": torch.tensor([True, True, False, False])})
    >>> b = Mask({"w": torch.tensor([True, False, True, False])})
    >>> found = overlap(a, b)
    >>> found.shared, found.either, round(found.jaccard, 3), round(found.by_chance, 3), round(found.beyond_chance, 3)
    (1, 3, 0.333, 0.333, 0.0)
    """
    if one.keys() != other.keys() or any(one[n].shape != other[n].shape for n in one):
        apart = sorted(set(one) ^ set(other)) or [n for n in one if one[n].shape != other[n].shape]
        raise ValueError(f"the masks are not of the same tensors: they differ in {apart[0]!r}")
    shared = either = 0
    expected = 0.0
    by_tensor = {}
    for name in one:
        a, b = one[name], other[name].to(one[name].device)
        both, any_ = int((a & b).sum()), int((a | b).sum())
        shared, either = shared + both, either + any_
        expected += int(a.sum()) * int(b.sum()) / max(a.numel(), 1)
        by_tensor[name] = both / any_ if any_ else 1.0
    total = one.kept + other.kept
    chance = expected / (total - expected) if total > expected else 1.0
    return Overlap(shared, either, chance, by_tensor)


def sign_flips(before: Mapping[str, Tensor], after: Mapping[str, Tensor], mask: Mask) -> dict[str, float]:
    """Return tensor name -> share of the weights kept by ``mask`` whose sign is not that of ``before``.

    before, after: weights by name, such as two state dicts: at initialisation and at the end, or of two techniques. A weight that
    is zero in either has no sign to turn. Raises ``ValueError`` for a tensor that one of them lacks.

    >>> mask = Mask({"w": torch.tensor([True, True, True, False])})
    >>> sign_flips({"w": torch.tensor([1.0, -1.0, 2.0, 1.0])}, {"w": torch.tensor([3.0, 1.0, 0.0, -1.0])}, mask)
    {'w': 0.5}
    """
    found = {}
    for name, kept in mask.items():
        if name not in before or name not in after:
            raise ValueError(
                f"{name!r} is in the mask and not among the weights {'before' if name not in before else 'after'}"
            )
        a, b = before[name].detach().sign(), after[name].detach().sign().to(before[name].device)
        known = kept.to(a.device) & (a != 0) & (b != 0)
        count = int(known.sum())
        found[name] = int(((a != b) & known).sum()) / count if count else 0.0
    return found


def all_sign_flips(before: Mapping[str, Tensor], after: Mapping[str, Tensor], mask: Mask) -> float:
    """Return the share over all tensors together, each weighing as many weights as it has kept."""
    flips, kept = sign_flips(before, after, mask), torch.tensor(0.0, dtype=torch.float64)
    for name, share in flips.items():
        kept += share * mask.counts[name]
    return float(kept) / mask.kept if mask.kept else 0.0
