"""Han et al. 2015: thresholds, sensitivity, kinds of layers in turn, dropout, dead units."""

import pytest
import torch
from torch import nn

import rewound
from rewound.mask import Mask
from rewound.papers.han2015 import (
    adjust_dropout_,
    choose_qualities,
    han2015,
    sensitivity,
    threshold_mask,
    without_dead,
)
from rewound.papers.han2015.thresholds import Tried


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3)
    )  # fmt: skip


def test_a_threshold_is_the_quality_times_the_deviation_of_the_layer(net):
    mask = threshold_mask(net, 0.8)
    for name, weight in net.named_parameters():
        if name.endswith("weight"):
            assert torch.equal(mask[name], weight.abs() > 0.8 * weight.std(correction=0))
    by_name = threshold_mask(net, {"3.weight": 1.0})
    assert by_name.densities["0.weight"] == 1.0 > by_name.densities["3.weight"]
    assert threshold_mask(net, 0).density == 1.0


def test_the_deviation_of_the_survivors_prunes_on(net):
    first = threshold_mask(net, 0.8)
    first.apply_(net)
    second = threshold_mask(net, 0.8, mask=first)
    assert second <= first and second.kept < 0.9 * first.kept
    weight = net[3].weight[first["3.weight"]]
    kept = int((weight.abs() > 0.8 * weight.std(correction=0)).sum())
    assert second.counts["3.weight"] == kept


def test_the_largest_weight_stays_whatever_the_quality(net):
    mask = threshold_mask(net, 1e6)
    assert set(mask.counts.values()) == {1}
    name = "3.weight"
    assert mask[name].view(-1).nonzero().item() == net[3].weight.abs().argmax().item()
    with torch.no_grad():
        net[3].weight.fill_(0.1)
    assert threshold_mask(net, 1.0).counts[name] == net[3].weight.numel()  # no deviation, threshold 0


@pytest.mark.parametrize(("quality", "says"), [(-1.0, "at least 0"), ({"5.weight": 1.0}, "not in scope")])
def test_a_wrong_quality_is_refused(net, quality, says):
    with pytest.raises(ValueError, match=says):
        threshold_mask(net, quality)
    with pytest.raises(ValueError, match=r"lacks '3\.weight'"):
        threshold_mask(net, 1.0, mask=Mask({"0.weight": torch.ones(6, 1, 3, 3, dtype=torch.bool)}))


