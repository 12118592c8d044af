"""From a pace to the time of a whole plan: what is shared counts once, what is finished not at all, cores are counted."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import TASK, grid_at, run

from rewound.experiment import pace
from rewound.experiment.arms import task_keeper
from rewound.experiment.estimate import as_line, estimate_experiment, estimate_grid, told_seconds
from rewound.experiment.grid_plan import plan_grid
from rewound.experiment.pace import Pace
from rewound.experiment.plan import make_plan
from rewound.experiment.recipe import make_recipe

PACE = Pace(step=0.5, evaluation=1.0, whole=True, epoch=10.0, pruned=3.0, steps=7, epochs=2)


@pytest.fixture
def asked(monkeypatch):
    """Two cores, a pace that is known, and a list of what it was asked for."""
    asked = []

    def measure_pace(task, seed, **options):
        asked.append((task.name, seed, options))
        return PACE

    monkeypatch.setattr(pace, "measure_pace", measure_pace)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    return asked


def estimate(place, **keys):
    grid, tasks = grid_at(place, **keys), task_keeper()
    return estimate_grid(grid, tasks, plan_grid(grid, tasks))


def test_an_original_run_counts_once_and_each_run_without_it(asked, tmp_path):
    found = estimate(tmp_path / "grid", seeds=1)
    # original run 4 epochs; two rates x two rounds of 2 and of 3 epochs; each ends with an evaluation on the test split
    assert found["work_seconds"] == 41 + 2 * (40 + 6 + 1) + 2 * (60 + 6 + 1)
    assert found["seconds"] == found["work_seconds"]  # on one worker
    assert (found["runs"], found["runs_left"], found["at_once"]) == (4, 4, 1)
    assert asked == [("toy", 0, {"epochs": None, "threads": 1, "seconds": pace.SECONDS})]
    assert not (tmp_path / "grid").exists()
    json.dumps(found)


def test_workers_share_the_work_as_far_as_there_are_cores(asked, tmp_path):
    two, four = (estimate(tmp_path / "grid", workers=n) for n in (2, 4))
    assert two["work_seconds"] == four["work_seconds"]
    assert two["seconds"] == four["seconds"] == pytest.approx(two["work_seconds"] / 2, rel=0.1)
    assert four["at_once"] == 2
    assert estimate(tmp_path / "grid", workers=4, threads=2)["at_once"] == 1
    line = as_line({"workers": 4, "estimate": four})
    assert line == (
        f"About {told_seconds(four['seconds'])} on 4 workers (2 at a time: more have no core) of this machine "
        "(measured: 2 epochs of 10 s)."
    )


def test_what_is_finished_takes_no_time(asked, tmp_path):
    run(tmp_path / "grid", seeds=1, grid={"rate": [0.2]})
    more = estimate(tmp_path / "grid", seeds=1)
    assert (more["runs"], more["runs_left"]) == (4, 2)
    assert more["work_seconds"] == (40 + 6 + 1) + (60 + 6 + 1)  # the original run is there, too
    assert " for the 2 runs left on 1 worker" in as_line({"workers": 1, "estimate": more})
    asked.clear()
    done = estimate(tmp_path / "grid", seeds=1, grid={"rate": [0.2]})
    assert (done["seconds"], asked) == (0, [])
    assert as_line({"workers": 1, "estimate": done}) == "All of it is finished; nothing is left to train."


def test_each_kind_of_network_is_measured_once_and_all_in_bounded_time(asked, tmp_path):
    widths = list(range(4, 44))
    found = estimate(tmp_path / "grid", seeds=1, grid={"rate": [0.2, 0.5], "task_options.width": widths})
    assert len(asked) == len(found["measured"]) == 40
    assert sum(3 * options["seconds"] for *_, options in asked) == pytest.approx(30)
    line = as_line({"workers": 1, "estimate": found})
    assert "(measured: 40 kinds of network or data, epochs of 10 s to 10 s)" in line


def test_gradual_pruning_is_one_training(asked, tmp_path):
    found = estimate(
        tmp_path / "grid", seeds=1, until=0.5, techniques=["gradual:3ep"], grid={"rate": ["one-shot"]}
    )
    assert found["work_seconds"] == 4 * 10 + 3 * 3 + 1  # pruned before epochs 1 to 3 of 4


def test_a_plain_recipe_counts_every_original_run(asked, tmp_path):
    recipe = make_recipe(
        {
            "task": TASK,
            "techniques": ["lr-rewinding:2ep"],
            "seeds": 2,
            "until": "accuracy drops 0.5",
            "folder": str(tmp_path / "mine"),
        }
    )
    task = task_keeper()(recipe)
    plan = make_plan(recipe, task)
    found = plan["estimate"] = estimate_experiment(recipe, task, plan)
    (one,) = plan["techniques"]
    assert found["work_seconds"] == 2 * (10 * one["total_epochs"] + 3 * one["rounds"] + 1)
    assert found["seconds"] == found["work_seconds"] / 2
    assert as_line(plan).startswith("At the most about ")  # a metric may stop it
    unsure = {**found, "at_least": True}
    assert as_line({**plan, "estimate": unsure}).endswith(
        ", or more, as the end of an evaluation was not waited for."
    )
