import pytest
import torch
from torch import nn

from rewound.papers.zimmer2023 import budgeted
from rewound.plan import kept_by_round, parse_until
from rewound.run import Run


@pytest.mark.parametrize("total", [10, 37, 60, 200])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_the_whole_run_takes_the_budget_and_not_an_epoch_more(total, density, rounds):
    model = nn.Linear(500, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = Run(model, optimizer, **budgeted(total, density, rounds=rounds)).plan
    assert plan.total_epochs == total and plan.rounds == rounds
    assert plan.kept[-1] == round(density * 20_000)
    shares = [b / a for a, b in zip((20_000, *plan.kept), plan.kept)]
    assert max(shares) - min(shares) < 0.01  # every phase prunes the same share of the survivors


def test_the_dense_phase_may_be_given():
    found = budgeted(100, 0.1, rounds=4, dense=60)
    assert found["epochs"] == 60 and str(found["technique"]) == "adaptive-linear-restart:10ep"
    assert kept_by_round(10**6, found["rate"], parse_until(found["until"]))[-1] == 100_000
    assert budgeted(100, 0.1, rounds=3, dense=60)["epochs"] == 61  # 39 epochs in three phases, one left over


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"total": 10, "density": 1.0, "rounds": 3}, "must be in"),
        ({"total": 3, "density": 0.1, "rounds": 3}, "total=3"),
        ({"total": 10, "density": 0.1, "rounds": 0}, "rounds=0"),
        ({"total": 10, "density": 0.1, "rounds": 3, "dense": 8}, "leave 2 to 3 rounds"),
        ({"total": 10, "density": 0.1, "rounds": 1, "dense": 2}, "none may be longer"),
    ],
)
def test_a_budget_that_does_not_reach_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        budgeted(**arguments)
