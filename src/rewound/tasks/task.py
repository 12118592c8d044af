"""What an experiment must offer, and how it is found by name.

A task is any object with these members; nothing needs to be subclassed. ``tensor_task.py`` beside this file
is a complete one.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Task(Protocol):
    """Data, a model and the recipe that trains it.

    ``name``: what reports call it. ``metric``: the entry of :meth:`evaluate` that decides, and
    ``higher_is_better`` its direction. ``epochs``: the default length T of training.
    """

    @property
    def name(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def epochs(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...

    def model(self, seed: int) -> nn.Module:
        """Return a new model; equal seeds give equal weights."""
        ...

    def optimizer(self, model: nn.Module) -> Optimizer: ...

    def scheduler(self, optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler | None:
        """Return the schedule of ``steps`` = T steps, stepped after every one of them; None: constant."""
        ...

    def batches(self, epoch: int, seed: int, round: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's training batches (inputs, targets) in an order that the arguments decide."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor: ...

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return metrics on "validation" or "test" (which is for the end); the model stays as it was."""
        ...


# name -> "module:function" of this package; modules are imported when asked for
TASKS = {
    "digits": "digits:digits",
    "digits-resnet": "digits:digits_resnet",
    "diabetes": "diabetes:diabetes",
    "fashion-mnist": "fashion_mnist:fashion_mnist",
    "cifar-10": "cifar10:cifar_10",
    "imagenet": "imagenet:imagenet",
}
_METHODS = ("model", "optimizer", "scheduler", "batches", "loss", "evaluate")
_VALUES = {
    "name": (str, "a text"),
    "metric": (str, "a text, the entry of evaluate() that decides"),
    "higher_is_better": (bool, "True or False"),
    "epochs": (int, "a whole number"),
}


def load_task(text: str, **options: Any) -> Task:
    """Return the task called ``text``, made with ``options``.

    ``text`` is the name of a bundled task ("digits"), or "my_task.py:MyTask": a file (relative to the working
    directory) and in it a class or function that is called with the options.

    Raises ``ValueError`` for an unknown name or an option that the task has not (naming the nearest),
    ``FileNotFoundError`` for a missing file, ``TypeError`` for an object that is no :class:`Task` (naming
    what it lacks).

    >>> load_task("digits", epochs=3).epochs
    3
    """
    if ":" in text:
        path, _, name = text.rpartition(":")
        module = _import_file(path)
    elif text in TASKS:
        where, _, name = TASKS[text].partition(":")
        module = importlib.import_module(f"rewound.tasks.{where}")
    else:
        hint = ' (a task of your own is written "my_task.py:MyTask")' if text.endswith(".py") else ""
        raise ValueError(f"no task named {text!r}: {nearest(text, TASKS)}{hint}")
    if not hasattr(module, name):
        offered = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ValueError(f"no {name!r} in {path}: {nearest(name, offered)}")
    make = getattr(module, name)
    if not callable(make):
        raise TypeError(
            f"{text!r} must be a class or a function that makes a task (got {type(make).__name__})"
        )
    _check_options(text, make, options)
    return check_task(make(**options), text)


def check_task(task: Any, text: str) -> Task:
    """Return ``task`` if it is a :class:`Task`; raise ``TypeError`` naming all that is missing if not."""
    wrong = [f"{n}() is missing" for n in _METHODS if not callable(getattr(task, n, None))]
    for name, (kind, wanted) in _VALUES.items():
        if not hasattr(task, name):
            wrong.append(f"{name} ({wanted}) is missing")
        elif not isinstance(value := getattr(task, name), kind) or (kind is int and isinstance(value, bool)):
            wrong.append(f"{name} must be {wanted} (got {value!r})")
    # asked of the class, since the property itself may have to read the data
    if not hasattr(type(task), "steps_per_epoch") and "steps_per_epoch" not in getattr(task, "__dict__", {}):
        wrong.append("steps_per_epoch (a whole number) is missing")
    if wrong:
        raise TypeError(f"{text!r} is not a task: {'; '.join(wrong)}")
    return task


def nearest(name: str, known: Any) -> str:
    """Return the end of an error message about an unknown name.

    >>> nearest("digit", ["digits", "diabetes"])
    "did you mean 'digits'?"
    """
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(map(str, known)) or 'none'}"


def choose(option: str, value: str, known: Any) -> str:
    """Return ``value`` if it is one of ``known``; raise ``ValueError`` with the nearest if not.

    >>> choose("model", "mlp", ["mlp", "resnet"])
    'mlp'
    """
    if value not in known:
        raise ValueError(f"{option!r} cannot be {value!r}: {nearest(value, known)}")
    return value


def _check_options(text: str, make: Any, options: dict[str, Any]) -> None:
    parameters = inspect.signature(make).parameters
    known = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    if len(known) < len(parameters):  # **options
        if text not in TASKS:
            return
        from rewound.tasks.tensor_task import OPTIONS  # which bundled tasks hand on

        known += [option for option in OPTIONS if option not in known]
    for option in options:
        if option not in known:
            raise ValueError(f"task {text!r} has no option {option!r}: {nearest(option, known)}")


def _import_file(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(
            f"no file {path!r} in {Path.cwd()}: a task of your own is written 'my_task.py:MyTask'"
        )
    name = f"_rewound_task_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
