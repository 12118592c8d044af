import pytest
import torch

from rewound.experiment.likeness import likeness
from rewound.tasks import drive, load_task


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("likeness"), {}
    for name, options in {
        "lr": {"technique": "lr-rewinding"},
        "weight": {"technique": "weight-rewinding"},
        "random": {"technique": "lr-rewinding", "criterion": "random"},
        "fresh": {"technique": "reinitialization"},
        "fewer": {"technique": "lr-rewinding", "until": "1 rounds"},
    }.items():
        made[name] = place / name
        options = {"rate": 0.5, "until": "3 rounds", "epochs": 3, "folder": made[name], **options}
        drive(load_task("digits"), seed=1, **options)
    return made


def test_a_run_is_wholly_like_itself(folders):
    same = likeness(folders["lr"], folders["lr"])
    assert [one.density for one in same] == pytest.approx([0.5, 0.25, 0.125], abs=1e-4)
    assert all((one.jaccard, one.beyond_chance) == (1.0, 1.0) for one in same)
    assert [one.signs_apart for one in same] == [None, None, 0.0]


def test_techniques_begin_with_one_mask_and_go_apart(folders):
    first, *_, last = likeness(folders["lr"], folders["weight"])
    assert first.jaccard == 1.0  # both prune the same original network first
    assert 0.1 < last.beyond_chance < 0.9 and last.signs_apart < 0.1


def test_fresh_weights_share_no_signs(folders):
    last = likeness(folders["lr"], folders["fresh"])[-1]
    assert 0.2 < last.signs_apart < 0.8


def test_a_random_mask_is_like_another_by_chance(folders):
    found = likeness(folders["lr"], folders["random"])
    assert all(abs(one.beyond_chance) < 0.05 for one in found)
    assert found[0].by_chance == pytest.approx(0.33, abs=0.05)


def test_rounds_that_only_one_has_are_left_out(folders):
    (one,) = likeness(folders["lr"], folders["fewer"])
    assert one.density == pytest.approx(0.5, abs=1e-4) and one.signs_apart is None
    with pytest.raises(FileNotFoundError, match="no run in"):
        likeness(folders["lr"], folders["lr"] / "rounds")


def test_other_networks_are_refused(folders, tmp_path):
    torch.manual_seed(0)
    drive(load_task("digits", hidden=[20]), seed=1, rate=0.5, until="1 rounds", epochs=1, folder=tmp_path)
    with pytest.raises(ValueError, match="not of the same tensors"):
        likeness(folders["lr"], tmp_path)
