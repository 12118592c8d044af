"""Small networks of every family, for the tests of structured pruning.

``ZOO``: name -> a function that builds the model, in eval mode and float64, and one example of batch size two (a
tensor, a tuple of positional inputs or a dict of keyword inputs). Every weight, bias, norm parameter, running
statistic and layer scale is drawn at random, so that nothing that ought to be zero is zero by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tests.compaction import (
    zoo_attention,
    zoo_features,
    zoo_huggingface,
    zoo_huggingface_images,
    zoo_huggingface_text,
    zoo_layers,
    zoo_recurrent,
    zoo_refused,
    zoo_residual,
    zoo_vision,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from rewound.tasks.models import seeded

Example = Any  # a tensor, a tuple of tensors or a dict of tensors
Builder = Callable[[], tuple[nn.Module, Example]]

_CACHES = ("past_key_values", "cache_params", "state")  # their shapes follow the network's

_FAMILIES = (
    zoo_residual,
    zoo_vision,
    zoo_layers,
    zoo_features,
    zoo_attention,
    zoo_recurrent,
    zoo_huggingface,
    zoo_huggingface_images,
    zoo_huggingface_text,
)


def prepared(build: Builder, seed: int = 0) -> Builder:
    """Return a builder of the same model with random parameters, in eval mode, all in float64."""

    def built() -> tuple[nn.Module, Example]:
        kept: list[Example] = []

        def model_of() -> nn.Module:
            model, example = build()
            kept.append(example)
            return model

        model = seeded(seed, model_of).double().eval()
        example = tree_map(_double, kept[0])
        randomise_(model, seed)
        settle_(model, example, seed)
        return model, example

    return built


def randomise_(model: nn.Module, seed: int) -> None:
    """Draw every parameter of ``model`` anew, in place, and the buffers that stand for parameters.

    Matrices get a variance of 1 / fan-in, kernels twice that, so that signals neither die nor saturate. A vector
    that was all ones (a norm's scale) becomes uniform in [.5, 1.5], any other normal with deviation .3. Buffers
    that are constants (positions, rates, masks) are left alone.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_drawn(parameter, random))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", ".weight", ".bias")):  # the latter of a frozen batch norm
                buffer.copy_(_drawn(buffer, random))
            elif name.endswith("running_var"):
                buffer.copy_(_scale(buffer.shape, random))


def settle_(model: nn.Module, example: Example, seed: int) -> None:
    """Set the running statistics of batch norms near those of ``example``, each a little off, as after training.

    Without this a deep network forgets its input: every layer adds a constant and shrinks the rest.
    """
    random = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_var is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    outputs(model, example)
    for norm, momentum in zip(norms, momenta):
        norm.eval()
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
        mean, variance = norm.running_mean, norm.running_var
        variance.add_(0.1 * variance.mean()).mul_(_scale(variance.shape, random))
        mean.add_(0.3 * variance.sqrt() * _normal(mean.shape, random))


def _drawn(parameter: Tensor, random: torch.Generator) -> Tensor:
    if bool((parameter == 1).all()):
        return _scale(parameter.shape, random)
    if sum(n > 1 for n in parameter.shape) < 2:
        return 0.3 * _normal(parameter.shape, random)
    fan_in = parameter[0].numel() if parameter.ndim != 3 or parameter.shape[0] > 4 else parameter.shape[1]
    return _normal(parameter.shape, random) * ((2 if parameter.ndim > 3 else 1) / fan_in) ** 0.5


def _scale(shape: torch.Size, random: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(shape, generator=random, dtype=torch.float64)


def _normal(shape: torch.Size, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


ZOO: dict[str, Builder] = {
    name: prepared(build) for family in _FAMILIES for name, build in family.MODELS.items()
}
assert len(ZOO) == sum(len(family.MODELS) for family in _FAMILIES), "two models have one name"

# name -> (builder, a word that the refusal must hold)
REFUSED: dict[str, tuple[Builder, str]] = {
    name: (prepared(build), word) for name, (build, word) in zoo_refused.MODELS.items()
}


# -- running them ------------------------------------------------------------------------------------------


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (positional, keyword) arguments of one call."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def outputs(model: nn.Module, example: Example) -> list[tuple[str, Tensor]]:
    """Run ``model`` and return every tensor it gives, by path; caches of keys and values are left out."""
    positional, keyword = arguments(example)
    with torch.no_grad():
        return list(_tensors(model(*positional, **keyword), "output"))


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value.detach()
    elif isinstance(value, Mapping):  # a dict, or the ModelOutput of transformers
        for key, inner in value.items():
            if key not in _CACHES:
                yield from _tensors(inner, f"{path}.{key}")
    elif isinstance(value, tuple | list):
        for i, inner in enumerate(value):
            yield from _tensors(inner, f"{path}[{i}]")
    # what is left is None, a number, or a cache inside a tuple


def another(example: Example, seed: int = 1) -> Example:
    """Return a different input of the same shapes: floats drawn anew, integers in another order, booleans as they
    are."""
    random = torch.Generator().manual_seed(seed)

    def changed(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype is torch.bool:
            return x
        if x.is_floating_point():
            return torch.randn(x.shape, generator=random, dtype=torch.float64).to(x.dtype)
        return x.flip(tuple(range(min(x.ndim, 2))))

    return tree_map(changed, example)


def difference(mine: list[tuple[str, Tensor]], theirs: list[tuple[str, Tensor]]) -> float:
    """Return the largest of max|a - b| / max|b| over the outputs; paths, shapes and NaNs must agree."""
    assert [path for path, _ in mine] == [path for path, _ in theirs]
    assert mine, "the model gave no tensor"
    worst = 0.0
    for (path, a), (_, b) in zip(mine, theirs):
        assert a.shape == b.shape, f"{path}: {tuple(a.shape)} and {tuple(b.shape)}"
        assert b.isfinite().all(), f"{path}: not finite"
        if b.numel() and not torch.equal(a, b):
            a, b = a.double(), b.double()
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)))
    return worst
