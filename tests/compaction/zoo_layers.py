"""Small convolutional networks, each with one thing that is easily got wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from tests.compaction.zoo_residual import Head, conv_norm, images
from torch import Tensor, nn


class Steps(nn.Module):
    """Layers by name, and a function that says in which order they run."""

    def __init__(self, forward: Callable[..., object], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> object:
        return self._forward(self, *inputs)


def _between(middle: nn.Module, inputs: int = 12, outputs: int = 12) -> nn.Sequential:
    """Convolution, something, convolution, head."""
    return nn.Sequential(
        nn.Conv2d(3, inputs, 3, padding=1), middle, nn.Conv2d(outputs, 10, 3), nn.ReLU(), Head(10)
    )


# -- the zero that does not stay zero ----------------------------------------------------------------------


class AwayFromZero(nn.Module):
    """Sigmoid, softplus, hard sigmoid, cosine and exp turn a dead channel into a constant; a value padded with
    one puts a frame round it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.stem, self.head = nn.Conv2d(3, 8, 3), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.stem(x), (1, 1, 1, 1), value=1.0)
        for conv, curve in zip(self.convs, (torch.sigmoid, F.softplus, F.hardsigmoid, torch.cos, torch.exp)):
            x = curve(conv(x))
        return self.head(x)


def constant_between() -> nn.Module:
    """Batch norm then ReLU then a convolution that pads, one that does not, and one with reflecting borders."""
    layers = [conv_norm(3, 9), conv_norm(9, 8, 3), conv_norm(8, 8, 3, padding=0)]
    return nn.Sequential(*layers, conv_norm(8, 7, 3, padding=1, padding_mode="reflect"), Head(7))


# -- statistics across channels ----------------------------------------------------------------------------


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: each filter less its mean over ALL inputs, by its deviation; functional."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = self.weight.std(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, padding=1)


def _normalised(m: Steps, x: Tensor) -> Tensor:
    """Cosine classifier: features and class vectors by their lengths, which run over the channels."""
    x = F.relu(m.conv(x)).mean((2, 3))
    return F.linear(F.normalize(m.embed(x)), F.normalize(m.prototypes)) * m.temperature


def _channel_softmax(m: Steps, x: Tensor) -> Tensor:
    """A softmax over channels: a dead channel still takes exp(0) of the sum."""
    return m.head(m.last(F.relu(m.first(x)).softmax(dim=1)))


# -- parameters that belong to no layer, or to two ---------------------------------------------------------


