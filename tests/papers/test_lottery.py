"""Tickets and their controls, early stopping, instability."""

import pytest
import torch
from torch import nn

import rewound
from rewound.mask import Mask
from rewound.papers.lottery import (
    early_stop,
    instability,
    random_reinitialization_,
    random_ticket,
    winning_ticket_,
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 2))


@pytest.fixture
def found(net):
    """A ticket found by a run: (model, mask, initial weights)."""
    initial = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    run = rewound.Run(
        net, optimizer, epochs=2, technique="lottery-ticket", rate=0.5, until="2 rounds", allocation="uniform"
    )
    for _ in run:
        x = torch.randn(32, 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    return net, run.mask, initial


def test_a_winning_ticket_has_the_initial_weights_of_the_survivors(found):
    model, mask, initial = found
    winning_ticket_(model, mask, initial)
    for name, tensor in model.state_dict().items():
        expected = initial[name] * mask[name] if name in mask else initial[name]
        assert torch.equal(tensor, expected), name


def test_random_reinitialisation_has_other_weights_under_the_same_mask(found):
    model, mask, initial = found
    random_reinitialization_(model, mask, seed=3)
    weight = model[0].weight.detach()
    assert not weight[~mask["0.weight"]].any()
    kept = mask["0.weight"]
    assert not torch.equal(weight[kept], initial["0.weight"][kept])
    first = weight.clone()
    random_reinitialization_(model, mask, seed=3)
    assert torch.equal(model[0].weight, first)


def test_a_random_ticket_has_the_layers_densities_and_another_place(found):
    _, mask, _ = found
    random = random_ticket(mask, seed=0)
    assert random.counts == mask.counts and random != mask
    assert random != random_ticket(mask, seed=1)
    hits = torch.stack([random_ticket(mask, seed=s)["0.weight"] for s in range(400)]).double().mean(0)
    share = mask.densities["0.weight"]
    assert (hits - share).abs().max() < 5 * (share * (1 - share) / 400) ** 0.5  # every place is as likely


def test_the_early_stop_is_the_first_smallest_loss_not_the_best_accuracy():
    """Trap 27."""
    log = [{"loss": v, "accuracy": a} for v, a in ((0.9, 0.5), (0.4, 0.6), (0.4, 0.8), (0.7, 0.9))]
    stop = early_stop(log, every=50, start=200)
    assert (stop.iteration, stop.loss, stop.metrics["accuracy"]) == (300, 0.4, 0.6)
    assert early_stop([{"loss": float("nan")}, {"loss": 2.0}]).iteration == 2
    with pytest.raises(ValueError, match="entry 1 of the log has no 'loss'"):
        early_stop([{"loss": 1.0}, {"accuracy": 1.0}])
    for empty in ([], [{"loss": float("nan")}]):
        with pytest.raises(ValueError, match="no finite 'loss'"):
            early_stop(empty)


def test_the_ends_of_the_line_are_the_networks_themselves(net):
    """Trap 28: with and without recalibration."""
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        for module in net:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        net.train()(x)
        states.append({name: tensor.clone() for name, tensor in net.state_dict().items()})

    def error(model):
        with torch.no_grad():
            return float((model.eval()(x).argmax(1) != y).double().mean())

    ends = []
    for state in states:
        net.load_state_dict(state)
        ends.append(error(net))
    again = []
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for recalibrate in (None, lambda model: again.append(1) or model):
        line = instability(net, *states, error, points=7, recalibrate=recalibrate)
        assert (line.errors[0], line.errors[-1]) == tuple(ends)
        assert line.alphas == pytest.approx([k / 6 for k in range(7)])
        assert line.instability == max(line.errors) - sum(ends) / 2
    assert len(again) == 5  # inside only
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_one_network_twice_is_stable_and_masks_hold_on_the_line(net):
    mask = rewound.prune(net, density=0.3)
    mask.apply_(net)
    one = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = {name: tensor + 0.1 * (tensor != 0) for name, tensor in one.items()}

    def error(model):
        assert not model[0].weight[~mask["0.weight"]].any()
        return 0.25

    assert instability(net, one, other, error, points=3).instability == 0
    assert Mask(mask).fits(net)
    with pytest.raises(ValueError, match=r"they differ in '0\.bias'"):
        instability(net, one, {k: v for k, v in one.items() if k != "0.bias"}, error)
    with pytest.raises(ValueError, match="at least 2"):
        instability(net, one, other, error, points=1)
