"""Metrics: a name, a function ``(outputs, targets) -> float``, and whether more is better.

Computed by scikit-learn where it has them; torch tensors and numpy arrays are both welcome. Any function or
torchmetrics object of the user's becomes one by :func:`as_metric`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewound.spelling import nearest

Array = Any  # torch.Tensor or numpy.ndarray


@dataclass(frozen=True)
class Metric:
    """A named function ``(outputs, targets) -> float``; call it like the function.

    >>> Metric("bias", lambda o, t: float((o - t).mean()), higher_is_better=False)(np.ones(2), np.zeros(2))
    1.0
    """

    name: str
    function: Callable[[Array, Array], float]
    higher_is_better: bool

    def __call__(self, outputs: Array, targets: Array) -> float:
        value = self.function(outputs, targets)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"metric {self.name!r} must give one number (got {type(value).__name__})"
            ) from error


def accuracy(outputs: Array, targets: Array) -> float:
    """Return the share of examples whose largest output is the target class (top-1).

    ``outputs`` [N, C] scores, or [N] class indices; ``targets`` [N] class indices. A row with NaN counts as
    wrong, so that a network that diverged scores 0.

    >>> round(accuracy(torch.eye(3), torch.tensor([0, 1, 1])), 3)
    0.667
    """
    predicted, targets = _predicted(outputs, targets)
    return float(_sklearn().accuracy_score(targets, predicted))


def top_k_accuracy(outputs: Array, targets: Array, k: int = 5) -> float:
    """Return the share of examples whose target is among the ``k`` largest of ``outputs`` [N, C].

    Raises ``ValueError`` where there are fewer than ``k`` classes. A row with NaN counts as wrong.

    >>> top_k_accuracy(torch.eye(3), torch.tensor([0, 1, 1]), k=3)
    1.0
    """
    scores, labels = _scores(outputs), _numpy(targets)
    _same_length(scores, labels)
    classes = scores.shape[1]
    if classes < k:
        raise ValueError(f"top-{k} accuracy needs at least {k} classes (got outputs of {classes})")
    _check_labels(labels, classes)
    sound = ~np.isnan(scores).any(axis=1)
    if not sound.any() or k == classes:  # scikit-learn warns of a perfect score at k = classes
        return float(sound.mean())
    scores = np.where(np.isinf(scores), np.sign(scores) * np.finfo(np.float64).max, scores)
    hits = _sklearn().top_k_accuracy_score(
        labels[sound], scores[sound], k=k, labels=np.arange(classes), normalize=False
    )
    return float(hits) / len(labels)


def macro_f1(outputs: Array, targets: Array) -> float:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN); outputs and targets as in
    :func:`accuracy`.

    Averaged over the classes that occur in the targets or the predictions.

    >>> round(macro_f1(torch.eye(3), torch.tensor([0, 1, 1])), 3)
    0.556
    """
    predicted, targets = _predicted(outputs, targets)
    occurring = np.union1d(targets, predicted[predicted >= 0])
    return float(
        _sklearn().f1_score(targets, predicted, average="macro", labels=occurring, zero_division=0.0)
    )


def mean_average_precision(outputs: Array, targets: Array) -> float:
    """Return mAP for multi-label targets: the mean over classes of the area under precision against recall.

    ``outputs`` [N, C] scores; ``targets`` [N, C] of 0 and 1. A class without a positive has no precision and
    is left out of the mean; ``ValueError`` if none has one. NaN outputs give NaN.

    >>> mean_average_precision(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.eye(2))
    1.0
    """
    scores, labels = _scores(outputs), _numpy(targets)
    if scores.shape != labels.shape:
        raise ValueError(
            f"mAP is for multi-label targets of the outputs' shape {scores.shape} (got {labels.shape}); "
            "for one class an example use accuracy or macro F1"
        )
    present = labels.any(axis=0)
    if not present.any():
        raise ValueError("mAP needs at least one positive target (got none)")
    if np.isnan(scores).any():
        return float("nan")
    return float(_sklearn().average_precision_score(labels[:, present], scores[:, present], average="macro"))


def mse(outputs: Array, targets: Array) -> float:
    """Return the mean squared error; ``outputs`` and ``targets`` of one shape (or [N, 1] and [N]). NaN gives
    NaN.

    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    2.0
    """
    return _mean_error("mean_squared_error", outputs, targets)


def mae(outputs: Array, targets: Array) -> float:
    """Return the mean absolute error; shapes as in :func:`mse`. NaN gives NaN.

    >>> mae(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    1.0
    """
    return _mean_error("mean_absolute_error", outputs, targets)


