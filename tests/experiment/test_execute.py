import textwrap
from dataclasses import dataclass

import pytest

from rewound.experiment.execute import execute


@dataclass(frozen=True)
class Toy:
    index: int
    does: str = "work"
    after: int | None = None
    notes: str = ""  # a folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function in a module of its own, so that a spawned process can import it."""
    (tmp_path / "toy_work.py").write_text(
        textwrap.dedent(
            """
            import os
            import pathlib

            from rewound.experiment.lease import LostLeaseError

            def work(arm, report):
                report({"arm": arm.index, "kind": "epoch", "process": os.getpid()})
                if arm.does == "raise":
                    raise ValueError("no luck")
                if arm.does == "die":
                    os._exit(3)
                if arm.does in ("get further", "lose"):
                    notes = pathlib.Path(arm.notes)
                    tries = len(list(notes.iterdir()))
                    (notes / str(tries)).write_text("")
                    report({"arm": arm.index, "kind": "epoch", "done": tries + 1})
                    if arm.does == "lose" and tries == 0:
                        raise LostLeaseError("this process no longer holds it")
                    if arm.does == "get further" and tries < 2:
                        os._exit(3)
                return {"status": "finished", "answer": arm.index ** 2}
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import toy_work

    return toy_work.work


def test_in_this_process_a_failing_arm_does_not_lose_the_others(work):
    events = []
    found = execute([Toy(0), Toy(1, "raise"), Toy(2)], work, report=events.append)
    assert [found[k]["status"] for k in range(3)] == ["finished", "failed", "finished"]
    assert found[1]["error"] == "ValueError: no luck"
    assert "toy_work.py" in found[1]["traceback"]
    assert [e["kind"] for e in events] == ["epoch", "finished", "epoch", "failed", "epoch", "finished"]


def test_on_processes_failing_and_dying_arms_do_not_lose_the_others(work):
    events = []
    arms = [Toy(0), Toy(1, "raise"), Toy(2, "die"), Toy(3)]
    found = execute(arms, work, workers=2, report=events.append)
    assert [found[k]["status"] for k in range(4)] == ["finished", "failed", "failed", "finished"]
    assert (found[0]["answer"], found[3]["answer"]) == (0, 9)
    assert found[1]["error"] == "ValueError: no luck"
    assert "died twice" in found[2]["error"]
    assert {e["arm"] for e in events if e["kind"] == "epoch"} == {0, 1, 2, 3}
    (warning,) = [e for e in events if e["kind"] == "warning"]
    assert warning["arm"] == 2
    assert "its process died (killed, or out of memory? BrokenProcessPool); tried again" in warning["says"]
    ends = [(e["arm"], e["kind"]) for e in events if e["kind"] in ("finished", "failed")]
    assert sorted(ends) == [(0, "finished"), (1, "failed"), (2, "failed"), (3, "finished")]


def test_who_dies_is_tried_again_as_long_as_each_try_gets_further(work, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    found = execute([Toy(0, "get further", notes=str(notes)), Toy(1)], work, workers=2)
    assert [found[k]["status"] for k in range(2)] == ["finished", "finished"]
    assert len(list(notes.iterdir())) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_who_loses_its_folder_is_tried_again_with_the_reason(work, tmp_path, workers):
    notes, events = tmp_path / "notes", []
    notes.mkdir()
    found = execute([Toy(0, "lose", notes=str(notes)), Toy(1)], work, workers=workers, report=events.append)
    assert [found[k]["status"] for k in range(2)] == ["finished", "finished"]
    (warning,) = [e for e in events if e["kind"] == "warning"]
    assert "this process no longer holds it" in warning["says"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_waits_for_what_it_begins_from_and_fails_with_it(work, workers):
    events = []
    jobs = [Toy(0), Toy(1, after=0), Toy(2, "raise"), Toy(3, after=2)]
    found = execute(jobs, work, workers=workers, report=events.append)
    assert [found[k]["status"] for k in range(4)] == ["finished", "finished", "failed", "failed"]
    assert found[3]["error"] == "what it begins from failed: ValueError: no luck"
    order = [(e["arm"], e["kind"]) for e in events if e["arm"] in (0, 1)]
    assert order == [(0, "epoch"), (0, "finished"), (1, "epoch"), (1, "finished")]
    assert 3 not in {e["arm"] for e in events if e["kind"] == "epoch"}


def test_where_arms_cannot_run_the_known_places_are_named(work):
    with pytest.raises(ValueError, match=r"one of local, dask:ADDRESS, slurm:KEY=VALUE.*\(got 'cloud'\)"):
        execute([Toy(0)], work, on="cloud")


def test_nothing_to_do_is_no_work(work):
    assert execute([], work, workers=2) == {}
