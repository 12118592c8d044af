"""Batches: the order is a pure function of (seed, epoch), every example comes once, augmentation obeys the
same key."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewound.tasks.batches import batches, count, crop_and_flip, generator, in_order, order


@given(st.integers(1, 50), st.integers(1, 20), st.booleans())
def test_every_example_once(n, batch_size, drop_last):
    if drop_last and n < batch_size:
        with pytest.raises(ValueError, match=f"no batch of {batch_size} in {n} examples"):
            count(n, batch_size, drop_last)
        return
    x = torch.arange(n)
    made = list(batches(x, x * 2, batch_size, epoch=0, seed=0, drop_last=drop_last))
    assert len(made) == count(n, batch_size, drop_last)
    seen = torch.cat([inputs for inputs, _ in made])
    assert len(seen.unique()) == len(seen) == (n // batch_size * batch_size if drop_last else n)
    assert all(torch.equal(inputs * 2, targets) for inputs, targets in made)
    assert all(len(inputs) == batch_size for inputs, _ in made[:-1])


def test_data_order_rewind_and_fresh():  # trap 8
    first = {
        (mode, seed, round, epoch): tuple(order(1000, seed, epoch, round, mode)[:64].tolist())
        for mode in ("rewind", "fresh") for seed in (0, 1) for round in (0, 1, 2) for epoch in (0, 1, 2)
    }  # fmt: skip
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            rewound = {first["rewind", seed, round, epoch] for round in (0, 1, 2)}
            assert len(rewound) == 1  # every round sees the original run's first batch again
            assert len({first["fresh", seed, round, epoch] for round in (0, 1, 2)}) == 3
            assert first["fresh", seed, 0, epoch] in rewound  # both share the original run
    assert len({first["rewind", seed, 0, epoch] for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_the_order_is_pinned():
    """A change here silently changes every recorded result."""
    assert order(10, seed=0, epoch=0).tolist() == [2, 9, 6, 7, 4, 5, 0, 1, 8, 3]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    x = torch.zeros(8, 1, 6, 6)
    list(batches(x, torch.arange(8), 4, 0, 0, augment=crop_and_flip))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    one = [y.tolist() for _, y in batches(x, torch.arange(8), 4, 0, 0)]
    torch.manual_seed(6)
    assert [y.tolist() for _, y in batches(x, torch.arange(8), 4, 0, 0)] == one


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="'data_order' must be 'rewind' or 'fresh' \\(got 'again'\\)"):
        order(3, 0, 0, data_order="again")
    with pytest.raises(ValueError, match="'batch_size' must be at least 1"):
        count(3, 0)


def test_augmentation_follows_the_same_key():
    x = torch.rand(8, 3, 8, 8)

    def run(data_order, round, seed=0, epoch=0):
        made = batches(
            x, torch.arange(8), 4, epoch, seed, round, data_order=data_order, augment=crop_and_flip
        )
        return torch.cat([inputs for inputs, _ in made])

    assert torch.equal(run("rewind", 0), run("rewind", 3))
    assert torch.equal(run("rewind", 0), run("fresh", 0))
    assert not torch.equal(run("fresh", 0), run("fresh", 3))
    assert not torch.equal(run("rewind", 0), run("rewind", 0, epoch=1))


def test_crops_are_windows_of_the_padded_image_mirrored_or_not():
    images = torch.arange(1, 200 * 2 * 6 * 5 + 1, dtype=torch.int32).view(200, 2, 6, 5)
    cropped = crop_and_flip(images, torch.Generator().manual_seed(0), padding=2)
    assert cropped.shape == images.shape
    assert cropped.dtype == images.dtype
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    windows, mirrored = set(), 0
    for image, whole in zip(cropped, padded):
        found = [
            (top, left, mirror)
            for top in range(5) for left in range(5) for mirror in (False, True)
            if torch.equal(image.flip(-1) if mirror else image, whole[:, top : top + 6, left : left + 5])
        ]  # fmt: skip
        assert len(found) == 1
        windows.add(found[0][:2])
        mirrored += found[0][2]
    assert len(windows) == 25  # every place occurs
    assert 60 < mirrored < 140


def test_prepare_comes_after_augment_and_serves_evaluation_too():
    x = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    kinds = []

    def look(images, generator):
        kinds.append(images.dtype)
        return images

    made = list(batches(x, torch.arange(4), 4, 0, 0, augment=look, prepare=lambda t: t.float() / 7))
    assert kinds == [torch.uint8]
    assert torch.equal(made[0][0], torch.ones(4, 1, 2, 2))
    assert torch.equal(
        next(in_order(x, torch.arange(4), 2, lambda t: t.float() / 7))[0], torch.ones(2, 1, 2, 2)
    )


def test_generators_differ_by_each_part_of_the_key():
    keys = [
        ("a", 0, 0),
        ("b", 0, 0),
        ("a", 1, 0),
        ("a", 0, 1),
        ("a", 0, 0, 1),
        ("a", 0, 0, 0, 1),
        ("a", 11, 0),
        ("a", 1, 10),
    ]
    assert len({generator(*key).initial_seed() for key in keys}) == len(keys)
