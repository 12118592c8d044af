from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rewound.compaction.coupling import find_units
from rewound.criteria import l1, taylor
from rewound.evidence import Evidence
from rewound.papers.oracle import oracle, spearman


def small():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()  # fmt: skip
    with torch.no_grad():
        net[1].bias.uniform_(-1, 1)
        net[1].running_mean.normal_()
    x = torch.randn(7, 1, 6, 6, dtype=torch.float64)
    return net, [(x[:4], torch.arange(4) % 3), (x[4:], torch.arange(3))]


def test_the_oracle_removes_one_unit_at_a_time_everywhere():
    net, batches = small()
    changes = oracle(net, find_units(net, batches[0][0]), batches, F.cross_entropy, signed=True)
    x, y = (torch.cat(part) for part in zip(*batches))
    with torch.no_grad():
        dense = F.cross_entropy(copy.deepcopy(net).eval()(x), y)
        for unit in range(4):
            without = copy.deepcopy(net).eval()
            for p in (without[0].weight, without[0].bias, without[1].weight, without[1].bias):
                p[unit] = 0
            change = F.cross_entropy(without(x), y) - dense
            assert float(changes["0"][unit]) == pytest.approx(float(change), abs=1e-12)
    absolute = oracle(net, find_units(net, batches[0][0]), batches, F.cross_entropy)
    assert all(torch.equal(absolute[name], change.abs()) for name, change in changes.items())
    assert (changes["3"].shape, changes["3"].dtype) == ((3,), torch.float64)
    assert any(bool((change < 0).any()) for change in changes.values())


def test_the_oracle_leaves_the_model_as_found():
    net, batches = small()
    before = copy.deepcopy(net.state_dict())
    versions = [p._version for p in net.parameters()]
    oracle(net, find_units(net, batches[0][0]), batches, F.cross_entropy)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert versions == [p._version for p in net.parameters()]
    assert net.training


def test_the_oracle_needs_batches():
    net, batches = small()
    with pytest.raises(ValueError, match="'batches' yielded nothing"):
        oracle(net, find_units(net, batches[0][0]), iter(()), F.cross_entropy)


def test_taylor_ranks_more_like_the_oracle_than_chance_does():
    """A trained network of 16 + 16 channels on a task that half of the inputs decide."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(256, 8).double()
    y = (x[:, :4].prod(1) > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    structure = find_units(net, x[:1])
    truth = oracle(net, structure, [(x, y)], F.cross_entropy)
    evidence = Evidence(net, batches=[(x, y)], loss=F.cross_entropy).with_structure(structure)
    assert spearman(taylor(evidence, normalise=False), truth) > 0.5
    assert spearman(truth, truth) == 1
    assert spearman({name: -change for name, change in truth.items()}, truth) == -1
    assert abs(spearman(l1(evidence), truth)) <= 1


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties):
    stats = pytest.importorskip("scipy.stats", reason="needs the extra 'tasks'")
    generator = torch.Generator().manual_seed(4)
    for n in (2, 3, 10, 101):
        a, b = (torch.randn(n, generator=generator).double() for _ in range(2))
        if ties:
            a, b = (a * 2).round() + torch.eye(n, dtype=torch.double)[0] * 9, (a + b).round()
            b[0] = 50
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-12)


def test_spearman_of_what_has_no_ranks():
    values = torch.tensor([1.0, 2.0])
    assert spearman(values, torch.ones(2)) != spearman(values, torch.ones(2))  # NaN
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        spearman(values, torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="only one of them has 'b'"):
        spearman({"a": values}, {"a": values, "b": values})
    for odd in (torch.ones(3), {"a": values}):
        with pytest.raises(ValueError, match="as many values"):
            spearman(values, odd)


def test_partial_losses_do():
    net, batches = small()
    smooth = functools.partial(F.cross_entropy, label_smoothing=0.1)
    changes = oracle(net, find_units(net, batches[0][0]), batches, smooth)
    assert all(bool((change >= 0).all()) for change in changes.values())
