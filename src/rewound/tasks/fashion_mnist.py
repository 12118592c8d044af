"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of clothes, 28 x 28, from its four idx files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewound.tasks.files import find_folder
from rewound.tasks.models.lenet import lenet_5
from rewound.tasks.models.mlp import lenet_300_100
from rewound.tasks.models.resnet import cifar_resnet
from rewound.tasks.readers import read_idx
from rewound.tasks.splits import Data, Examples, hold_out
from rewound.tasks.task import choose
from rewound.tasks.tensor_task import TensorTask

MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "resnet-20": lambda: cifar_resnet(20, in_channels=1),
    "resnet-14-narrow": lambda: cifar_resnet(
        14, width=8, in_channels=1
    ),  # half as wide: minutes on two cores
}
RECIPES: dict[str, dict[str, Any]] = {
    "lenet-300-100": {"epochs": 20, "batch_size": 128, "lr": 0.1, "weight_decay": 1e-4},
    "lenet-5": {"epochs": 15, "batch_size": 128, "lr": 0.05, "weight_decay": 1e-4},
    "resnet-20": {"epochs": 20, "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4},
    "resnet-14-narrow": {"epochs": 10, "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4},
}
PARTS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it
_ADVICE = (
    f"the files {', '.join(PARTS)} (plain or .gz) from github.com/zalandoresearch/fashion-mnist or Debian's "
    "package dataset-fashion-mnist"
)
_MEAN, _STD = 0.286, 0.353  # of the training pixels, as fractions of white


def fashion_mnist(
    model: str = "lenet-300-100",
    *,
    subset: int | None = None,
    validation: int = 5000,
    size: int = 28,
    folder: str | Path | None = None,
    **options: Any,
) -> TensorTask:
    """Return Fashion-MNIST with ``model`` "lenet-300-100", "lenet-5" (both Han et al. 2015), "resnet-20" or
    "resnet-14-narrow".

    Parameters
    ----------
    subset
        Train on so many images only: stratified, always the same ones.
    validation
        How many of the 60,000 training images validate (stratified, always the same ones).
    size
        Pixels a side, 4 to 28, by averaging; other than 28 for the ResNets only.
    folder
        Where the files lie, if not in a place that is looked at anyway.
    options
        Those of :class:`~rewound.tasks.tensor_task.TensorTask`, over the model's recipe in ``RECIPES``.
    """
    choose("model", model, MODELS)
    if not 4 <= size <= 28 or (size != 28 and not model.startswith("resnet")):
        raise ValueError(f"'size' must be 28, or 4 to 28 for a ResNet (got {size} for {model!r})")
    place = find_folder(
        "fashion-mnist", [f"{part}|{part}.gz" for part in PARTS], _ADVICE, folder, known=(DEBIAN,)
    )
    recipe = {"prepare": normalised, "evaluation_batch": 500, **RECIPES[model], **options}
    read = partial(read_fashion_mnist, place, validation, subset, size)
    return TensorTask("fashion-mnist", read, MODELS[model], place=place, **recipe)


def normalised(images: Tensor) -> Tensor:
    """Return uint8 images as floats of about mean 0 and deviation 1."""
    return images.float().sub_(255 * _MEAN).div_(255 * _STD)


def read_fashion_mnist(
    folder: Path, validation: int = 5000, subset: int | None = None, size: int = 28
) -> Data:
    """Return images uint8 [n, 1, size, size] and labels int64 [n]; the test files are opened when asked for.

    Raises ``ValueError`` naming the file for one that is damaged.
    """
    images, labels = _examples(folder, *PARTS[:2])
    stay, held = hold_out(len(labels), validation, classes=labels)
    if subset is not None and subset != len(stay):
        stay = stay[hold_out(len(stay), subset, classes=labels[stay])[1]]

    def test() -> Examples:
        images, labels = _examples(folder, *PARTS[2:])
        return averaged(images, size), labels

    train = averaged(images[stay], size), labels[stay]
    return Data(train, (averaged(images[held], size), labels[held]), test)


def averaged(images: Tensor, size: int) -> Tensor:
    """Return uint8 images with ``size`` pixels a side, each the mean of those in its place.

    >>> averaged(torch.tensor([[[[0, 2], [4, 6]]]], dtype=torch.uint8), 1)
    tensor([[[[3]]]], dtype=torch.uint8)
    """
    if images.shape[-1] == size:
        return images
    return nn.functional.adaptive_avg_pool2d(images.float(), size).round_().to(torch.uint8)


def _examples(folder: Path, images_name: str, labels_name: str) -> Examples:
    images_file, labels_file = (
        next(folder / file for file in (name, f"{name}.gz") if (folder / file).exists())
        for name in (images_name, labels_name)
    )
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_file}: images must be uint8 [n, 28, 28] (got {images.dtype} {images.shape})"
        )
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8 or labels.max(initial=0) > 9:
        raise ValueError(f"{labels_file}: labels must be {len(images)} numbers in 0..9 (got {labels.shape})")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()
