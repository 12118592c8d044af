"""Residual networks v1 (He et al. 2016): ResNet-20/56/110 for small images, ResNet-34/50 for ImageNet.

Where a block changes the shape, its shortcut is a 1 x 1 convolution with batch-norm, as in the code of Renda
et al. 2020 (whose masks cover these projections too).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_IMAGENET = {34: ((3, 4, 6, 3), 1), 50: ((3, 4, 6, 3), 4)}  # depth -> (blocks a stage, expansion of a block)


class Block(nn.Module):
    """Two 3 x 3 convolutions, or (expansion 4, "bottleneck") 1 x 1, 3 x 3 and 1 x 1; and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int, momentum: float) -> None:
        super().__init__()
        outputs = width * expansion
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if expansion > 1:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.depth = len(shapes)
        for i, shape in enumerate(shapes, start=1):
            setattr(self, f"conv{i}", _conv(*shape))
            setattr(self, f"bn{i}", nn.BatchNorm2d(shape[1], momentum=momentum))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(_conv(inputs, outputs, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(outputs, momentum=momentum))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = y.relu()
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """A stem, stages of blocks that halve the image and double the width, mean over pixels, one linear
    layer."""

    def __init__(
        self,
        stem: nn.Module,
        inputs: int,
        stages: Sequence[int],
        expansion: int,
        classes: int,
        momentum: float,
    ) -> None:
        super().__init__()
        self.stem = stem
        width = inputs
        for stage, blocks in enumerate(stages, start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layer.append(Block(inputs, width, stride, expansion, momentum))
                inputs = width * expansion
            setattr(self, f"layer{stage}", layer)
            width *= 2
        self.stages = len(stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def cifar_resnet(
    depth: int = 20,
    *,
    width: int = 16,
    in_channels: int = 3,
    classes: int = 10,
    batch_norm_momentum: float = 0.1,
) -> ResNet:
    """Return ResNet-``depth`` v1 for small images [N, in_channels, H, W]: three stages of (depth - 2) / 6
    blocks.

    ``batch_norm_momentum`` is PyTorch's, the weight of the new batch (TensorFlow's .997 is .003 here).
    Raises ``ValueError`` for a depth that is not 6n + 2.

    >>> sum(p.numel() for p in cifar_resnet(20).parameters() if p.ndim > 1)  # BN left out
    270896
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"'depth' must be 6n + 2: 8, 14, 20, 56, 110, ... (got {depth})")
    stem = _stem(in_channels, width, 3, 1, batch_norm_momentum)
    return _initialised(ResNet(stem, width, ((depth - 2) // 6,) * 3, 1, classes, batch_norm_momentum))


def imagenet_resnet(
    depth: int = 50,
    *,
    width: int = 64,
    in_channels: int = 3,
    classes: int = 1000,
    batch_norm_momentum: float = 0.1,
) -> ResNet:
    """Return ResNet-34 or ResNet-50 for ImageNet; the stride of a bottleneck sits in its 3 x 3 convolution.

    >>> sum(p.numel() for p in imagenet_resnet(50).parameters())
    25557032
    """
    if depth not in _IMAGENET:
        raise ValueError(f"'depth' must be 34 or 50 (got {depth})")
    stages, expansion = _IMAGENET[depth]
    stem = _stem(in_channels, width, 7, 2, batch_norm_momentum)
    stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    return _initialised(ResNet(stem, width, stages, expansion, classes, batch_norm_momentum))


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _stem(inputs: int, width: int, kernel: int, stride: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(
        _conv(inputs, width, kernel, stride), nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()
    )


def _initialised(model: ResNet) -> ResNet:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
