"""Workers and drivers killed at random, Slurm: the same results to the bit, nothing done twice."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import busy, content, drive, run, until_it_gets_further


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed") / "grid"
    run(place)
    return content(place)


def children(pid):
    """The worker processes of a driver (not multiprocessing's resource tracker, which trains nothing)."""
    found = [
        child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_workers_and_driver_killed_ten_times_leave_the_same_to_the_bit(undisturbed, tmp_path):
    place, chance = tmp_path / "grid", random.Random(5)
    victims = ["driver"] * 3 + ["worker"] * 7
    chance.shuffle(victims)
    process, killed = drive(place), 0
    for victim in victims:
        until_it_gets_further(place, process, busy(place))
        time.sleep(chance.random() * 0.1)  # anywhere: in an epoch, in a write, between two runs
        if process.poll() is not None:
            break
        workers = children(process.pid)
        if victim == "driver" or not workers:
            process.kill()
            process.communicate()
            process = drive(place)
        else:
            os.kill(chance.choice(workers), signal.SIGKILL)
        killed += 1
    said, _ = process.communicate(timeout=120)
    assert killed == 10
    if said.split() != ["ended"]:  # killed twice where it stood: said, and tried again by the same command
        said, _ = drive(place).communicate(timeout=120)
    assert said.split() == ["ended"]
    assert content(place) == undisturbed


@pytest.mark.slow
def test_on_slurm_as_submitit_runs_it_here(undisturbed, tmp_path):
    pytest.importorskip("submitit")
    study = run(tmp_path / "grid", on="slurm:cluster=local", workers=3)
    assert {found["status"] for found in study["runs"]} == {"finished"}
    assert content(tmp_path / "grid") == undisturbed
