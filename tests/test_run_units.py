"""Algorithm 1 over channels, blocks and n:m: rounds are counted in units, and what is dead is dead entirely."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import rewound
from rewound.compaction.coupling import find_units
from rewound.patterns.n_of_m import check_n_m
from rewound.plan import kept_by_round, parse_until
from rewound.result import Round
from rewound.run import Run

T, STEPS = 4, 3
X = torch.zeros(8, 1, 6, 6)


def network():
    """20 + 12 channels and 8 hidden units."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 20, 3), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def make(model=None, make_optimizer=None, **options):
    model = network() if model is None else model
    make_optimizer = make_optimizer or (
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True)
    )
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    options = {"epochs": T, "pattern": "channel", "until": "3 rounds", "example": X, **options}
    return model, optimizer, Run(model, optimizer, **options)


def train(model, optimizer, epoch, each=lambda: None):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        x = torch.randn(8, 1, 6, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x.flatten(1)[:, :3].argmax(1)).backward()
        optimizer.step()
        each()


def go(model, optimizer, run, each=lambda: None):
    for epoch in run:
        train(model, optimizer, epoch, each)
        run.log(norm=model[0].weight.detach().norm())
    return run.result


OPTIMIZERS = {
    "sgd": None,
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("technique", ["lr-rewinding:2ep", "weight-rewinding:2ep", "fine-tuning:2ep"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_dead_is_dead_entirely_after_every_step(technique, optimizer):
    model, optimizer, run = make(
        technique=technique, make_optimizer=OPTIMIZERS[optimizer], allocation="uniform"
    )
    masks = []

    def each():
        if run.round == 0:
            return
        parameters = dict(model.named_parameters())
        for name, kept in run.mask.items():
            assert not parameters[name][~kept].any(), name
        dead = ~run.mask["0.bias"]
        assert dead.any()
        out = model[1](model[0](torch.randn(2, 1, 6, 6)))
        assert not out[:, dead].any()  # nothing of a dead channel is left, neither bias nor the norm's shift
        if not masks or masks[-1] is not run.mask:
            masks.append(run.mask)

    go(model, optimizer, run, each)
    assert len(masks) == 3
    assert masks[2] <= masks[1] <= masks[0]
    assert {"0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "4.bias", "7.weight"} <= set(run.mask)
    assert all(p[run.mask[name]].all() for name, p in model.named_parameters() if name in run.mask)


def test_rounds_are_counted_in_units_and_tell_both():
    model, optimizer, run = make(until=0.3, technique="lr-rewinding:1ep", pattern="unit")
    planned = kept_by_round(40, 0.2, parse_until(0.3))
    assert run.plan.kept == planned
    assert (run.plan.size, run.plan.what, run.plan.tensors) == (40, "units", 3)
    assert run.plan.densities[-1] == 0.3
    rounds = go(model, optimizer, run).rounds
    assert [sum(kept for kept, _ in r.units.values()) for r in rounds] == [40, *planned]
    first, last = rounds[0], rounds[-1]
    assert (first.unit_density, first.density, first.kept) == (1.0, 1.0, first.size)
    assert last.unit_density == 0.3
    masked = sum(p.numel() for name, p in model.named_parameters() if name in run.mask)
    assert last.size == masked == run.plan.covered
    assert last.kept == sum(int(kept.sum()) for kept in run.mask.values())
    assert (
        last.density == run.mask.density < last.unit_density
    )  # channels are pruned on both sides of a weight
    assert last.densities["3.weight"] == run.mask.densities["3.weight"]
    total = sum(p.numel() for p in model.parameters())
    assert last.density_total == (total - masked + last.kept) / total
    for name, (kept, size) in last.units.items():
        assert run.mask.units[name] == (kept, size)


def test_results_round_trip_and_are_printed():
    model, optimizer, run = make(until="2 rounds", technique="lr-rewinding:1ep")
    result = go(model, optimizer, run)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["rounds"][2]["unit_density"] == result.rounds[2].unit_density
    assert [Round.from_dict(r) for r in plain["rounds"]] == list(result.rounds)
    assert "of units" in str(result).splitlines()[0]
    old = {k: v for k, v in plain["rounds"][2].items() if k not in ("units", "unit_density")}
    assert Round.from_dict(old).unit_density is None  # as written before there were units
    text = str(run.plan)
    assert "32 units in 2 groups, made of 2," in text
    assert "(until 2 rounds; counted in units)" in text
    single = make(pattern="weight", until=0.5)[2].plan
    assert "counted in" not in str(single)
    assert single.what == "weights"


@pytest.mark.parametrize("technique", ["weight-rewinding:2ep", "lr-rewinding:2ep"])
@pytest.mark.parametrize("stop", [(0, 2), (1, 2), (1, 3), (2, 2)])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, technique, stop):
    ends = []
    for folder in (None, tmp_path):
        model, optimizer, run = make(technique=technique, until="2 rounds", folder=folder)
        if folder is not None:
            for epoch in run:
                train(model, optimizer, epoch)
                run.log(x=0)
                if (run.round, epoch) == stop:
                    break
            model, optimizer, run = make(technique=technique, until="2 rounds", folder=folder)
        for epoch in run:
            train(model, optimizer, epoch)
            run.log(x=0)
        ends.append((model.state_dict(), run.mask, run.result.rounds))
    (weights, mask, rounds), (weights_again, mask_again, rounds_again) = ends
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert mask == mask_again
    assert mask.units == mask_again.units
    assert [(r.units, r.densities) for r in rounds] == [(r.units, r.densities) for r in rounds_again]


def test_another_pattern_is_another_run(tmp_path):
    model, optimizer, run = make(folder=tmp_path, technique="lr-rewinding:1ep")
    go(model, optimizer, run)
    for options in ({"pattern": "unit"}, {"pattern": "weight"}, {"multiple": 2}, {"floor": 0.5}):
        with pytest.raises(ValueError, match=r"pattern|units|multiple|floor"):
            next(iter(make(folder=tmp_path, technique="lr-rewinding:1ep", **options)[2]))


def test_other_units_under_the_same_name_are_another_run(tmp_path):
    def restricted(name):
        structure = find_units(network(), X)
        return {"pattern": structure.restricted([structure[name]]), "technique": "lr-rewinding:1ep"}

    go(*make(folder=tmp_path, **restricted("0")))
    with pytest.raises(ValueError, match="units"):
        next(iter(make(folder=tmp_path, **restricted("3"))[2]))


def test_weight_rewinding_puts_units_back_from_the_original_run():
    model, optimizer, run = make(technique="weight-rewinding:2ep", until="2 rounds")
    original = {}
    for epoch in run:
        if epoch == T - 2:
            now = {name: p.detach().clone() for name, p in model.named_parameters()}
            if run.round == 0:
                original = now
            else:
                for name, value in now.items():
                    kept = run.mask[name] if name in run.mask else torch.ones_like(value, dtype=torch.bool)
                    assert torch.equal(value, torch.where(kept, original[name], 0))
        train(model, optimizer, epoch)


def test_a_metric_brings_the_last_good_round_back_with_its_units():
    values = {0: 0.9, 1: 0.9, 2: 0.5}
    model, optimizer, run = make(until=("accuracy drops 0.01", "5 rounds"), technique="lr-rewinding:1ep")
    for epoch in run:
        train(model, optimizer, epoch)
        run.log(accuracy=values[run.round])
    assert run.result.best == 1
    assert dict(run.mask.units) == run.result.rounds[1].units
    assert not any(p[~run.mask[name]].any() for name, p in model.named_parameters() if name in run.mask)


def test_the_structure_is_found_once(monkeypatch):
    import rewound.compaction.coupling as coupling

    calls = []

    def counting(model, example):
        calls.append(1)
        return find_units(model, example)

    monkeypatch.setattr(coupling, "find_units", counting)
    go(*make(technique="lr-rewinding:1ep"))
    assert calls == [1]


def test_a_structure_may_be_given_and_needs_no_example():
    model = network()
    structure = find_units(model, X)
    model, optimizer, run = make(
        model, pattern=structure.restricted([structure["0"]]), example=None, until=0.5
    )
    go(model, optimizer, run)
    assert dict(run.mask.units) == {"0": (10, 20)}


@pytest.mark.parametrize("allocation", ["uniform", "lamp"])
def test_allocations(allocation):
    model, optimizer, run = make(allocation=allocation, until=0.5, rate=None, technique="lr-rewinding:1ep")
    go(model, optimizer, run)
    assert run.mask.units_kept == 16
    if allocation == "uniform":
        assert dict(run.mask.units) == {"0": (10, 20), "3": (6, 12)}


def test_densities_by_name_of_group_or_writer():
    options = {"allocation": {"0": 0.5, "3.weight": 0.25}, "until": None, "rate": 0.5}
    model, optimizer, run = make(**options, technique="lr-rewinding:1ep")
    assert run.plan.by_tensor == ({"0": 0.5, "3": 0.5}, {"0": 0.5, "3": 0.25})
    go(model, optimizer, run)
    assert dict(run.mask.units) == {"0": (10, 20), "3": (3, 12)}
    one = make(allocation={"0": 0.5}, until=None, rate=None, technique="lr-rewinding:1ep")
    go(*one)
    assert dict(one[2].mask.units) == {"0": (10, 20), "3": (12, 12)}
    with pytest.raises(ValueError, match="no tensor in scope is called '9'; in scope: 0, 3"):
        make(allocation={"9": 0.5}, until=None)


def test_multiples_and_floors_hold_in_every_round():
    model, optimizer, run = make(multiple=4, until=0.3, technique="lr-rewinding:1ep")
    result = go(model, optimizer, run)
    for r in result.rounds[1:]:
        assert all(kept % 4 == 0 for kept, _ in r.units.values())
        assert abs(sum(kept for kept, _ in r.units.values()) - run.plan.kept[r.index - 1]) <= 2
    model, optimizer, run = make(floor=0.5, until=0.2, technique="lr-rewinding:1ep")
    assert dict(go(model, optimizer, run).rounds[-1].units) == {"0": (10, 20), "3": (6, 12)}

    # Of 32 units 30 are planned, and 28 is as near as multiples come; then 29 are planned, more than are left.
    def first_only(budget):
        return {"0": budget.kept - 12, "3": 12}

    steady = make(
        multiple=16, rate=0.03, until="4 rounds", allocation=first_only, technique="lr-rewinding:1ep"
    )
    kept = [sum(kept for kept, _ in r.units.values()) for r in go(*steady).rounds]
    assert steady[2].plan.kept == (31, 30, 29, 28)
    assert kept == [32, 32, 28, 28, 28]
    by_name = make(allocation={"0": 0.45, "3": 0.3}, multiple=4, until=None, technique="lr-rewinding:1ep")
    assert dict(go(*by_name).rounds[-1].units) == {"0": (8, 20), "3": (4, 12)}


def test_a_frozen_norm_of_a_dead_channel_is_dead_too():
    model = network()
    for p in model[1].parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        model[1].bias.fill_(0.5)
    model, optimizer, run = make(model, technique="weight-rewinding:2ep", until=0.5)
    go(model, optimizer, run)
    assert torch.equal(model[1].bias != 0, run.mask["1.bias"])
    assert not run.mask["1.bias"].all()
    run.guard.check()


def test_averages_obey_the_mask():
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    model, optimizer, run = make(model, extras=[average], technique="lr-rewinding:1ep", until=0.5)
    for epoch in run:
        train(model, optimizer, epoch)
        average.update_parameters(model)
    assert not any(
        p[~run.mask[name]].any() for name, p in average.module.named_parameters() if name in run.mask
    )


# ---- criteria --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["movement", "random", "l1", "batch-norm scale"])
def test_criteria(criterion):
    model, optimizer, run = make(criterion=criterion, until=0.5, rate=None, technique="lr-rewinding:1ep")
    go(model, optimizer, run)
    assert run.mask.units_kept == 16


def test_criteria_that_need_data_or_units_are_refused_at_once():
    with pytest.raises(ValueError, match="criterion 'taylor' needs data"):
        make(criterion="taylor")
    with pytest.raises(
        ValueError, match="criterion 'l1' scores units such as channels, and pattern 'weight' prunes weights"
    ):
        make(criterion="l1", pattern="weight")

    def evidence(model, scope):
        batches = [(torch.randn(4, 1, 6, 6), torch.randint(3, (4,)))]
        return rewound.Evidence(model, scope, batches=batches, loss=nn.functional.cross_entropy)

    run = make(criterion="taylor", evidence=evidence, until=0.5, rate=None, technique="lr-rewinding:1ep")
    go(*run)
    assert run[2].mask.units_kept == 16


# ---- what cannot work is refused before anything is trained ------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"example": None}, "pattern 'channel' must run the model once"),
    ({"pattern": "head"}, "nothing can be pruned by pattern 'head'"),
    ({"pattern": "chanel"}, "unknown pattern 'chanel': did you mean 'channel'"),
    ({"allocation": "erk"}, "allocation 'erk' says how dense one weight tensor is"),
    ({"multiple": 0}, "'multiple' must be a whole number"),
    ({"pattern": "weight", "multiple": 8}, "'multiple' is for units"),
    ({"floor": 2}, "'floor' must be a share"),
    ({"allow": "sometimes"}, "unknown certificate 'sometimes'"),
    ({"pattern": "2:4", "until": 0.25}, r"'until' can only be 0\.5 or None"),
    ({"pattern": "2:4", "until": "2 rounds"}, "prunes once, to density 0.5; leave 'until' out"),
    ({"pattern": "2:4", "until": None, "allocation": "erk"}, "leave out allocation"),
    ({"until": 1.0}, "prunes nothing of the 32 units in scope"),
])  # fmt: skip
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


# ---- blocks and n:m ----------------------------------------------------------------------------------------------------------


def test_blocks():
    model, optimizer, run = make(pattern="2x1", until=0.4, technique="lr-rewinding:1ep", example=None)
    assert run.plan.what == "blocks"
    rounds = go(model, optimizer, run).rounds
    assert [sum(kept for kept, _ in r.units.values()) for r in rounds[1:]] == list(run.plan.kept)
    assert set(run.mask) == {"0.weight", "3.weight", "7.weight", "9.weight"}
    pairs = run.mask["3.weight"].reshape(6, 2, -1)
    assert torch.equal(pairs[:, 0], pairs[:, 1])


def test_n_of_m_prunes_once_and_rewinds():
    model, optimizer = network(), None
    with pytest.warns(UserWarning, match=r"'0\.weight' stays as it is under pattern '2:4'"):
        model, optimizer, run = make(model, pattern="2:4", until=None, technique="lr-rewinding:4ep")
    assert run.plan.densities == (0.5,)
    result = go(model, optimizer, run)
    assert [r.density for r in result.rounds] == [1.0, 0.5]
    assert set(run.mask) == {"3.weight", "7.weight", "9.weight"}
    check_n_m(run.mask, "2:4", model)
    assert math.isclose(run.mask.density, 0.5)
    check_n_m({name: p != 0 for name, p in model.named_parameters() if name in run.mask}, "2:4")
