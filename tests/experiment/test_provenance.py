"""What results were found with is written beside them and reaches the report: of grids and of plain experiments."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import run

from rewound.experiment import runner, store
from rewound.experiment.provenance import fingerprints, versions
from rewound.experiment.recipe import Recipe, make_recipe
from rewound.experiment.study import read_study
from rewound.report.sections import provenance_section
from rewound.tasks import load_task


def rows_of(study):
    (table,) = provenance_section(study).tables
    return dict(table.rows)


def test_a_grid_has_it_in_its_file_its_study_and_its_report(tmp_path):
    asked = {"seeds": 1, "epochs": 1, "until": "1 rounds", "techniques": ["lr-rewinding"]}
    study = run(
        tmp_path / "grid", task="digits", **asked, grid={"rate": [0.5], "task_options.hidden": [[8], [9]]}
    )
    told = {"digits": load_task("digits").fingerprint()}
    assert store.read_json(tmp_path / "grid" / store.GRID)["data"] == told
    assert study["data"] == told
    assert rows_of(study)["data: digits"] == told["digits"]
    assert study["versions"] == versions()
    assert {"rewound", "torch", "python"} <= {*study["versions"]}


def test_an_experiment_has_it_too_and_keeps_it(finished_experiment, tmp_path, monkeypatch):
    place = shutil.copytree(finished_experiment, tmp_path / "copy")
    told = {"digits": load_task("digits").fingerprint()}
    written = store.read_results(place)
    assert written["data"] == told
    assert rows_of(read_study([place]))["data: digits"] == told["digits"]
    monkeypatch.setattr(runner, "task_of", lambda recipe: pytest.fail("nothing is left to be trained"))
    recipe = make_recipe({**written["recipe"], "folder": str(place)})
    assert runner.run_experiment(recipe, lambda *_: pytest.fail("nothing to show"))["data"] == told
    store.write_json(place / store.RESULTS, {key: value for key, value in written.items() if key != "data"})
    assert read_study([place])["data"] == {}  # of experiments from before there were fingerprints
    assert runner.run_experiment(recipe, lambda *_: pytest.fail("nothing to show"))["data"] == {}


def test_tasks_of_other_data_stand_with_their_options_and_no_folder_is_told():
    def task(recipe):
        if recipe.task == "none":
            return SimpleNamespace()
        return SimpleNamespace(fingerprint=lambda: f"{recipe.task[:3]}{recipe.task_options.get('subset')}")

    def recipe(task, **options):
        return Recipe(task=task, task_options=options)

    mine = "/home/me/mine.py:Mine"
    asked = [
        recipe("a", subset=1),
        recipe("a", subset=2),
        recipe("b", lr=1),
        recipe("b", lr=2),
        recipe("none"),
        recipe(mine),
    ]
    assert fingerprints(asked, task) == {
        'a {"subset": 1}': "a1",
        'a {"subset": 2}': "a2",
        "b": "bNone",
        "mine.py:Mine": "/hoNone",
    }
