"""Gradual pruning (Zhu and Gupta 2018): rounds that are parts of one training."""

import json

import pytest
import torch
from torch import nn

import rewound
from rewound.plan import kept_gradually, parse_until
from rewound.run import Run

T = 8


def build():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * T)


def train(folder=None, stop_after=None, **options):
    """Train in a loop of one's own; return the run, the model, the epochs seen and the learning rates really used."""
    model, optimizer, scheduler = build()
    options = {"epochs": T, "technique": "gradual", "until": 0.2, **options}
    run = Run(model, optimizer, scheduler=scheduler, folder=folder, **options)
    seen, rates = [], []
    for epoch in run:
        draw = torch.Generator().manual_seed(epoch)
        for _ in range(3):
            x = torch.randn(16, 6, generator=draw)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            loss.backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        seen.append((run.round, epoch))
        run.log(loss=loss)
        if len(seen) == stop_after:
            break
    return run, model, seen, rates


def test_epochs_run_through_once_and_the_schedule_goes_on():
    run, _, seen, rates = train()
    assert [epoch for _, epoch in seen] == list(range(T))
    assert [round for round, _ in seen] == [0, 0, 1, 2, 3, 4, 5, 5]  # pruned before epochs 2 to 6
    _, optimizer, scheduler = build()
    for rate in rates:
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert run.result.search_cost.epochs == T == run.plan.total_epochs
    assert run.result.trace.lr[:, 0].tolist() == rates


def test_densities_follow_the_cubic_schedule_and_masks_are_nested():
    run, model, _, _ = train()
    size = run.plan.size
    assert size == 160
    expected = [size * (1 - 0.8 * (1 - (1 - k / 5) ** 3)) for k in range(1, 6)]
    assert [r.kept for r in run.result.rounds] == [size, *map(round, expected)]
    assert (
        run.result.rounds[-1].kept
        == 32
        == sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1)
    )
    shares = [1 - k / 1000 for k in kept_gradually(1000, parse_until(0.1), 10)]
    steps = [b - a for a, b in zip([0, *shares], shares)]
    assert steps == sorted(steps, reverse=True)  # much at first, little at the end


def test_only_the_last_round_is_a_result():
    run, _, _, _ = train()
    plain = run.result.to_dict()["rounds"]
    assert ["partial" in r for r in plain] == [True] * 5 + [False]
    from rewound.experiment.statistics import curve

    assert list(curve({"rounds": plain}, "loss")) == [0.2]


def test_without_pruning_it_is_the_training_alone_to_the_bit():
    _, pruned, _, _ = train(until=1.0)
    model, optimizer, scheduler = build()
    for epoch in range(T):
        draw = torch.Generator().manual_seed(epoch)
        for _ in range(3):
            x = torch.randn(16, 6, generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
            scheduler.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, pruned.state_dict()[name])


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_a_killed_one_goes_on_to_the_bit(tmp_path, stop_after, monkeypatch):
    monkeypatch.setattr("rewound.store.SHARE_OF_TIME", 1e9)  # a state every epoch
    alone, whole, _, _ = train(tmp_path / "whole")
    train(tmp_path / "cut", stop_after=stop_after)
    again, model, seen, _ = train(tmp_path / "cut")
    assert 0 < len(seen) < T
    assert again.result.to_dict() == alone.result.to_dict()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in whole.state_dict().items())
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["starts"] == [2, 3, 4, 5, 6]


def test_the_plan_says_what_it_is():
    model, optimizer, _ = build()
    plan = Run(model, optimizer, epochs=T, technique="gradual:4ep", until="10x").plan
    assert "one training of 8 epochs, pruned 4 times within it, before epochs 4 to 7" in str(plan)
    assert plan.total_epochs == 8 and plan.trained(1, 4) == 5
    assert [list(plan.span(k)) for k in (0, 1, 4)] == [[0, 1, 2, 3], [4], [7]]
    rewinding = Run(*build()[:2], epochs=T, technique="lr-rewinding:3ep", until="2 rounds").plan
    assert rewinding.trained(2, 6) == 8 + 3 + 2 and rewinding.trained(0) == 8


def test_starts_leave_a_third_to_recover():
    assert rewound.gradual_pruning().starts(20) == tuple(range(5, 16))
    assert rewound.gradual_pruning(1).starts(20) == (19,)
    assert rewound.gradual_pruning().starts(2) == (1,)
    assert rewound.weight_rewinding().starts(20) == ()
    assert "pruned while it is first trained" in repr(rewound.gradual_pruning())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"until": "3 rounds"}, "give 'until' a density"),
        ({"until": (0.1, "3 rounds")}, "neither rounds nor a metric"),
        ({"until": (0.1, "loss rises 1")}, "neither rounds nor a metric"),
        ({"until": None, "allocation": {"0.weight": 0.5}}, "an allocation that shares it out"),
        ({"technique": "gradual:8ep"}, "1 <= t < 8"),
        ({"technique": "gradual:0ep"}, "1 <= t < 8"),
        ({"pretrained": True}, "this model arrives trained"),
        ({"original": "dense", "folder": "mine"}, "cannot begin from a finished 'original'"),
        ({"technique": "gradual:fresh"}, "the schedule goes on where"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_trained(options, says):
    model, optimizer, _ = build()
    with pytest.raises(ValueError, match=says):
        Run(model, optimizer, **{"epochs": T, "technique": "gradual", "until": 0.2, **options})
    with pytest.raises(ValueError, match="the schedule goes on where"):
        rewound.Technique("fresh", "continued")