def test_sensitivity_prunes_each_tensor_alone_and_leaves_the_model(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def zeros(model):  # a metric that sees how many of all weights are gone
        return float(sum((p == 0).sum() for p in model.parameters()))

    found = sensitivity(net, zeros, qualities=(0.5, 1.0))
    assert list(found) == ["0.weight", "3.weight", "6.weight"]
    for name, tried in found.items():
        size = before[name].numel()
        assert [one.metric for one in tried] == [size - round(one.density * size) for one in tried]
        assert tried[0].density > tried[1].density
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    def broken(model):
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        sensitivity(net, broken)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_largest_quality_before_the_first_fall_is_chosen():
    scan = {
        "a": [Tried(1.0, 0.4, 0.80), Tried(0.5, 0.7, 0.90), Tried(1.5, 0.2, 0.91)],
        "b": [Tried(0.5, 0.7, 0.5)],
        "c": [Tried(0.5, 0.7, float("nan"))],
    }
    assert choose_qualities(scan, 0.9, within=0.01) == {"a": 0.5, "b": 0.0, "c": 0.0}
    errors = {"a": [Tried(0.5, 0.7, 0.10), Tried(1.0, 0.4, 0.13)]}
    assert choose_qualities(errors, 0.1, within=0.02, higher_is_better=False) == {"a": 0.5}


def test_layers_of_one_kind_train_while_the_others_stand_still(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x, y = torch.randn(8, 1, 6, 6), torch.arange(8) % 3
    kinds, last = [], None
    for stage in han2015(net, optimizer, [0.5, {"0.weight": 0.6, "3.weight": 0.9}]):
        kinds.append((stage.round, stage.kind))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        assert moved == (
            {"0.weight", "0.bias"}
            if stage.kind == "convolution"
            else {"3.weight", "3.bias", "6.weight", "6.bias"}
        )
        for name, kept in stage.mask.items():
            assert not net.get_parameter(name)[~kept].any()
        assert last is None or stage.mask <= last
        last = stage.mask
    assert kinds == [(1, "dense"), (1, "convolution"), (2, "dense"), (2, "convolution")]
    assert all(p.requires_grad for p in net.parameters())
    assert last.densities["6.weight"] > last.densities["3.weight"]  # round 2 names other layers


def test_a_generator_of_qualities_sees_the_network_as_each_round_finds_it(net):
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []

    def qualities():
        for quality in (0.8, 0.4):
            seen.append(sum(int((p == 0).sum()) for p in net.parameters()))
            yield quality

    stages = list(han2015(net, optimizer, qualities()))
    assert len(stages) == 4 and seen[0] == 0 < seen[1] == stages[1].mask.size - stages[1].mask.kept


def test_a_loop_left_early_freezes_nothing(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net[0].bias.requires_grad_(False)
    loop = han2015(net, optimizer, [0.5])
    next(loop)
    assert not net[0].weight.requires_grad
    loop.close()
    assert net[0].weight.requires_grad and not net[0].bias.requires_grad


def test_what_the_loop_cannot_do_is_refused():
    model = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="neither of a dense layer nor of a convolution"):
        next(han2015(model, torch.optim.SGD(model.parameters(), lr=0.1), [0.5]))
    with pytest.raises(ValueError, match="got none"):
        next(han2015(nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), []))


def test_dropout_falls_with_the_square_root_of_the_connections(net):
    """Trap 26: connections, not neurons."""
    quarter = torch.zeros(20, 96, dtype=torch.bool)
    quarter[:10, :48] = True  # half the neurons on both sides
    mask = Mask({"3.weight": quarter, "6.weight": torch.ones(3, 20, dtype=torch.bool)})
    assert adjust_dropout_(net, mask) == {"5": 0.25} and net[5].p == 0.25
    smaller = Mask({"3.weight": quarter & (torch.rand(20, 96) < 0.5), "6.weight": mask["6.weight"]})
    adjust_dropout_(net, smaller, mask)
    assert net[5].p == pytest.approx(0.5 * (smaller.counts["3.weight"] / 1920) ** 0.5)
    assert adjust_dropout_(net, mask, mask, connections={"5": "6.weight"}) == {"5": net[5].p}
    with pytest.raises(ValueError, match="no dropout"):
        adjust_dropout_(net, mask, connections={"4": "6.weight"})
    with pytest.raises(ValueError, match="not in the mask"):
        adjust_dropout_(net, mask, connections={"5": "0.weight"})


def test_dead_units_lose_the_rest_of_their_connections_one_after_the_other():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    structure = rewound.find_units(model, torch.zeros(1, 3))
    kept = {f"{k}.weight": torch.ones_like(model[k].weight, dtype=torch.bool) for k in (0, 2, 4)}
    kept["4.weight"][:, 0] = False  # unit 0 of the second layer is read by nobody ...
    kept["2.weight"][1:, 3] = False  # ... and unit 3 of the first one by that unit alone
    mask, dead = without_dead(Mask(kept), structure)
    assert dead == {"0": 1, "2": 1}
    assert not mask["2.weight"][0].any() and not mask["0.weight"][3].any()
    x = torch.randn(9, 3)
    Mask(kept).apply_(model)
    before = model(x)
    mask.apply_(model)
    assert torch.allclose(model(x), before)  # units without outputs change nothing
    assert without_dead(mask, structure)[0] == mask


def test_a_unit_without_inputs_is_dead_and_channels_are_units(net):
    structure = rewound.find_units(net, torch.zeros(1, 1, 6, 6))
    mask = threshold_mask(net, 0)
    kept = {name: tensor.clone() for name, tensor in mask.items()}
    kept["0.weight"][2] = False
    found, dead = without_dead(Mask(kept), structure)
    assert dead == {"0": 1}
    assert not found["3.weight"][:, 32:48].any() and found["3.weight"][:, :32].all()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    stage = next(han2015(net, optimizer, [{"6.weight": 0.0, "3.weight": 2.4}], structure=structure))
    rows = stage.mask["3.weight"].any(1)
    assert stage.dead["3"] == int((~rows).sum()) > 0
    assert not stage.mask["6.weight"][:, ~rows].any()
