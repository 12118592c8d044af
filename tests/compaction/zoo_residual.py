"""Image classifiers of the literature, narrow: residual, plain, dense, branching, grouped and depthwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewound.tasks.models.lenet import lenet_5
from rewound.tasks.models.resnet import cifar_resnet, imagenet_resnet


def conv_norm(inputs: int, outputs: int, kernel: int = 3, *, relu: bool = True, **options) -> nn.Sequential:
    """Convolution of the same size, batch norm and (unless told not to) ReLU."""
    options.setdefault("padding", kernel // 2)
    layers = [nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class Head(nn.Module):
    """Mean over the image, then one linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))


def images(channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(2, channels, size, size)


# -- residual ----------------------------------------------------------------------------------------------


class PadBlock(nn.Module):
    """He et al. 2016, option A: where the width doubles, the shortcut strides and pads zero channels on
    both sides (a quarter of the new width before, a quarter after)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + x)


def pad_resnet(depth: int, width: int) -> nn.Sequential:
    blocks, inputs = [conv_norm(3, width)], width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            outputs = width * 2**stage
            blocks.append(PadBlock(inputs, outputs, 2 if stage and i == 0 else 1))
            inputs = outputs
    return nn.Sequential(*blocks, Head(inputs))


class InvertedResidual(nn.Module):
    """MobileNetV2: expand, depthwise, project without an activation; a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def mobilenet_v2() -> nn.Sequential:
    rows = ((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 2, 2))  # expansion, channels, blocks, stride of the first
    blocks: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    inputs = 8
    for expand, outputs, count, stride in rows:
        for i in range(count):
            blocks.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expand))
            inputs = outputs
    last = [nn.Conv2d(inputs, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU6()]
    return nn.Sequential(*blocks, *last, Head(40))


class AggregatedBlock(nn.Module):
    """ResNeXt: a bottleneck whose 3 x 3 convolution has four groups."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_norm(inputs, width, 1)
        self.mix = conv_norm(width, width, stride=stride, groups=4)
        self.expand = conv_norm(width, outputs, 1, relu=False)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = conv_norm(inputs, outputs, 1, relu=False, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.mix(self.reduce(x))) + self.shortcut(x))


def resnext() -> nn.Sequential:
    blocks = [AggregatedBlock(8, 16, 24, 1), AggregatedBlock(24, 16, 24, 1), AggregatedBlock(24, 32, 40, 2)]
    return nn.Sequential(conv_norm(3, 8), *blocks, Head(40))


class RepBlock(nn.Module):
    """RepVGG in training form: 3 x 3, 1 x 1 and a bare batch norm, summed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wide = conv_norm(inputs, outputs, 3, relu=False)
        self.point = conv_norm(inputs, outputs, 1, relu=False)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.point(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


class PreActivation(nn.Module):
    """He et al. 2016 (v2): batch norm and ReLU come before each convolution, the sum stays bare."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width + 4)
        self.conv1 = nn.Conv2d(width, width + 4, 3, padding=1)
        self.conv2 = nn.Conv2d(width + 4, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


# -- plain -------------------------------------------------------------------------------------------------


class VGG(nn.Module):
    """VGG-16 with batch norm, an eighth as wide; the features end in 1 x 1 or are pooled to 4 x 4."""

    def __init__(self, flat: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, pools = 3, 0
        for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
            if width == 0:
                pools += 1
                layers += [nn.MaxPool2d(2)] if flat == 1 or pools <= 3 else []
                continue
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        self.features, self.flat = nn.Sequential(*layers), flat
        self.classifier = nn.Sequential(nn.Linear(64 * flat * flat, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.flat == 1:
            return self.classifier(x.flatten(1))
        return self.classifier(x.view(-1, 64 * 4 * 4))  # a size written out, as in many a script


# -- dense and branching -----------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 16, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))], 1)


def densenet() -> nn.Sequential:
    first = [DenseLayer(8 + 6 * i, 6) for i in range(3)]
    transition = [nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 13, 1, bias=False), nn.AvgPool2d(2)]
    second = [DenseLayer(13 + 6 * i, 6) for i in range(2)]
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return nn.Sequential(stem, *first, *transition, *second, nn.BatchNorm2d(25), nn.ReLU(), Head(25))


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = conv_norm(inputs, 6, 1)
        self.three = nn.Sequential(conv_norm(inputs, 4, 1), conv_norm(4, 9))
        self.five = nn.Sequential(conv_norm(inputs, 5, 1), conv_norm(5, 7), conv_norm(7, 7))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_norm(inputs, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)


class Fire(nn.Module):
    """SqueezeNet: squeeze, then two expansions side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, 6, 1)
        self.left, self.right = nn.Conv2d(6, 10, 1), nn.Conv2d(6, 10, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat((self.left(x).relu(), self.right(x).relu()), dim=-3)


# -- grouped and depthwise ---------------------------------------------------------------------------------


class Shuffle(nn.Module):
    """ShuffleNetV2 with stride 1: half of the channels pass by, then the halves are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        depthwise = conv_norm(half, half, relu=False, groups=half)
        self.branch = nn.Sequential(conv_norm(half, half, 1), depthwise, conv_norm(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = x.chunk(2, dim=1)
        x = torch.cat((passed, self.branch(worked)), dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class GroupShuffle(nn.Module):
    """ShuffleNetV1: grouped 1 x 1 convolutions and nn.ChannelShuffle between them, which ties all channels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = conv_norm(width, width, 1, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = conv_norm(width, width, relu=False, groups=width)
        self.last = conv_norm(width, width, 1, relu=False, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last(self.depthwise(self.shuffle(self.first(x)))))


class SqueezeExcite(nn.Module):
    """A sigmoid gate a channel; removing the gate needs the feature to go with it (sigmoid(0) is a half)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class GroupedMixture(nn.Module):
    """Group norm, grouped convolution, a split into unlike parts, squeeze-excite: all in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.grouped, self.norm2 = nn.Conv2d(24, 32, 3, padding=1, groups=4), nn.GroupNorm(8, 32)
        self.small, self.large = conv_norm(8, 16), conv_norm(24, 16)
        self.excite = SqueezeExcite(16, 6)
        self.last, self.head = nn.Conv2d(16, 20, 3, groups=2), Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.grouped(x)))
        small, large = torch.split(x, [8, 24], dim=1)
        return self.head(F.relu(self.last(self.excite(self.small(small) + self.large(large)))))


def depthwise_multiplier() -> nn.Sequential:
    """MobileNetV1 with two filters a channel in the depthwise convolutions."""
    layers = [conv_norm(3, 8), conv_norm(8, 16, groups=8), conv_norm(16, 12, 1), conv_norm(12, 24, groups=12)]
    return nn.Sequential(*layers, conv_norm(24, 16, 1), Head(16))


class MBConv(nn.Module):
    """EfficientNet: inverted residual with squeeze-excite and SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.expand = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()
        )
        depthwise = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.SiLU())
        self.excite = SqueezeExcite(hidden, 3)
        self.project = conv_norm(hidden, width, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.excite(self.depthwise(self.expand(x))))


MODELS = {
    "resnet_20": lambda: (cifar_resnet(20, width=8), images()),
    "resnet_20_option_a": lambda: (pad_resnet(20, 8), images()),
    "resnet_56": lambda: (cifar_resnet(56, width=6), images()),
    "resnet_56_option_a": lambda: (pad_resnet(56, 8), images()),
    "resnet_34": lambda: (imagenet_resnet(34, width=6, classes=7), images(size=32)),
    "resnet_50": lambda: (imagenet_resnet(50, width=6, classes=7), images(size=32)),
    "resnet_v2": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), *(PreActivation(8) for _ in range(3)), nn.BatchNorm2d(8), Head(8)),
        images(),
    ),
    "repvgg": lambda: (
        nn.Sequential(RepBlock(3, 8), RepBlock(8, 8), nn.MaxPool2d(2), RepBlock(8, 12), Head(12)),
        images(),
    ),
    "resnext": lambda: (resnext(), images()),
    "vgg_16": lambda: (VGG(1), images(size=32)),
    "vgg_16_flat_4x4": lambda: (VGG(4), images(size=32)),
    "lenet_5": lambda: (lenet_5(), images(1, 28)),
    "densenet": lambda: (densenet(), images()),
    "inception": lambda: (
        nn.Sequential(conv_norm(3, 8), Inception(8), nn.MaxPool2d(2), Inception(26), Head(26)),
        images(),
    ),
    "squeezenet": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Fire(8), Fire(20), nn.Conv2d(20, 5, 1), nn.Flatten(2)
        ),
        images(),
    ),
    "mobilenet_v2": lambda: (mobilenet_v2(), images()),
    "depthwise_multiplier": lambda: (depthwise_multiplier(), images()),
    "efficientnet": lambda: (nn.Sequential(conv_norm(3, 6), MBConv(6), MBConv(6), Head(6)), images()),
    "shufflenet_v1": lambda: (
        nn.Sequential(
            conv_norm(3, 24), GroupShuffle(24, 3), GroupShuffle(24, 3), conv_norm(24, 10), Head(10)
        ),
        images(),
    ),
    "shufflenet_v2": lambda: (nn.Sequential(conv_norm(3, 12), Shuffle(12), Shuffle(12), Head(12)), images()),
    "grouped_mixture": lambda: (GroupedMixture(), images()),
}
