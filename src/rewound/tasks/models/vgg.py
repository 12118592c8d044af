"""VGG-16 with batch-norm for CIFAR (Simonyan & Zisserman 2015; Li et al. 2017 for this small form)."""

from __future__ import annotations

from torch import nn

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: halve the image


def vgg_16(*, in_channels: int = 3, classes: int = 10, batch_norm_momentum: float = 0.1) -> nn.Sequential:
    """Return thirteen 3 x 3 convolutions with batch-norm and one linear layer, for 32 x 32 images.

    >>> sum(isinstance(m, nn.Conv2d) for m in vgg_16().modules())
    13
    """
    layers: list[nn.Module] = []
    inputs = in_channels
    for width in _WIDTHS:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(width, momentum=batch_norm_momentum), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, classes))
