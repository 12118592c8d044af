"""Run(shrink=True): rounds on ever smaller networks give what masked training gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rewound


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.fc2(torch.sigmoid(self.fc1(x.mean((2, 3)))))


EXAMPLE = torch.zeros(2, 1, 6, 6, dtype=torch.float64)


def data(epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * epoch + step)
    x = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, (x.mean((1, 2, 3)) * 8).long().clamp(-1, 1) + 1


def setup(make_optimizer, *, shrink, folder=None, epochs=3, ema=False, **keywords):
    torch.manual_seed(1)
    model = Net().double()
    optimizer = make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
    extras = (
        (
            torch.optim.swa_utils.AveragedModel(
                model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
            ),
        )
        if ema
        else ()
    )
    asked = {"pattern": "unit", "rate": 0.3, "until": "3 rounds", "example": EXAMPLE, **keywords}
    run = rewound.Run(
        model,
        optimizer,
        epochs=epochs,
        scheduler=scheduler,
        extras=extras,
        folder=folder,
        shrink=shrink,
        **asked,
    )
    return model, optimizer, scheduler, extras, run


def train(model, optimizer, scheduler, extras, run, stop=None, seen=None):
    for done, epoch in enumerate(run, start=1):
        if seen is not None:
            seen.append((run.round, sum(p.numel() for p in model.parameters())))
        model.train()
        for step in range(3):
            x, y = data(epoch, step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            for extra in extras:
                extra.update_parameters(model)
        scheduler.step()
        run.log(loss=loss.item())
        if stop is not None and done == stop:
            return


def sgd(p):
    return torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3)


def adam(p):
    return torch.optim.AdamW(p, lr=0.01)


def assert_same(masked, small, runs, extras=((), ())):
    torch.testing.assert_close(
        [[e["loss"] for e in r.log] for r in runs[1].result.rounds],
        [[e["loss"] for e in r.log] for r in runs[0].result.rounds],
        rtol=1e-8, atol=1e-10,
    )  # fmt: skip
    for name, kept in runs[0].mask.items():
        assert torch.equal(kept, runs[1].mask[name]), name
    for dense, cut in ((masked, small), *zip(*[[e.module for e in extra] for extra in extras])):
        where = rewound.coordinates(cut)
        theirs = cut.state_dict()
        for name, tensor in dense.state_dict().items():
            torch.testing.assert_close(theirs[name], where.cut(name, tensor), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize(
    "technique",
    [
        rewound.learning_rate_rewinding(),
        rewound.weight_rewinding(epochs=2),
        rewound.fine_tuning(),
        rewound.lottery_ticket(),
        rewound.reinitialization(),
    ],
    ids=str,
)
def test_results_are_those_of_masked_training(make, technique):
    found = [setup(make, shrink=shrink, technique=technique, ema=True) for shrink in (False, True)]
    sizes: list[tuple[int, int]] = []
    for parts, seen in zip(found, (None, sizes)):
        train(*parts, seen=seen)
    (masked, *_, masked_extras, masked_run), (small, *_, small_extras, small_run) = found
    assert_same(masked, small, (masked_run, small_run), (masked_extras, small_extras))
    by_round = dict(sizes)
    assert by_round[0] > by_round[1] > by_round[2] > by_round[3]
    assert [r.density for r in small_run.result.rounds] == [r.density for r in masked_run.result.rounds]


def test_weight_rewinding_at_round_3_is_a_slice_of_the_snapshot():
    """What round 3 begins with is the original run's snapshot, cut by the coordinates; nothing of rounds 1 and 2."""
    snapshot, begun = {}, {}
    model, optimizer, scheduler, extras, run = setup(
        sgd, shrink=True, technique=rewound.weight_rewinding(epochs=2)
    )
    for epoch in run:
        if run.round == 0 and epoch == 1:
            snapshot = {k: v.clone() for k, v in model.state_dict().items()}
            momentum = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in model.named_parameters()}
        if run.round == 3 and epoch == 1:
            begun = {k: v.clone() for k, v in model.state_dict().items()}
            where = rewound.coordinates(model)
            for name, p in model.named_parameters():
                assert torch.equal(optimizer.state[p]["momentum_buffer"], where.cut(name, momentum[name]))
        for step in range(2):
            x, y = data(epoch, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        scheduler.step()
    assert begun
    for name, tensor in snapshot.items():
        assert torch.equal(begun[name], where.cut(name, tensor)), name
    assert all(
        torch.equal(where.cut(name, kept), torch.ones_like(where.cut(name, kept)))
        for name, kept in run.mask.items()
    )


@pytest.mark.parametrize("stop", [1, 4, 5, 8])
@pytest.mark.parametrize("technique", ["lr-rewinding", "weight-rewinding:2ep"])
def test_a_killed_run_goes_on_small(tmp_path, stop, technique):
    whole = setup(sgd, shrink=True, folder=tmp_path / "whole", technique=technique, ema=True)
    train(*whole)
    train(*setup(sgd, shrink=True, folder=tmp_path / "killed", technique=technique, ema=True), stop=stop)
    again = setup(sgd, shrink=True, folder=tmp_path / "killed", technique=technique, ema=True)
    train(*again)
    assert [r.metrics for r in again[-1].result.rounds] == [r.metrics for r in whole[-1].result.rounds]
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[name], tensor), name


