"""Training masked and training compact are the same training: every weight, step after step, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rewound
from rewound.compaction.shrinking import shrink_
from rewound.compaction.units import masks_of

TOLERANCE = 1e-10


class Net(nn.Module):
    """Convolutions with batch norm and a residual sum, a linear layer after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 16, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.fc2(torch.sigmoid(self.fc1(x.flatten(1))))


class Recurrent(nn.Module):
    """An LSTM and a GRU over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.lstm, self.gru = nn.LSTM(5, 7, 2, batch_first=True), nn.GRU(7, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(self.lstm(self.embed(x))[0])[0][:, -1])


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Linear(12, 3))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd momentum decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def batch(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "recurrent":
        return torch.randint(11, (5, 6), generator=generator)
    if kind == "attention":
        return torch.randn(4, 5, 12, generator=generator, dtype=torch.float64)
    return torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = {"conv": Net, "recurrent": Recurrent, "attention": attention}[kind]().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def train(model, optimizer, kind, steps, start=0, clip=None, ema=None):
    model.train()
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = model(batch(kind, step)).square().mean()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if ema is not None:
            ema.update_parameters(model)


def half(model: nn.Module, example: torch.Tensor) -> rewound.Mask:
    structure = rewound.find_units(model, example)
    groups = [
        g for g in structure if g.certificate <= rewound.Certificate.EXACT_AFTER_FOLD and g.kind != "head dim"
    ]
    generator = torch.Generator().manual_seed(3)
    kept = {}
    for group in groups:
        kept[group.name] = torch.rand(group.size, generator=generator) < 0.5
        kept[group.name][0] = True
    return rewound.Mask(masks_of(structure.restricted(groups), kept))


def assert_same(masked: nn.Module, small: nn.Module) -> None:
    """Every parameter and buffer of the small network is that part of the masked one."""
    where = rewound.coordinates(small)
    theirs = small.state_dict()
    for name, tensor in masked.state_dict().items():
        expected = where.cut(name, tensor)
        torch.testing.assert_close(
            theirs[name], expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", ["conv", "recurrent", "attention"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_masked_and_compact_training_are_the_same(kind, name, clip):
    masked = build(kind)
    optimizer = OPTIMIZERS[name](masked.parameters())
    train(masked, optimizer, kind, 3)  # so that there is momentum when pruning comes
    mask = half(masked, batch(kind, 0))
    small = rewound.compact(masked, mask, batch(kind, 0))
    theirs = rewound.carry_over(optimizer, masked, small)
    rewound.guard(optimizer, masked, mask)
    assert_same(masked, small)
    train(masked, optimizer, kind, 8, start=3, clip=clip)
    train(small, theirs, kind, 8, start=3, clip=clip)
    assert_same(masked, small)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shrinking_in_place_with_its_average_is_the_same_training(name):
    masked = build("conv")
    small = copy.deepcopy(masked)
    nets = []
    for model in (masked, small):
        optimizer = OPTIMIZERS[name](model.parameters())
        ema = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        train(model, optimizer, "conv", 3, ema=ema)
        nets.append((optimizer, ema))
    mask = half(masked, batch("conv", 0))
    rewound.guard(nets[0][0], masked, mask)
    mask.apply_(nets[0][1].module)
    parameters = list(small.parameters())
    shrink_(small, mask, batch("conv", 0), optimizers=[nets[1][0]], copies=[nets[1][1]])
    assert all(p is q for p, q in zip(parameters, small.parameters()))
    for (optimizer, ema), model in zip(nets, (masked, small)):
        train(model, optimizer, "conv", 8, start=3, clip=0.5, ema=ema)
    assert_same(masked, small)
    assert_same(nets[0][1].module, nets[1][1].module)


def test_a_second_round_cuts_what_the_first_left():
    masked = build("conv")
    small = copy.deepcopy(masked)
    optimizers = [OPTIMIZERS["adam decay"](m.parameters()) for m in (masked, small)]
    example = batch("conv", 0)
    total = None
    guard = None
    for round_ in range(3):
        for optimizer, model in zip(optimizers, (masked, small)):
            train(model, optimizer, "conv", 4, start=4 * round_)
        of_small = half(small, example)
        step = shrink_(small, of_small, example, optimizers=[optimizers[1]])
        total = step if total is None else total.then(step)
        where = rewound.coordinates(small)
        # The same units of the original network: whatever has no place in the small one is masked.
        mask = rewound.Mask(
            {
                name: where.put_back(name, torch.ones_like(small.state_dict()[name], dtype=torch.bool), False)
                for name in of_small
            }
        )
        if guard is not None:
            guard.remove()
        guard = rewound.guard(optimizers[0], masked, mask)
        assert_same(masked, small)
    early = build("conv").state_dict()
    for name, tensor in rewound.coordinates(small).cut_all(early).items():
        assert tensor.shape == small.state_dict()[name].shape
    for name in total.kept:
        for axis, index in total.kept[name].items():
            assert torch.equal(index, rewound.coordinates(small).kept[name][axis])


def test_an_optimizer_of_another_model_is_refused():
    model, other = build("conv"), build("conv")
    mask = half(model, batch("conv", 0))
    small = rewound.compact(model, mask, batch("conv", 0))
    with pytest.raises(ValueError, match="no parameter of this Net"):
        rewound.carry_over(torch.optim.SGD(other.parameters(), lr=0.1), model, small)


def test_a_factored_state_is_refused_by_name():
    model = build("conv")
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    train(model, optimizer, "conv", 1)
    mask = half(model, batch("conv", 0))
    small = rewound.compact(model, mask, batch("conv", 0))
    with pytest.raises(ValueError, match="Adafactor keeps 'row_var'"):
        rewound.carry_over(optimizer, model, small)


def test_an_optimizer_is_carried_over_twice():
    masked = build("conv")
    optimizer = OPTIMIZERS["adamw"](masked.parameters())
    train(masked, optimizer, "conv", 2)
    once = rewound.compact(masked, half(masked, batch("conv", 0)), batch("conv", 0))
    theirs = rewound.carry_over(optimizer, masked, once)
    train(once, theirs, "conv", 2)
    mask = half(once, batch("conv", 0))
    twice = rewound.compact(once, mask, batch("conv", 0))
    last = rewound.carry_over(theirs, once, twice)
    rewound.guard(theirs, once, mask)
    train(once, theirs, "conv", 3, start=4)
    train(twice, last, "conv", 3, start=4)
    where = rewound.coordinates(twice).since(rewound.coordinates(once))
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(
            twice.state_dict()[name], where.cut(name, tensor), rtol=TOLERANCE, atol=TOLERANCE
        )
