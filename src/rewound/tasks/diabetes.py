"""scikit-learn's diabetes: 442 patients, ten measurements each, and how far the disease went in a year."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rewound.tasks.models.mlp import mlp
from rewound.tasks.splits import Data, hold_out
from rewound.tasks.tensor_task import TensorTask


def diabetes(
    hidden: Sequence[int] = (32, 16),
    *,
    epochs: int = 30,
    batch_size: int = 32,
    lr: float = 0.005,
    weight_decay: float = 1e-3,
    **options: Any,
) -> TensorTask:
    """Return a regression by a small fully connected network, errors in units of the target's variance.

    An error of 1 is that of always guessing the mean. Further options are those of
    :class:`~rewound.tasks.tensor_task.TensorTask`.
    """
    return TensorTask(
        "diabetes",
        read_diabetes,
        lambda: mlp(10, hidden, 1),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        **{"loss_function": nn.functional.mse_loss, "metrics": ("mse", "mae"), **options},
    )


def read_diabetes() -> Data:
    """Return inputs [n, 10] and targets [n, 1], standardised by the training examples: 266, 88 and 88."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("the diabetes data come with scikit-learn: pip install 'rewound[tasks]'") from error
    x, y = (torch.from_numpy(a).float() for a in datasets.load_diabetes(return_X_y=True))
    y = y.unsqueeze(1)
    rest, test = hold_out(len(y), 88)
    stay, held = hold_out(len(rest), 88)
    train, validation = rest[stay], rest[held]
    x, y = ((a - a[train].mean(0)) / a[train].std(0) for a in (x, y))
    return Data((x[train], y[train]), (x[validation], y[validation]), lambda: (x[test], y[test]))
