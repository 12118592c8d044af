"""Tasks that ship: data, models and recipes, and the plain loop that drives a ``Run`` with them."""

from __future__ import annotations

from rewound.tasks.loop import drive, example_of, first_batch, train_epoch
from rewound.tasks.task import TASKS, Task, load_task

__all__ = ["TASKS", "Task", "drive", "example_of", "first_batch", "load_task", "train_epoch"]
