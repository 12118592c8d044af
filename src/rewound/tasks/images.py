"""Folders of images, one subfolder a class: found, decoded and cropped by Pillow, in torch's ``DataLoader``.

Order and crops are pure functions of (seed, epoch, round, image), whatever the number of worker processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rewound.tasks.batches import generator

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's pixels, red, green, blue
Files = tuple[tuple[Path, int], ...]


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the subfolders, sorted: class i is name i."""
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no subfolder: put the images of each class into one of its own"
        )
    return names


def list_images(folder: Path, classes: Sequence[str]) -> Files:
    """Return (file, class index) of every image, sorted; raise where a class is missing or unknown."""
    strange = set(class_names(folder)) - set(classes)
    if strange:
        raise ValueError(
            f"{folder} holds the class {sorted(strange)[0]!r}, which the training images do not have"
        )
    found: list[tuple[Path, int]] = []
    for index, name in enumerate(classes):
        entries = (folder / name).iterdir() if (folder / name).is_dir() else ()
        files = sorted(file for file in entries if file.suffix.lower() in ENDINGS)
        if not files:
            raise FileNotFoundError(f"{folder / name} holds no images ({', '.join(ENDINGS)})")
        found += [(file, index) for file in files]
    return tuple(found)


def load_image(path: Path) -> Any:
    """Return the image, decoded to RGB, as Pillow's; raise ``ValueError`` naming a file that is none."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images are read by Pillow: pip install 'rewound[tasks]'") from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def random_resized_crop(image: Any, size: int, noise: torch.Generator) -> Any:
    """Return a random part of the image (8 to 100 % of it, sides 3:4 to 4:3), resized, mirrored or not.

    Szegedy et al. 2015 (section 6); ten tries, else the middle.
    """
    width, height = image.size
    for _ in range(10):
        scale, ratio, left, top = torch.rand(4, generator=noise).tolist()
        area = width * height * (0.08 + 0.92 * scale)
        shape = math.exp((2 * ratio - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            image = image.resize((size, size), _bilinear(), box=(x, y, x + w, y + h))
            break
    else:
        image = centre_crop(image, size, size)
    if torch.rand((), generator=noise) < 0.5:
        image = image.transpose(0)  # FLIP_LEFT_RIGHT
    return image


def centre_crop(image: Any, size: int, resize: int) -> Any:
    """Return the middle ``size`` x ``size`` of the image, its shorter side resized to ``resize`` first."""
    width, height = image.size
    factor = resize / min(width, height)
    w, h = max(size, round(width * factor)), max(size, round(height * factor))
    left, top = (w - size) // 2, (h - size) // 2
    return image.resize((w, h), _bilinear()).crop((left, top, left + size, top + size))


class Images(Dataset):
    """Images as uint8 [3, size, size] and class; training crops if ``key`` = (seed, epoch, round) is given."""

    def __init__(self, files: Files, size: int, resize: int, key: tuple[int, int, int] | None = None) -> None:
        self.files, self.size, self.resize, self.key = files, size, resize, key

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = load_image(path)
        if self.key is None:
            image = centre_crop(image, self.size, self.resize)
        else:
            image = random_resized_crop(image, self.size, generator("crop", *self.key, index))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), label


def loaded(
    images: Images, batch_size: int, order: Sequence[int], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised batches (float [b, 3, size, size], int64 [b]) of the images in ``order``."""
    own = torch.Generator().manual_seed(
        0
    )  # the loader would otherwise draw its workers' seed from the global one
    loader: Any = DataLoader(images, batch_size, sampler=order, num_workers=workers, generator=own)
    mean, std = (torch.tensor(v).mul_(255).view(1, 3, 1, 1) for v in (MEAN, STD))
    for x, y in loader:
        yield x.float().sub_(mean).div_(std), y


def _bilinear() -> Any:
    from PIL import Image

    return Image.Resampling.BILINEAR
