"""The networks that compaction and the engine are measured on, at the size people use them; ``quick`` makes them tiny.

Weights are random, and so are norms, biases and running statistics: what ought to be zero is never zero by chance. Each
builder returns the model in evaluation mode and one example of batch size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rewound.tasks.models.gnmt import Gnmt
from rewound.tasks.models.mlp import lenet_300_100, mlp
from rewound.tasks.models.resnet import cifar_resnet, imagenet_resnet
from rewound.tasks.models.vgg import vgg_16

Built = tuple[nn.Module, Any]


def build(name: str, quick: bool = False) -> Built:
    """Return (model, example); the same each time."""
    torch.manual_seed(0)
    model, example = NETWORKS[name](quick)
    if not next(model.parameters()).is_meta:
        randomise_(model)
    return model.eval(), example


def randomise_(model: nn.Module) -> None:
    """Draw everything that starts as all ones or all zeros: scales, shifts, biases, running statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                ones = bool((parameter == 1).all())
                _ = parameter.uniform_(0.7, 1.3) if ones else parameter.normal_(std=0.1)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.7, 1.3)


# ---- convolutions ------------------------------------------------------------------------------------------------


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, size, size)


class InvertedResidual(nn.Module):
    """Sandler et al. 2018: expand, depthwise, project; a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers = _conv6(inputs, wide, 1) if expand > 1 else []
        layers += [*_conv6(wide, wide, 3, stride, groups=wide), *_conv6(wide, outputs, 1)[:-1]]
        self.layers, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet_v2(quick: bool) -> Built:
    """Return MobileNetV2 of width 1: 3.5 million parameters."""
    rows = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    layers, inputs = _conv6(3, 32, 3, 2), 32
    for expand, outputs, count, stride in rows[: 3 if quick else None]:
        for i in range(count):
            layers.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expand))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *_conv6(inputs, 1280, 1), *head), image(32 if quick else 224)


def _conv6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]


class UNet(nn.Module):
    """Ronneberger et al. 2015 with batch norm: ``depth`` halvings, the way down concatenated to the way up."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.mix = nn.ModuleList(_twice(2 * w, w) for w in reversed(widths[:-1]))
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for i, layer in enumerate(self.down):
            x = layer(x if i == 0 else nn.functional.max_pool2d(x, 2))
            seen.append(x)
        for up, mix, before in zip(self.up, self.mix, reversed(seen[:-1])):
            x = mix(torch.cat([before, up(x)], 1))
        return self.out(x)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in (inputs, outputs):
        layers += [nn.Conv2d(wide, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def fully_connected(width: int, outputs: int) -> Built:
    """Return three linear layers, width - width - width - outputs, with ReLU between them."""
    return mlp(width, (width, width), outputs), torch.randn(1, width)


# ---- attention and recurrence --------------------------------------------------------------------------------------


def tokens(vocabulary: int, length: int) -> Tensor:
    return torch.randint(vocabulary, (1, length))


def vit(quick: bool, width: int, heads: int) -> Built:
    """Return a ViT of 12 layers for 224 x 224 (Dosovitskiy et al. 2021): 768 wide "base", 384 "small"."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_labels": 1000,
    }
    if quick:
        sizes |= {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        sizes |= {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes)), image(32 if quick else 224)


def bert(quick: bool, layers: int = 12) -> Built:
    """Return BERT-base (Devlin et al. 2019), or its first ``layers``, with a classifier of two classes; 128 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}
    config = BertConfig(num_hidden_layers=2 if quick else layers, **(small if quick else {}))
    return BertForSequenceClassification(config), tokens(config.vocab_size, 16 if quick else 128)


def gpt2(quick: bool, layers: int = 3) -> Built:
    """Return the first ``layers`` of GPT-2 small (Radford et al. 2019), without the softmax over words; 128 tokens."""
    from transformers import GPT2Config, GPT2Model

    sizes = (
        {"n_embd": 32, "n_head": 4, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0} if quick else {}
    )
    config = GPT2Config(n_layer=2 if quick else layers, use_cache=False, **sizes)
    return GPT2Model(config), tokens(config.vocab_size, 16 if quick else 128)


def llama_7b(quick: bool) -> Built:
    """Return Llama-7B (Touvron et al. 2023), 32 layers, on the meta device: shapes without values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2 if quick else 32))
        return model, torch.zeros(1, 128, dtype=torch.long)


def gnmt(quick: bool) -> Built:
    """Return a GNMT of 512 units (Wu et al. 2016): three LSTMs deep, attention; a sentence of 24 tokens."""
    vocabulary, units = (100, 16) if quick else (8000, 512)
    sentence = tokens(vocabulary, 24)
    return Gnmt(vocabulary, units=units, layers=3), (sentence, torch.tensor([24]), tokens(vocabulary, 24))


NETWORKS: dict[str, Callable[[bool], Built]] = {
    "ResNet-20": lambda quick: (cifar_resnet(20), image(32)),
    "ResNet-56": lambda quick: (cifar_resnet(14 if quick else 56), image(32)),
    "ResNet-50": lambda quick: (imagenet_resnet(50, width=8 if quick else 64), image(64 if quick else 224)),
    "VGG-16": lambda quick: (vgg_16(), image(32)),
    "MobileNetV2": mobilenet_v2,
    "U-Net": lambda quick: (UNet(4, 2) if quick else UNet(32, 4), image(32 if quick else 128)),
    "ViT-S": lambda quick: vit(quick, 384, 6),
    "ViT-B": lambda quick: vit(quick, 768, 12),
    "BERT-base, 4 layers": lambda quick: bert(quick, 4),
    "BERT-base": bert,
    "GPT-2, 3 layers": gpt2,
    "GNMT": gnmt,
    "Llama-7B": llama_7b,
    "MLP 4096": lambda quick: fully_connected(256 if quick else 4096, 1000),
    "LeNet-300-100": lambda quick: (lenet_300_100(), image(28, 1)),
}
