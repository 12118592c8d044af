"""Metrics against values worked out by hand."""

import builtins
import math

import numpy as np
import pytest
import torch
import torchmetrics

from rewound import metrics
from rewound.metrics import METRICS, Metric, as_metric

SCORES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
LABELS = torch.tensor([0, 1, 2, 2])


def six_classes():
    scores = torch.arange(6.0).repeat(4, 1)  # class 5 is the largest, class 0 the sixth
    return scores, torch.tensor([5, 1, 0, 0])


HAND_VALUES = {
    "accuracy": (SCORES, LABELS, 0.75),
    "top5": (*six_classes(), 0.5),
    "f1": (SCORES, LABELS, (1 + 2 / 3 + 2 / 3) / 3),
    # class 0: ranks 1 and 3 of 3 are positive: (1/1 + 2/3) / 2; class 1: rank 2: 1/2
    "map": (
        torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]]),
        torch.tensor([[1, 0], [0, 1], [1, 0]]),
        ((1 + 2 / 3) / 2 + 1 / 2) / 2,
    ),
    "mse": (torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0]), 2.5),
    "mae": (torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0]), 1.5),
    "perplexity": (torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([0, 1]), math.sqrt(8)),
}


def test_every_metric_has_a_hand_value():
    assert set(HAND_VALUES) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("as_numpy", [False, True])
def test_hand_values_in_torch_and_numpy(name, as_numpy):
    outputs, targets, value = HAND_VALUES[name]
    if as_numpy:
        outputs, targets = outputs.numpy(), targets.numpy()
    assert METRICS[name](outputs, targets) == pytest.approx(value)


def test_directions():
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"mse", "mae", "perplexity"}


def test_bfloat16_outputs():
    assert METRICS["accuracy"](SCORES.bfloat16(), LABELS) == 0.75


def test_top_k_needs_k_classes():
    with pytest.raises(ValueError, match="top-5 accuracy needs at least 5 classes"):
        METRICS["top5"](SCORES, LABELS)
    assert metrics.top_k_accuracy(SCORES, LABELS, k=3) == 1.0


def test_diverged_outputs_give_no_error_and_no_credit():
    nan = torch.full((4, 6), math.nan)
    half = six_classes()[0]
    half[:2] = math.nan
    labels = torch.tensor([5, 5, 5, 5])
    assert METRICS["accuracy"](nan, labels) == 0
    assert METRICS["accuracy"](half, labels) == 0.5
    assert METRICS["top5"](nan, labels) == 0
    assert METRICS["top5"](half, labels) == 0.5
    assert METRICS["top5"](torch.full((4, 6), math.inf), labels) <= 1
    assert METRICS["f1"](nan, labels) == 0
    assert math.isnan(METRICS["mse"](nan, torch.zeros(4, 6)))
    assert math.isnan(METRICS["map"](nan, torch.ones(4, 6)))


def test_regression_columns_do_not_broadcast():
    predicted = torch.arange(3.0).unsqueeze(1)
    assert METRICS["mse"](predicted, torch.arange(3.0)) == 0
    with pytest.raises(ValueError, match="one shape"):
        METRICS["mse"](predicted, torch.zeros(4))


def test_map_leaves_out_classes_without_positives():
    outputs, targets, value = HAND_VALUES["map"]
    wider = torch.cat([targets, torch.zeros(3, 1, dtype=torch.long)], dim=1)
    assert METRICS["map"](torch.cat([outputs, torch.rand(3, 1)], dim=1), wider) == pytest.approx(value)
    with pytest.raises(ValueError, match="at least one positive"):
        METRICS["map"](outputs, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="multi-label"):
        METRICS["map"](SCORES, LABELS)


def test_perplexity_is_stable_and_ignores():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], dtype=torch.float16)
    assert METRICS["perplexity"](logits, torch.tensor([0, 1])) == 1.0
    assert METRICS["perplexity"](logits, torch.tensor([1, 0])) == math.inf
    text = torch.zeros(2, 3, 10)  # sentences x words x vocabulary
    assert METRICS["perplexity"](text, torch.tensor([[1, 2, -100], [3, -100, -100]])) == pytest.approx(10)
    assert metrics.perplexity(text, torch.zeros(2, 3).long() + 7, ignore_index=0) == pytest.approx(10)
    with pytest.raises(ValueError, match="ignore_index"):
        METRICS["perplexity"](text, torch.full((2, 3), -100))
    with pytest.raises(ValueError, match=r"lie in 0\.\.9"):
        METRICS["perplexity"](text, torch.full((2, 3), 10))


@pytest.mark.parametrize("name", ["accuracy", "f1", "top5"])
def test_different_lengths_are_an_error(name):
    with pytest.raises(ValueError, match="same examples"):
        METRICS[name](torch.zeros(3, 6), torch.zeros(2).long())


def test_float_targets_are_no_classes():
    with pytest.raises(ValueError, match="class indices"):
        METRICS["accuracy"](SCORES, LABELS.float())


def test_as_metric_takes_functions_and_says_what_it_must_know():
    def rmse(outputs, targets):
        return (outputs - targets).square().mean().sqrt()

    metric = as_metric(rmse, higher_is_better=False)
    assert (metric.name, metric.higher_is_better) == ("rmse", False)
    assert metric(torch.tensor([2.0]), torch.tensor([0.0])) == 2.0
    assert as_metric(metric) is metric
    with pytest.raises(ValueError, match="is more of 'rmse' better"):
        as_metric(rmse)
    with pytest.raises(TypeError, match="got int"):
        as_metric(3)


def test_unknown_names_meet_the_nearest():
    with pytest.raises(ValueError, match="no metric named 'acuracy': did you mean 'accuracy'"):
        as_metric("acuracy")


def test_torchmetrics_objects_are_reset_between_calls():
    stateful = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")
    metric = as_metric(stateful, name="top1")
    assert metric.higher_is_better is True
    assert metric(SCORES, LABELS) == pytest.approx(0.75)
    assert metric(SCORES[:2], LABELS[:2]) == pytest.approx(1.0)  # the first four are forgotten
    assert metric(SCORES.numpy(), LABELS.numpy()) == pytest.approx(0.75)
    assert as_metric(torchmetrics.MeanSquaredError()).higher_is_better is False


def test_a_metric_must_give_one_number():
    with pytest.raises(TypeError, match="'two' must give one number"):
        Metric("two", lambda outputs, targets: [1, 2], True)(np.zeros(1), np.zeros(1))


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    metrics._sklearn.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'rewound\[tasks\]'"):
        METRICS["accuracy"](SCORES, LABELS)
    assert METRICS["perplexity"](SCORES, LABELS) > 1  # needs none
