"""Tasks by name and by file; what is missing or misspelt is said."""

from pathlib import Path

import pytest
import torch

from rewound.tasks import TASKS, load_task
from rewound.tasks.task import check_task

MINE = """
from dataclasses import dataclass

import torch
from torch import nn

from rewound.tasks.splits import Data
from rewound.tasks.tensor_task import TensorTask


def line(slope: float = 2.0, epochs: int = 4):
    x = torch.linspace(-1, 1, 32).unsqueeze(1)
    data = Data((x, slope * x), (x, slope * x), lambda: (x, slope * x))
    return TensorTask("line", lambda: data, lambda: nn.Linear(1, 1), epochs=epochs, lr=0.1, batch_size=8,
                      loss_function=nn.functional.mse_loss, metrics=("mse",))


@dataclass
class Bare:
    name: str = "bare"
    epochs: float = 1.5

    def model(self, seed):
        return nn.Linear(1, 1)


class Strict:
    def __init__(self, size):
        self.size = size


value = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return "my_task.py"


def test_bundled_tasks_are_known():
    assert set(TASKS) == {
        "digits",
        "digits-resnet",
        "diabetes",
        "fashion-mnist",
        "cifar-10",
        "imagenet",
        "translation",
    }


@pytest.mark.parametrize("name", ["digits", "digits-resnet", "diabetes"])
def test_tasks_whose_data_come_along(name):
    task = load_task(name, epochs=2, batch_size=100)
    assert (task.name, task.epochs) == (name, 2)
    x, y = next(task.batches(0, seed=0))
    assert len(x) == len(y) == 100
    model = task.model(3)
    assert torch.isfinite(task.loss(model(x), y))
    optimizer = task.optimizer(model)
    assert task.scheduler(optimizer, 2 * task.steps_per_epoch, task.steps_per_epoch) is not None
    assert task.metric in task.evaluate(model)
    assert task.evaluate(model, "test") != task.evaluate(model)
    with pytest.raises(ValueError, match="'validation' or 'test'"):
        task.evaluate(model, "train")


def test_a_file_of_the_users(mine):
    task = load_task(f"{mine}:line", slope=3.0)
    assert (task.name, task.metric, task.higher_is_better, task.epochs, task.steps_per_epoch) == (
        "line", "mse", False, 4, 4,
    )  # fmt: skip
    assert load_task(str(Path(mine).resolve()) + ":line").epochs == 4


@pytest.mark.parametrize(
    ("text", "options", "kind", "says"),
    [
        ("digit", {}, ValueError, "no task named 'digit': did you mean 'digits'"),
        ("zzz", {}, ValueError, "known are digits, digits-resnet"),
        ("my_task.py", {}, ValueError, 'say which class in it, as in "my_task.py:MyTask"'),
        ("my_task.py:zzz", {}, ValueError, "known are line, Bare, Strict"),
        ("my_task.py:Strict", {}, ValueError, "needs the option 'size': give it under [task_options]"),
        ("digits", {"lr": "abc"}, ValueError, "option 'lr' of task 'digits' must be a number (got 'abc')"),
        ("digits", {"hidden": "abc"}, ValueError, "option 'hidden' of task 'digits' must be a list"),
        ("digits", {"batch_size": 1.5}, ValueError, "must be a whole number (got 1.5)"),
        ("digits", {"drop_last": 1}, ValueError, "must be true or false (got 1)"),
        ("digits", {"epochs": True}, ValueError, "must be a whole number (got True)"),
        ("fashion-mnist", {"lr": "abc"}, ValueError, "must be a number (got 'abc')"),
        ("digits", {"place": "here"}, ValueError, "has no option 'place'"),
        ("other.py:line", {}, FileNotFoundError, "no file 'other.py'"),
        ("my_task.py:lin", {}, ValueError, "no 'lin' in my_task.py: did you mean 'line'"),
        ("my_task.py:value", {}, TypeError, "must be a class or a function that makes a task"),
        ("my_task.py:line", {"slop": 1}, ValueError, "has no option 'slop': did you mean 'slope'"),
        ("digits", {"bath_size": 1}, ValueError, "has no option 'bath_size': did you mean 'batch_size'"),
        ("digits", {"dataorder": "x"}, ValueError, "has no option 'dataorder': did you mean 'data_order'"),
        ("digits", {"data_order": "x"}, ValueError, "'data_order' must be"),
        ("digits", {"epochs": 0}, ValueError, "'epochs' must be at least 1"),
        ("digits", {"read": None}, ValueError, "has no option 'read'"),
        (
            "fashion-mnist",
            {"model": "lenet5"},
            ValueError,
            "'model' cannot be 'lenet5': did you mean 'lenet-5'",
        ),
    ],
)
def test_mistakes_are_explained(mine, text, options, kind, says):
    with pytest.raises(kind) as error:
        load_task(text, **options)
    assert says in str(error.value)


def test_all_that_is_missing_is_named_at_once(mine):
    with pytest.raises(TypeError, match=r"'my_task\.py:Bare' is not a task") as error:
        load_task(f"{mine}:Bare")
    says = str(error.value)
    for missing in (
        "optimizer()",
        "scheduler()",
        "batches()",
        "loss()",
        "evaluate()",
        "metric",
        "steps_per_epoch",
    ):
        assert f"{missing} " in says
    assert "epochs must be a whole number (got 1.5)" in says
    assert "model()" not in says


def test_a_broken_file_shows_its_own_error(mine):
    Path(mine).write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_task(f"{mine}:line")


def test_steps_per_epoch_may_be_a_plain_value():
    class Plain:
        name, metric, higher_is_better, epochs = "plain", "loss", False, 1
        model = optimizer = scheduler = batches = loss = evaluate = print

        def __init__(self):
            self.steps_per_epoch = 3

    assert check_task(Plain(), "plain").steps_per_epoch == 3
