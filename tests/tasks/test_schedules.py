"""Schedules: where they drop, that they scale with the length of training, and that their end is of use."""

import pytest
import torch

from rewound.tasks.schedules import step_decay, step_factor


def course(steps, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = step_decay(optimizer, steps, **options)
    lrs = []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_the_authors_recipe_for_cifar():
    per_epoch = 391
    lrs = course(182 * per_epoch, at=(91 / 182, 136 / 182))
    drops = [s for s in range(1, len(lrs)) if lrs[s] != lrs[s - 1]]
    assert drops == [91 * per_epoch, 136 * per_epoch]
    assert [lrs[0], lrs[drops[0]], lrs[-1]] == pytest.approx([0.1, 0.01, 0.001])


def test_the_authors_recipe_for_imagenet_at_a_tenth():
    lrs = course(900, at=(30 / 90, 60 / 90, 80 / 90), warmup=5 / 90)
    assert lrs[:50] == pytest.approx([0.1 * s / 50 for s in range(50)])
    assert {s for s in range(51, 900) if lrs[s] != lrs[s - 1]} == {300, 600, 800}


def test_beyond_the_end_the_last_lr_stays():
    assert step_factor(10**6, 100, (0.5, 0.75)) == step_factor(99, 100, (0.5, 0.75)) == pytest.approx(0.01)
