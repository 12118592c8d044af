"""Measure a model on a split: evaluation mode, no gradients, large batches, and the model left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rewound.metrics import Metric, as_metric
from rewound.parameters import unwrap_model

_BATCH_NORM = (
    nn.modules.batchnorm._BatchNorm
)  # the base class of all batch-norms; torch's own swa_utils uses it too


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module's own mode restored after.

    Restoring the root alone would thaw layers that a user had set to evaluation mode.

    >>> layer = nn.Linear(1, 1)
    >>> with evaluating(layer):
    ...     print(layer.training)
    False
    >>> layer.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter (CPU for a model without any)."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def outputs(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], device: torch.device) -> Tensor:
    """Return what ``model`` makes of ``inputs`` (a tensor, or a tuple of positional arguments), moved to ``device``.

    >>> outputs(nn.Bilinear(1, 1, 2), (torch.ones(3, 1), torch.ones(3, 1)), torch.device("cpu")).shape
    torch.Size([3, 2])
    """
    if isinstance(inputs, tuple):
        return model(*(part.to(device) for part in inputs))
    return model(inputs.to(device))


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the global generators of the CPU and of the model's device back as they were, after what is inside."""
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]],
    metrics: Sequence[str | Metric],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """Return ``{"loss": mean loss, metric name: value, ...}`` over all examples of ``batches``.

    Metrics see all outputs at once (a mean of batch values is not the F1 or the mAP of the whole).

    >>> x = torch.ones(4, 1)
    >>> evaluate(nn.Identity(), [(x, x)], ["mse"], nn.functional.mse_loss)
    {'loss': 0.0, 'mse': 0.0}
    """
    device, found, targets, total = device_of(model), [], [], 0.0
    with evaluating(model):
        for x, y in batches:
            output = outputs(model, x, device).cpu()
            total += float(loss(output, y)) * len(y)
            found.append(output)
            targets.append(y)
    output, target = torch.cat(found), torch.cat(targets)
    chosen = [as_metric(metric) for metric in metrics]
    return {"loss": total / len(target)} | {m.name: m(output, target) for m in chosen}


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the model keeps running statistics, which pruning leaves stale."""
    return any(isinstance(m, _BATCH_NORM) and m.running_mean is not None for m in model.modules())


def recalibrated(model: nn.Module, inputs: Iterable[Tensor]) -> nn.Module:
    """Return a copy of ``model`` whose batch-norm statistics are measured anew on ``inputs``.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrated(net, [torch.full((4, 1), 3.0)])[0].running_mean.item(), net[0].running_mean.item()
    (3.0, 0.0)
    """
    fresh = copy.deepcopy(unwrap_model(model))
    with random_state_kept(fresh):  # dropout draws
        torch.optim.swa_utils.update_bn(inputs, fresh, device=device_of(fresh))
    return fresh
