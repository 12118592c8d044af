from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rewound.evidence import Computed, Evidence
from rewound.movement import watch_movement
from rewound.parameters import parameters_by_name
from rewound.scope import find_scope


def batches(count=3, size=5):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def test_gradients_are_those_of_the_mean_loss(mlp):
    mlp.eval()
    evidence = Evidence(mlp, batches=batches(), loss=F.cross_entropy)
    reference = copy.deepcopy(mlp)
    sum(F.cross_entropy(reference(x), y) / 3 for x, y in batches()).backward()
    for name in ("0.weight", "3.weight"):
        torch.testing.assert_close(evidence.gradients[name], reference.get_parameter(name).grad)
    assert tuple(evidence.gradients) == evidence.names == ("0.weight", "3.weight")


def test_the_model_and_the_world_are_left_as_found():
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Dropout(0.5), nn.Linear(10, 3))
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    fired = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: fired.append(p))
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad for p in model.parameters()]
    buffers = list(model.buffers())
    worlds = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def loss(output, target):
        random.random()
        np.random.rand()
        return F.cross_entropy(output, target)

    with torch.no_grad():
        evidence = Evidence(model, batches=batches(), loss=loss)
        first = evidence.gradients
    assert evidence.gradients is first
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is grad and bool((grad == 7).all()) for p, grad in zip(model.parameters(), grads))
    assert all(a is b for a, b in zip(model.buffers(), buffers))
    assert [m.training for m in model] == [True, True, True, False]
    assert fired == []
    assert torch.equal(torch.get_rng_state(), worlds[0])
    assert random.getstate() == worlds[1]
    assert np.random.get_state()[1].tolist() == worlds[2]


def test_everything_is_put_back_after_an_error(mlp):
    before = copy.deepcopy(mlp.state_dict())
    bad = [*batches(), (torch.randn(5, 7), torch.zeros(5).long())]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        Evidence(mlp, batches=bad, loss=F.cross_entropy).gradients  # noqa: B018
    assert all(torch.equal(before[key], value) for key, value in mlp.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_draws_from_the_seed():
    model = nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.5), nn.Linear(10, 3))

    def gradient(seed):
        torch.rand(3)
        return Evidence(model, batches=batches(), loss=F.cross_entropy, seed=seed).gradients["0.weight"]

    assert torch.equal(gradient(1), gradient(1))
    assert not torch.equal(gradient(1), gradient(2))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.unused = nn.Linear(2, 1)

    def forward(self, a, b):
        return self.linear(a + b)


@pytest.mark.parametrize("kind", [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"b": b, "a": a}])
def test_inputs_may_be_tuples_lists_and_dicts(kind):
    data = [(kind(torch.ones(1, 2), torch.ones(1, 2)), None)]
    evidence = Evidence(Pair(), batches=data, loss=lambda output, target: output.sum())
    assert evidence.gradients["linear.weight"].tolist() == [[2.0, 2.0]]
    assert evidence.gradients["unused.weight"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_gradients_add_up_in_a_wide_dtype(dtype, wide):
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    data = [(torch.full((1, 2), value, dtype=dtype), None) for value in (256.0, 1.0, 1.0)]
    gradient = Evidence(layer, batches=data, loss=lambda output, target: output.sum()).gradients["weight"]
    assert gradient.dtype is wide
    assert torch.equal(gradient, torch.full((1, 2), 258 / 3, dtype=wide))


def test_missing_evidence_says_what_to_pass(mlp):
    with pytest.raises(ValueError, match=r"gradients need batches and loss: pass evidence=Evidence\("):
        Evidence(mlp).gradients  # noqa: B018
    with pytest.raises(ValueError, match="gradients need loss"):
        Evidence(mlp, batches=batches()).gradients  # noqa: B018
    with pytest.raises(ValueError, match="watch_movement"):
        Evidence(mlp).movement  # noqa: B018
    with pytest.raises(ValueError, match=r"not watched for '3\.weight'"):
        Evidence(mlp, movement={"0.weight": torch.ones(10, 6)}).movement  # noqa: B018


@pytest.mark.parametrize(
    ("data", "loss", "error", "message"),
    [
        ([], F.cross_entropy, ValueError, "yielded nothing"),
        ([torch.ones(5, 6)], F.cross_entropy, TypeError, "pairs"),
        (batches(), lambda output, target: output, ValueError, "one differentiable number"),
        (batches(), lambda output, target: torch.ones(()), ValueError, "one differentiable number"),
    ],
)
def test_wrong_batches_and_losses(mlp, data, loss, error, message):
    with pytest.raises(error, match=message):
        Evidence(mlp, batches=data, loss=loss).gradients  # noqa: B018


def test_computed_in_parts_equals_computed_whole():
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).t()}
    computed = Computed(tensors, torch.abs, lambda name: (tensors[name],))
    for name, tensor in tensors.items():
        shape, read = computed.open(name)
        assert shape == tensor.shape
        assert torch.equal(read(slice(2, 7)), tensor.abs().reshape(-1)[2:7])
        assert torch.equal(computed[name], tensor.abs())
    assert (list(computed), len(computed)) == (["a", "b"], 2)
    with pytest.raises(KeyError):
        computed["c"]


