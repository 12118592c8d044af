"""The index is a study as tables, and nothing is only in it."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from rewound.cli import app
from rewound.experiment import store
from rewound.experiment.index import rebuild_index
from rewound.experiment.statistics import density_of
from rewound.experiment.study import read_study


@pytest.fixture
def grid(finished_grid, tmp_path):
    place = shutil.copytree(finished_grid, tmp_path / "grid")
    rebuild_index(place)  # its folders have moved
    return place


def rows(place, query):
    with closing(sqlite3.connect(place / store.INDEX)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query)]


def dump(place):
    with closing(sqlite3.connect(place / store.INDEX)) as database:
        return list(database.iterdump())


def index(*words):
    return CliRunner().invoke(app, ["index", *(str(word) for word in words)])


def test_runs_are_rows_with_what_they_ended_with_and_cost(grid):
    found = {row["key"]: row for row in rows(grid, "select * from runs")}
    study = read_study([grid])
    assert len(found) == len(study["runs"]) == 4
    for run in study["runs"]:
        row, last = found[run["key"]], run["rounds"][-1]
        assert (row["label"], row["status"], row["folder"]) == (run["label"], "finished", run["folder"])
        assert (row["density"], row["value"]) == (density_of(last), last["metrics"]["accuracy"])
        assert row["test"] == run["test"]["accuracy"]
        assert (row["task"], row["rate"], row["seed"]) == (run["cell"]["task"], run["cell"]["rate"], 0)
        assert json.loads(row["cell"]) == run["cell"]
        cost = run["search_cost"]
        assert (row["epochs"], row["flops"], row["shared_epochs"]) == (cost["epochs"], cost["flops"], 4)


def test_rounds_are_rows_too(grid):
    (run, *_), found = read_study([grid])["runs"], rows(grid, "select * from rounds order by key, round")
    assert len(found) == 4 * 3
    own = [row for row in found if row["key"] == run["key"]]
    for row, done in zip(own, run["rounds"]):
        assert row["round"] == done["index"]
        assert row["value"] == done["metrics"]["accuracy"]
        assert row["before"] == done["before"].get("accuracy")
        assert (row["epochs"], row["seconds"]) == (done["epochs"], done["seconds"])
    assert own[0]["before"] is None
    assert own[1]["before"] is not None


@pytest.mark.parametrize("harm", ["deleted", "corrupt", "altered", "a folder"])
def test_an_index_that_was_harmed_is_made_anew_and_equal(grid, harm):
    path, before = grid / store.INDEX, dump(grid)
    if harm == "deleted":
        path.unlink()
    elif harm == "corrupt":
        path.write_bytes(path.read_bytes()[:3000] + b"\0" * 100)
        with pytest.raises(sqlite3.DatabaseError):
            dump(grid)
    elif harm == "altered":
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("delete from rounds")
    else:
        path.unlink()
        path.mkdir()
        assert index(grid).exit_code == 2  # said, not guessed at
        path.rmdir()
    done = index(grid)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{path}: 4 runs, 4 finished, 12 rounds\n"
    assert dump(grid) == before
    assert [p.name for p in grid.glob(".*") if not p.name.startswith(".lock")] == []


def test_who_reads_the_old_one_is_not_disturbed(grid):
    with closing(sqlite3.connect(grid / store.INDEX)) as reader:
        cursor = reader.execute("select key from rounds")
        first = cursor.fetchone()
        rebuild_index(grid)
        assert len([first, *cursor.fetchall()]) == 12


def test_what_is_not_finished_is_in_it_with_its_state(grid):
    waiting, failed, *_ = [run["key"] for run in read_study([grid])["runs"]]
    for key in (waiting, failed):
        (grid / "runs" / f"{key}.json").unlink()
    shutil.rmtree(grid / "runs" / waiting)
    store.write_json(store.error_file(grid / "runs" / failed), {"error": "no luck"})
    rebuild_index(grid)
    found = {row["key"]: row for row in rows(grid, "select * from runs")}
    assert (found[waiting]["status"], found[waiting]["density"], found[waiting]["value"]) == (
        "waiting",
        None,
        None,
    )
    assert (found[failed]["status"], found[failed]["error"]) == ("failed", "no luck")


def test_an_experiment_and_a_folder_of_several_have_an_index_as_well(grid, finished_experiment):
    shutil.copytree(finished_experiment, grid.parent / "experiment")
    done = json.loads(index(grid.parent / "experiment", "--json").stdout)
    assert done == {
        "index": str(grid.parent / "experiment" / store.INDEX),
        "runs": 2,
        "finished": 2,
        "rounds": 6,
    }
    assert json.loads(index(grid.parent, "--json").stdout)["runs"] == 6
    assert {row["task"] for row in rows(grid.parent, "select task from runs")} == {
        "digits",
        "toy_task.py:Toy",
    }


def test_no_folder_of_runs_is_an_error(tmp_path):
    done = index(tmp_path)
    assert done.exit_code == 2
    assert "holds no grid and no experiment" in done.stderr
    assert list(tmp_path.iterdir()) == []
