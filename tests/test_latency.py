"""The stopwatch: what it calls, in which order and on how many threads. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rewound.measure import latency
from rewound.measure.latency import Stopwatch, Timing, in_turn, joined, of_batch, pinned, ratio, rows_of


class Hours:
    """A clock that stands still but for what is called."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def __call__(self):
        return self.now

    def lasting(self, name, seconds):
        def call():
            self.called.append(name)
            self.now += seconds

        return call


def test_samples_are_taken_in_turn_and_each_long_enough():
    clock = Hours()
    short, long = in_turn([clock.lasting("a", 1e-4), clock.lasting("b", 1.0)], clock, seconds=0.0)
    assert len(short) == len(long) == latency._LEAST
    assert short == pytest.approx([1e-4] * len(short))
    assert long == pytest.approx([1.0] * len(long))
    turns = "".join(clock.called[clock.called.index("b") :]).replace("aaaaa", "A")
    assert (
        turns == "bb" + "b" + "AbbAAbbAAbbAAb"
    )  # warm-up, one look at how long it takes, seven turns to and fro


def test_a_ratio_is_that_of_each_turn():
    """A machine that gets twice as slow in the middle meets both alike."""
    before, after = Timing((4.0, 4.0, 8.0, 8.0, 8.0), "wall", 2), Timing((2.0, 2.0, 4.0, 4.0, 4.0), "wall", 2)
    assert ratio(before, after).median == 2.0
    assert ratio(before, after).spread == (2.0, 2.0)
    assert str(ratio(before, after)) == "2.00x (2.00 - 2.00)"
    assert before.how == "wall-clock time, 2 threads"
    assert Timing((1.0,), "cpu", 1).how == "CPU time, 1 thread"
    assert joined(before, after).samples == before.samples + after.samples
    assert Timing((1.0,), "cpu", 1).spread == (1.0, 1.0)


def test_models_are_timed_as_they_are_used_and_left_as_they_were():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, *, twice=False):
            seen.append((self.training, torch.is_grad_enabled(), torch.get_num_threads(), twice))
            return self.norm(x)

    model = Watched()
    threads = torch.get_num_threads()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    timings = Stopwatch(threads=2, seconds=0.0).models([model, model], {"x": torch.ones(4, 3), "twice": True})
    assert set(seen) == {(False, False, 2, True)}
    assert [len(t.samples) for t in timings] == [latency._LEAST] * 2
    assert {(t.clock, t.threads) for t in timings} == {("wall", 2)}
    assert all(s > 0 for t in timings for s in t.samples)
    assert model.training
    assert model.norm.num_batches_tracked == 0
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_the_clock_is_cpu_time_on_one_cpu_thread_alone():
    cpu = torch.device("cpu")
    assert Stopwatch()._clock(cpu, 1) == "cpu"
    assert Stopwatch()._clock(cpu, 2) == "wall"
    assert Stopwatch()._clock(torch.device("cuda"), 1) == "wall"
    assert Stopwatch(clock="wall")._clock(cpu, 1) == "wall"
    with pytest.raises(ValueError, match="'clock' must be 'cpu', 'wall' or None"):
        Stopwatch(clock="sun")
    with pytest.raises(ValueError, match="'threads' must be a whole number from 1"):
        Stopwatch(threads=1.5)


def test_operations_are_built_when_they_are_timed_and_may_refuse():
    made, done = [], []

    class Operation:
        device = torch.device("cpu")

        def __init__(self, name):
            self.name = name

        def make(self):
            made.append(self.name)
            if self.name == "refuses":
                raise RuntimeError("sizes do not fit")
            return lambda: torch.ones(10) + 1

    a, refuses, b = Stopwatch(threads=1).operations(
        [Operation(n) for n in ("a", "refuses", "b")], done.append
    )
    assert a > 0
    assert b > 0
    assert math.isnan(refuses)
    assert made == [
        "a",
        "refuses",
        "b",
        *["a", "b"] * (latency._ROUNDS - 1),
    ]  # never two at a time, one after the other
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_threads_are_put_back_even_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with pinned(before + 1) as threads:
            assert torch.get_num_threads() == threads == before + 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before


def test_an_example_of_another_batch():
    example = (
        torch.arange(6).reshape(3, 2),
        {"lengths": torch.tensor([1, 2, 3]), "table": torch.ones(5), "scalar": torch.tensor(1)},
    )
    more = of_batch(example, 5)
    assert more[0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert more[1]["lengths"].tolist() == [1, 2, 3, 1, 2]
    assert more[1]["table"].shape == (5,)
    assert more[1]["scalar"] == 1
    assert of_batch(example, 1)[0].tolist() == [[0, 1]]
    assert rows_of(example) == 3
    assert rows_of(()) == 1
