"""Killed at any instant and started again: to the bit what an undisturbed run gives."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewound.run import Run

SCRIPT = Path(__file__).with_name("resume_script.py")


class Runs:
    """One process that has imported torch and forks a fresh run for every line: an instant a run instead of seconds."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, folder, technique):
        self.process.stdin.write(f"{folder} {technique}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def lines(self):
        """What the run prints until it ends."""
        while (line := self.process.stdout.readline().strip()) != "ended":
            if line:
                yield line

    def finish(self, folder, technique):
        self.start(folder, technique)
        *progress, digest = list(self.lines())
        assert digest.startswith("digest")
        return digest, progress

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def runs():
    runs = Runs()
    yield runs
    runs.close()


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["weight-rewinding:2ep", "lr-rewinding:3ep"])
def test_killed_at_random_instants_gives_the_same_to_the_bit(technique, tmp_path, runs):
    """SIGKILL ten times a technique, anywhere: within an epoch, while a state is written, while pruning."""
    expected, progress = runs.finish(tmp_path / "undisturbed", technique)
    rng, killed = random.Random(technique), 0
    while killed < 10:
        pid = runs.start(tmp_path / "killed", technique)
        patience, ended = rng.randrange(1, len(progress) // 6), False
        for seen, line in enumerate(runs.lines()):
            if seen == patience:
                time.sleep(rng.random() * 2e-3)  # not only right after a print
                os.kill(pid, signal.SIGKILL)
                killed += 1
            ended = line.startswith("digest")
        if ended:  # it came to its end: the next ten-th goes on with a new folder
            assert line == expected
            shutil.rmtree(tmp_path / "killed")
    digest, _ = runs.finish(tmp_path / "killed", technique)
    assert digest == expected
    again = runs.finish(tmp_path / "killed", technique)  # a finished run trains nothing and knows its result
    assert again == (expected, [])


class Killed(BaseException):
    pass


def small(folder, technique="weight-rewinding:2ep", **options):
    import torch
    from torch import nn

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Run(model, optimizer, epochs=3, technique=technique, until="2 rounds", folder=folder, **options)
    return model, optimizer, run


def loop(model, optimizer, run, stop_at=None, train_until=None):
    import torch
    from torch import nn

    for bodies, _ in enumerate(run, start=1):
        for step in range(3):
            if (bodies, step) == stop_at:
                raise Killed
            x = torch.randn(8, 6)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
        run.log(norm=model[0].weight.detach().norm())
    return (
        b"".join(t.numpy().tobytes() for t in model.state_dict().values()),
        run.result.to_dict(),
        run.mask.fingerprint,
    )


@pytest.mark.parametrize("body", range(1, 8))
def test_interrupted_in_every_epoch(body, tmp_path, monkeypatch):
    """With states as far apart as they get (time never pays for one) and as close (every epoch)."""
    expected = loop(*small(None))
    for share in (1e-9, 1e9):
        monkeypatch.setattr("rewound.store.SHARE_OF_TIME", share)
        folder = tmp_path / str(share)
        with pytest.raises(Killed):
            loop(*small(folder), stop_at=(body, 1))
        assert loop(*small(folder)) == expected


@pytest.mark.parametrize("write", range(1, 20, 2))
def test_interrupted_in_every_write(write, tmp_path, monkeypatch):
    """Killed between a file's bytes and its name, wherever in the run that is."""
    expected = loop(*small(None))
    monkeypatch.setattr("rewound.store.SHARE_OF_TIME", 1e9)  # a state after every epoch, however fast
    real, count = os.replace, [0]

    def replace(*args):
        count[0] += 1
        if count[0] == write:
            raise Killed
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            loop(*small(tmp_path))
    assert loop(*small(tmp_path)) == expected


def test_damaged_newest_state_goes_on_from_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr("rewound.store.SHARE_OF_TIME", 1e9)
    expected = loop(*small(None))
    with pytest.raises(Killed):
        loop(*small(tmp_path), stop_at=(6, 1))
    newest = sorted((tmp_path / "state").glob("epoch-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=rf"{newest.name}' is damaged"):
        assert loop(*small(tmp_path)) == expected


def test_no_intact_state_starts_from_the_beginning_and_says_so(tmp_path):
    expected = loop(*small(None))
    loop(*small(tmp_path))
    for path in (tmp_path / "state").glob("epoch-*"):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.warns(UserWarning, match="holds no intact state; the run starts from the beginning"),
    ):
        assert loop(*small(tmp_path)) == expected


def test_a_damaged_snapshot_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rewound.store.SHARE_OF_TIME", 1e9)
    with pytest.raises(Killed):
        loop(*small(tmp_path), stop_at=(3, 1))
    path = next((tmp_path / "state").glob("rewind-*"))
    path.write_bytes(path.read_bytes()[:-1])
    again = small(tmp_path)
    with pytest.raises(ValueError, match=rf"{path.name}' is damaged .*start again in another folder"):
        loop(*again)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    loop(*small(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)holds another run.*seed: 0 -> 4"):
        loop(*small(tmp_path, seed=4))
    with pytest.raises(ValueError, match=r"technique: 'weight-rewinding:2ep' -> 'lr-rewinding:2ep'"):
        loop(*small(tmp_path, technique="lr-rewinding:2ep"))


def test_a_second_run_on_one_folder_is_refused(tmp_path):
    model, optimizer, run = small(tmp_path)
    iterator = iter(run)
    next(iterator)
    with pytest.raises(RuntimeError, match="another process is working in"):
        loop(*small(tmp_path))
    iterator.close()


def test_memory_does_not_grow_with_snapshots(tmp_path):
    """With a folder, no snapshot stays in memory: what a run holds is model, optimizer, mask and the recording."""
    import gc

    import torch

    def held():
        gc.collect()
        tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        return sum(t.numel() for t in tensors if t.dtype == torch.float32)

    model, optimizer, run = small(tmp_path)
    counts = []
    for epoch in run:
        x = torch.randn(8, 6)
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        if epoch == 2:
            counts.append(held())
    assert counts[2] == counts[1]
    dense = sum(p.numel() for p in model.parameters())
    assert counts[1] <= counts[0] + dense  # the guard's bits are not floats; nothing else came to stay


def test_a_criterion_without_a_name_is_the_same_in_the_next_process(tmp_path):
    """Its text holds an address, which is another one each time."""
    from functools import partial

    def criterion():
        def scores(evidence, power):
            return {name: weight.abs() ** power for name, weight in evidence.weights.items()}

        return partial(scores, power=2)

    first = small(tmp_path, criterion=criterion())
    ends = loop(*first)
    assert loop(*small(tmp_path, criterion=criterion())) == ends
    with pytest.raises(ValueError, match=r"criterion: 'functools.partial"):
        loop(*small(tmp_path))


def test_the_best_round_is_known_while_a_resumed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rewound.store.SHARE_OF_TIME", 1e9)
    with pytest.raises(Killed):
        loop(*small(tmp_path), stop_at=(7, 1))
    model, optimizer, run = small(tmp_path)
    iterator = iter(run)
    next(iterator)
    assert (run.round, run.result.best) == (2, 1)
    iterator.close()


def test_a_model_of_another_dtype_does_not_go_on_in_a_folder(tmp_path):
    loop(*small(tmp_path))
    model, optimizer, run = small(tmp_path)
    model.double()
    with pytest.raises(
        ValueError, match=r"is of torch.float64, its stored state of torch.float32; build the model"
    ):
        loop(model, optimizer, run)
