import hashlib
import io
import json
import shutil

import pytest
import torch

from rewound.experiment.verify import as_lines, verify_folder


@pytest.fixture
def experiment(finished_experiment, tmp_path):
    return shutil.copytree(finished_experiment, tmp_path / "copy")


@pytest.fixture
def arm(experiment):
    return experiment / "arms" / "fine-tuning" / "seed-0"


def failures(folder, **options):
    found = verify_folder(folder, **options)
    return {c["name"]: c["says"] for run in found["runs"] for c in run["checks"] if not c["passed"]}


def newest_state(arm):
    return max((arm / "state").glob("epoch-*.pt"), key=lambda path: int(path.name.split("-")[1]))


def rewrite(path, change):
    """Change a state's content and give it the name that its new content has."""
    content = torch.load(path, weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    path.with_name(f"{path.name.rpartition('-')[0]}-{digest}.pt").write_bytes(buffer.getvalue())
    path.unlink()


def test_a_finished_experiment_holds_replayed_to_the_bit(experiment):
    before = {path: path.read_bytes() for path in experiment.rglob("*") if path.is_file()}
    found = verify_folder(experiment)
    assert found["passed"]
    assert {c["name"] for run in found["runs"] for c in run["checks"]} == {
        *("finished", "checksums", "masks", "weights", "replay", "results"),
    }
    assert "2 runs checked, all hold" in as_lines(found)[-1]
    assert {path: path.read_bytes() for path in experiment.rglob("*") if path.is_file()} == before


def test_an_arm_can_be_checked_alone(arm):
    found = verify_folder(arm)
    assert found["passed"]
    assert "replay" in [check["name"] for check in found["runs"][0]["checks"]]


def test_a_run_of_ones_own_loop_goes_without_replay(arm, tmp_path):
    alone = shutil.copytree(arm, tmp_path / "elsewhere" / "deep" / "down" / "run")
    found = verify_folder(alone)
    assert found["passed"]
    assert found["runs"][0]["notes"] == ["the last epoch was not replayed"]


def test_a_flipped_bit_is_found_and_its_file_named(arm):
    path = newest_state(arm)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert path.name in failures(arm)["checksums"]


def test_a_revived_weight_is_found(arm):
    def revive(content):
        weights = next(t for name, t in content["state"]["model"].items() if name.endswith("weight"))
        weights.view(-1)[(weights == 0).view(-1).nonzero()[0]] = 1e-30

    rewrite(newest_state(arm), revive)
    assert "1 pruned weights of" in failures(arm, replay=False)["weights"]


def test_a_network_zeroed_beyond_its_mask_is_found(arm):
    def zero(content):
        for name, tensor in content["state"]["model"].items():
            if name.endswith("weight"):
                tensor.zero_()

    rewrite(newest_state(arm), zero)
    assert "kept weights are exactly 0" in failures(arm, replay=False)["weights"]


def test_a_count_that_is_off_by_one_weight_is_found(arm):
    path = arm / "result.json"
    result = json.loads(path.read_text())
    result["rounds"][-1]["kept"] += 1
    path.write_text(json.dumps(result))
    found = failures(arm.parents[2])
    assert "round 2" in found["masks"]
    assert "results" in found


def test_a_last_epoch_that_ends_elsewhere_is_found(arm):
    def nudge(content):
        bias = next(t for name, t in content["state"]["model"].items() if name.endswith("bias"))
        bias += 1e-7

    rewrite(newest_state(arm), nudge)
    found = failures(arm)
    assert list(found) == ["replay"]
    assert "bias comes out different" in found["replay"]


def test_an_unfinished_run_says_how_far_it_came(arm):
    path = arm / "result.json"
    result = json.loads(path.read_text())
    result["finished"] = False
    path.write_text(json.dumps(result))
    assert "run it on" in failures(arm)["finished"]


def test_something_else_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run, no experiment and no grid"):
        verify_folder(tmp_path)
