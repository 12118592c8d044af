"""What an experiment must offer, and how it is found by name.

A task is any object with these members; nothing needs to be subclassed. ``tensor_task.py`` beside this file
is a complete one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rewound.spelling import nearest

Inputs: TypeAlias = Tensor | tuple[Tensor, ...]


class Task(Protocol):
    """Data, a model and the recipe that trains it.

    ``name``: what reports call it. ``metric``: the entry of :meth:`evaluate` that decides, and
    ``higher_is_better`` its direction. ``epochs``: the default length T of training. A task may have three members
    more. ``clip_norm``: gradients are clipped to so large a norm before every step. ``example``: the inputs of a step
    of about mean size, where the first batch is none such. ``fingerprint()``: a short text that changes with the data,
    which reports give (:func:`rewound.tasks.fingerprint.fingerprint` makes one).
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

    def batches(self, epoch: int, seed: int, round: int = 0) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield an epoch's training batches (inputs, targets) in an order that the arguments decide.

        A model of several arguments gets them as a tuple of tensors.
        """
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
    "translation": "translation:translation",
}
# what an option must be, told by its default: (the default's type, in words, types that fit); the first counts
_KINDS: tuple[tuple[type, str, tuple[type, ...]], ...] = (
    (bool, "true or false", (bool,)),
    (int, "a whole number", (int,)),
    (float, "a number", (int, float)),
    (str, "a text", (str,)),
    (tuple, "a list", (list, tuple)),
)
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
        module = import_file(path)
    elif text in TASKS:
        where, _, name = TASKS[text].partition(":")
        module = importlib.import_module(f"rewound.tasks.{where}")
    else:
        if text.endswith(".py"):
            raise ValueError(
                f'{text!r} is a file, and not yet a task: say which class in it, as in "my_task.py:MyTask"'
            )
        raise ValueError(f"no task named {text!r}: {nearest(text, TASKS)}")
    if not hasattr(module, name):
        own = {n: value for n, value in vars(module).items() if callable(value) and not n.startswith("_")}
        offered = [n for n, value in own.items() if getattr(value, "__module__", "") == module.__name__]
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
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"task {text!r} needs the option {name!r}: give it under [task_options]")
    known = {name: parameter.default for name, parameter in named.items()}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        if text not in TASKS:
            return
        from rewound.tasks.tensor_task import OPTIONS  # which bundled tasks hand on

        known = OPTIONS | known
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"task {text!r} has no option {option!r}: {nearest(option, known)}")
        if text in TASKS:  # what a user's task makes of a value is its own business
            _check_kind(text, option, value, known[option])


def _check_kind(text: str, option: str, value: Any, default: Any) -> None:
    """Refuse a text where a number is wanted and the like, before torch trips over it in words of its own."""
    for kind, wanted, fits in _KINDS:
        if isinstance(default, kind):
            if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"option {option!r} of task {text!r} must be {wanted} (got {value!r})")
            return


def import_file(path: str) -> ModuleType:
    """Return the module in a Python file, under a name of its own; FileNotFoundError where there is no such file."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(
            f"no file {path!r} in {Path.cwd()}: what is in a file of your own is written 'my_task.py:MyTask'"
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