def perplexity(outputs: Array, targets: Array, ignore_index: int = -100) -> float:
    """Return exp of the mean negative log-likelihood of the targets.

    ``outputs`` [..., C] logits; ``targets`` [...] class indices, those equal to ``ignore_index`` not counted.
    Computed in float64 from log-softmax, so that large logits do not overflow.

    >>> round(perplexity(torch.zeros(2, 10), torch.tensor([3, -100])), 6)
    10.0
    """
    logits, labels = torch.as_tensor(outputs).detach(), torch.as_tensor(targets)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"perplexity needs logits [..., C] and targets [...] (got {_shapes(logits, labels)})"
        )
    logits, labels = logits.double().reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    counted = labels != ignore_index
    if not counted.any():
        raise ValueError(f"perplexity needs at least one target that is not ignore_index={ignore_index}")
    _check_labels(labels[counted].cpu().numpy(), logits.shape[-1])
    nll = torch.nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index)
    return float(nll.exp())


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", accuracy, higher_is_better=True),
    "top5": Metric("top5", top_k_accuracy, higher_is_better=True),
    "f1": Metric("f1", macro_f1, higher_is_better=True),
    "map": Metric("map", mean_average_precision, higher_is_better=True),
    "mse": Metric("mse", mse, higher_is_better=False),
    "mae": Metric("mae", mae, higher_is_better=False),
    "perplexity": Metric("perplexity", perplexity, higher_is_better=False),
}


def as_metric(metric: Any, *, name: str | None = None, higher_is_better: bool | None = None) -> Metric:
    """Return a :class:`Metric` from a name in ``METRICS``, a Metric, a torchmetrics object or a function.

    A function is called as ``function(outputs, targets)`` (scikit-learn's own take targets first). A
    torchmetrics object is reset, updated with all examples, and computed; it often knows its own direction.
    Where the direction is not known it must be given: guessing would stop runs on the wrong side.

    Raises ``ValueError`` for an unknown name or direction, ``TypeError`` for something that cannot be called.

    >>> as_metric("mse").higher_is_better
    False
    >>> as_metric(lambda o, t: 1.0, name="one", higher_is_better=True).name
    'one'
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"no metric named {metric!r}: {nearest(metric, METRICS)}")
        return METRICS[metric]
    if all(callable(getattr(metric, part, None)) for part in ("update", "compute", "reset")):
        function, known_name = _stateful(metric), type(metric).__name__.lower()
        higher_is_better = (
            getattr(metric, "higher_is_better", None) if higher_is_better is None else higher_is_better
        )
    elif callable(metric):
        function, known_name = metric, getattr(metric, "__name__", type(metric).__name__)
    else:
        raise TypeError(
            f"a metric is a name, a function or a torchmetrics object (got {type(metric).__name__})"
        )
    if higher_is_better is None:
        raise ValueError(
            f"is more of {known_name!r} better? say as_metric(..., higher_is_better=True) or False"
        )
    return Metric(name or known_name, function, bool(higher_is_better))


def _stateful(metric: Any) -> Callable[[Array, Array], float]:
    def compute(outputs: Array, targets: Array) -> float:
        metric.reset()
        metric.update(torch.as_tensor(outputs), torch.as_tensor(targets))
        value = metric.compute()
        metric.reset()
        return value

    return compute


@functools.cache
def _sklearn() -> ModuleType:
    # Modules imported on the way draw from it: the first run of a process would differ from others.
    state = random.getstate()
    try:
        import sklearn.metrics
    except ImportError as error:
        raise ImportError("this metric is computed by scikit-learn: pip install 'rewound[tasks]'") from error
    finally:
        random.setstate(state)
    return sklearn.metrics


def _mean_error(name: str, outputs: Array, targets: Array) -> float:
    predicted, values = _pairs(outputs, targets)
    if not np.isfinite(predicted).all():
        return float("nan")
    return float(getattr(_sklearn(), name)(values, predicted))


def _numpy(values: Array) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _scores(outputs: Array) -> np.ndarray:
    scores = _numpy(outputs)
    if scores.ndim != 2:
        raise ValueError(f"outputs must be scores [examples, classes] (got shape {scores.shape})")
    return scores.astype(np.float64)


def _predicted(outputs: Array, targets: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (predicted classes [N], targets [N]); -1, which is no class, for a row with NaN."""
    values, labels = _numpy(outputs), _numpy(targets)
    _same_length(values, labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ValueError(f"targets must be class indices [N] (got {labels.dtype} of shape {labels.shape})")
    if values.ndim == 1 and values.dtype.kind in "iub":
        return values, labels
    scores = _scores(values)
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1)), labels


def _pairs(outputs: Array, targets: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 outputs and targets as vectors; [N, 1] beside [N] would broadcast to [N, N]."""
    predicted, values = _numpy(outputs), _numpy(targets)
    if predicted.size != values.size or len(predicted) != len(values):
        raise ValueError(f"outputs and targets must have one shape (got {_shapes(predicted, values)})")
    return predicted.reshape(-1).astype(np.float64), values.reshape(-1).astype(np.float64)


def _same_length(outputs: np.ndarray, targets: np.ndarray) -> None:
    if outputs.ndim == 0 or targets.ndim == 0 or len(outputs) != len(targets) or len(targets) == 0:
        raise ValueError(f"outputs and targets must hold the same examples (got {_shapes(outputs, targets)})")


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"targets must lie in 0..{classes - 1} (got {labels.min()}..{labels.max()})")


def _shapes(outputs: Any, targets: Any) -> str:
    return f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
