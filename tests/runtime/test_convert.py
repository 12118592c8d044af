"""What is converted and simplified computes what the model computes, to the last bits of float64, for any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.runtime.converted import compared, in_torch, ops
from torch import nn
from torch.nn.utils import parametrizations, prune

from rewound.runtime import reference, structure
from rewound.runtime.convert import convert
from rewound.runtime.graph import rounded
from rewound.runtime.simplify import simplify
from rewound.runtime.weights import Sparse
from rewound.tasks.models.lenet import lenet_5
from rewound.tasks.models.mlp import lenet_300_100
from rewound.tasks.models.resnet import Block, cifar_resnet
from rewound.tasks.models.vgg import vgg_16


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 2 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(6 + 4 * i), nn.ReLU(inplace=True), nn.Conv2d(6 + 4 * i, 4, 3, padding=1)
            )
            for i in range(2)
        )
        self.transition = nn.Sequential(
            nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 5, 1), nn.AvgPool2d(2, 2)
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(self.transition(torch.cat(features, 1)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.up = nn.Conv2d(12, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        wide = self.down(x)
        corners = {"align_corners": True} if self.mode == "bilinear" else {}
        deep = F.interpolate(self.deep(F.max_pool2d(wide, 2)), scale_factor=2, mode=self.mode, **corners)
        y = self.out(F.relu(self.up(torch.cat([deep, wide], 1))))
        return F.interpolate(
            F.interpolate(y, size=(19, 21), mode=self.mode), scale_factor=1.7, mode=self.mode
        )


class SqueezeExcite(nn.Module):
    """Nested results, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.hardswish(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return x * gate, {"probabilities": F.softmax(x.flatten(2), -1), "more": [x.amax(1), 5]}


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x):
        y = self.scale * self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class ViT(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, activation="gelu", norm_first=True, batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x[:, 0])


def test_networks_of_the_bundled_tasks_are_layers_and_nothing_else():
    assert ops(compared(lenet_300_100(), torch.randn(2, 1, 28, 28))) == {"linear": 3, "reshape": 1}
    assert ops(compared(lenet_5(), torch.randn(1, 1, 28, 28))) == {
        "conv": 2,
        "linear": 2,
        "pool": 2,
        "reshape": 1,
    }
    assert ops(compared(cifar_resnet(20), torch.randn(1, 3, 16, 16))) == {
        "conv": 21,
        "linear": 1,
        "reduce": 1,
    }
    vgg = compared(vgg_16(), torch.randn(1, 3, 32, 32), batches=(2,))
    assert ops(vgg) == {"conv": 13, "linear": 1, "pool": 5, "reshape": 1}


def test_blocks_fold_their_norms_and_take_their_sums_and_activations():
    bottlenecks = nn.Sequential(Block(4, 3, 2, 4, 0.1), Block(12, 3, 1, 4, 0.1))
    graph = compared(bottlenecks, torch.randn(2, 4, 9, 9))
    assert ops(graph) == {"conv": 7}
    assert sum(len(node.inputs) == 2 for node in graph.nodes) == 2
    mobile = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), Inverted(8, 8, 1), Inverted(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    graph = compared(mobile, torch.randn(1, 3, 16, 16))
    assert ops(graph) == {"adaptive_pool": 1, "conv": 7, "reshape": 1}
    assert sum(node.attributes.get("activation") == ["clamp", 0.0, 6.0] for node in graph.nodes) == 4


def test_a_norm_before_a_layer_folds_unless_padding_would_be_shifted():
    folds = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, groups=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=2)
    )
    assert ops(compared(folds, torch.randn(2, 3, 6, 6))) == {"conv": 2}
    stays = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1))
    assert ops(compared(stays, torch.randn(2, 3, 6, 6))) == {"affine": 1, "conv": 1}
    assert in_torch(compared(DenseNet(), torch.randn(2, 3, 8, 8))) == []


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling_and_concatenation(mode):
    assert in_torch(compared(UNet(mode), torch.randn(1, 1, 12, 16))) == []


