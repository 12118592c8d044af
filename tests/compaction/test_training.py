"""A network that comes back as a graph trains like the masked one, or says that it cannot."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewound
from rewound.compaction import proof
from rewound.compaction.rewriting import Rewritten

EXAMPLE = torch.randn(4, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """Convolutions with batch norm and dropout, and a size written into the code."""

    def __init__(
        self, dropout: float = 0.0, change: Callable[[Written, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.fc, self.out = nn.Dropout(dropout), nn.Linear(8 * 25, 6), nn.Linear(6, 3)
        self.change = change
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        if self.change is not None:
            x = self.change(self, x)
        return self.out(torch.tanh(self.fc(self.drop(x.reshape(x.shape[0], 8 * 25)))))


def half(model: nn.Module) -> rewound.Mask:
    return rewound.prune(model, 0.5, pattern="unit", allocation="uniform", criterion="l1", example=EXAMPLE)


def graph_of(model: nn.Module, mask: Any, message: str) -> Rewritten:
    with pytest.warns(UserWarning, match=message):
        small = rewound.compact(model, mask, EXAMPLE)
    assert isinstance(small, Rewritten)
    return small


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    model.train()
    for step in range(steps):
        # batches of another size than the example's
        x = torch.randn(6, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("mode", [True, False])
def test_masked_and_rewritten_training_are_the_same(mode):
    model = Written().train(mode)
    mask = half(model)
    small = graph_of(model, mask, "computes the same, in evaluation and in training mode")
    assert small.training is mode
    masked = proof.masked_copy(model, mask)
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1, momentum=0.9)
    guard = rewound.guard(optimizer, masked, mask)
    trained(masked, optimizer)
    guard.check()
    trained(small, torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9))
    where, state = rewound.coordinates(small), small.state_dict()
    assert state["norm.num_batches_tracked"] == 5
    for name, tensor in masked.state_dict().items():
        torch.testing.assert_close(state[name], where.cut(name, tensor), rtol=1e-10, atol=1e-10)
    assert not torch.equal(
        state["norm.running_mean"], where.cut("norm.running_mean", model.norm.running_mean)
    )
    masked.eval(), small.eval()
    torch.testing.assert_close(small(EXAMPLE), masked(EXAMPLE), rtol=1e-10, atol=1e-10)


def test_dropout_drops_in_training_mode_only_and_copies_do_too():
    model = Written(dropout=0.5)
    small = graph_of(model, half(model), "in evaluation and in training mode")
    for each in (small, copy.deepcopy(small)):
        each.train()
        assert not torch.equal(each(EXAMPLE), each(EXAMPLE))
        each.eval()
        assert torch.equal(each(EXAMPLE), each(EXAMPLE))


def test_the_model_is_left_as_it_was():
    model = Written(dropout=0.5).train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    mask = half(model)
    torch.set_rng_state(state)
    graph_of(model, mask, "written into it")
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.norm.training) == (True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_layers_that_the_user_keeps_in_evaluation_mode_stay_in_it():
    model = Written().train()
    model.norm.eval()
    small = graph_of(model, half(model), "written into it")
    before = small.norm.running_mean.clone()
    trained(small, torch.optim.SGD(small.parameters(), lr=0.1))
    assert torch.equal(small.norm.running_mean, before)


def _python_random(m: Written, x: Tensor) -> Tensor:
    return x * random.random() if m.training else x


def _by_data(m: Written, x: Tensor) -> Tensor:
    return x * 0.5 if m.training and bool(x.sum() > 0) else x


def _unlike(m: Written, x: Tensor) -> Tensor:
    """A statistic over the channels, in training mode only."""
    return x / x.mean(1, keepdim=True).abs().add(1) if m.training else x


def _noise(m: Written, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5) if m.training else x


UNTRAINED = {
    "numbers of Python": (_python_random, "random numbers outside torch"),
    "data": (_by_data, "depends on its data"),
    "statistics": (_unlike, "in training mode it differs from the masked model"),
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_cannot_be_trained_says_why_and_is_not(name):
    change, why = UNTRAINED[name]
    model = Written(change=change).train()
    small = graph_of(model, half(model), f"cannot be trained further .*{why}")
    assert not small.training
    assert not small.trains
    for each in (small, copy.deepcopy(small), nn.Sequential(small)):
        with pytest.raises(
            RuntimeError, match=rf"(?s)cannot be set to training mode: .*{why}.*-1, or x\.shape"
        ):
            each.train()
    small.eval()
    torch.testing.assert_close(small(EXAMPLE), proof.masked_copy(model, half(model)).eval()(EXAMPLE))


def test_dropout_of_whatever_shape_is_proven():
    model = Written(dropout=0.3, change=_noise)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        small = rewound.compact(model, half(model), EXAMPLE)
    assert any("in evaluation and in training mode" in str(w.message) for w in said)
    assert small.trains
