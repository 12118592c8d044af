"""Engines compute what torch computes, as exactly, for any batch, number of threads, instruction set and density."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewound import runtime
from rewound.runtime import _native
from rewound.runtime.graph import Graph
from rewound.runtime.parts import Alone, Native


@pytest.fixture(params=_native.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.instruction_set()
    _native.use_instruction_set(request.param)
    yield request.param
    _native.use_instruction_set(before)


# -- networks -------------------------------------------------------------------------------------------------------------------


def block(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6() if groups > 1 else nn.ReLU())


def lenet() -> nn.Module:
    """LeCun et al. 1998: 5 x 5 windows without padding."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(16, 20, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 10),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = block(inputs, outputs, stride)
        self.b = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.short = (
            nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.a(x)) + self.short(x))


def resnet() -> nn.Module:
    layers = [block(3, 7), Residual(7, 7, 1), Residual(7, 13, 2), Residual(13, 13, 1), Residual(13, 24, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def vgg() -> nn.Module:
    """Down to planes of one pixel, which 3 x 3 windows read still."""
    layers: list[nn.Module] = []
    for a, b in ((3, 8), (8, 17), (17, 32), (32, 33)):
        layers += [block(a, b), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, block(33, 40), nn.Flatten(), nn.Linear(40, 5))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.layers = nn.Sequential(
            block(inputs, wide, kernel=1),
            block(wide, wide, stride, wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same else self.layers(x)


def mobilenet() -> nn.Module:
    layers = [block(3, 8, 2), Inverted(8, 12, 2), Inverted(12, 12, 1), Inverted(12, 20, 2)]
    return nn.Sequential(*layers, nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 9))


class Dense(nn.Module):
    """Huang et al. 2017: everything that was there, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8, 2, kernel=7)
        self.grow = nn.ModuleList(block(8 + 6 * i, 6) for i in range(4))
        self.narrow = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        seen = [x]
        for layer in self.grow:
            seen.append(layer(torch.cat(seen, 1)))
        x = F.avg_pool2d(self.narrow(torch.cat(seen, 1)), 2)
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.deep = block(3, 8), block(8, 12), block(12, 16)
        self.up1 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.mix1, self.mix2, self.out = block(24, 12), block(20, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.deep(F.max_pool2d(b, 2))
        c = self.mix1(torch.cat([b, self.up1(c)], 1))
        up = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=False)
        return {"map": self.out(self.mix2(torch.cat([a, up], 1))), "deep": F.log_softmax(c, 1)}


class Encoder(nn.Module):
    """A layer of BERT or ViT, attention by hand or by torch's function."""

    def __init__(self, width: int = 24, heads: int = 4, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, width = x.shape
        parts = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            y = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.project(y.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 24), nn.Embedding(20, 24)
        self.layers = nn.ModuleList(Encoder() for _ in range(2))
        self.pool = nn.Linear(24, 24)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        added = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, added)
        return x, torch.tanh(self.pool(x[:, 0]))


class ViT(nn.Module):
    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 24))
        self.places = nn.Parameter(torch.randn(1, 17, 24))
        self.layers = nn.ModuleList(Encoder(fused=fused) for _ in range(2))
        self.head = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def sounds() -> nn.Module:
    """1-D convolutions, strided and dilated, and a group norm."""
    return nn.Sequential(
        nn.Conv1d(2, 9, 7, 2, 3), nn.GroupNorm(3, 9), nn.SiLU(), nn.Conv1d(9, 14, 3, padding=2, dilation=2), nn.GELU(),
        nn.MaxPool1d(3, 2, 1), nn.Conv1d(14, 14, 3, padding=1, groups=7), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    )  # fmt: skip


def image(size: int, channels: int = 3) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randn(n, channels, size, size),)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(21, 300), nn.ReLU(), nn.Linear(300, 40), nn.Sigmoid(), nn.Linear(40, 3)
        ),
        lambda n: (torch.randn(n, 21),),
    ),
    "lenet": (lenet, image(28, 1)),
    "resnet": (resnet, image(21)),
    "vgg": (vgg, image(16)),
    "mobilenet": (mobilenet, image(33)),
    "dense": (Dense, image(40)),
    "unet": (UNet, image(16)),
    "bert": (
        Bert,
        lambda n: (
            torch.randint(50, (n, 11)),
            torch.cat([torch.ones(n, 1, dtype=torch.int64), torch.randint(2, (n, 10))], 1),
        ),
    ),
    "vit": (ViT, image(16)),
    "vit, attention by hand": (lambda: ViT(False), image(16)),
    "sounds": (sounds, lambda n: (torch.randn(n, 2, 50),)),
}