def train(model, optimizer, data):
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_movement_adds_up_step_by_step(mlp):
    optimizer = torch.optim.Adam(mlp.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    movement = watch_movement(optimizer, mlp)
    expected = {name: torch.zeros_like(parameters_by_name(mlp)[name]) for name in find_scope(mlp).names}
    for index, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        F.cross_entropy(mlp(x), y).backward()
        for name, total in expected.items():
            p = mlp.get_parameter(name)
            total -= 0.01 * 0.5**index * p.grad * p.detach()
        optimizer.step()
        scheduler.step()
    for name, total in expected.items():
        torch.testing.assert_close(movement.sums[name], total)
        assert Evidence(mlp, movement=movement).movement[name].shape == total.shape
    assert movement.steps == 3


def test_movement_does_not_change_training(mlp):
    other = copy.deepcopy(mlp)
    watched = torch.optim.SGD(mlp.parameters(), lr=0.1, momentum=0.9)
    watch_movement(watched, mlp)
    train(mlp, watched, batches())
    train(other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9), batches())
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), other.parameters()))


def test_movement_goes_on_from_a_checkpoint_and_stops_when_removed(mlp):
    def run(stop):
        model = copy.deepcopy(mlp)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        movement = watch_movement(optimizer, model)
        train(model, optimizer, batches()[:stop])
        if stop < 3:
            state = copy.deepcopy(movement.state_dict())
            movement.remove()
            train(copy.deepcopy(model), optimizer, [])
            movement = watch_movement(optimizer, model)
            movement.load_state_dict(state)
            train(model, optimizer, batches()[stop:])
        return movement

    whole, resumed = run(3), run(1)
    assert whole.steps == resumed.steps == 3
    assert all(torch.equal(whole.sums[name], resumed.sums[name]) for name in whole.sums)
    stopped = whole.state_dict()
    whole.sums["0.weight"].zero_()
    assert stopped["sums"]["0.weight"].any()


def test_removed_movement_counts_no_more(mlp):
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
    movement = watch_movement(optimizer, mlp)
    movement.remove()
    movement.remove()
    train(mlp, optimizer, batches())
    assert movement.steps == 0
    assert not movement.sums["0.weight"].any()


def test_movement_errors(mlp, convnet):
    optimizer = torch.optim.SGD(mlp[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not hold '3\.weight' \(1 of 2"):
        watch_movement(optimizer, mlp)
    movement = watch_movement(optimizer, mlp, ["0.weight"])
    other = watch_movement(torch.optim.SGD(convnet.parameters(), lr=0.1), convnet)
    with pytest.raises(ValueError, match="another scope"):
        movement.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="another shape"):
        movement.load_state_dict({"steps": 1, "sums": {"0.weight": torch.ones(2)}})


def test_movement_of_gradients_that_a_scaler_hands_over_scaled(mlp):
    """A fused optimizer is told the scale; its gradients are scaled. A skipped step does not count."""
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.5, fused=True)
    movement = watch_movement(optimizer, mlp, ["3.weight"])
    weight = mlp[3].weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 8.0)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    torch.testing.assert_close(movement.sums["3.weight"], -0.5 * 2.0 * before)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert movement.steps == 1