class Twice(nn.Module):
    """One block runs twice, at two places: its units must be free at both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_norm(3, 8), Head(8)
        self.shared = nn.Sequential(conv_norm(8, 12), nn.Conv2d(12, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.shared(x)
        return self.head(x + self.shared(F.relu(x)))


def _free_parameters(m: Steps, x: Tensor) -> Tensor:
    """A gain and a shift a channel, used bare; a linear layer of bare parameters."""
    x = F.relu(m.conv(x)) * m.gain.view(1, -1, 1, 1) + m.shift
    x = F.conv2d(x, m.kernel, m.kernel_bias)
    return F.linear(F.relu(x).mean((-1, -2)), m.matrix)


def _siamese(m: Steps, x: Tensor, y: Tensor) -> Tensor:
    """Two inputs through one encoder, compared."""
    a, b = (F.relu(m.encoder(z)).flatten(1) for z in (x, y))
    return m.fc(torch.cat([(a - b).abs(), a * b], dim=1))


def _autoencoder(m: Steps, x: Tensor) -> Tensor:
    """Encoder and decoder share their weights: what is written on one side is read on the other."""
    code = torch.tanh(F.conv2d(x, m.weight, m.code_bias, padding=1))
    return F.conv_transpose2d(code, m.weight, m.image_bias, padding=1)


# -- indices that move -------------------------------------------------------------------------------------


class Moves(nn.Module):
    """Flip, repeat, repeat_interleave, strided slices, select, stack, unbind, swapped halves: a channel must be
    followed through each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.last = conv_norm(3, 12), nn.Conv2d(48, 8, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flip(1)
        x = F.relu(self.mid(torch.cat([x.repeat_interleave(2, dim=1), x.repeat(1, 2, 1, 1)], dim=1)))
        halves = torch.cat([x[:, 4:], x.narrow(1, 1, 3), x.select(1, 0)[:, None]], dim=1)
        pairs = torch.stack(torch.unbind(torch.stack((x[:, ::2], x[:, 1::2]), dim=2), dim=1), dim=1)
        return self.head(self.last(torch.cat([halves, pairs.flatten(1, 2)], dim=1)))


class PickedByNumber(nn.Module):
    """Channels in an order that a buffer holds, then moved round by one: what is before may be kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.last, self.head = (
            conv_norm(3, 8),
            nn.Conv2d(8, 10, 3),
            nn.Conv2d(10, 6, 1),
            Head(6),
        )
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid(self.stem(x)[:, self.order].roll(1, dims=1)))
        return self.head(F.relu(self.last(x)))


def _twice_concatenated(m: Steps, x: Tensor) -> Tensor:
    """The same tensor twice in one concatenation, and once again after a pooling."""
    x = m.first(x)
    return m.head(m.last(torch.cat([x, x, F.avg_pool2d(x, 3, 1, 1)], dim=1)))


def _flattened(m: Steps, x: Tensor) -> Tensor:
    """C * H * W flattened, normalised position by position, then read: a channel is twelve features."""
    return m.fc(F.relu(m.norm(m.conv(x).flatten(1))))


def _transposed_flat(m: Steps, x: Tensor) -> Tensor:
    """Channels last before the flatten: a channel's features lie a stride apart."""
    return m.fc(F.relu(m.conv(x)).permute(0, 2, 3, 1).reshape(x.shape[0], -1))


def _maxout(m: Steps, x: Tensor) -> Tensor:
    """The larger of each three neighbouring channels: a unit is a triple."""
    x = m.first(x)
    return m.head(m.last(x.view(x.shape[0], 6, 3, *x.shape[2:]).amax(2)))


def _einsum(m: Steps, x: Tensor) -> Tensor:
    """The classifier is an einsum over channels and rows of the image."""
    return torch.einsum("nchw,chk->nk", F.relu(m.conv(x)), m.matrix) + m.bias


def _two_outputs(m: Steps, x: Tensor) -> dict[str, Tensor]:
    """Two outputs of one trunk; the feature map itself is the second one, so that its channels must stay."""
    features = m.trunk(x)
    return {"logits": m.head(F.relu(m.inner(features))), "features": features}


def _squeeze_gap(m: Steps, x: Tensor) -> Tensor:
    """Sums, a product with a mask made from the input, where, clamp, and a constant added to each channel."""
    x = m.first(x)
    x = torch.where(x > 0, x, 0.1 * x).clamp(max=2.0) * (x.shape[-1] / 4.0)
    return m.head(m.last(x + 0.25))


def same_sizes() -> nn.Module:
    """Everything has size 8: batch axis apart, no size tells which axis an operator means."""
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(
        block, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Head(8, 8)
    )


def _weight_norm() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 8, 3))
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), conv, nn.ReLU(), conv_norm(8, 9), Head(9))


