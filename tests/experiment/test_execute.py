import textwrap
from dataclasses import dataclass

import pytest

from rewound.experiment.execute import execute


@dataclass(frozen=True)
class Toy:
    index: int
    does: str = "work"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function in a module of its own, so that a spawned process can import it."""
    (tmp_path / "toy_work.py").write_text(
        textwrap.dedent(
            """
            import os

            def work(arm, report):
                report({"arm": arm.index, "kind": "epoch", "process": os.getpid()})
                if arm.does == "raise":
                    raise ValueError("no luck")
                if arm.does == "die":
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
    ends = [(e["arm"], e["kind"]) for e in events if e["kind"] != "epoch"]
    assert sorted(ends) == [(0, "finished"), (1, "failed"), (2, "failed"), (3, "finished")]


def test_nothing_to_do_is_no_work(work):
    assert execute([], work, workers=2) == {}
