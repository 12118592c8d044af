"""A disk that fills up: the reason is said, what was written stays whole, and with room all goes on to the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grids import content, driver, run

resource = pytest.importorskip("resource")  # not on Windows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed") / "grid"
    run(place)
    return content(place)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, and a function that sets its size in KiB."""

    def resize(kib, how="remount,"):
        mount = ["mount", "-t", "tmpfs", "-o", f"{how}size={kib}k", "none", str(tmp_path)]
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0

    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not resize(4, how=""):
        pytest.skip("only root may mount a small file system")
    yield tmp_path, resize
    subprocess.run(["umount", str(tmp_path)], check=True)


def ran(place, **how):
    """Run the grid in a process of its own; return what it said."""
    done = subprocess.run(
        driver(place, "local", 1), capture_output=True, text=True, check=False, timeout=120, **how
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_on_a_disk_that_is_full_anywhere_nothing_is_lost(undisturbed, disk):
    place, resize = disk[0] / "grid", disk[1]
    finished = [0]
    for kib in (4, 16, 500, 900):  # no room for the recipe, for what the grid is, for most runs, for the last
        resize(kib)
        assert "No space left on device" in ran(place)
        finished.append(len(list(place.glob("runs/*.json"))))
    assert finished == sorted(finished)
    assert finished[-1] < 8
    resize(8_000)
    assert ran(place).split() == ["ended"]
    assert content(place) == undisturbed


@pytest.mark.slow
def test_states_that_find_no_room_fail_their_runs_with_the_reason(undisturbed, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    said = ran(tmp_path / "grid", preexec_fn=limit)  # results and masks fit, states do not
    assert said.startswith("ended")
    assert said.count("File too large") == 8
    assert said.count("could not write") >= 8
    assert ran(tmp_path / "grid").split() == ["ended"]
    assert content(tmp_path / "grid") == undisturbed
