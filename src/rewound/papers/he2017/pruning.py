"""Front to back: for each layer choose which of its input units stay, and fit its weights to what it wrote before."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewound.compaction.coupling import find_units
from rewound.compaction.units import Structure, masks_of
from rewound.mask import Mask
from rewound.papers.he2017.samples import Samples, take_samples
from rewound.papers.he2017.solve import least_squares, moments_of, select
from rewound.papers.he2017.stages import Stage, counts_of, find_stages
from rewound.parameters import named_modules, parameters_by_name, unwrap_model
from rewound.untouched import as_found


@dataclass(frozen=True)
class Layer:
    """What became of one layer: ``reader`` reads the ``size`` units of ``group``, of which ``kept`` stayed.

    error_before, error_after: of its outputs at the sampled places (after batch norm), relative to their variance, with the
    old weights and with the fitted ones. residual: whether the error of what is added to it was compensated.
    """

    group: str
    reader: str
    kept: int
    size: int
    error_before: float
    error_after: float
    residual: bool


@dataclass(frozen=True)
class ChannelPruned:
    """model: a copy with the fitted weights, and zeros where ``mask`` says; ``rewound.compact(model, mask, example)`` makes it
    small. layers: one for each layer that was fitted, front to back. skipped: group of units -> why it was left whole.
    """

    model: nn.Module
    mask: Mask
    layers: tuple[Layer, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        head = ("units of", "read by", "kept", "error", "after least squares")
        rows = [
            (layer.group, layer.reader, f"{layer.kept} of {layer.size}", f"{layer.error_before:.4f}",
             f"{layer.error_after:.4f}{' (with its shortcut)' if layer.residual else ''}")
            for layer in self.layers
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in (head, *rows)]
        return "\n".join(lines + [f"left whole: {name}: {why}" for name, why in self.skipped.items()])


def he2017(
    model: nn.Module,
    density: float | Mapping[str, float],
    batches: Iterable[tuple[Any, Any]],
    *,
    example: Any = None,
    structure: Structure | None = None,
    places: int = 10,
    seed: int = 0,
) -> ChannelPruned:
    """Prune the input channels of layers so that their outputs can be reconstructed. He et al. 2017, section 3.

    Layer by layer, front to back: LASSO chooses which units (channels, hidden units) stay of those that a layer reads, with its
    weights W as they are, and least squares fits W anew to those. The outputs to reconstruct are the *original* network's,
    the inputs come from the network as pruned so far, so that later layers mend the errors of earlier ones. The last layer of
    a residual branch is fitted to Y1 + Y2 - Y1': its own output plus what the shortcut, pruned too, now lacks (section 3.3).
    A batch norm right after a layer counts as part of it, as in the authors' merged networks.

    Units are pruned if all layers that write them run before all that read them: channels inside a residual block, not those
    of the sum itself. The paper samples the input of a block's first layer instead; here that layer stays whole.

    Args:
        density: share of its units that every group keeps (at least one); or group, writing weight, its module or a glob
            pattern of these -> share: then the others stay whole.
        batches: pairs (input, target) as for ``Evidence``; the targets are not used. A few hundred images will do
            (the paper takes 5,000): more rows are wanted than a layer has weights for one output.
        example: one input, for ``find_units``; or pass ``structure``.
        places: places sampled from each image's output map (section 4.1.1: 10).
        seed: of the places.

    Needs scikit-learn (``pip install 'rewound[tasks]'``). The model is left untouched. Raises ValueError if a group that is
    named cannot be pruned this way, or if none can.

    >>> from rewound.papers.he2017 import he2017
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> images = torch.randn(64, 1, 6, 6)
    >>> pruned = he2017(net, {"0": 0.5}, [(images, None)], example=images[:1])
    >>> pruned.mask["2.weight"][0, :, 0, 0].sum(), pruned.layers[0].error_after < pruned.layers[0].error_before
    (tensor(2), True)
    """
    original = unwrap_model(model)
    if structure is None:
        if example is None:
            raise ValueError("he2017 needs example= (one input), or structure=find_units(model, example)")
        structure = find_units(original, example)
    pairs = list(batches)
    if not pairs:
        raise ValueError("'batches' yielded nothing (a generator that was used up?): pass a list or a loader")
    stages, skipped = find_stages(original, structure, pairs[0][0])
    counts = counts_of(structure, stages, skipped, density)
    stages = [stage for stage in stages if stage.group.name in counts]
    pruned = copy.deepcopy(original)
    readers = list(dict.fromkeys(name for stage in stages for name in stage.readers))
    with as_found(original):
        before = take_samples(original, readers, pairs, places=places, seed=seed)
    progress = _Progress(pruned, structure, seed)
    for stage in stages:
        with as_found(pruned):
            now = take_samples(pruned, stage.readers, pairs, places=places, seed=seed, inputs=stage.readers)
        progress.prune(stage, counts[stage.group.name], before, now)
    return ChannelPruned(pruned, progress.mask(), tuple(progress.layers), skipped)


# -- one group after the other ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """One layer that is to be fitted: its inputs now [rows, columns], what it should give [rows, n], its weight [n, columns],
    by what its outputs are multiplied right after [n], and which columns other units may still use."""

    inputs: Tensor
    target: Tensor
    weight: Tensor
    importance: Tensor
    others: Tensor
    residual: bool

    def error(self, outputs: Tensor) -> float:
        spread = ((self.target - self.target.mean(0)) * self.importance).square().sum()
        missed = ((outputs - self.target) * self.importance).square().sum()
        return float(missed / spread.clamp_min(1e-300))


class _Progress:
    """The network as pruned so far."""

    def __init__(self, model: nn.Module, structure: Structure, seed: int) -> None:
        self.layers: list[Layer] = []
        self._modules = dict(named_modules(model))
        self._parameters = parameters_by_name(model)
        self._structure, self._seed = structure, seed
        self._kept: dict[str, Tensor] = {}
        self._alive: dict[str, Tensor] = {}  # reader -> which columns of its weight are not pruned

    @torch.no_grad()
    def prune(
        self, stage: Stage, count: int, before: Mapping[str, Samples], now: Mapping[str, Samples]
    ) -> None:
        fits = {
            name: self._fit(name, columns, before[name], now[name]) for name, columns in stage.readers.items()
        }
        gram, moments = torch.zeros(()), torch.zeros(())
        for name, columns in stage.readers.items():
            fit = fits[name]
            rest = fit.target - fit.inputs[:, fit.others] @ fit.weight[:, fit.others].T
            found = moments_of(fit.inputs, rest, fit.weight, columns, fit.importance, self._seed)
            gram, moments = gram + found[0], moments + found[1]
        kept = select(gram, moments, count)
        for name, columns in stage.readers.items():
            used = fits[name].others.clone()
            used[columns[kept].reshape(-1)] = True
            self._alive[name][columns[~kept].reshape(-1)] = False
            self._solve(stage, name, fits[name], used, now[name].norm, count)
        self._kept[stage.group.name] = kept
        alone = self._structure.restricted([stage.group])
        for name, mask in masks_of(alone, {stage.group.name: kept}).items():
            self._parameters[name].masked_fill_(~mask.to(self._parameters[name].device), 0)

    def mask(self) -> Mask:
        groups = [group for group in self._structure if group.name in self._kept]
        sizes = {name: (int(kept.sum()), len(kept)) for name, kept in self._kept.items()}
        return Mask(masks_of(self._structure.restricted(groups), self._kept), units=sizes)

    def _fit(self, name: str, columns: Tensor, before: Samples, now: Samples) -> _Fit:
        assert now.inputs is not None
        weight = self._modules[name].weight.detach().cpu().double().flatten(1)
        importance = self._importance(now.norm, len(weight))
        target = before.outputs.double()
        residual = before.added is not None and now.added is not None
        if before.added is not None and now.added is not None:
            # the sum that follows is to be what it was: Y1 + Y2 - Y1', brought back through the norm
            able = importance.abs() > 1e-6 * importance.abs().max()
            lacks = before.added.double() - now.added.double()
            target = target + torch.where(able, lacks / importance.where(able, torch.ones(()).double()), 0.0)
        alive = self._alive.setdefault(name, torch.ones(weight.shape[1], dtype=torch.bool))
        others = alive.clone()
        others[columns.reshape(-1)] = False
        return _Fit(now.inputs.double(), target, weight, importance, others, residual)

    def _importance(self, norm: str | None, outputs: int) -> Tensor:
        if norm is None:
            return torch.ones(outputs, dtype=torch.float64)
        module = self._modules[norm]
        scale = (module.running_var.double() + module.eps).rsqrt()
        return (scale if module.weight is None else scale * module.weight.double()).detach().cpu()

    def _solve(self, stage: Stage, name: str, fit: _Fit, used: Tensor, norm: str | None, count: int) -> None:
        module = self._modules[name]
        bias = torch.zeros(()).double() if module.bias is None else module.bias.detach().cpu().double()
        x, old = fit.inputs[:, used], fit.weight[:, used]
        free = module.bias is not None or norm is not None
        weight, intercept = least_squares(x, fit.target, old, intercept=free)
        before, after = fit.error(x @ old.T + bias), fit.error(x @ weight.T + intercept)
        size = stage.group.size
        self.layers.append(Layer(stage.group.name, name, count, size, before, after, fit.residual))
        fitted = torch.zeros_like(fit.weight)
        fitted[:, used] = weight
        module.weight.copy_(fitted.reshape(module.weight.shape))
        if module.bias is not None:
            module.bias.copy_(intercept)
        elif norm is not None:  # the norm takes its mean away, so that this is where a bias can go
            self._modules[norm].running_mean.sub_(intercept.to(self._modules[norm].running_mean.device))
