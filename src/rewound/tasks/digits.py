"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels that come with the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewound.tasks.models.mlp import mlp
from rewound.tasks.models.resnet import cifar_resnet
from rewound.tasks.splits import Data, hold_out
from rewound.tasks.tensor_task import TensorTask


def digits(
    hidden: Sequence[int] = (100, 100),
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    **options: Any,
) -> TensorTask:
    """Return the digits with a small fully connected network; an epoch takes milliseconds.

    ``hidden``: widths of its hidden layers. Further options are those of
    :class:`~rewound.tasks.tensor_task.TensorTask`.
    """
    return TensorTask(
        "digits",
        read_digits,
        lambda: mlp(64, hidden, 10),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        **options,
    )


def digits_resnet(
    depth: int = 8,
    *,
    width: int = 8,
    epochs: int = 12,
    batch_size: int = 64,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    **options: Any,
) -> TensorTask:
    """Return the digits with a small ResNet: convolutions, batch-norm and shortcuts at their smallest.

    Further options are those of :class:`~rewound.tasks.tensor_task.TensorTask`.
    """
    return TensorTask(
        "digits-resnet",
        read_digits,
        lambda: cifar_resnet(depth, width=width, in_channels=1),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        **options,
    )


def read_digits() -> Data:
    """Return images [n, 1, 8, 8] in 0..1 and digits: 1,077 to train on, 360 to validate, 360 to test."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'rewound[tasks]'") from error
    found = datasets.load_digits()
    x = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(found.target).long()
    rest, test = hold_out(len(y), 360, classes=y)
    stay, held = hold_out(len(rest), 360, classes=y[rest])
    train, validation = rest[stay], rest[held]
    return Data((x[train], y[train]), (x[validation], y[validation]), lambda: (x[test], y[test]))
