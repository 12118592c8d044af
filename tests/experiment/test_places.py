"""Grids and plain experiments are read by verify, export and bench alike: which runs they hold, and which of them is meant."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from rewound.cli import app
from rewound.experiment import store
from rewound.experiment.networks import candidates, find_network, network_of
from rewound.experiment.places import arm_of, arms_in, located
from rewound.experiment.verify import as_lines, verify_folder


@pytest.fixture
def grid(finished_grid, tmp_path):
    return shutil.copytree(finished_grid, tmp_path / "moved")


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def results(grid):
    return {path.stem: store.read_json(path) for path in sorted(grid.glob("runs/*.json"))}


# ---- what a folder is -------------------------------------------------------------------------------------


def test_the_arms_of_a_moved_grid_are_found_where_it_lies(grid):
    arms = arms_in(grid)
    assert {arm.folder for arm in arms} == {grid / "runs" / key for key in results(grid)}
    for arm in arms:
        found = results(grid)[arm.key]
        assert (arm.technique, arm.seed, arm.recipe.rate) == (found["technique"], 0, found["cell"]["rate"])
        assert arm_of(arm.folder) == arm


def test_the_arms_of_an_experiment_are_found_the_same_way(finished_experiment):
    arms = arms_in(finished_experiment)
    assert [arm.technique for arm in arms] == ["fine-tuning", "weight-rewinding"]
    assert [arm_of(arm.folder) for arm in arms] == arms


def test_what_no_recipe_asks_for_is_no_arm(grid, tmp_path):
    original = next(path for path in (grid / "originals").iterdir() if path.is_dir())
    assert arm_of(original) is None
    assert arm_of(shutil.copytree(next((grid / "runs").glob("*/")), tmp_path / "alone")) is None
    with pytest.raises(FileNotFoundError, match="is no run, no experiment and no grid"):
        arms_in(tmp_path)


def test_the_begin_of_a_key_is_enough_where_it_is_one_run_s(grid, monkeypatch):
    first, *others = results(grid)
    for n in range(1, 16):
        if not any(key.startswith(first[:n]) for key in others):
            break
    assert located(grid / "runs" / first[:n]) == grid / "runs" / first
    assert located(grid / "runs" / first) == grid / "runs" / first
    monkeypatch.chdir(grid / "runs")
    assert located(type(grid)(first[:n])).name == first
    with pytest.raises(ValueError, match=r"may be any of [0-9a-f]{16} \(.*rate 0.*\); .*") as found:
        located(grid / "runs")
    assert all(key in str(found.value) for key in results(grid))
    with pytest.raises(ValueError, match="no run has a key that begins with 'zz'; there are "):
        located(grid / "runs" / "zz")
    assert located(grid / "nothing") == grid / "nothing"


def test_of_many_runs_some_are_named(grid, monkeypatch):
    monkeypatch.setattr("rewound.experiment.places.MOST", 3)
    with pytest.raises(ValueError, match=r"; and 1 more$"):
        located(grid / "runs")


# ---- verify -----------------------------------------------------------------------------------------------


def test_every_run_of_a_grid_is_checked_as_those_of_an_experiment(grid):
    found = verify_folder(grid)
    assert found["passed"]
    assert [len(run["checks"]) for run in found["runs"]] == [6] * 4
    assert {check["name"] for check in found["runs"][0]["checks"]} == {
        *("finished", "checksums", "masks", "weights", "replay", "results"),
    }
    assert as_lines(found)[-1] == "4 runs checked, all hold"
    alone = verify_folder(grid / "runs" / next(iter(results(grid))))
    assert "replay" in [check["name"] for check in alone["runs"][0]["checks"]]


def test_results_that_are_not_the_run_s_are_found(grid):
    key, found = next(iter(results(grid).items()))
    found["rounds"][-1]["kept"] += 1
    (grid / "runs" / f"{key}.json").write_text(json.dumps(found))
    checked = verify_folder(grid, replay=False)
    (wrong,) = [run for run in checked["runs"] if not run["passed"]]
    assert wrong["folder"].endswith(key)
    assert [c["name"] for c in wrong["checks"] if not c["passed"]] == ["results"]
    assert f"{key}.json tells" in "\n".join(as_lines(checked))


def test_what_has_not_finished_is_counted_and_what_failed_or_is_gone_does_not_pass(grid):
    waiting, failed, gone, whole = results(grid)
    for key in (waiting, failed):
        (grid / "runs" / f"{key}.json").unlink()
    store.write_json(store.error_file(grid / "runs" / failed), {"error": "RuntimeError: no luck"})
    shutil.rmtree(grid / "runs" / gone)
    found = verify_folder(grid, replay=False)
    assert (found["passed"], found["left"], len(found["runs"])) == (False, 1, 3)
    told = "\n".join(as_lines(found))
    assert "finished: this run failed: RuntimeError: no luck" in told
    assert "finished: its folder is not there" in told
    assert told.endswith("3 runs checked, 2 do not hold; 1 not finished, so not checked")
    (grid / "runs" / f"{whole}.json").unlink()
    (grid / "runs" / f"{gone}.json").unlink()
    store.error_file(grid / "runs" / failed).unlink()
    with pytest.raises(FileNotFoundError, match=r"no run of .* has finished; 'rewound run"):
        verify_folder(grid)


def test_a_run_that_the_grid_no_longer_asks_for_goes_without_replay(grid):
    recipe = grid / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("rate = [0.2, 0.5]", "rate = [0.2]"))
    gone = [key for key, found in results(grid).items() if found["cell"]["rate"] == 0.5]
    assert len(gone) == 2
    found = verify_folder(grid / "runs" / gone[0])
    assert found["passed"]
    assert found["runs"][0]["notes"] == ["the last epoch was not replayed"]
    with pytest.raises(ValueError, match="from a grid that no longer asks for it"):
        network_of(grid / "runs" / gone[0])


# ---- export and bench -------------------------------------------------------------------------------------


def test_the_runs_of_a_grid_are_candidates(grid):
    found = candidates(grid)
    assert [one.label for one in found] == [arm.label for arm in arms_in(grid)]
    assert [one.folder for one in found] == [arm.folder for arm in arms_in(grid)]
    for one in found:
        rounds = results(grid)[one.folder.name]["rounds"]
        first, last = rounds[0]["metrics"]["accuracy"], rounds[-1]["metrics"]["accuracy"]
        assert one.lost == pytest.approx((first - last) / first)


def test_a_grid_or_one_of_its_runs_is_exported_and_measured(grid, tmp_path):
    key = next(iter(results(grid)))
    done = command("export", grid / "runs" / key[:12], "--weights", tmp_path / "net.safetensors", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["run"].endswith(key)
    done = command(
        "export", grid, "--technique", "weight-rewinding: 3 epochs", "--weights", tmp_path / "w.safetensors"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("weight-rewinding:3ep, rate 0.")
    _, _, told = find_network(str(grid))
    assert " rate 0." in told
    done = command("bench", grid / "runs" / key[:12], "--runtimes", "torch", "--rounds", 3, "--json")
    assert done.exit_code == 0, done.output


def test_errors_of_the_commands_name_what_is_there(grid):
    for words in (
        ["export", grid / "runs" / "zz", "--weights", "x"],
        ["bench", grid / "runs" / "zz"],
        ["verify", grid / "runs" / "zz"],
    ):
        done = command(*words)
        assert done.exit_code == 2
        assert "no run has a key that begins with 'zz'; there are " in done.stderr


def test_gradual_pruning_is_judged_by_the_original_runs_of_others(tmp_path):
    from grids import run

    asked = {"until": 0.5, "seeds": 1, "grid": {"rate": ["one-shot"]}}
    study = run(tmp_path / "both", techniques=["gradual:3ep", "lr-rewinding:2ep"], **asked)
    gradual, rewinding = (one["rounds"] for one in study["runs"])
    before, after = rewinding[0]["metrics"]["accuracy"], gradual[-1]["metrics"]["accuracy"]
    assert candidates(tmp_path / "both")[0].lost == pytest.approx((before - after) / before)
    run(tmp_path / "alone", techniques=["gradual:3ep"], **{**asked, "seeds": 2})
    *_, told = find_network(str(tmp_path / "alone"))
    assert "the smallest of 2; no original run tells what they lost" in told