def test_transposed_convolutions_are_convolutions():
    apart = nn.Sequential(
        nn.ConvTranspose2d(3, 4, (2, 3), (2, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    assert ops(compared(apart, torch.randn(2, 3, 4, 4)))["conv"] == 2
    spread = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1, groups=2, bias=False),
        nn.ConvTranspose2d(6, 2, (4, 3), (1, 3), padding=(2, 0), dilation=(1, 2)),
    )
    assert in_torch(compared(spread, torch.randn(2, 4, 5, 3))) == []
    assert in_torch(compared(nn.ConvTranspose1d(4, 6, 5, 3, padding=2), torch.randn(2, 4, 5))) == []


def test_nested_results_come_back():
    graph = compared(SqueezeExcite(), torch.randn(2, 3, 9, 9))
    outputs = reference.run(graph, [np.zeros((1, 3, 9, 9))], np.float32)
    x, rest = structure.restored(graph.structure["results"], outputs)
    assert (x.dtype, list(rest), rest["more"][1]) == (np.float32, ["probabilities", "more"], 5)


def test_layers_of_every_kind():
    one = nn.Sequential(
        nn.Conv1d(4, 8, 5, 2, padding=2, dilation=2), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv1d(8, 8, 3, padding="same", groups=4),
        nn.InstanceNorm1d(8, affine=True), nn.ELU(), nn.MaxPool1d(2, ceil_mode=True), nn.AvgPool1d(3, 2, 1),
        nn.AdaptiveAvgPool1d(3), nn.BatchNorm1d(8), nn.Mish(), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(48, 3),
        nn.BatchNorm1d(3), nn.LogSoftmax(1),
    )  # fmt: skip
    assert in_torch(compared(one, torch.randn(2, 4, 33))) == []
    two = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), nn.GroupNorm(4, 8), nn.PReLU(8), nn.ZeroPad2d((1, 0, 2, 1)),
        nn.Conv2d(8, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.2), nn.PixelShuffle(2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.AdaptiveMaxPool2d((3, 2)), nn.SELU(), nn.Softplus(),
        nn.Hardsigmoid(), nn.Softsign(), nn.Tanhshrink(), nn.PReLU(), nn.LogSigmoid(), nn.GLU(3), nn.Softmax(2),
    )  # fmt: skip
    assert in_torch(compared(two, torch.randn(2, 4, 11, 12))) == []


def test_transformers():
    assert in_torch(compared(ConvNeXtBlock(), torch.randn(2, 6, 9, 9))) == []
    for batch_first in (True, False):  # torch's attention has its batch second inside, and so may the model
        graph = compared(ViT(batch_first), torch.randn(1, 3, 16, 16))
        assert in_torch(graph) == []
        assert ops(graph)["attention"] == 2
        assert "binary" not in ops(graph) or ops(graph)["binary"] == 1


class ByHand(nn.Module):
    """What models write by hand, attention with two keys' heads for four queries'."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, n) for n in (8, 4, 4, 8))
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        n, t, _ = x.shape
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = (f(y).view(n, t, -1, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (z[:, :, None].expand(n, 2, 2, t, 2).reshape(n, 4, t, 2) for z in (k, v))
        scores = q @ k.transpose(2, 3) / 2**0.5 + torch.full((t, t), -torch.inf).triu(1)
        y = self.o((F.softmax(scores, -1) @ v).transpose(1, 2).reshape(n, t, 8)) + x
        centred = y - y.mean(-1, keepdim=True)
        y = self.scale * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)) + self.shift
        y = y * 0.5 * (1.0 + torch.erf(y / 2**0.5))
        y = 0.5 * y * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * torch.pow(y, 3.0))))
        return (
            y * torch.sigmoid(y)
            + y * torch.sigmoid(1.702 * y)
            + y * F.relu6(y + 3) / 6
            + y * torch.tanh(F.softplus(y))
        )


def test_layers_written_by_hand_are_recognised():
    graph = compared(ByHand(), torch.randn(2, 5, 8))
    found = [node.attributes["activation"][0] for node in graph.nodes if node.op == "activation"]
    assert sorted(found) == ["gelu", "gelu_tanh", "hardswish", "mish", "quick_gelu", "silu"]
    norms = [node.attributes["kind"] for node in graph.nodes if node.op == "norm"]
    assert norms == ["rms", "layer"]
    (attention,) = (node for node in graph.nodes if node.op == "attention")
    assert attention.attributes["causal"]
    assert len(attention.inputs) == 3
    assert graph.values[attention.inputs[1]].shape == (None, 2, 5, 2)


def test_pruned_weights_are_sparse_under_their_own_names():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    )
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[4], "weight", 0.8)
    weights = rounded(compared(model, torch.randn(1, 2, 5, 5))).weights
    assert isinstance(weights["0.weight"], Sparse)
    assert weights["0.weight"].density == 0.5  # the batch norm that was folded left zeros zero
    assert weights["4.weight"].density == 0.2
    assert weights["4.bias"].dtype == np.float32


def test_parametrized_and_shared_weights():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 2))
    )
    assert set(compared(model, torch.randn(2, 4)).weights) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    layer = nn.Linear(4, 4, bias=False)  # each use has a norm of its own to fold
    graph = compared(
        nn.Sequential(layer, nn.BatchNorm1d(4), nn.ReLU(), layer, nn.BatchNorm1d(4)), torch.randn(2, 4)
    )
    assert ops(graph) == {"linear": 2}
    assert len({node.weights["weight"] for node in graph.nodes}) == 2


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0), torch.cumsum(x, 0), x.flip(1)


def test_what_no_rule_knows_runs_in_torch_and_is_named():
    graph = compared(Mixing(), torch.randn(3, 4))
    assert in_torch(graph) == ["cumsum", "flip", "mean", "sub"]
    assert all("test_convert.py" in node.attributes["line"] for node in graph.nodes)
    assert in_torch(compared(nn.LSTM(4, 5, batch_first=True), torch.randn(2, 6, 4))) == ["lstm"]
    assert in_torch(
        compared(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3)), torch.randn(1, 2, 4, 4))
    ) == ["pad"]


class Shapes(nn.Module):
    """A mask of booleans, arguments that are nested or no tensors, constants among the results, frames of a film."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.frames = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.table = nn.Parameter(torch.randn(3))

    def forward(self, given, hidden, double=False):
        x = self.encoder(given["x"], src_key_padding_mask=hidden)
        flat = self.frames(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
        return x * 2 if double else x, flat.amax(1), self.table, x[:, [0, 2, 1]], torch.zeros_like(x) + 1


def test_arguments_and_results_of_every_kind():
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    model = Shapes().double().eval()
    example = ({"x": torch.randn(2, 5, 8).double()}, hidden, True)
    graph = simplify(convert(model, example))
    assert in_torch(graph) == []
    assert [graph.values[name].dtype for name in graph.inputs] == ["float32", "bool"]
    hidden = torch.tensor([[False, True, True, False, True]] * 3)
    x = torch.randn(3, 5, 8).double()
    inputs = structure.bound(graph.structure["arguments"], ({"x": x},), {"hidden": hidden})
    made = structure.restored(
        graph.structure["results"], reference.run(graph, {k: v.numpy() for k, v in inputs.items()})
    )
    with torch.no_grad():
        for mine, theirs in zip(made, model({"x": x}, hidden, True)):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-10, atol=1e-12)
    with pytest.raises(TypeError, match="compiled with True"):
        structure.bound(graph.structure["arguments"], ({"x": x}, hidden, False), {})
    with pytest.raises(TypeError, match="'hidden' is missing"):
        structure.bound(graph.structure["arguments"], ({"x": x},), {})


