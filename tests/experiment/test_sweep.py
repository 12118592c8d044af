"""Grids run: shared original runs change nothing but the work, what is finished stays, what fails is said and tried again."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import content, grid_at, recorded, run

from rewound.experiment import sweep
from rewound.experiment.originals import train_original


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("grid") / "small"
    return place, run(place)


def test_every_run_lies_under_its_key_and_says_what_it_is(finished):
    place, study = finished
    assert [run["status"] for run in study["runs"]] == ["finished"] * 8
    assert (
        {p.stem for p in place.glob("runs/*.json")}
        == {run["key"] for run in study["runs"]}
        == {*grid_at(place).runs}
    )
    one = study["runs"][0]
    assert (one["cell"]["technique"], one["cell"]["rate"], one["cell"]["seed"]) == (
        "lr-rewinding:2ep",
        0.2,
        0,
    )
    assert one["label"] == "lr-rewinding:2ep, rate 0.2, seed 0"
    assert len(one["rounds"]) == 3
    assert all(len(done["log"]) == done["epochs"] for done in one["rounds"])
    assert set(one["test"]) == {"accuracy", "loss"}


def test_an_original_run_is_trained_once_and_charged_to_all(finished):
    _, study = finished
    assert sorted(len(one["used_by"]) for one in study["dense"].values()) == [4, 4]
    assert {one["epochs"] for one in study["dense"].values()} == {4}
    for one in study["runs"]:
        t = 2 if "lr" in one["cell"]["technique"] else 3
        assert one["search_cost"]["epochs"] == 4 + 2 * t
        assert one["search_cost"]["shared_epochs"] == 4
        assert one["search_cost"]["seconds"] == pytest.approx(
            sum(done["seconds"] for done in one["rounds"]), abs=0.01
        )
        assert one["rounds"][0]["seconds"] > 0


def test_sharing_changes_no_bit(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "original_key", lambda form: None)
    alone = run(tmp_path / "alone")
    assert alone["dense"] == {}
    assert content(tmp_path / "alone") == content(finished[0])


def test_the_second_time_nothing_is_done(finished, monkeypatch):
    place, study = finished
    written = {
        path: path.stat().st_mtime_ns
        for path in place.rglob("*.*")
        if path.name != "index.sqlite" and path.is_file()
    }
    monkeypatch.setattr(sweep, "carry_out", lambda *_, **__: pytest.fail("work was handed out"))
    assert run(place) == study
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_more_of_a_grid_joins_what_is_there_and_begins_from_the_same_original_runs(finished, tmp_path):
    events = []
    run(tmp_path / "small")
    study = recorded(tmp_path / "small", events, grid={"rate": [0.2, 0.5, 0.3]})
    assert len(study["runs"]) == 12
    begun = {label for label, event in events if event["kind"] == "epoch"}
    assert begun == {
        f"{t}, rate 0.3, seed {s}" for t in ("lr-rewinding:2ep", "weight-rewinding:3ep") for s in (0, 1)
    }


def test_an_original_run_that_lacks_a_snapshot_is_trained_again_with_it(tmp_path):
    one = {"seeds": 1, "grid": {"rate": [0.2]}}
    run(tmp_path / "grid", techniques=["weight-rewinding:3ep"], **one)
    events = []
    study = recorded(
        tmp_path / "grid", events, techniques=["weight-rewinding:3ep", "weight-rewinding:1ep"], **one
    )
    assert [found["status"] for found in study["runs"]] == ["finished"] * 2
    assert [label for label, event in events if event["kind"] == "finished"] == [
        "original run, seed 0",
        "weight-rewinding:1ep, seed 0",
    ]
    (original,) = study["dense"].values()
    assert original["snapshots"] == [1, 3]


def test_a_run_that_fails_is_said_and_tried_again_alone(tmp_path):
    options = {"task_options": {"fails": True}, "grid": {"rate": [0.2]}}
    study = run(tmp_path / "grid", **options)
    assert [(found["cell"]["seed"], found["status"]) for found in study["runs"]] == [
        (0, "finished"),
        (0, "finished"),
        (1, "failed"),
        (1, "failed"),
    ]
    assert study["runs"][2]["error"] == "RuntimeError: no luck with seed 1"
    events = []
    again = recorded(tmp_path / "grid", events, **options)
    assert {event["arm"] for _, event in events} == {0, 1}
    assert [found["status"] for found in again["runs"]] == [found["status"] for found in study["runs"]]


def test_a_failing_original_run_fails_what_begins_from_it_with_the_reason(tmp_path, monkeypatch):
    def fail(original, report):
        raise RuntimeError("no disk")

    monkeypatch.setattr("rewound.experiment.arms.train_original", fail)
    study = run(tmp_path / "grid", seeds=1)
    assert {found["error"] for found in study["runs"]} == {
        "what it begins from failed: RuntimeError: no disk"
    }


def test_an_arm_whose_original_run_was_deleted_trains_it_again(tmp_path):
    study = run(tmp_path / "grid", seeds=1, grid={"rate": [0.2]}, techniques=["lr-rewinding:2ep"])
    (arm,) = sweep.arms_of_grid(
        grid_at(tmp_path / "other", seeds=1, grid={"rate": [0.2]}, techniques=["lr-rewinding:2ep"])
    )
    original = sweep.originals_of([arm], sweep.task_keeper()).popitem()[1]
    found = sweep.work_of(replace(arm, original=original), lambda event: None)
    assert found["rounds"][-1]["metrics"] == study["runs"][0]["rounds"][-1]["metrics"]
    assert train_original(original, lambda event: pytest.fail("trained twice"))["epochs"] == 4


def test_a_folder_of_something_else_and_a_changed_task_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(ValueError, match="holds no grid"):
        run(tmp_path / "photos")
    task = tmp_path / "toy_task.py"
    task.write_bytes(Path(__file__).with_name("toy_task.py").read_bytes())
    run(tmp_path / "grid", task=f"{task}:Toy", seeds=1, grid={"rate": [0.2]})
    task.write_text(task.read_text() + "# another")
    with pytest.raises(ValueError, match=r"has changed since the runs in .* began"):
        run(tmp_path / "grid", task=f"{task}:Toy", seeds=1, grid={"rate": [0.2]})


def test_the_plan_says_what_is_shared(tmp_path):
    from rewound.experiment.grid_plan import as_lines, plan_grid

    plan = plan_grid(grid_at(tmp_path / "grid"), sweep.task_keeper())
    assert (plan["runs"], plan["originals"], plan["finished"]) == (8, 2, 0)
    assert plan["epochs_without_sharing"] == 4 * (4 + 4) + 4 * (4 + 6)
    assert plan["total_epochs"] == plan["epochs_without_sharing"] - 6 * 4
    assert not (tmp_path / "grid").exists()
    text = "\n".join(as_lines(plan))
    assert "a grid of 8 runs on toy" in text
    assert "2 original runs for all: 48 epochs of training rather than 72" in text
    json.dumps(plan)


def test_gradual_pruning_is_planned_and_watched_as_the_one_training_it_is(tmp_path):
    from rewound.experiment.grid_plan import as_lines, plan_grid

    asked = {
        "techniques": ["gradual:3ep"],
        "seeds": 1,
        "until": 0.5,
        "grid": {"criterion": ["magnitude", "random"]},
    }
    plan = plan_grid(grid_at(tmp_path / "grid", **asked), sweep.task_keeper())
    assert "1 seed, 4 epochs a seed, pruned 3 times within them, before epochs 1 to 3" in as_lines(plan)[3]
    assert (plan["originals"], plan["total_epochs"]) == (0, 8)
    events = []
    study = recorded(tmp_path / "grid", events, **asked)
    assert [event["done"] for _, event in events if event["kind"] == "epoch"] == [1, 2, 3, 4] * 2
    assert [event["density"] for _, event in events if event["kind"] == "epoch"][:4] == [
        done["density"] for done in study["runs"][0]["rounds"]
    ]
    assert {run["search_cost"]["shared_epochs"] for run in study["runs"]} == {0}


def test_tasks_judged_by_different_metrics_are_no_grid(tmp_path):
    from rewound.experiment.grid_plan import plan_grid

    with pytest.raises(ValueError, match=r"must be judged by one metric \(toy: accuracy; diabetes: "):
        plan_grid(
            grid_at(tmp_path, grid={"task": [grid_at(tmp_path).recipe.task, "diabetes"]}), sweep.task_keeper()
        )


def test_a_grid_whose_list_of_runs_was_deleted_goes_on(tmp_path):
    run(tmp_path / "g")
    before = content(tmp_path / "g")
    (tmp_path / "g" / "grid.json").unlink()
    assert {one["status"] for one in run(tmp_path / "g")["runs"]} == {"finished"}
    assert content(tmp_path / "g") == before
