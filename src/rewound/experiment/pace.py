"""How fast a task trains on this machine: measured for a moment, in the loop that runs use, on a network of its own.

Nothing is written, the test split is not read, and random generators and threads are left as they were.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from rewound.tasks import drive
from rewound.tasks.evaluation import has_batch_norm
from rewound.tasks.loop import RECALIBRATION_BATCHES

SECONDS = 1.0  # that training is measured for at the most, and each of two evaluations (more where one step takes longer)
WARM_UP = 5  # times as long may the first step take; one that takes longer is not repeated
EPOCHS = 20  # short epochs are measured whole, so many at the most


@dataclass(frozen=True)
class Pace:
    """Seconds of wall-clock time, each the median of what was measured.

    ``step``: forward, backward, update, and the next batch, without a mask; ``evaluation``: of the validation split, or the
    part of it that was waited for where not ``whole``; ``epoch``: both; ``pruned``: what a network just pruned is evaluated in;
    ``steps``, ``epochs``: how many were measured.
    """

    step: float
    evaluation: float
    whole: bool
    epoch: float
    pruned: float
    steps: int
    epochs: int

    def seconds(self, epochs: int, prunings: int) -> float:
        """Return the seconds of a run of so many epochs and prunings, its evaluation on the test split included.

        >>> Pace(0.01, 1.0, True, 2.0, 1.0, steps=100, epochs=0).seconds(epochs=10, prunings=3)
        24.0
        """
        return epochs * self.epoch + prunings * self.pruned + self.evaluation


def measure_pace(
    task: Any, seed: int = 0, *, epochs: int | None = None, threads: int = 1, seconds: float = SECONDS
) -> Pace:
    """Train a new network of ``task`` for ``seconds`` at the most, evaluate it for as long, twice, and return how fast it was.

    The first step, epoch and evaluation are warm-up; a step counts all the same where there is no other. ``epochs``: for what
    length the schedule is made (left out: the task's own). Errors of the task that are meant for its user (ValueError, OSError,
    ImportError) pass; any other becomes a ValueError that names the task.

    >>> from rewound.tasks import load_task
    >>> pace = measure_pace(load_task("digits"), epochs=3)
    >>> 0 < pace.step < pace.epoch < pace.seconds(epochs=3, prunings=0)
    True
    """
    watched = _Watched(task, seconds)
    try:
        with _left_as_it_was(threads):
            with suppress(_Enough):
                drive(watched, seed=seed, epochs=epochs, until="0 rounds", progress=watched.epoch_done)
            while (
                len(watched.evaluations) < 2
            ):  # the first is warm-up: what evaluation needs may be imported by it
                with suppress(_Enough):
                    watched.evaluate(task.model(seed))
            return _pace(watched, task, seed)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"task {task.name!r} fails in its first steps of training: {type(error).__name__}: {error}"
        ) from error


def _pace(watched: _Watched, task: Any, seed: int) -> Pace:
    step = median(watched.steps[1:] or watched.steps)
    evaluation = pruned = median(watched.evaluations[1:])
    if has_batch_norm(
        task.model(seed)
    ):  # measured with its statistics anew, too; a third of a step is the forward pass
        pruned += evaluation + min(RECALIBRATION_BATCHES, task.steps_per_epoch) * step / 3
    whole = [after - before for before, after in zip(watched.ends, watched.ends[1:])]
    epoch = median(whole) if whole else task.steps_per_epoch * step + evaluation
    return Pace(step, evaluation, watched.whole, epoch, pruned, len(watched.steps), len(whole))


class _Enough(BaseException):
    """Ends the measuring from within; no Exception, which a task's own code might catch."""


@dataclass
class _Watched:
    """The task, with a clock beside it: what it is asked for is timed, and ended once ``limit`` seconds are over."""

    task: Any
    limit: float
    steps: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)  # of epochs
    whole: bool = True  # whether the last evaluation came to its end
    until: float = 0.0  # set by the first step, which may import what steps need

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batches(self, epoch: int, seed: int, round: int = 0) -> Iterator[Any]:
        last: float | None = None
        for batch in self.task.batches(epoch, seed, round):
            last = self._tick(last)
            yield batch
        self._tick(last)

    def _tick(self, last: float | None) -> float:
        now = time.perf_counter()
        if last is not None:
            self.steps.append(now - last)
            if len(self.steps) == 1:
                self.until = now + self.limit if now - last <= WARM_UP * self.limit else now
            if now >= self.until:
                raise _Enough
        return now

    def evaluate(self, model: nn.Module, split: str = "validation") -> Any:
        if split != "validation":
            raise _Enough  # the training is over, and the test split is read once, by the run itself
        began, self.whole = time.perf_counter(), True

        def end_if_late(*_: Any) -> None:
            if time.perf_counter() - began > self.limit:
                raise _Enough

        with ExitStack() as hooks:
            for module in model.modules():  # whichever of them a task's own evaluation calls
                hooks.callback(module.register_forward_pre_hook(end_if_late).remove)
            try:
                return self.task.evaluate(model)
            except _Enough:
                self.whole = False
                raise
            finally:
                self.evaluations.append(time.perf_counter() - began)

    def epoch_done(self, run: Any) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) > EPOCHS:
            raise _Enough


@contextmanager
def _left_as_it_was(threads: int) -> Iterator[None]:
    """Inside, so many threads; after, threads and random generators as before. What is warned of, the run itself will say."""
    before, of_numpy, of_python = torch.get_num_threads(), np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=devices):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
