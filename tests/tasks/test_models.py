"""The bundled networks: their size, their outputs, and weights that are a function of the seed."""

import pytest
import torch
from torch import nn

from rewound.tasks.models import seeded
from rewound.tasks.models.lenet import lenet_5
from rewound.tasks.models.mlp import lenet_300_100, mlp
from rewound.tasks.models.resnet import cifar_resnet, imagenet_resnet
from rewound.tasks.models.vgg import vgg_16


def prunable(model):
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


def everything(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_the_literature():
    assert everything(lenet_300_100()) == 266_610  # Han et al. 2015: 267K
    assert everything(lenet_5()) == 431_080  # 431K
    assert everything(imagenet_resnet(34)) == 21_797_672  # He et al. 2016 with projections
    assert everything(imagenet_resnet(50)) == 25_557_032
    assert round(everything(cifar_resnet(20)) / 1e6, 2) == 0.27
    assert round(everything(cifar_resnet(56)) / 1e6, 2) == 0.86  # 0.85 and two projections
    assert round(everything(cifar_resnet(110)) / 1e6, 1) == 1.7
    assert prunable(vgg_16()) == 14_715_584


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        (mlp(6, (), 3), (2, 1, 2, 3), 3),
        (lenet_300_100(), (2, 1, 28, 28), 10),
        (lenet_5(), (2, 1, 28, 28), 10),
        (cifar_resnet(8, width=4, in_channels=1), (2, 1, 8, 8), 10),
        (cifar_resnet(20), (2, 3, 32, 32), 10),
        (vgg_16(), (2, 3, 32, 32), 10),
        (imagenet_resnet(34, width=4, classes=7), (2, 3, 64, 64), 7),
        (imagenet_resnet(50, width=4, classes=7), (2, 3, 64, 64), 7),
    ],
)
def test_outputs_and_gradients(model, shape, classes):
    output = model(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (shape[0], classes)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # nothing stands beside the path


def test_layers_of_resnet_20():
    convolutions = [m for m in cifar_resnet(20).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 19 + 2  # and two projections
    assert [m.out_channels for m in convolutions if m.stride == (2, 2)] == [32, 32, 64, 64]
    norm = cifar_resnet(20, batch_norm_momentum=0.003).layer1[0].bn1
    assert norm.momentum == 0.003


@pytest.mark.parametrize("make", [lambda: cifar_resnet(21), lambda: imagenet_resnet(18)])
def test_unknown_depths(make):
    with pytest.raises(ValueError, match="'depth' must be"):
        make()


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (seeded(s, lambda: cifar_resnet(8, width=4)).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])