MODELS = {
    "prelu": lambda: (_between(nn.PReLU(12)), images(size=8)),
    "leaky_relu_shared_prelu": lambda: (_between(nn.Sequential(nn.LeakyReLU(), nn.PReLU())), images(size=8)),
    "glu": lambda: (_between(nn.GLU(dim=1), 24), images(size=8)),
    "conv1d": lambda: (
        nn.Sequential(
            nn.Conv1d(3, 12, 5),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(12, 8, 3),
            nn.ELU(),
            nn.AdaptiveAvgPool1d(2),
            nn.Flatten(),
            nn.Linear(16, 4),
        ),
        torch.randn(2, 3, 20),
    ),
    "conv3d": lambda: (
        nn.Sequential(
            nn.Conv3d(1, 8, 3),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.Conv3d(8, 6, 2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 4),
        ),
        torch.randn(2, 1, 6, 6, 6),
    ),
    "instance_norm": lambda: (_between(nn.InstanceNorm2d(12, affine=True)), images(size=8)),
    "instance_norm_tracked": lambda: (
        _between(nn.InstanceNorm2d(12, affine=True, track_running_stats=True)),
        images(size=8),
    ),
    "group_norm": lambda: (_between(nn.Sequential(nn.GroupNorm(4, 12), nn.ReLU())), images(size=8)),
    "layer_norm_image": lambda: (_between(nn.LayerNorm([12, 8, 8])), images(size=8)),
    "local_response_norm": lambda: (_between(nn.LocalResponseNorm(3)), images(size=8)),
    "batch_norm_bare": lambda: (_between(nn.BatchNorm2d(12, affine=False)), images(size=8)),
    "dropout": lambda: (
        _between(nn.Sequential(nn.Dropout2d(0.5), nn.Hardswish(), nn.Dropout())),
        images(size=8),
    ),
    "lp_pool": lambda: (
        _between(nn.Sequential(nn.Mish(), nn.LPPool2d(2, 2), nn.Upsample(size=5))),
        images(size=8),
    ),
    "away_from_zero": lambda: (AwayFromZero(), images(size=8)),
    "constant_between": lambda: (constant_between(), images(size=8)),
    "standardised_conv": lambda: (
        nn.Sequential(
            StandardisedConv(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), StandardisedConv(12, 8, 3), Head(8)
        ),
        images(size=8),
    ),
    "weight_norm": lambda: (_weight_norm(), images(size=8)),
    "cosine_classifier": lambda: (
        Steps(
            _normalised,
            conv=nn.Conv2d(3, 12, 3),
            embed=nn.Linear(12, 10),
            prototypes=nn.Parameter(torch.randn(5, 10)),
            temperature=nn.Parameter(torch.ones(1)),
        ),
        images(size=8),
    ),
    "channel_softmax": lambda: (
        Steps(_channel_softmax, first=nn.Conv2d(3, 12, 3), last=nn.Conv2d(12, 9, 3), head=Head(9)),
        images(size=8),
    ),
    "shared_module": lambda: (Twice(), images(size=8)),
    "free_parameters": lambda: (
        Steps(
            _free_parameters,
            conv=nn.Conv2d(3, 12, 3),
            gain=nn.Parameter(torch.ones(12)),
            shift=nn.Parameter(torch.zeros(1, 12, 1, 1)),
            kernel=nn.Parameter(torch.zeros(9, 12, 3, 3)),
            kernel_bias=nn.Parameter(torch.zeros(9)),
            matrix=nn.Parameter(torch.zeros(5, 9)),
        ),
        images(size=8),
    ),
    "siamese": lambda: (
        Steps(_siamese, encoder=conv_norm(3, 8, stride=4), fc=nn.Linear(64, 3)),
        (images(size=8), images(size=8)),
    ),
    "tied_autoencoder": lambda: (
        Steps(
            _autoencoder,
            weight=nn.Parameter(torch.zeros(12, 3, 3, 3)),
            code_bias=nn.Parameter(torch.zeros(12)),
            image_bias=nn.Parameter(torch.zeros(3)),
        ),
        images(size=8),
    ),
    "moves": lambda: (Moves(), images(size=8)),
    "picked_by_number": lambda: (PickedByNumber(), images(size=8)),
    "concatenated_twice": lambda: (
        Steps(_twice_concatenated, first=conv_norm(3, 8), last=nn.Conv2d(24, 9, 3), head=Head(9)),
        images(size=8),
    ),
    "flatten_norm": lambda: (
        Steps(_flattened, conv=nn.Conv2d(3, 8, (5, 6)), norm=nn.BatchNorm1d(96), fc=nn.Linear(96, 5)),
        images(size=8),
    ),
    "flatten_channels_last": lambda: (
        Steps(_transposed_flat, conv=nn.Conv2d(3, 8, (5, 6)), fc=nn.Linear(96, 5)),
        images(size=8),
    ),
    "maxout": lambda: (
        Steps(_maxout, first=nn.Conv2d(3, 18, 3), last=nn.Conv2d(6, 9, 3), head=Head(9)),
        images(size=8),
    ),
    "einsum_classifier": lambda: (
        Steps(
            _einsum,
            conv=nn.Conv2d(3, 10, 3),
            matrix=nn.Parameter(torch.zeros(10, 6, 5)),
            bias=nn.Parameter(torch.zeros(5)),
        ),
        images(size=8),
    ),
    "two_outputs": lambda: (
        Steps(_two_outputs, trunk=conv_norm(3, 8), inner=nn.Conv2d(8, 12, 3), head=Head(12)),
        images(size=8),
    ),
    "pointwise_chain": lambda: (
        Steps(_squeeze_gap, first=nn.Conv2d(3, 12, 3), last=nn.Conv2d(12, 9, 3), head=Head(9)),
        images(size=8),
    ),
    "same_sizes": lambda: (same_sizes(), torch.randn(8, 8, 8, 8)),
}
