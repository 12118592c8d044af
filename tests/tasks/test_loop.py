"""The bundled loop drives a Run through its public door, and reads the test split once."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import rewound
from rewound.tasks import drive, first_batch, load_task, train_epoch
from rewound.tasks.loop import before_retraining


def small(name="digits", **options):
    return load_task(name, **{"batch_size": 256, "lr": 0.1, **options})


def test_an_epoch_trains_and_steps_the_schedule_after_every_step():
    task = small()
    model = task.model(0)
    optimizer = task.optimizer(model)
    steps = 4 * task.steps_per_epoch
    scheduler = task.scheduler(optimizer, steps, task.steps_per_epoch)
    model.eval()
    losses = [train_epoch(task, model, optimizer, scheduler, epoch, seed=0) for epoch in range(4)]
    assert losses[-1] < losses[0]
    assert model.training
    assert scheduler.last_epoch == steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_an_epoch_of_other_steps_than_the_task_says_is_an_error():
    task = small()
    model = task.model(0)

    class Short:
        name, loss = task.name, staticmethod(task.loss)
        steps_per_epoch = task.steps_per_epoch + 1
        batches = staticmethod(task.batches)

    with pytest.raises(ValueError, match=r"says steps_per_epoch = 6, and its batches\(0, 0, 0\) gave 5"):
        train_epoch(Short(), model, task.optimizer(model), None, 0, seed=0)


def test_a_task_without_a_batch_is_an_error():
    class Empty:
        name = "empty"

        def batches(self, epoch, seed, round=0):
            return iter(())

    with pytest.raises(ValueError, match="task 'empty' has no data to train on"):
        first_batch(Empty(), 0)


def test_training_is_a_function_of_the_seed():
    def weights(seed):
        task = small()
        model = task.model(seed)
        optimizer = task.optimizer(model)
        train_epoch(task, model, optimizer, None, 0, seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_what_a_process_imports_and_reads_once_draws_nothing_from_the_run():
    """scikit-learn, imported with the first data, draws from Python's generator: the first run of a process was another one."""
    program = """
import random
from rewound.tasks import drive, load_task
ends = []
for _ in range(2):
    drive(load_task("digits"), seed=0, epochs=1, technique="lr-rewinding", until="1 rounds")
    ends.append(random.getstate())
assert ends[0] == ends[1]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_default_digits_learn_in_their_default_time():
    task = load_task("digits")
    model = task.model(0)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, task.epochs * task.steps_per_epoch, task.steps_per_epoch)
    for epoch in range(task.epochs):
        train_epoch(task, model, optimizer, scheduler, epoch, 0)
    assert task.evaluate(model)["accuracy"] > 0.96
    assert optimizer.param_groups[0]["lr"] > 1e-3 * task.lr


def test_drive_is_a_plain_loop_over_a_run():
    """No private door: the same loop, written out, gives the same weights to the bit and the same log."""
    task = small()
    result, test = drive(task, seed=1, epochs=2, technique="lr-rewinding", rate=0.5, until=0.25)
    model = task.model(1)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, 2 * task.steps_per_epoch, task.steps_per_epoch)
    run = rewound.Run(
        model,
        optimizer,
        epochs=2,
        scheduler=scheduler,
        technique="lr-rewinding",
        rate=0.5,
        until=0.25,
        seed=1,
    )
    for epoch in run:
        run.log(train_loss=train_epoch(task, model, optimizer, scheduler, epoch, 1), **task.evaluate(model))
    assert [r.metrics for r in result.rounds] == [r.metrics for r in run.result.rounds]
    assert [r.density for r in result.rounds] == pytest.approx([1, 0.5, 0.25], abs=1e-4)
    assert test == task.evaluate(model, "test")
    assert result.search_cost.epochs == 6
    assert result.search_cost.flops > result.search_cost.sparse_flops > 0
    assert "accuracy" in result.rounds[1].before


def test_the_test_split_is_read_once_at_the_end():  # trap 9
    task = small()
    calls = []

    def read():
        calls.append("test")
        return task.data.validation

    watched = replace(task, read=lambda: replace(task.data, test=read))
    seen = []
    drive(watched, seed=0, epochs=1, rate=0.5, until="3 rounds", progress=lambda run: seen.append(len(calls)))
    assert calls == ["test"]
    assert len(seen) >= 4
    assert set(seen) == {0}


def test_before_retraining_measures_batch_norm_both_ways():
    task = small("digits-resnet", epochs=1, width=2)
    model = task.model(0)
    with torch.no_grad():
        model.stem[1].running_mean.fill_(50.0)  # stale beyond use
    before = copy.deepcopy(model.state_dict())
    metrics = before_retraining(task, model, seed=0)
    assert set(metrics) == {"loss", "accuracy", "loss_recalibrated", "accuracy_recalibrated"}
    assert metrics["loss_recalibrated"] < metrics["loss"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    plain = small()
    assert set(before_retraining(plain, plain.model(0), seed=0)) == {"loss", "accuracy"}


def test_reinitialisation_draws_as_the_task_does():
    task = small("digits-resnet", width=2)
    result, _ = drive(task, seed=0, epochs=1, technique="reinitialization", rate=0.5, until="1 rounds")
    assert len(result.rounds) == 2
    first, again = task.model(1).state_dict(), task.model(2).state_dict()
    from rewound.tasks.loop import draw_again_

    model = task.model(1)
    draw_again_(task, model, 2)
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())
    assert not torch.equal(first["fc.weight"], again["fc.weight"])


def test_a_folder_resumes(tmp_path):
    whole, test = drive(small(), seed=0, epochs=2, rate=0.5, until=0.25)

    class Stop(Exception):
        pass

    def stop(run):
        if run.round == 1:
            raise Stop

    with pytest.raises(Stop):
        drive(small(), seed=0, epochs=2, rate=0.5, until=0.25, folder=tmp_path / "run", progress=stop)
    again, test_again = drive(small(), seed=0, epochs=2, rate=0.5, until=0.25, folder=tmp_path / "run")
    assert test_again == test
    assert [r.metrics for r in again.rounds] == [r.metrics for r in whole.rounds]
