"""One process at a time in a run's folder: whoever comes second waits, whoever lost the folder stops."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import content, grid_at, run

from rewound.experiment import lease, sweep
from rewound.experiment.lease import LostLeaseError, leased


def arm_at(place):
    keys = {"seeds": 1, "techniques": ["lr-rewinding:2ep"], "grid": {"rate": [0.5]}}
    (arm,) = sweep.arms_of_grid(grid_at(place, **keys))
    return replace(arm, original=sweep.originals_of([arm], sweep.task_keeper()).popitem()[1]), keys


def test_the_second_waits_until_the_first_is_done(tmp_path):
    order, holding, entering = [], threading.Event(), threading.Event()

    def first():
        with leased(tmp_path):
            holding.set()
            entering.wait(10)
            assert lease.is_held(tmp_path)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    holding.wait(10)
    entering.set()
    with leased(tmp_path):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert not lease.is_held(tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lease_that_is_gone_or_another_ones_is_noticed(tmp_path, replaced):
    with leased(tmp_path) as check:
        check()
        (tmp_path / lease.NAME).unlink()
        if replaced:
            (tmp_path / lease.NAME).write_text("")
        with pytest.raises(LostLeaseError, match="no longer holds"):
            check()


def test_a_duplicated_run_is_done_once(tmp_path):
    """As a scheduler does that believes a worker dead: the same run twice at the same time."""
    arm, _ = arm_at(tmp_path / "grid")
    events, found = [], {}

    def work(name):
        found[name] = sweep.work_of(arm, lambda event: events.append((name, event)))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["one"] == found["two"]
    assert len([event for _, event in events if event["kind"] == "epoch"]) == 4
    assert len({name for name, _ in events}) == 1


def test_who_lost_the_lease_stops_and_another_goes_on_to_the_same_end(tmp_path):
    arm, keys = arm_at(tmp_path / "grid")

    def lose(event):
        if event["kind"] == "epoch" and event["done"] == 2:
            (arm.folder / lease.NAME).unlink()

    with pytest.raises(LostLeaseError):
        sweep.work_of(arm, lose)
    assert not arm.folder.with_name(arm.key + ".json").exists()
    sweep.work_of(arm, lambda event: None)
    run(tmp_path / "undisturbed", **keys)
    assert content(tmp_path / "grid") == content(tmp_path / "undisturbed")
