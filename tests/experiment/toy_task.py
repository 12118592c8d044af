"""A task of milliseconds: is a point of the plane inside a ring? TOY_SLOW seconds a batch, for tests that kill."""

import os
import time

import torch
from torch import nn

from rewound.tasks.batches import batches
from rewound.tasks.evaluation import evaluate


class Toy:
    name = "toy"
    metric = "accuracy"
    higher_is_better = True
    epochs = 4
    steps_per_epoch = 3

    def __init__(self, data_order: str = "rewind", width: int = 32, fails: bool = False):
        self.data_order, self.width, self.fails = data_order, width, fails
        points = torch.rand(160, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        inside = (points.norm(dim=1) < 0.7).long()
        self.train = points[:96], inside[:96]
        self.splits = {"validation": (points[96:128], inside[96:128]), "test": (points[128:], inside[128:])}

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, self.width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(self.width, 2))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def scheduler(self, optimizer, steps: int, steps_per_epoch: int):
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2], gamma=0.1)

    def batches(self, epoch: int, seed: int, round: int = 0):
        if self.fails and (epoch, seed, round) == (2, 1, 1):
            raise RuntimeError("no luck with seed 1")
        for batch in batches(*self.train, 32, epoch, seed, round, data_order=self.data_order):
            time.sleep(float(os.environ.get("TOY_SLOW", 0)))
            yield batch

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target)

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        return evaluate(model, [self.splits[split]], [self.metric], self.loss)
