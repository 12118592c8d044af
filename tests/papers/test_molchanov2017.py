from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rewound.compaction.coupling import find_units
from rewound.criteria import taylor
from rewound.evidence import Evidence, of_units
from rewound.papers.molchanov2017 import molchanov2017
from rewound.pruning import prune


@pytest.fixture
def net():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(24, 1, 6, 6, generator=generator), torch.arange(24) % 3


def see(model, scope):
    return Evidence(model, scope, batches=[data()], loss=F.cross_entropy)


def update(net, optimizer):
    x, y = data()
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def test_units_go_one_by_one_and_stay_gone(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    x, _ = data()
    kept, before, modes = [], None, []
    for mask in molchanov2017(net, optimizer, 0.5, example=x[:1], evidence=see):
        for _ in range(3):
            update(net, optimizer)
        kept.append(mask.units_kept)
        modes.append(net.training)
        assert before is None or mask <= before
        before = mask
        assert all(not bool(p[~mask[n]].any()) for n, p in net.named_parameters() if n in mask)
    assert kept == [9, 8, 7, 6, 5]
    assert all(modes)
    update(net, optimizer)  # the final fine-tuning is guarded too
    assert all(not bool(p[~mask[n]].any()) for n, p in net.named_parameters() if n in mask)
    hooks = optimizer._optimizer_step_post_hooks
    assert len(hooks) == 1  # the guards of earlier masks are gone


def test_the_lowest_score_goes(net):
    x, _ = data()
    net.eval()
    structure = find_units(net, x[:1])
    scores = taylor(see(net, None).with_structure(structure))
    lowest = min((float(s), name, unit) for name, each in scores.items() for unit, s in enumerate(each))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    mask = next(molchanov2017(net, optimizer, 0.5, example=x[:1], evidence=see))
    removed = (~mask[f"{lowest[1]}.weight"].flatten(1).any(1)).nonzero().flatten().tolist()
    assert removed == [lowest[2]]


def test_several_at_a_time_end_exactly_at_the_density(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, _ = data()
    masks = list(molchanov2017(net, optimizer, 0.4, example=x[:1], evidence=see, remove=4))
    assert [mask.units_kept for mask in masks] == [6, 4]
    more = list(molchanov2017(net, optimizer, 0.3, example=x[:1], evidence=see, mask=masks[-1]))
    assert [mask.units_kept for mask in more] == [3]
    assert more[0] <= masks[-1]
    assert list(molchanov2017(net, optimizer, 1.0, example=x[:1], evidence=see)) == []


def test_options_of_the_criterion_go_through(net):
    """With a large price on FLOPs the units of the dearer layer go first."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, _ = data()
    dear = of_units(functools.partial(taylor, flops=1e6))
    masks = list(molchanov2017(net, optimizer, 0.6, example=x[:1], evidence=see, criterion=dear))
    # multiply-adds of a channel: 16 x 9 + 4 x 4 x 9 = 288 in the first layer, 4 x 6 x 9 + 4 x 3 = 228 in the second
    assert dict(masks[-1].units) == {"0": (2, 6), "3": (4, 4)}


def test_what_is_wrong_is_said_before_anything_runs(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, _ = data()
    call = functools.partial(molchanov2017, net, optimizer, example=x[:1], evidence=see)
    with pytest.raises(ValueError, match=r"'density' must be in \[0.2, 1\] \(got 0.1\)"):
        call(density=0.1)
    with pytest.raises(ValueError, match="'remove' must be a whole number"):
        call(density=0.5, remove=0)
    with pytest.raises(ValueError, match="removes units such as channels"):
        call(density=0.5, pattern="weight")
    half = prune(net, 0.5, pattern="channel", example=x[:1], criterion="l1")
    with pytest.raises(ValueError, match="the mask has 5 left"):
        call(density=0.8, mask=half)
