"""The bundled training loop: plain PyTorch that drives a ``Run`` through its public door, as anybody's
does."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rewound.parameters import unwrap_model
from rewound.result import Result
from rewound.run import Run
from rewound.tasks.evaluation import device_of, has_batch_norm, outputs, random_state_kept, recalibrated
from rewound.tasks.task import Inputs, Task

RECALIBRATION_BATCHES = 100  # a mean over some ten thousand examples; all of ImageNet would be waste


def train_epoch(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    epoch: int,
    seed: int,
    round: int = 0,
) -> float:
    """Train ``model`` for one epoch of the task's batches; return the mean training loss of its examples.

    The scheduler, if any, is stepped after every optimizer step. Raises ``ValueError`` where the epoch had
    another number of steps than the task says: its schedule was built for those.
    """
    device, total, seen, steps = device_of(model), 0.0, 0, 0
    model.train()
    largest_norm = getattr(task, "clip_norm", None)
    for x, y in task.batches(epoch, seed, round):
        y = y.to(device)
        optimizer.zero_grad()
        loss = task.loss(outputs(model, x, device), y)
        loss.backward()
        if largest_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        total += loss.item() * len(y)
        seen += len(y)
        steps += 1
    if steps != task.steps_per_epoch:
        raise ValueError(
            f"task {task.name!r} says steps_per_epoch = {task.steps_per_epoch}, and its batches({epoch}, {seed}, "
            f"{round}) gave {steps}; the schedule is built for the one and trained with the other"
        )
    return total / seen


def first_batch(task: Task, seed: int) -> tuple[Inputs, Tensor]:
    """Return the first training batch; ``ValueError`` where the task gives none."""
    batch = next(iter(task.batches(0, seed)), None)
    if batch is None:
        raise ValueError(f"task {task.name!r} has no data to train on: its batches(0, {seed}) gave no batch")
    return batch


def example_of(task: Task, seed: int) -> Inputs:
    """Return the inputs of one step, to count FLOPs on: the task's ``example``, or else those of its first batch."""
    own = getattr(task, "example", None)
    return first_batch(task, seed)[0] if own is None else own


def drive(
    task: Task,
    *,
    seed: int,
    epochs: int | None = None,
    folder: str | Path | None = None,
    progress: Any = None,
    **run_options: Any,
) -> tuple[Result, dict[str, float]]:
    """Train, prune and retrain ``task``; return (result, test metrics of the network at the end).

    ``run_options`` go to :class:`rewound.run.Run` as they are (technique, rate, until, ...). Every epoch is
    logged with ``train_loss`` and the validation metrics; the test split is read once, after the last round.
    The global generators of torch, numpy and Python are seeded: models draw (dropout), and so do users'
    batches.
    """
    example = example_of(task, seed)  # before the seeds: what a process imports and reads once may draw, too
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    epochs = task.epochs if epochs is None else epochs
    model = task.model(seed)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, epochs * task.steps_per_epoch, task.steps_per_epoch)
    run = Run(
        model,
        optimizer,
        epochs=epochs,
        scheduler=scheduler,
        folder=folder,
        seed=seed,
        progress=progress,
        evaluate=lambda pruned: before_retraining(task, pruned, seed),
        example=example,
        **{"initialize": lambda pruned, number: draw_again_(task, pruned, number), **run_options},
    )
    for epoch in run:
        loss = train_epoch(task, model, optimizer, scheduler, epoch, seed, run.round)
        run.log(train_loss=loss, **task.evaluate(model))
    return run.result, task.evaluate(model, split="test")


def draw_again_(task: Task, model: nn.Module, seed: int) -> None:
    """Give ``model`` the weights and buffers that the task would give a new model, in place."""
    with random_state_kept(model):  # the user's task may seed the global generators
        unwrap_model(model).load_state_dict(task.model(seed).state_dict())


def before_retraining(task: Task, model: nn.Module, seed: int) -> dict[str, float]:
    """Return the validation metrics of a network just pruned.

    Batch-norm statistics are stale until retrained, so networks that have them are measured both ways: as
    pruned, and on a copy with statistics measured anew on training batches (keys that end in
    "_recalibrated").
    """
    metrics = task.evaluate(model)
    if has_batch_norm(model):
        inputs = (x for x, _ in islice(task.batches(0, seed), RECALIBRATION_BATCHES))
        again = task.evaluate(recalibrated(model, inputs))
        metrics |= {f"{name}_recalibrated": value for name, value in again.items()}
    return metrics
