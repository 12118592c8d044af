"""Evaluation leaves the model as it was, and sees all outputs at once."""

import copy

import pytest
import torch
from torch import nn

from rewound.metrics import Metric
from rewound.tasks.evaluation import evaluate, has_batch_norm, recalibrated


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


X, Y = torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), torch.arange(11) % 2


def test_modes_buffers_and_gradients_survive():
    model = net()
    model[1].eval()  # frozen by its user
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    first = evaluate(model, [(X, Y)], ["accuracy"], nn.functional.cross_entropy)
    assert evaluate(model, [(X, Y)], ["accuracy"], nn.functional.cross_entropy) == first  # no dropout
    assert [m.training for m in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_modes_survive_an_error():
    model = net()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(2, 7), Y[:2])], [], nn.functional.cross_entropy)
    assert all(m.training for m in model.modules())


def test_values_do_not_depend_on_the_batches():
    model = net()
    whole = evaluate(model, [(X, Y)], ["accuracy", "f1"], nn.functional.cross_entropy)
    parts = evaluate(model, [(X[:7], Y[:7]), (X[7:], Y[7:])], ["accuracy", "f1"], nn.functional.cross_entropy)
    assert parts == pytest.approx(whole, abs=1e-6)
    assert list(parts) == ["loss", "accuracy", "f1"]


def test_metrics_of_the_user():
    spread = Metric("spread", lambda outputs, targets: outputs.max() - outputs.min(), True)
    assert evaluate(nn.Identity(), [(X, X)], [spread], nn.functional.mse_loss)["spread"] == pytest.approx(
        float(X.max() - X.min())
    )


def test_recalibration_measures_a_copy():
    model = net().eval()
    model[1].running_mean.fill_(100)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    fresh = recalibrated(model, [X[:5], X[5:10]])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.allclose(fresh[1].running_mean, model[0](X[:10]).mean(0), atol=1e-5)
    assert not any(m.training for m in model.modules())


def test_networks_with_running_statistics():
    assert has_batch_norm(net())
    assert not has_batch_norm(nn.Linear(1, 1))
    assert not has_batch_norm(nn.BatchNorm1d(2, track_running_stats=False))
