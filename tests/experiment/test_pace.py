"""A task is timed in the loop that runs use, in bounded time, and nothing is left of it."""

import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_task import Toy

from rewound.experiment import pace
from rewound.experiment.pace import measure_pace


class Watched(Toy):
    """Counts what it is asked for."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []

    def batches(self, epoch, seed, round=0):
        for batch in super().batches(epoch, seed, round):
            self.asked.append(("batch", torch.get_num_threads()))
            yield batch

    def evaluate(self, model, split="validation"):
        self.asked.append(("evaluate", split))
        return super().evaluate(model, split)


def test_short_epochs_are_measured_whole_with_all_that_is_in_them(monkeypatch):
    monkeypatch.setenv("TOY_SLOW", "0.004")
    found = measure_pace(Toy(), seconds=60)
    assert (found.epochs, found.steps) == (3, 12)  # of T = 4, the first is warm-up
    assert found.step > 0.004
    assert found.epoch > 3 * 0.004 + found.evaluation
    assert found.pruned == found.evaluation > 0
    assert found.whole


def test_no_more_than_some_epochs_are_trained(monkeypatch):
    monkeypatch.setattr(pace, "EPOCHS", 5)
    task = Watched()
    found = measure_pace(task, epochs=1000, seconds=60)
    assert found.epochs == 5
    assert len([what for what, _ in task.asked if what == "batch"]) <= 6 * 3 + 1


def test_long_epochs_are_counted_up_from_their_steps(monkeypatch):
    monkeypatch.setenv("TOY_SLOW", "0.005")
    monkeypatch.setattr(Toy, "steps_per_epoch", 500)
    monkeypatch.setattr(Toy, "batches", _many(Toy.batches))
    found = measure_pace(Toy(), seconds=0.1)
    assert found.epochs == 0
    assert 1 < found.steps <= 22
    assert found.epoch == 500 * found.step + found.evaluation


def _many(batches):
    def many(self, epoch, seed, round=0):
        for again in range(200):
            yield from batches(self, epoch, seed, again)

    return many


def test_a_step_that_takes_far_longer_than_all_is_measured_once(monkeypatch):
    monkeypatch.setenv("TOY_SLOW", "0.03")
    found = measure_pace(Toy(), seconds=0.001)
    assert (found.steps, found.epochs) == (1, 0)
    assert found.step > 0.03


def test_an_evaluation_without_end_is_cut_and_said():
    class Endless(Toy):
        def evaluate(self, model, split="validation"):
            while True:
                model[0](torch.zeros(1, 2))  # a part of the network, called past its forward()
                time.sleep(0.002)

    found = measure_pace(Endless(), seconds=0.05)
    assert not found.whole
    assert found.evaluation > 0.05


def test_networks_with_batch_norm_are_evaluated_twice_once_pruned():
    class Normed(Toy):
        def model(self, seed):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    found = measure_pace(Normed(), seconds=60)
    assert found.pruned == pytest.approx(2 * found.evaluation + found.step)  # a third of each of three steps


def test_nothing_is_left_of_it_and_the_test_split_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, threads = Watched(), torch.get_num_threads()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    measure_pace(task, seed=3, threads=2, seconds=60)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert torch.get_num_threads() == threads
    assert {("batch", 2), ("evaluate", "validation")} == {*task.asked}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("no luck"), "task 'toy' fails in its first steps of training: RuntimeError: no luck"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("its own words"), "^its own words$"),
    ],
)
def test_a_step_that_fails_is_an_error_that_names_the_task(error, says, monkeypatch):
    def fail(self, output, target):
        raise error

    monkeypatch.setattr(Toy, "loss", fail)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=says):
        measure_pace(Toy())
    assert torch.equal(torch.get_rng_state(), before)
