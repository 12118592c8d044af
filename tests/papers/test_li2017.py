"""Done when 4 of the structured issue: the densities of Li et al. as the authors' rates and skip lists give them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rewound.papers.li2017 import LI2017, li2017, numbered_convolutions
from rewound.pruning import prune
from rewound.tasks.models.resnet import cifar_resnet, imagenet_resnet
from rewound.tasks.models.vgg import vgg_16

NETWORKS = {
    "ResNet-56": lambda: cifar_resnet(56),
    "ResNet-110": lambda: cifar_resnet(110),
    "ResNet-34": lambda: imagenet_resnet(34),
    "VGG-16": vgg_16,
}
# Kernels of convolutions and of the last layer, filters and the input slices after them. Where the authors rounded at
# random theirs differ in the fourth digit: 110-B .6876, 34-A .9246, 34-B .8937, 56-A .9209, 56-B .8712.
DENSITIES = {
    "ResNet-56-A": 0.9215,
    "ResNet-56-B": 0.8722,
    "ResNet-110-A": 0.9773,
    "ResNet-110-B": 0.6873,
    "ResNet-34-A": 0.9248,
    "ResNet-34-B": 0.8940,
    "VGG-16-A": 0.3572,
}


def network(name):
    with torch.device("meta"):
        return NETWORKS[name.rpartition("-")[0]]()


def by_arithmetic(model, densities):
    """Kept / all kernel weights, a removed filter taken from its layer and from the next."""
    layers = [model.get_submodule(name) for name in numbered_convolutions(model).values()]
    names = list(numbered_convolutions(model).values())
    kept, before = 0, None
    for name, layer in zip(names, layers):
        out = layer.out_channels
        stays = round(densities.get(f"{name}.weight", 1) * out)
        kept += stays * (before or layer.in_channels) * layer.kernel_size[0] ** 2
        before = stays if stays < out else None
    all_kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [
        p for p in all_kernels if not any(p is layer.weight for layer in layers)
    ]  # projections, last layer
    kept += sum(p.shape[0] * (before if before and p.ndim == 2 else p.shape[1]) for p in others)
    return kept / sum(p.numel() for p in all_kernels)


@pytest.mark.parametrize("name", LI2017)
def test_densities_by_arithmetic(name):
    model = network(name)
    assert round(by_arithmetic(model, li2017(name, model)), 4) == DENSITIES[name]


@pytest.mark.parametrize("name", ["ResNet-56-A", "ResNet-56-B", "ResNet-110-B"])
def test_densities_through_the_pruner(name):
    model = NETWORKS[name.rpartition("-")[0]]()
    mask = prune(model, None, criterion="l1", pattern="filter", allocation=li2017(name, model),
                 example=torch.zeros(1, 3, 32, 32))  # fmt: skip
    kernels = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    kept = sum(int(mask[n].sum()) if n in mask else p.numel() for n, p in kernels.items())
    assert round(kept / sum(p.numel() for p in kernels.values()), 4) == DENSITIES[name]
    for weight in li2017(name, model):  # the filters that are left have the largest norms of their layer
        norms = model.get_parameter(weight).detach().abs().sum((1, 2, 3))
        stays = mask[weight].flatten(1).any(1)
        assert norms[stays].min() >= norms[~stays].max()


def test_rates_follow_the_stages_and_the_skip_lists():
    model = network("ResNet-56-B")
    rates = li2017("ResNet-56-B", model)
    numbers = {f"{name}.weight": number for number, name in numbered_convolutions(model).items()}
    found = {numbers[name]: density for name, density in rates.items()}
    assert found[2] == pytest.approx(0.4)
    assert found[22] == pytest.approx(0.7)
    assert found[40] == pytest.approx(0.9)
    assert sorted(found) == [n for n in range(2, 55, 2) if n not in (16, 18, 20, 34, 38, 54)]
    assert all(".conv1." in name for name in rates)  # the first convolution of a block


def test_projections_have_no_number():
    layers = numbered_convolutions(network("ResNet-34-A"))
    assert (layers[1], layers[8], layers[14], layers[28]) == (
        "stem.0", "layer2.0.conv1", "layer2.3.conv1", "layer4.0.conv1"
    )  # fmt: skip
    assert not any("shortcut" in name for name in layers.values())


def test_more_compression_is_one_shot_at_a_higher_rate():
    model = network("VGG-16-A")
    assert set(li2017("VGG-16-A", model, times=3).values()) == {0.125}
    model = network("ResNet-56-A")
    removed = [1 - density for density in li2017("ResNet-56-A", model, times=2).values()]
    assert removed == pytest.approx([1 - (1 - 0.1) ** 2] * 23)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"unknown network of Li et al. 2017 'ResNet-56-C': did you mean"):
        li2017("ResNet-56-C", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="ResNet-56-A has 55 convolutions that count, this model 109"):
        li2017("ResNet-56-A", network("ResNet-110-A"))
    with pytest.raises(ValueError, match="'times' must be a whole number of at least 1"):
        li2017("VGG-16-A", vgg_16(), times=0)
