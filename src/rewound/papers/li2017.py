"""Li et al. 2017, "Pruning Filters for Efficient ConvNets": how many filters leave which layer.

Convolutions are counted as the authors count them: number 1 is the stem, projections (the convolutions of shortcuts) have no
number. In the residual networks even numbers are the first convolutions of the blocks, whose filters no sum ties to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from rewound.parameters import named_modules
from rewound.spelling import unknown

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROJECTIONS = ("*shortcut*", "*downsample*")


@dataclass(frozen=True)
class Rates:
    """count: convolutions of the network. pruned: their numbers. rates: (number of the last layer, share removed) by stage."""

    count: int
    pruned: tuple[int, ...]
    rates: tuple[tuple[int, float], ...]

    def rate(self, number: int) -> float:
        """Share of its filters that convolution ``number`` loses; 0 where it is left alone."""
        if number not in self.pruned:
            return 0.0
        return next(rate for last, rate in self.rates if number <= last)


def _even(last: int, skip: set[int]) -> tuple[int, ...]:
    return tuple(number for number in range(2, last + 1, 2) if number not in skip)


# Section 4 of the paper, as the authors' released results have them.
LI2017: dict[str, Rates] = {
    "ResNet-56-A": Rates(55, _even(54, {16, 20, 38, 54}), ((55, 0.1),)),
    "ResNet-56-B": Rates(55, _even(54, {16, 18, 20, 34, 38, 54}), ((19, 0.6), (37, 0.3), (55, 0.1))),
    "ResNet-110-A": Rates(109, _even(36, {36}), ((109, 0.5),)),
    "ResNet-110-B": Rates(109, _even(108, {36, 38, 74}), ((37, 0.5), (73, 0.4), (109, 0.3))),
    "ResNet-34-A": Rates(33, _even(26, {2, 8, 14, 16, 26}), ((33, 0.3),)),
    "ResNet-34-B": Rates(33, _even(26, {2, 8, 14, 16, 26}), ((6, 0.5), (14, 0.6), (33, 0.4))),
    "VGG-16-A": Rates(13, (1, *range(8, 14)), ((13, 0.5),)),
}


def li2017(
    name: str, model: nn.Module, *, times: int = 1, projections: Iterable[str] = _PROJECTIONS
) -> dict[str, float]:
    """Return weight name -> density for the layers that Li et al. prune, to be passed as ``allocation``.

    ``rewound.prune(model, density=None, pattern="filter", criterion="l1", allocation=li2017("ResNet-56-A", model),
    example=x)``: the other layers stay whole, except for the input channels that leave with a filter before them. The number
    of filters that stay is rounded (the authors draw it at random between its neighbours).

    name: "ResNet-56-A", "ResNet-56-B", "ResNet-110-A", "-B", "ResNet-34-A", "-B" or "VGG-16-A". model: any that holds that
    network's convolutions in the order in which they run; its width does not matter. times: 1 is the paper's rate r; i is
    the one-shot rate 1 - (1 - r)^i, by which Renda et al. 2020 go on to higher compression. projections: glob patterns of
    modules that have no number. ValueError for an unknown name, or if the model has another number of convolutions.

    >>> from rewound.tasks.models.vgg import vgg_16
    >>> li2017("VGG-16-A", vgg_16())["0.weight"]
    0.5
    >>> li2017("VGG-16-A", vgg_16(), times=2)["0.weight"]
    0.25
    """
    if name not in LI2017:
        raise ValueError(unknown("network of Li et al. 2017", name, LI2017))
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ValueError(f"'times' must be a whole number of at least 1 (got {times!r})")
    table, layers = LI2017[name], numbered_convolutions(model, projections=projections)
    if len(layers) != table.count:
        raise ValueError(
            f"{name} has {table.count} convolutions that count, this model {len(layers)} (projections left out: "
            f"{', '.join(projections)}); pass the model of that depth, or its own glob patterns as projections="
        )
    return {f"{layers[n]}.weight": (1 - table.rate(n)) ** times for n in table.pruned}


def numbered_convolutions(model: nn.Module, *, projections: Iterable[str] = _PROJECTIONS) -> dict[int, str]:
    """Return number -> module name of the convolutions, counted from 1 in the order in which the model holds them.

    >>> from rewound.tasks.models.resnet import cifar_resnet
    >>> layers = numbered_convolutions(cifar_resnet(56))
    >>> layers[1], layers[2], layers[21], layers[54]
    ('stem.0', 'layer1.0.conv1', 'layer2.0.conv2', 'layer3.8.conv1')
    """
    names = [
        name
        for name, module in named_modules(model)
        if isinstance(module, _CONVOLUTIONS) and not any(fnmatchcase(name, p) for p in projections)
    ]
    return dict(enumerate(names, start=1))