def built(name: str, density: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.7, 1.3)
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(std=0.1)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) < density)
    return model.eval()


@functools.cache
def graph_of(name: str, density: float = 1.0) -> Graph:
    return runtime.compile(built(name, density), NETWORKS[name][1](2)).graph


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [x for part in (result.values() if isinstance(result, dict) else result) for x in flat(part)]


def assert_exact(engine: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The error of the engine against float64 is at most four times that of torch in float32."""
    with torch.no_grad():
        single = flat(model(*inputs))
        twice = [x.double() if x.is_floating_point() else x for x in inputs]
        exact = flat(copy.deepcopy(model).double()(*twice))
    for mine, theirs, right in zip(flat(engine(*inputs)), single, exact, strict=True):
        assert mine.shape == theirs.shape
        if right.numel() == 0:
            continue
        few = 1e-6 * float(right.abs().max()) + 1e-9  # torch may be lucky on a few numbers
        allowed = max(4 * float((theirs - right).abs().max()), few)
        assert float((mine - right).abs().max()) <= allowed


@pytest.mark.parametrize("name", NETWORKS)
def test_engines_are_as_exact_as_torch_for_any_batch(name: str) -> None:
    model, inputs = built(name), NETWORKS[name][1]
    engine = runtime.compile(graph_of(name))
    for batch in (1, 3, 16, 0):
        assert_exact(engine, model, inputs(batch))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_zeros_are_skipped_and_change_nothing(name: str, density: float) -> None:
    model, inputs = built(name, density), NETWORKS[name][1]
    assert_exact(runtime.compile(graph_of(name, density)), model, inputs(2))


@pytest.mark.parametrize("name", ["mlp", "resnet", "mobilenet", "bert", "unet"])
def test_every_instruction_set(name: str, kernels: str) -> None:
    model, inputs = built(name, 0.5), NETWORKS[name][1]
    engine = runtime.compile(graph_of(name, 0.5))
    assert_exact(engine, model, inputs(3))
    assert kernels in str(engine.report(*inputs(1), seconds=0.0))


@pytest.mark.parametrize("name", ["mlp", "resnet", "bert", "unet"])
def test_the_bits_do_not_depend_on_threads(name: str) -> None:
    engines = [runtime.compile(graph_of(name, 0.5), threads=n) for n in (1, 2, 3)]
    for batch in (1, 3, 5):
        given = NETWORKS[name][1](batch)
        results = [flat(engine(*given)) for engine in engines]
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other))


def test_everything_that_is_known_runs_natively() -> None:
    for name in NETWORKS:
        engine = runtime.compile(graph_of(name))
        outside = [part.node.attributes.get("target") for part in engine.parts if isinstance(part, Alone)]
        assert outside == []


def test_a_network_that_ends_in_groups_is_as_exact() -> None:
    torch.manual_seed(0)
    layers = [
        block(3, 64),
        nn.MaxPool2d(4),
        Residual(64, 64, 1),
        nn.Flatten(),
        nn.Linear(256, 250),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.Linear(250, 3)).eval()
    engines = [runtime.compile(model, torch.zeros(1, 3, 8, 8), threads=n) for n in (1, 2)]
    (part,) = engines[0].parts
    assert isinstance(part, Native) and len(part.stages(16)) == 2 and len(part.stages(1)) == 1
    for batch in (1, 5, 37):
        given = torch.randn(batch, 3, 8, 8)
        assert_exact(engines[0], model, (given,))
        assert torch.equal(engines[0](given), engines[1](given))
    assert "linear" in str(engines[0].report(torch.randn(20, 3, 8, 8), seconds=0.0))
