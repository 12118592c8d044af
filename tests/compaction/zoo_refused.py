"""Models that must be refused, or left with what can be proved, rather than pruned wrongly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.compaction.zoo_huggingface import LLAMA, ids, model_of
from tests.compaction.zoo_layers import Steps
from tests.compaction.zoo_residual import Head, images
from torch import Tensor, nn

if not hasattr(torch.ops.zoo, "mystery"):  # pytest may import a module more than once

    @torch.library.custom_op("zoo::mystery", mutates_args=())
    def _mystery(x: Tensor) -> Tensor:
        """Mix the channels in a way that no table of operators can know."""
        return x.flip(1).cumprod(1) + x

    @_mystery.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)


def _through(middle) -> Steps:
    """Convolution, ``middle`` over its channels, head: whatever leaves must leave through the middle."""
    return Steps(lambda m, x: m.head(middle(m.conv(x))), conv=nn.Conv2d(3, 12, 3), head=Head(12))


def _branches(m: Steps, x: Tensor) -> Tensor:
    """Which layer reads the hidden units depends on their values: one run sees one of the two."""
    x = F.relu(m.first(x))
    return m.second(x) if bool(x.sum() > 20) else m.third(x)


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), Head(12))
    return model.requires_grad_(False)


def _numbers(m: Steps, x: Tensor) -> Tensor:
    """A Python loop over values of the data: the number of steps is known only when it runs."""
    x = F.relu(m.first(x))
    for _ in range(int(x.abs().max().item() * 3) % 4 + 1):
        x = torch.tanh(m.second(x))
    return m.last(x)


# name -> (builder, a word that the refusal must hold: the operator, or what is the matter)
MODELS = {
    "custom_operator": (lambda: (_through(torch.ops.zoo.mystery), images(size=6)), "mystery"),
    "sorted_channels": (lambda: (_through(lambda x: x.sort(dim=1).values), images(size=6)), "sort"),
    "fourier_over_channels": (
        lambda: (_through(lambda x: torch.fft.fft(x, dim=1).real), images(size=6)),
        "fft",
    ),
    "cumulative_channels": (lambda: (_through(lambda x: x.cumsum(dim=1)), images(size=6)), "cumsum"),
    "cumulative_product": (lambda: (_through(lambda x: x.cumprod(dim=1)), images(size=6)), "cumprod"),
    "largest_channels": (lambda: (_through(lambda x: x.topk(12, dim=1).values), images(size=6)), "topk"),
    "channel_of_maximum": (
        lambda: (Steps(lambda m, x: m.conv(x).argmax(dim=1), conv=nn.Conv2d(3, 12, 3)), images(size=6)),
        "argmax",
    ),
    "frozen": (lambda: (_frozen(), images(size=6)), "requires_grad"),
    "single_layer": (lambda: (nn.Linear(6, 4), torch.randn(2, 6)), "output"),
    "branch_on_data": (
        lambda: (
            Steps(_branches, first=nn.Linear(6, 12), second=nn.Linear(12, 4), third=nn.Linear(12, 4)),
            torch.randn(2, 6),
        ),
        "data",
    ),
    "hf_convnextv2": (  # global response normalisation: what is left of a channel depends on all the others
        lambda: (
            model_of(
                "ConvNextV2ForImageClassification",
                "ConvNextV2Config",
                hidden_sizes=[8, 12],
                depths=[1, 2],
                num_stages=2,
                num_labels=5,
            ),
            images(size=32),
        ),
        "approximate",
    ),
    "hf_routed_experts": (
        lambda: (
            model_of(
                "MixtralForCausalLM",
                "MixtralConfig",
                vocab_size=37,
                experts="eager",
                num_local_experts=3,
                **LLAMA,
            ),
            {"input_ids": ids()},
        ),
        "data",
    ),
    "loop_on_data": (
        lambda: (
            Steps(_numbers, first=nn.Linear(6, 12), second=nn.Linear(12, 12), last=nn.Linear(12, 4)),
            torch.randn(2, 6),
        ),
        "data",
    ),
}
