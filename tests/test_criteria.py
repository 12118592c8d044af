from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rewound.criteria import CRITERIA, as_criterion, gradient, magnitude, movement, random
from rewound.evidence import Evidence
from rewound.pruning import prune


def evidence_of(model, **kwargs):
    generator = torch.Generator().manual_seed(3)
    data = [(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))]
    return Evidence(model, batches=data, loss=F.cross_entropy, **kwargs)


def test_magnitude_is_the_absolute_weight(mlp):
    scores = magnitude(evidence_of(mlp))
    assert list(scores) == ["0.weight", "3.weight"]
    assert torch.equal(scores["3.weight"], mlp[3].weight.detach().abs())


def test_magnitude_follows_the_weights_and_keeps_no_copy(mlp):
    scores = magnitude(evidence_of(mlp))
    with torch.no_grad():
        mlp[3].weight.fill_(-5.0)
    assert torch.equal(scores["3.weight"], torch.full((3, 10), 5.0))


def test_gradient_is_weight_times_gradient(mlp):
    evidence = evidence_of(mlp)
    scores = gradient(evidence)
    expected = (mlp[0].weight.detach() * evidence.gradients["0.weight"]).abs()
    assert torch.equal(scores["0.weight"], expected)


def test_gradient_predicts_the_change_of_the_loss():
    """|w g| is the first-order change of the loss when w goes: compare with really removing it."""
    model = nn.Linear(6, 3).double()
    data = [(torch.randn(8, 6).double() * 1e-3, torch.randint(3, (8,)))]
    scores = gradient(Evidence(model, batches=data, loss=F.cross_entropy))["weight"]
    with torch.no_grad():
        before = F.cross_entropy(model(data[0][0]), data[0][1])
        for place in [(0, 0), (1, 3), (2, 5)]:
            kept = model.weight[place].clone()
            model.weight[place] = 0
            change = (F.cross_entropy(model(data[0][0]), data[0][1]) - before).abs()
            model.weight[place] = kept
            torch.testing.assert_close(scores[place], change, rtol=1e-2, atol=1e-12)


def test_gradient_leaves_half_precision_weights_room():
    layer = nn.Linear(2, 1, bias=False).half()
    layer.weight.data.fill_(60000.0)
    evidence = Evidence(
        layer, batches=[(torch.full((1, 2), 2.0).half(), None)], loss=lambda o, t: o.float().sum()
    )
    assert gradient(evidence)["weight"].tolist() == [[120000.0, 120000.0]]


def test_movement_keeps_what_moves_away_from_zero():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.0]])
    moved = {"weight": torch.tensor([[-0.5, 0.5]])}
    assert prune(layer, 0.5, criterion="movement", evidence=Evidence(layer, movement=moved))[
        "weight"
    ].tolist() == [[False, True]]
    assert movement(Evidence(layer, movement=moved))["weight"].tolist() == [[-0.5, 0.5]]


def test_random_is_a_function_of_seed_and_name_alone(mlp):
    world = torch.get_rng_state()
    alone = random(Evidence(mlp, ["3.weight"], seed=1))
    together = random(Evidence(mlp, seed=1))
    assert torch.equal(alone["3.weight"], together["3.weight"])
    assert torch.equal(together["3.weight"], together["3.weight"])
    assert not torch.equal(together["3.weight"], random(Evidence(mlp, seed=2))["3.weight"])
    assert torch.equal(torch.get_rng_state(), world)
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    scores = random(Evidence(twins))
    assert not torch.equal(scores["0.weight"], scores["1.weight"])
    assert (list(scores), len(scores)) == (["0.weight", "1.weight"], 2)


def test_random_prunes_every_place_alike():
    layer = nn.Linear(50, 50, bias=False)
    kept = sum(
        prune(layer, 0.2, criterion="random", evidence=Evidence(layer, seed=s))["weight"].float()
        for s in range(200)
    )
    # 2,500 places, each kept binomially (200, 0.2): mean 40, standard deviation 5.7
    assert kept.mean() == 40
    assert kept.min() > 40 - 6 * 5.7
    assert kept.max() < 40 + 6 * 5.7


def test_names():
    of_units = {"l1", "l2", "batch-norm scale", "fpgm", "taylor", "taylor-weights", "taylor-gates"}
    assert set(CRITERIA) == {"magnitude", "random", "gradient", "movement"} | of_units
    assert {name for name, function in CRITERIA.items() if hasattr(function, "of_units")} == of_units
    assert all(as_criterion(name) is function for name, function in CRITERIA.items())
    assert as_criterion(len) is len