def test_the_last_good_round_comes_back_in_its_size():
    model, optimizer, scheduler, extras, run = setup(
        sgd, shrink=True, until=("loss rises 0.5", "4 rounds"), ema=True
    )
    sizes, weights = {}, {}
    for epoch in run:
        for step in range(2):
            x, y = data(epoch, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        scheduler.step()
        run.log(loss=1.0 if run.round < 3 else 2.0)
        sizes[run.round] = {n: p.shape for n, p in model.named_parameters()}
        weights[run.round] = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert run.result.best_round == 2 if hasattr(run.result, "best_round") else True
    assert {n: p.shape for n, p in model.named_parameters()} == sizes[2] != sizes[3]
    assert all(torch.equal(p, weights[2][n]) for n, p in model.named_parameters())
    assert model.conv1.out_channels == model.conv1.weight.shape[0]
    model(EXAMPLE)
    extras[0](EXAMPLE)


def test_what_cannot_shrink_is_refused_at_once():
    def build(**keywords):
        return setup(sgd, shrink=True, **keywords)

    with pytest.raises(ValueError, match="takes units out of the model"):
        build(pattern="weight", until=0.5)
    with pytest.raises(ValueError, match="movement"):
        build(criterion="movement")


def test_a_network_that_is_compact_already_shrinks_further():
    torch.manual_seed(1)
    model = Net().double()
    mask = rewound.prune(model, 0.7, pattern="unit", example=EXAMPLE)
    small = rewound.compact(model, mask, torch.randn_like(EXAMPLE))
    sizes = [p.numel() for p in small.parameters()]
    run = rewound.Run(
        small, sgd(small.parameters()), epochs=2, technique="weight-rewinding:1ep", rate=0.3,
        until=("loss rises 0.5", "2 rounds"), pattern="unit", example=EXAMPLE, shrink=True,
    )  # fmt: skip
    optimizer = run._live.optimizer
    for epoch in run:
        for step in range(2):
            x, y = data(epoch, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(small(x), y).backward()
            optimizer.step()
        run.log(loss=1.0 if run.round < 2 else 2.0)  # the second round is one too many: the first comes back
    assert run.result.best == 1
    assert sum(p.numel() for p in small.parameters()) < sum(sizes)
    where = rewound.coordinates(small)
    for name, tensor in model.state_dict().items():
        assert where.cut(name, tensor).shape == small.state_dict()[name].shape
    assert small.conv1.out_channels == small.conv1.weight.shape[0]
