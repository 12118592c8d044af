"""Folders of grids and experiments, alone and together, finished and not, as one plain dict."""

import json
import shutil

import pytest

from rewound.experiment import store
from rewound.experiment.lease import leased
from rewound.experiment.study import read_study

KEYS = {
    "name",
    "folder",
    "task",
    "metric",
    "runs",
    "dense",
    "recipe",
    "command",
    "versions",
    "machine",
    "data",
}
OF_A_RUN = {"key", "cell", "label", "folder", "status", "error", "rounds", "test", "search_cost", "seconds"}


@pytest.fixture
def grid(finished_grid, tmp_path):
    return shutil.copytree(finished_grid, tmp_path / "grid")


@pytest.fixture
def experiment(finished_experiment, tmp_path):
    return shutil.copytree(finished_experiment, tmp_path / "experiment")


def rewrite(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def statuses(*paths):
    return [run["status"] for run in read_study(paths)["runs"]]


# ---- finished ---------------------------------------------------------------------------------------------


def test_a_grid_is_its_runs_and_the_original_runs_they_share(grid):
    study = read_study([grid])
    assert {*study} == KEYS
    assert (study["task"]["name"], study["metric"]["name"], study["folder"]) == ("toy", "accuracy", str(grid))
    assert [run["label"] for run in study["runs"]] == [
        "lr-rewinding:2ep, rate 0.2, seed 0",
        "weight-rewinding:3ep, rate 0.2, seed 0",
        "lr-rewinding:2ep, rate 0.5, seed 0",
        "weight-rewinding:3ep, rate 0.5, seed 0",
    ]
    for run in study["runs"]:
        assert {*run} >= OF_A_RUN
        assert run["folder"] == str(grid / "runs" / run["key"])
        written = store.read_json(grid / "runs" / f"{run['key']}.json")
        assert (run["rounds"], run["test"], run["cell"]) == (
            written["rounds"],
            written["test"],
            written["cell"],
        )
        cost = run["search_cost"]
        assert (cost["flops_dense"], cost["flops_sparse"]) == (cost["flops"], cost["sparse_flops"])
        assert cost["shared_epochs"] == 4
    (dense,) = study["dense"].values()
    assert dense["used_by"] == [run["key"] for run in study["runs"]]
    json.dumps(study)


def test_an_experiment_reads_as_a_grid_of_its_arms(experiment):
    study = read_study([experiment])
    assert {*study} == KEYS
    written = store.read_results(experiment)
    assert [run["label"] for run in study["runs"]] == ["fine-tuning, seed 0", "weight-rewinding, seed 0"]
    for run, arm in zip(study["runs"], written["arms"]):
        assert {*run} >= OF_A_RUN
        assert [done["metrics"] for done in run["rounds"]] == [done["metrics"] for done in arm["rounds"]]
        assert run["search_cost"]["epochs"] == arm["search_cost"]["epochs"]
        assert run["search_cost"]["shared_epochs"] == 0
        assert (run["cell"]["technique"], run["cell"]["epochs"]) == (arm["technique"], 3)
        assert run["folder"] == str(experiment / arm["folder"])
    assert (study["metric"], study["dense"]) == (written["metric"], {})


# ---- together ---------------------------------------------------------------------------------------------


def test_a_grid_and_an_experiment_are_one_study_of_both(grid, experiment):
    rewrite(grid / store.GRID, lambda found: found.update(name="ring"))
    study, alone = read_study([grid, experiment]), [read_study([grid]), read_study([experiment])]
    assert {*study} == KEYS
    assert study["runs"] == alone[0]["runs"] + alone[1]["runs"]
    assert study["dense"] == alone[0]["dense"]
    assert (study["name"], study["task"]["name"]) == ("ring + experiment", "toy, digits")
    assert alone[0]["recipe"] in study["recipe"]
    assert alone[1]["recipe"] in study["recipe"]
    assert read_study([grid.parent])["runs"] == alone[1]["runs"] + alone[0]["runs"]  # by name
    assert read_study([grid, grid])["runs"] == alone[0]["runs"]


def test_a_run_met_twice_is_one_and_finished_if_either_is(grid, tmp_path):
    other = shutil.copytree(grid, tmp_path / "other")
    key = read_study([grid])["runs"][1]["key"]
    (grid / "runs" / f"{key}.json").unlink()
    shutil.rmtree(grid / "runs" / key)
    for places in ([grid, other], [other, grid]):
        study = read_study(places)
        assert [run["status"] for run in study["runs"]] == ["finished"] * 4
        assert study["runs"][1]["folder"] == str(other / "runs" / key)


def test_fingerprints_of_data_join_and_other_data_under_one_name_stay_apart(grid, tmp_path):
    other, third = (shutil.copytree(grid, tmp_path / name) for name in ("other", "third"))
    for place, data in ((grid, {"toy": "aa", "more": "m"}), (other, {"toy": "aa"}), (third, {"toy": "bb"})):
        rewrite(place / store.GRID, lambda found, data=data: found.update(data=data))
    assert read_study([grid, other])["data"] == {"toy": "aa", "more": "m"}
    assert read_study([grid, third])["data"] == {f"toy ({grid})": "aa", f"toy ({third})": "bb", "more": "m"}
    rewrite(
        grid / store.GRID, lambda found: found.pop("data")
    )  # of a grid from before there were fingerprints
    assert read_study([grid])["data"] == {}


def test_what_different_metrics_judge_is_no_one_study(grid, tmp_path):
    other = shutil.copytree(grid, tmp_path / "other")
    rewrite(other / store.GRID, lambda found: found["metric"].update(name="f1"))
    with pytest.raises(ValueError, match=r"judged by different metrics, .*grid: accuracy; .*other: f1"):
        read_study([grid, other])
    rewrite(other / store.GRID, lambda found: found["metric"].update(name="accuracy", higher_is_better=False))
    with pytest.raises(ValueError, match="judged by different metrics"):
        read_study([grid, other])


def test_where_there_is_nothing_it_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_study([tmp_path / "gone"])
    with pytest.raises(FileNotFoundError, match=r"holds no grid and no experiment \(no recipe.toml in it\)"):
        read_study([tmp_path])


# ---- not finished -----------------------------------------------------------------------------------------


def test_runs_of_a_grid_wait_run_and_fail(grid):
    waiting, running, failed, cut = [run["key"] for run in read_study([grid])["runs"]]
    for key in (waiting, running, failed, cut):
        (grid / "runs" / f"{key}.json").unlink()
    shutil.rmtree(grid / "runs" / waiting)
    store.write_json(
        store.error_file(grid / "runs" / failed), {"error": "RuntimeError: no luck", "traceback": ""}
    )
    rewrite(grid / "runs" / cut / "result.json", lambda found: found.update(rounds=found["rounds"][:2]))
    with leased(grid / "runs" / running):
        runs = {run["key"]: run for run in read_study([grid])["runs"]}
    assert [run["status"] for run in runs.values()] == ["waiting", "running", "failed", "waiting"]
    assert (runs[waiting]["folder"], runs[waiting]["rounds"]) == (None, [])
    assert [run["error"] for run in runs.values()] == [None, None, "RuntimeError: no luck", None]
    assert [len(run["rounds"]) for run in runs.values()] == [0, 3, 3, 2]  # as far as they came
    assert all(run["search_cost"] == {} for run in runs.values())
    assert statuses(grid) == ["waiting", "waiting", "failed", "waiting"]  # the lease is free again


def test_an_arm_of_an_experiment_that_failed_says_why(experiment):
    (experiment / "arms" / "fine-tuning" / "seed-0.json").unlink()
    rewrite(
        experiment / store.RESULTS,
        lambda found: found["arms"][0].update(status="failed", error="RuntimeError: no luck", rounds=[]),
    )
    failed, finished = read_study([experiment])["runs"]
    assert (failed["status"], failed["error"]) == ("failed", "RuntimeError: no luck")
    assert finished["status"] == "finished"


def test_an_experiment_of_which_nothing_has_finished_asks_its_task(experiment):
    (experiment / store.RESULTS).unlink()
    for path in experiment.glob("arms/*/seed-0.json"):
        path.unlink()
    study = read_study([experiment])
    assert study["metric"] == {"name": "accuracy", "higher_is_better": True}
    assert [run["status"] for run in study["runs"]] == ["waiting", "waiting"]
    assert study["data"] == {}