class Hides(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, torch.log(x), 0.0)


def test_a_nan_that_is_hidden_stays_hidden():
    assert in_torch(compared(Hides(), torch.randn(4, 9))) == ["gt", "where"]


class TakesNumber(nn.Module):
    """Its code makes a number of the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        n = int(x.shape[0])
        return self.layer(x).view(n, 2, 3).permute(1, 0, 2).reshape(2 * n, 3).softmax(1)


class Gram(nn.Module):
    def forward(self, x):
        return x @ x.t()


def test_the_batch_is_free_where_it_can_be_and_the_reason_told_where_not():
    graph = compared(TakesNumber(), torch.randn(2, 4))
    assert graph.values[graph.inputs[0]].shape == (None, 4)
    assert in_torch(graph) == []
    graph = compared(Gram(), torch.randn(3, 4))
    assert graph.values[graph.inputs[0]].shape == (3, 4)
    assert "several batches" in graph.structure["batch"]


class Decides(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Draws(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x * self.count


class Product(nn.Module):
    def forward(self, x, matrix):
        return x @ matrix


def test_what_an_engine_cannot_be_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"test_convert.py:\d+: if x.sum\(\) > 0"):
        convert(Decides(), x)
    with pytest.raises(ValueError, match=r"rand_like.* draws at random"):
        convert(Draws(), x)
    with pytest.raises(ValueError, match="'count' in evaluation mode"):
        convert(Remembers(), x)
    with pytest.raises(ValueError, match="empty batch"):
        convert(nn.Linear(3, 2), torch.ones(0, 3))
    with pytest.raises(ValueError, match="no tensor"):
        convert(nn.Linear(3, 2), {"input": 3})
    with pytest.raises(ValueError, match="batch as its first axis"):
        convert(Product(), (x, torch.ones(3, 4)))


def test_the_model_is_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.ReLU(inplace=True)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    simplify(convert(model, torch.randn(2, 3)))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_float32_is_the_slow_path():
    model = cifar_resnet(8).eval()
    x = torch.randn(2, 3, 16, 16)
    graph = rounded(simplify(convert(model, x)))
    (y,) = reference.run(graph, [x.numpy()], np.float32)
    assert y.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(y, model(x).numpy(), rtol=1e-4, atol=1e-5)
