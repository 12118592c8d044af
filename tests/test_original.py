"""One original run for many: what begins from it ends, to the bit, where a run that trained its own ends."""

import json

import pytest
import torch
from torch import nn

from rewound.run import Run

T = 4
TECHNIQUES = [
    "fine-tuning:2ep",
    "lr-rewinding",
    "lr-rewinding:0ep",
    "weight-rewinding:3ep",
    "low-lr-weight-rewinding:1ep",
    "lottery-ticket",
    "reinitialization:2ep,carried",
]


def train(folder, **options):
    """Train a network with dropout, a schedule and random batches, all of which a snapshot must hold; return the Run."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0.01)
    options = {"epochs": T, "until": "2 rounds", "example": torch.zeros(8, 6), **options}
    run = Run(model, optimizer, scheduler=scheduler, folder=folder, **options)
    for _ in run:
        for _ in range(3):
            x = torch.randn(8, 6)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            loss.backward()
            optimizer.step()
            scheduler.step()
        run.log(loss=loss)
    return run, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "dense"
    train(folder, until="0 rounds", snapshots=range(T))
    return folder


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_results_are_those_of_a_run_that_trained_its_own_to_the_bit(technique, original, tmp_path):
    alone, weights = train(tmp_path / "alone", technique=technique)
    sharing, same = train(tmp_path / "sharing", technique=technique, original=original)
    assert sharing.result.to_dict() == alone.result.to_dict()
    assert sharing.result.search_cost.epochs >= T  # the original run is part of the cost, whoever trained it
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    for kind in ("mask", "trace"):
        there = {p.name for p in tmp_path.glob(f"alone/rounds/*/{kind}-*.pt")}
        assert {p.name for p in tmp_path.glob(f"sharing/rounds/*/{kind}-*.pt")} == there != set()


def test_the_original_run_is_read_and_not_trained_and_its_files_stay(original, tmp_path):
    before = {path: path.read_bytes() for path in original.rglob("*.pt")}
    epochs = []
    train(
        tmp_path / "one",
        technique="fine-tuning:1ep",
        original=original,
        progress=lambda run: epochs.append(run.round),
    )
    assert epochs == [1, 2]
    assert {path: path.read_bytes() for path in original.rglob("*.pt")} == before


def test_killed_after_it_began_it_goes_on(original, tmp_path):
    def stop(run):
        if run.round == 1:
            raise KeyboardInterrupt

    options = {"technique": "weight-rewinding:3ep", "original": original}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "one", progress=stop, **options)
    assert (
        train(tmp_path / "one", **options)[0].result.to_dict()
        == train(tmp_path / "two", **options)[0].result.to_dict()
    )


def test_an_original_run_prunes_nothing_and_keeps_what_was_asked(original):
    result = json.loads((original / "result.json").read_text())
    assert result["finished"]
    assert [done["density"] for done in result["rounds"]] == [1.0]
    kept = sorted(p.name.rpartition("-")[0] for p in (original / "state").glob("*.pt"))
    assert kept == [
        "epoch-000003",
        "epoch-000004",
        "initial-000000",
        *(f"rewind-00000{k}" for k in (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 3}, "of another training: seed: 0 there, 3 here"),
        ({"lr": 0.2}, "of another training: groups: "),
        ({"criterion": "movement"}, "of another training: criterion: 'magnitude' there, 'movement' here"),
    ],
)
def test_an_original_run_of_another_training_is_refused(options, says, original, tmp_path):
    with pytest.raises(ValueError, match=says):
        train(tmp_path / "one", original=original, **options)


def test_a_snapshot_that_was_not_kept_is_named(tmp_path):
    train(tmp_path / "dense", until="0 rounds", snapshots=[0])
    with pytest.raises(FileNotFoundError, match="no intact 'rewind' state 2, which this run begins from"):
        train(tmp_path / "one", original=tmp_path / "dense", technique="weight-rewinding:2ep")


def test_a_snapshot_that_was_not_kept_whole_is_refused(tmp_path):
    train(tmp_path / "dense", until="0 rounds", technique="lr-rewinding")  # which needs no weights of epoch 0
    with pytest.raises(ValueError, match=r"snapshot of epoch 0 .* has not all that this run needs"):
        train(tmp_path / "one", original=tmp_path / "dense", technique="lottery-ticket")


def test_what_is_no_finished_original_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no original run that is finished"):
        train(tmp_path / "one", original=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'original' is for a run with a 'folder' of its own"):
        train(None, original=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'snapshots' are epochs .* 0 to T = 4 \(got 5\)"):
        train(None, snapshots=[5])


def test_snapshots_of_several_epochs_are_kept_in_memory_too():
    run, _ = train(None, technique="weight-rewinding:2ep", snapshots=[0, 1, 3])
    assert run.result.to_dict() == train(None, technique="weight-rewinding:2ep")[0].result.to_dict()


def test_no_rounds_is_a_plan_of_the_original_run_alone():
    assert "density    1   (until 0 rounds; counted in units)" in str(
        train(None, until="0 rounds", pattern="unit")[0].plan
    )
