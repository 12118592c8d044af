"""The plan is exact before the first step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rewound
from rewound.plan import Until, kept_by_round, parse_until


def test_densities_are_powers_of_the_rate():
    """Trap 12: a fraction of the survivors, not of the total; within one weight of 0.8^k."""
    kept = kept_by_round(100_000, 0.2, parse_until("17 rounds"))
    assert all(abs(count - 100_000 * 0.8 ** (k + 1)) <= 3 for k, count in enumerate(kept))
    survivors = 100_000
    for count in kept:
        assert survivors - count == round(0.2 * survivors)
        survivors = count


@given(st.integers(1, 10**6), st.floats(0.01, 0.99), st.floats(1e-4, 1.0))
def test_a_density_is_hit_exactly_and_rounds_are_nested(size, rate, density):
    kept = kept_by_round(size, rate, Until(density=density))
    target = max(1, round(density * size))
    assert list(kept) == sorted(set(kept), reverse=True)
    assert (kept[-1] if kept else size) == target
    assert all(count < size for count in kept)


def test_a_tiny_last_round_is_merged():
    """0.8^5 of 1,000,003 weights ends a weight or two beside 0.32768 of them: no sixth round for those."""
    kept = kept_by_round(1_000_003, 0.2, Until(density=0.8**5))
    assert len(kept) == 5
    assert kept[-1] == round(0.8**5 * 1_000_003)


def test_one_shot_and_rate_zero():
    assert kept_by_round(1000, None, parse_until("16x")) == (62,)
    assert kept_by_round(1000, 0, parse_until("3 rounds")) == (1000, 1000, 1000)
    assert kept_by_round(1000, 0.2, parse_until(1.0)) == ()


@pytest.mark.parametrize(
    ("text", "until"),
    [
        (0.05, Until(density=0.05)),
        ("0.05", Until(density=0.05)),
        ("density 0.05", Until(density=0.05)),
        ("20x", Until(density=0.05)),
        ("10 rounds", Until(rounds=10)),
        ("accuracy drops 0.01", Until(metric="accuracy", drop=0.01)),
        ("mse rises 0.1", Until(metric="mse", rise=0.1)),
        ((0.02, "accuracy drops 0.01"), Until(density=0.02, metric="accuracy", drop=0.01)),
        ("density 0.02 or accuracy drops 0.01", Until(density=0.02, metric="accuracy", drop=0.01)),
    ],
)
def test_until_in_all_its_forms(text, until):
    assert parse_until(text) == until
    assert parse_until(str(until)) == until


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: parse_until(20),
            r"'until' as a density must be in \(0, 1\] \(got 20.0\); write a compression ratio as '20x'",
        ),
        (lambda: parse_until(0), r"must be in \(0, 1\]"),
        (lambda: parse_until("soon"), "cannot read 'until' = 'soon'; it is a density"),
        (lambda: parse_until("0.5x"), "at least 1x"),
        (lambda: parse_until((0.1, 0.2)), "gives 'density' twice"),
        (lambda: kept_by_round(10, 1.2, Until(density=0.1)), "in \\(0, 1\\), 0 for a control"),
        (lambda: kept_by_round(10, 0, Until(density=0.1)), "prunes nothing and never ends"),
        (lambda: kept_by_round(10, None, Until(rounds=2)), "needs a density to prune to"),
        (lambda: Until(), "must say when to stop"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


THREE_EPOCHS = rewound.Trace.from_schedule(lambda step: 0.1, epochs=3, steps_per_epoch=2)


def make_run(**options):
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    return rewound.Run(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **{"epochs": 10, **options}
    )


def test_the_plan_is_printable_and_costs_are_closed_forms(tmp_path):
    """Trap 29: dense phase and all rounds are counted; t x k."""
    plan = make_run(until=0.1, technique="weight-rewinding", folder=tmp_path / "never-made").plan
    assert plan.size == 300
    assert plan.model_size == 325
    assert plan.total_epochs == 10 + 9 * plan.rounds
    text = str(plan)
    for part in (
        "11 rounds of 9 epochs",
        "300 of 325 parameters, in 2 tensors",
        "at epoch 1: weights and buffers",
        "MB",
    ):
        assert part in text
    assert plan.to_dict()["densities"][-1] == 0.1
    assert not (tmp_path / "never-made").exists()
    assert make_run(until=0.1).plan.snapshots == ("at epoch 0: schedule",)
    assert make_run(until="3 rounds", pretrained=True, technique="fine-tuning").plan.total_epochs == 30


def test_an_allocation_by_tensor_plans_itself():
    plan = make_run(allocation={"0.weight": 0.25}, rate=0.5).plan
    assert plan.kept == (100 + 100, 50 + 100)
    assert plan.by_tensor == ({"0.weight": 0.5}, {"0.weight": 0.25})
    with pytest.raises(ValueError, match="says its own target densities"):
        make_run(allocation={"0.weight": 0.25}, until=0.1)
    with pytest.raises(ValueError, match="no tensor in scope is called 'head'"):
        make_run(allocation={"head": 0.25})


@pytest.mark.parametrize(("options", "message"), [
    ({"until": None}, "'until' must say when to stop"),
    ({"until": 0.1, "epochs": 0}, "'epochs' is the length T of the original run"),
    ({"until": 0.1, "technique": "lr-rewinding:11ep"}, "t must be at most T = 10"),
    ({"until": 0.1, "pretrained": True, "technique": "weight-rewinding"}, "a model that arrives trained has none"),
    ({"until": 0.1, "pretrained": True}, "this model came without them; pass history="),
    ({"until": 0.1, "history": THREE_EPOCHS}, "covers 3 epochs and 'epochs' is 10"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_trained(options, message):
    with pytest.raises(ValueError, match=message):
        make_run(**options)


def test_without_a_folder_the_plan_says_what_is_held_in_memory(tmp_path):
    weights = 325 * 4
    plan = make_run(until=0.1, technique="weight-rewinding").plan
    assert plan.memory_bytes == 2 * weights  # weights and momentum at the rewind point
    assert "memory     about 0.0026 MB of snapshots (no folder: what is killed starts again)" in str(plan)
    assert make_run(until=(0.1, "acc drops 0.1")).plan.memory_bytes == 2 * weights  # the last good round
    assert "memory     the schedule of each step, no weights (no folder" in str(make_run(until=0.1).plan)
    plan = make_run(until=0.1, folder=tmp_path).plan
    assert plan.memory_bytes == 0
    assert plan.to_dict()["disk_bytes"] > 0


@pytest.mark.parametrize("options", [{"until": 1.0}, {"until": "1x"}, {"until": "3 rounds", "rate": 1e-4}])
def test_a_run_that_would_prune_nothing_is_refused(options):
    with pytest.raises(ValueError, match="prunes nothing of the 300 weights in scope"):
        make_run(**options)
