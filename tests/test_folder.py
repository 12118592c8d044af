"""Files are whole or absent; damage is recognised and named; one writer, one configuration."""

import json
import os
import shutil

import pytest
import torch

from rewound.folder import Folder, checksum, damage, load_checked, write_atomically


def content(n):
    return {"n": n, "t": torch.arange(1000.0) + n}


def test_keeps_the_newest_and_loads_without_pickled_code(tmp_path):
    folder = Folder(tmp_path)
    for n in range(4):
        folder.save_state("epoch", n, content(n), keep=2)
    assert folder.state_numbers("epoch") == [3, 2]
    path = next((tmp_path / "state").glob("epoch-000003-*.pt"))
    assert torch.load(path, weights_only=True)["n"] == 3
    assert path.stem.endswith(checksum(path))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_recognised_named_and_passed_over(tmp_path, harm):
    folder = Folder(tmp_path)
    folder.save_state("epoch", 1, content(1), keep=2)
    path = folder.save_state("epoch", 2, content(2), keep=2)
    data = bytearray(path.read_bytes())
    data = {"truncate": data[:-100], "flip": data[:500] + bytes([data[500] ^ 1]) + data[501:], "empty": b""}[
        harm
    ]
    path.write_bytes(data)
    with pytest.warns(
        UserWarning,
        match=rf"{path.name}' is damaged .*truncated or altered\); going on from the state before",
    ):
        assert folder.state_numbers("epoch") == [1]
    with pytest.raises(ValueError, match="is damaged"):
        load_checked(path)
    folder.save_state("epoch", 2, content(2), keep=2)  # written again, it takes the damaged one's place
    assert folder.state_numbers("epoch") == [2, 1]


def test_a_file_with_a_foreign_name():
    from pathlib import Path

    assert "carries no checksum" in damage(Path("epoch-1.pt"))


def test_a_second_process_is_refused(tmp_path):
    first = Folder(tmp_path)
    with pytest.raises(RuntimeError, match="another process is working in"):
        Folder(tmp_path)
    first.close()
    Folder(tmp_path).close()


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    folder = Folder(tmp_path)
    folder.claim({"epochs": 40, "scope": {"fc.weight": [3, 4]}, "seed": 0})
    folder.claim({"epochs": 40, "scope": {"fc.weight": [3, 4]}, "seed": 0})
    with pytest.raises(
        ValueError,
        match=r"epochs: 40 -> 30\n  scope.fc.weight: \[3, 4\] -> \[3, 5\]\n  rate: not there \(0.2\)",
    ):
        folder.claim({"epochs": 30, "scope": {"fc.weight": [3, 5]}, "seed": 0, "rate": 0.2})
    assert json.loads((tmp_path / "run.json").read_text())["epochs"] == 40


def test_leftovers_of_a_dead_writer_are_swept(tmp_path):
    Folder(tmp_path).close()
    (tmp_path / "state" / "epoch-000007.tmp").write_bytes(b"half")
    folder = Folder(tmp_path)
    assert not list((tmp_path / "state").iterdir())
    folder.close()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(file):
        file.write(b"new")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_says_that_nothing_is_lost(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.save_state("epoch", 1, content(1), keep=2)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device.*the states written before are whole"):
        folder.save_state("epoch", 2, content(2), keep=2)
    monkeypatch.undo()
    assert folder.state_numbers("epoch") == [1]


def test_a_damaged_json_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    folder = Folder(tmp_path)
    with pytest.raises(ValueError, match=r"run.json' is damaged"):
        folder.claim({})


def test_a_missing_state_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no 'rewind' state 4, which this run needs"):
        Folder(tmp_path).load_state("rewind", 4)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(NotADirectoryError, match=r"'folder' must be a folder, and '.*taken' is a file"):
            Folder(path)


def test_a_file_system_that_cannot_flush_folders_serves_too(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = Folder(tmp_path)
    folder.save_state("epoch", 1, content(1))
    folder.write_json("x.json", {})
    assert folder.state_numbers("epoch") == [1]


def test_a_folder_that_was_deleted_meanwhile_is_said_to_be_gone(tmp_path):
    folder = Folder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OSError, match="the folder is gone, so the run must be started again"):
        folder.save_state("epoch", 1, content(1))
