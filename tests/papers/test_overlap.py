import pytest
import torch

from rewound.mask import Mask
from rewound.papers.lottery import random_ticket
from rewound.papers.overlap import all_sign_flips, overlap, sign_flips


def _mask(density, size=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(size, generator=generator) < d for name, d in zip("ab", density)})


def test_equal_masks_overlap_wholly_and_disjoint_ones_not():
    mask = _mask((0.3, 0.6))
    same = overlap(mask, mask)
    assert (same.jaccard, same.beyond_chance, same.by_tensor) == (1.0, 1.0, {"a": 1.0, "b": 1.0})
    apart = overlap(mask, Mask({name: ~kept for name, kept in mask.items()}))
    assert apart.shared == 0 and apart.jaccard == 0 > apart.beyond_chance


def test_masks_drawn_apart_overlap_by_chance():
    mask = _mask((0.1, 0.5))
    found = [overlap(random_ticket(mask, seed=s), random_ticket(mask, seed=s + 50)) for s in range(20)]
    assert sum(one.jaccard for one in found) / 20 == pytest.approx(found[0].by_chance, rel=0.02)
    assert abs(sum(one.beyond_chance for one in found) / 20) < 0.01


def test_whole_masks_are_alike_and_not_beyond_chance_by_nothing():
    whole = Mask({"a": torch.ones(5, dtype=torch.bool)})
    assert overlap(whole, whole).beyond_chance == 1.0
    with pytest.raises(ValueError, match="they differ in 'b'"):
        overlap(whole, _mask((0.1, 0.5)))


def test_signs_are_counted_over_kept_weights_that_have_one():
    mask = Mask({"a": torch.tensor([True, True, True, False]), "b": torch.tensor([True, True])})
    before = {"a": torch.tensor([1.0, -1.0, 0.0, 1.0]), "b": torch.tensor([1.0, 1.0])}
    after = {"a": torch.tensor([-1.0, -2.0, 1.0, -1.0]), "b": torch.tensor([1.0, 3.0])}
    assert sign_flips(before, after, mask) == {"a": 0.5, "b": 0.0}
    assert all_sign_flips(before, after, mask) == pytest.approx(0.5 * 3 / 5)
    with pytest.raises(ValueError, match="'b' is in the mask and not among the weights after"):
        sign_flips(before, {"a": after["a"]}, mask)
