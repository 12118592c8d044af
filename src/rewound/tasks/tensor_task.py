"""A task over tensors in memory: what all bundled tasks but ImageNet are, each described by its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rewound.metrics import Metric, as_metric
from rewound.tasks.batches import batches, check_data_order, count, in_order
from rewound.tasks.evaluation import evaluate
from rewound.tasks.fingerprint import fingerprint
from rewound.tasks.models import seeded
from rewound.tasks.schedules import step_decay
from rewound.tasks.splits import Data


@dataclass(frozen=True)
class TensorTask:
    """A complete :class:`~rewound.tasks.task.Task`: SGD with momentum, step decay, batches from memory.

    Parameters
    ----------
    read
        Gives the data; called once, when first needed.
    build
        Gives a new model; what it draws, it draws from the seed.
    decay_at
        Fractions of training at which the lr drops to a tenth.
    augment, prepare
        See :func:`rewound.tasks.batches.batches`; evaluation prepares, but does not augment.
    metrics
        Names or :class:`~rewound.metrics.Metric`; the first one decides.
    evaluation_batch
        Examples a batch while evaluating; only memory depends on it.
    place
        The folder that the data were found in; None where they come with a package.

    >>> x = torch.linspace(0, 1, 64).unsqueeze(1)
    >>> data = Data((x, 2 * x), (x, 2 * x), lambda: (x, 2 * x))
    >>> line = TensorTask("line", lambda: data, lambda: nn.Linear(1, 1), epochs=5, lr=0.1,
    ...                   loss_function=nn.functional.mse_loss, metrics=("mse",))
    >>> line.steps_per_epoch, line.higher_is_better, sorted(line.evaluate(line.model(0)))
    (1, False, ['loss', 'mse'])
    """

    name: str
    read: Callable[[], Data]
    build: Callable[[], nn.Module]
    epochs: int
    lr: float
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_at: Sequence[float] = (0.5, 0.75)
    loss_function: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    metrics: Sequence[str | Metric] = ("accuracy",)
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    prepare: Callable[[Tensor], Tensor] | None = None
    data_order: str = "rewind"
    drop_last: bool = False
    evaluation_batch: int = 1000
    place: Path | None = None

    def __post_init__(self) -> None:
        check_data_order(self.data_order)
        for option in ("epochs", "batch_size", "evaluation_batch"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option!r} must be at least 1 (got {getattr(self, option)})")

    @property
    def metric(self) -> str:
        return as_metric(self.metrics[0]).name

    @property
    def higher_is_better(self) -> bool:
        return as_metric(self.metrics[0]).higher_is_better

    @cached_property
    def data(self) -> Data:
        return self.read()

    def fingerprint(self) -> str:
        """Of what it trains and validates on; the test set is not read for it."""
        return fingerprint([*self.data.train, *self.data.validation])

    @property
    def steps_per_epoch(self) -> int:
        return count(len(self.data.train[1]), self.batch_size, self.drop_last)

    def model(self, seed: int) -> nn.Module:
        return seeded(seed, self.build)

    def optimizer(self, model: nn.Module) -> Optimizer:
        # fused: one pass over weight, gradient and momentum instead of several
        lr, momentum, weight_decay = self.lr, self.momentum, self.weight_decay
        return SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)

    def scheduler(self, optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler:
        return step_decay(optimizer, steps, at=self.decay_at)

    def batches(self, epoch: int, seed: int, round: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        options: dict[str, Any] = {
            n: getattr(self, n) for n in ("data_order", "drop_last", "augment", "prepare")
        }
        return batches(*self.data.train, self.batch_size, epoch, seed, round, **options)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss_function(output, target)

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        examples = in_order(*self.data.split(split), self.evaluation_batch, self.prepare)
        return evaluate(model, examples, self.metrics, self.loss)


_GIVEN = ("name", "read", "build", "place")  # by the task that ships, never by its user
# option -> default, or a value of its kind where there is no default
OPTIONS = {f.name: f.default for f in fields(TensorTask) if f.name not in _GIVEN} | {"epochs": 1, "lr": 1.0}
