"""Grids on Dask, a scheduler and two workers as processes: the same results to the bit, whoever is killed; nothing done twice."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import busy, content, drive, grid_at, run, until_it_gets_further

from rewound.experiment import sweep
from rewound.experiment.apart import call_apart
from rewound.experiment.mailbox import Post

distributed = pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc"),
]

SEEDS = range(int(os.environ.get("KILL_SEEDS", "1")))  # of who is killed, and when: more of them by hand


class Cluster:
    """A scheduler and its workers, each a process of its own and on a port of its own, which anybody may kill."""

    def __init__(self, folder, workers=2):
        self.folder, self.file = folder, folder / "scheduler.json"
        self.scheduler = self._start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file
        )
        self.workers = [self._worker() for _ in range(workers)]
        deadline = time.monotonic() + 60
        while not self.file.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.address = json.loads(self.file.read_text())["address"]
        self.on = f"dask:{self.address}"
        with distributed.Client(self.address, timeout="60s", set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)

    def kill_worker(self, one):
        """Kill a worker, and start another in its place, as who runs a cluster does."""
        self.workers.remove(one)
        _kill(one)
        self.workers.append(self._worker())

    def close(self):
        for process in (*self.workers, self.scheduler):
            _kill(process)

    def _worker(self):
        place = ("--local-directory", self.folder, "--scheduler-file", self.file)
        return self._start("dask_worker", "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", *place)

    def _start(self, module, *options):
        environment = {**os.environ, "TOY_SLOW": "0.1", "OMP_NUM_THREADS": "1"}
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *map(str, options)],
                env=environment,
                stdout=log,
                stderr=log,
            )


def _kill(process):
    process.kill()
    process.wait()


def training(workers):
    """The processes in which these workers train."""
    found = [
        child
        for worker in workers
        for task in Path(f"/proc/{worker.pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]
    return [int(child) for child in found if b"apart" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


def test_undisturbed_it_is_the_local_grid_to_the_bit(cluster, tmp_path):
    digits = {
        "task": "digits",
        "task_options": {"hidden": [16]},
        "epochs": 2,
        "techniques": ["lr-rewinding:1ep", "weight-rewinding:1ep"],
        "seeds": 1,
        "allocation": "global",
        "grid": {"rate": [0.5]},
    }
    study = run(tmp_path / "dask", on=cluster.on, **digits)
    assert [found["status"] for found in study["runs"]] == ["finished"] * 2
    run(tmp_path / "local", **digits)
    assert content(tmp_path / "dask") == content(tmp_path / "local")
    assert not list((tmp_path / "dask").glob(".events-*"))


def test_a_run_that_two_workers_are_given_at_once_is_done_once(cluster, tmp_path):
    (arm,) = sweep.arms_of_grid(
        grid_at(tmp_path / "grid", seeds=1, techniques=["lr-rewinding:2ep"], grid={"rate": [0.5]})
    )
    with distributed.Client(cluster.address, set_as_default=False) as client:
        tasks = [
            client.submit(call_apart, sweep.work_of, arm, Post(tmp_path), workers=[worker], pure=False)
            for worker in client.nthreads()
        ]
        one, two = client.gather(tasks)
    assert one == two
    events = [json.loads(line) for line in (tmp_path / "0.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events if event["kind"] == "epoch"] == [*range(1, 9)]


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_and_driver_killed_ten_times_leave_the_same_to_the_bit(cluster, tmp_path, seed):
    place, chance = tmp_path / "grid", random.Random(seed)
    victims = ["driver"] * 3 + ["worker"] * 5 + ["process"] * 2
    chance.shuffle(victims)
    process, killed = drive(place, cluster.on), 0
    try:
        for victim in victims:
            until_it_gets_further(place, process, busy(place), patience=90)
            time.sleep(chance.random() * 0.3)  # anywhere: in an epoch, in a write, between two runs
            if process.poll() is not None:
                break
            if victim == "driver":
                process.kill()
                process.communicate()
                process = drive(place, cluster.on)
            elif victim == "process" and (trained_in := training(cluster.workers)):
                os.kill(chance.choice(trained_in), 9)
            else:
                cluster.kill_worker(chance.choice(cluster.workers))
            killed += 1
        said, _ = process.communicate(timeout=120)
        assert killed == 10
        if said.split() != [
            "ended"
        ]:  # killed twice where it stood: said, and tried again by the same command
            process = drive(place, cluster.on)
            said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert said.split() == ["ended"]
    run(tmp_path / "undisturbed")
    assert content(place) == content(tmp_path / "undisturbed")
