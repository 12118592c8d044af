"""CIFAR-10 (Krizhevsky 2009) with the networks and the recipe of Renda et al. 2020."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewound.tasks.batches import crop_and_flip
from rewound.tasks.files import find_folder
from rewound.tasks.models.resnet import cifar_resnet
from rewound.tasks.models.vgg import vgg_16
from rewound.tasks.readers import read_cifar_binary, read_cifar_python
from rewound.tasks.splits import Data, Examples, hold_out
from rewound.tasks.task import choose
from rewound.tasks.tensor_task import TensorTask

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet-20": partial(cifar_resnet, 20),
    "resnet-56": partial(cifar_resnet, 56),
    "resnet-110": partial(cifar_resnet, 110),
    "vgg-16": vgg_16,
}
# 182 epochs of batches of 128; lr .1, a tenth of it at epochs 91 and 136; weight decay on every parameter
RECIPE: dict[str, Any] = {"epochs": 182, "batch_size": 128, "lr": 0.1, "decay_at": (91 / 182, 136 / 182)}
WEIGHT_DECAY = {"resnet-20": 2e-4, "resnet-56": 2e-4, "resnet-110": 2e-4, "vgg-16": 5e-4}
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
_ADVICE = (
    "CIFAR-10's binary or python version from www.cs.toronto.edu/~kriz/cifar.html, unpacked (the folder "
    "cifar-10-batches-bin or cifar-10-batches-py)"
)


def cifar_10(
    model: str = "resnet-20",
    *,
    subset: int | None = None,
    validation: int = 5000,
    batch_norm_momentum: float = 0.003,
    folder: str | Path | None = None,
    **options: Any,
) -> TensorTask:
    """Return CIFAR-10 with ``model`` "resnet-20", "resnet-56", "resnet-110" (v1) or "vgg-16" (batch-norm).

    Trained as in Renda et al. 2020: crops out of 4 pixels of padding, mirror images, each image standardised.
    Their validation images come out of the test set; here they are held out of the training set.

    Parameters
    ----------
    subset, validation, folder, options
        As in :func:`rewound.tasks.fashion_mnist.fashion_mnist`.
    batch_norm_momentum
        The weight of a new batch in the running statistics: the authors' .003 (their .997 is that of the old
        ones) suits their 71,108 steps. Use .1 for runs of a few hundred.
    """
    choose("model", model, MODELS)
    place = find_folder(
        "cifar-10", ["|".join([*FOLDERS, "data_batch_1", "data_batch_1.bin"])], _ADVICE, folder
    )
    images = {"prepare": standardised, "augment": crop_and_flip, "evaluation_batch": 500}
    recipe = {**images, **RECIPE, "weight_decay": WEIGHT_DECAY[model], **options}
    build = partial(MODELS[model], batch_norm_momentum=batch_norm_momentum)
    return TensorTask(
        "cifar-10", lambda: read_cifar_10(place, validation, subset), build, place=place, **recipe
    )


def standardised(images: Tensor) -> Tensor:
    """Return uint8 images [n, 3, 32, 32] as floats, each of mean 0 and deviation 1 over its own pixels.

    A deviation below 1 / sqrt(number of pixels) counts as that much, so that a plain image gives zeros and
    not NaN.
    """
    x = images.float().div_(255)
    floor = x[0].numel() ** -0.5
    deviation = x.std(dim=(1, 2, 3), keepdim=True, correction=0).clamp_(min=floor)
    return x.sub_(x.mean(dim=(1, 2, 3), keepdim=True)).div_(deviation)


def read_cifar_10(folder: Path, validation: int = 5000, subset: int | None = None) -> Data:
    """Return images uint8 [n, 3, 32, 32] and labels int64 [n]; the test batch is opened when asked for.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the file for one that is missing or damaged.
    """
    folder = next((folder / name for name in FOLDERS if (folder / name).exists()), folder)
    images, labels = _examples(folder, [f"data_batch_{i}" for i in range(1, 6)])
    stay, held = hold_out(len(labels), validation, classes=labels)
    if subset is not None and subset != len(stay):
        stay = stay[hold_out(len(stay), subset, classes=labels[stay])[1]]
    return Data(
        (images[stay], labels[stay]), (images[held], labels[held]), lambda: _examples(folder, ["test_batch"])
    )


def _examples(folder: Path, batches: Sequence[str]) -> Examples:
    binary = (folder / f"{batches[0]}.bin").exists()
    read, ending = (read_cifar_binary, ".bin") if binary else (read_cifar_python, "")
    parts = []
    for batch in batches:
        if not (folder / (batch + ending)).exists():
            raise FileNotFoundError(f"{folder / (batch + ending)} is not there: get {_ADVICE}")
        parts.append(read(folder / (batch + ending)))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return torch.from_numpy(images), torch.from_numpy(labels)
