"""ImageNet (Russakovsky et al. 2015) as a folder of images, with the networks and the recipe of Renda et al.
2020."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rewound.metrics import Metric, as_metric
from rewound.tasks.batches import check_data_order, count, order
from rewound.tasks.evaluation import evaluate
from rewound.tasks.files import find_folder
from rewound.tasks.fingerprint import fingerprint
from rewound.tasks.images import Files, Images, class_names, list_images, loaded
from rewound.tasks.models import seeded
from rewound.tasks.models.resnet import imagenet_resnet
from rewound.tasks.schedules import step_decay
from rewound.tasks.splits import SPLITS, hold_out
from rewound.tasks.task import choose

DEPTHS = {"resnet-34": 34, "resnet-50": 50}
_ADVICE = "ImageNet (ILSVRC 2012, www.image-net.org), unpacked into train/ and val/, a subfolder each class,"
WARMUP, DECAY_AT = 5 / 90, (30 / 90, 60 / 90, 80 / 90)  # of training: the authors' epochs out of 90


@dataclass(frozen=True)
class FolderTask:
    """A complete :class:`~rewound.tasks.task.Task` over train/ and val/ folders of images, one subfolder a
    class.

    Validation images are held out of train/ (stratified, always the same ones); val/ is the test split. SGD
    with Nesterov momentum .9; lr linear from 0 for the first 5/90 of training, x0.1 at 30, 60 and 80
    ninetieths; no weight decay on batch-norm; no label smoothing.
    """

    place: Path
    architecture: str = "resnet-50"
    epochs: int = 90
    batch_size: int = 1024
    lr: float = 0.4
    weight_decay: float = 1e-4
    width: int = 64
    size: int = 224
    resize: int = 256
    validation: int = 10_000
    workers: int = 0
    data_order: str = "rewind"
    drop_last: bool = False
    metrics: Sequence[str | Metric] = ("accuracy", "top5")

    name = "imagenet"

    def __post_init__(self) -> None:
        check_data_order(self.data_order)
        choose("model", self.architecture, DEPTHS)

    @property
    def metric(self) -> str:
        return as_metric(self.metrics[0]).name

    @property
    def higher_is_better(self) -> bool:
        return as_metric(self.metrics[0]).higher_is_better

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return class_names(self.place / "train")

    @cached_property
    def _training_files(self) -> tuple[Files, Files]:
        """(files to train on, files to validate on)"""
        files = list_images(self.place / "train", self.classes)
        stay, held = hold_out(
            len(files), self.validation, classes=torch.tensor([label for _, label in files])
        )
        return tuple(files[i] for i in stay.tolist()), tuple(files[i] for i in held.tolist())

    def fingerprint(self) -> str:
        """Of the names of the files it trains and validates on, and of how large each is; their content is not read."""
        files = (path for split in self._training_files for path, _ in split)
        return fingerprint(
            f"{path.relative_to(self.place).as_posix()} {path.stat().st_size}" for path in files
        )

    @property
    def steps_per_epoch(self) -> int:
        return count(len(self._training_files[0]), self.batch_size, self.drop_last)

    def model(self, seed: int) -> nn.Module:
        depth, width, classes = DEPTHS[self.architecture], self.width, len(self.classes)
        return seeded(seed, lambda: imagenet_resnet(depth, width=width, classes=classes))

    def optimizer(self, model: nn.Module) -> Optimizer:
        norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        decayed = [p for p in model.parameters() if id(p) not in norms]
        free = [p for p in model.parameters() if id(p) in norms]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        return SGD(groups, lr=self.lr, momentum=0.9, nesterov=True, fused=True)

    def scheduler(self, optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler:
        return step_decay(optimizer, steps, at=DECAY_AT, warmup=WARMUP)

    def batches(self, epoch: int, seed: int, round: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        files = self._training_files[0]
        shuffled = order(len(files), seed, epoch, round, self.data_order).tolist()
        if self.drop_last:
            shuffled = shuffled[: self.steps_per_epoch * self.batch_size]
        key = (seed, epoch, 0 if self.data_order == "rewind" else round)
        return loaded(Images(files, self.size, self.resize, key), self.batch_size, shuffled, self.workers)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        choose("split", split, SPLITS)
        test = split == "test"
        files = list_images(self.place / "val", self.classes) if test else self._training_files[1]
        images = Images(files, self.size, self.resize)
        batches = loaded(images, min(self.batch_size, 256), range(len(files)), self.workers)
        return evaluate(model, batches, self.metrics, self.loss)


def imagenet(
    model: str = "resnet-50",
    *,
    epochs: int = 90,
    batch_size: int = 1024,
    lr: float = 0.4,
    weight_decay: float = 1e-4,
    width: int = 64,
    size: int = 224,
    resize: int = 256,
    validation: int = 10_000,
    workers: int | None = None,
    data_order: str = "rewind",
    drop_last: bool = False,
    metrics: Sequence[str | Metric] = ("accuracy", "top5"),
    folder: str | Path | None = None,
) -> FolderTask:
    """Return ImageNet with ``model`` "resnet-34" or "resnet-50", trained as in Renda et al. 2020.

    Training images: a random part resized to ``size``, mirrored half the time; validation and test images:
    shorter side ``resize``, middle ``size``. ``width``: of the first stage. ``workers``: processes that
    decode (None: one a core).
    """
    place = find_folder("imagenet", ["train", "val"], _ADVICE, folder)
    workers = (os.cpu_count() or 0) if workers is None else workers
    return FolderTask(
        place, model, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, width=width,
        size=size, resize=resize, validation=validation, workers=workers, data_order=data_order,
        drop_last=drop_last, metrics=metrics,
    )  # fmt: skip
