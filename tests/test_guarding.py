"""Zeros stay zeros through every optimizer, and a lost hook is found and named."""

import copy

import pytest
import torch
from torch import nn

from rewound.guarding import guard
from rewound.mask import Mask
from rewound.pruning import prune

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum-decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True),
    "sgd-maximize": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2), foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, weight_decay=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=1e-2, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 6, generator=generator)).square().mean().backward()
        optimizer.step()


def pruned_values(model: nn.Module, mask: Mask) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name][~kept] for name, kept in mask.items()])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zeros_are_exact_after_each_of_50_steps(kind):
    """Trap 1: the optimizer comes with momentum and second moments of a dense past."""
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, 5)
    mask = prune(model, density=0.3)
    held = guard(optimizer, model, mask)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(int(pruned_values(model, mask).count_nonzero())))
    train(model, optimizer, 50)
    assert seen == [0] * 50
    assert int(torch.cat([p.flatten() for p in model.parameters()]).isfinite().logical_not().sum()) == 0
    for name, p in model.named_parameters():  # momentum and moments under the mask are zero as well
        for value in optimizer.state[p].values() if name in mask else ():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and kind != "rprop":
                assert not value[~mask[name]].any()
    held.check()


def test_gradient_masking_alone_would_have_let_them_back():
    """The test above can fail: the field's classic bug, made on purpose."""
    model = network()
    optimizer = OPTIMIZERS["sgd-momentum-decay"](model.parameters())
    train(model, optimizer, 5)
    mask = prune(model, density=0.3)
    mask.apply_(model)
    for name, p in model.named_parameters():
        if name in mask:
            p.register_hook(lambda grad, kept=mask[name]: grad * kept)
    train(model, optimizer, 1)
    assert pruned_values(model, mask).count_nonzero() > 0


def test_masked_training_equals_training_with_the_mask_in_the_forward_pass():
    """The paper multiplies the mask in the forward pass; survivors move the same, clipping included."""
    ours, theirs = network(), network()
    mask = prune(ours, density=0.4)
    mask.apply_(ours)
    mask.apply_(theirs)

    class Masked(nn.Module):
        def __init__(self, kept):
            super().__init__()
            self.register_buffer("kept", kept)

        def forward(self, w):
            return w * self.kept

    optimizers = []
    for model in (ours, theirs):
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    held = guard(optimizers[0], ours, mask)
    for name, kept in mask.items():
        module = theirs.get_submodule(name.rpartition(".")[0])
        nn.utils.parametrize.register_parametrization(module, "weight", Masked(kept), unsafe=True)
    optimizers[1] = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        x = torch.randn(16, 6, generator=generator)
        for model, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    held.check()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_clipping_sees_survivors_only():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    mask = prune(model, density=0.2)
    guard(optimizer, model, mask)
    model(torch.randn(16, 6)).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    survivors = [p.grad[mask[n]] if n in mask else p.grad.flatten() for n, p in model.named_parameters()]
    torch.testing.assert_close(norm, torch.cat(survivors).norm())
    for name, p in model.named_parameters():
        if name in mask:
            assert not p.grad[~mask[name]].any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["sgd-momentum-decay", "adam"])
def test_nan_and_inf_under_a_pruned_weight_do_not_leak(kind, poison):
    """Trap 3: NaN x 0 is NaN, so the mask must fill and not multiply; in weight, gradient and momentum."""
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, 2)
    mask = prune(model, density=0.3)
    weight = model[0].weight
    with torch.no_grad():
        weight[~mask["0.weight"]] = poison
    for value in optimizer.state[weight].values():
        if isinstance(value, torch.Tensor) and value.shape == weight.shape:
            value[~mask["0.weight"]] = poison
    held = guard(optimizer, model, mask)
    train(model, optimizer, 3)
    weight.grad = torch.where(mask["0.weight"], torch.ones_like(weight), poison)  # written by hand
    optimizer.step()
    held.check()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(v.isfinite().all() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))


def test_bfloat16_and_float16():
    for dtype in (torch.bfloat16, torch.float16):
        model = nn.Linear(8, 8).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        mask = prune(model, density=0.5)
        held = guard(optimizer, model, mask)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 8, dtype=dtype)).float().sum().backward()
            optimizer.step()
        held.check()
        assert int((model.weight == 0).sum()) >= 32


def test_an_unpruned_weight_that_is_zero_stays_trainable():
    """Trap 13."""
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = prune(model, density=0.5)
    guard(optimizer, model, mask)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight != 0, mask["weight"])


def test_lbfgs_and_sparse_adam_are_refused_with_the_reason():
    model = nn.Linear(2, 2)
    mask = prune(model, density=0.5)
    with pytest.raises(TypeError, match="LBFGS evaluates the loss many times inside one step"):
        guard(torch.optim.LBFGS(model.parameters()), model, mask)
    with pytest.raises(TypeError, match="sparse=False"):
        guard(torch.optim.SparseAdam(list(model.parameters())), model, mask)


def test_a_sparse_gradient_is_refused_by_name():
    model = nn.Embedding(5, 4, sparse=True)
    mask = prune(model, density=0.5, scope=["weight"])
    guard(torch.optim.SGD(model.parameters(), lr=0.1), model, mask)
    with pytest.raises(TypeError, match="'weight' is sparse"):
        model(torch.tensor([1])).sum().backward()


def test_an_optimizer_of_other_parameters_is_refused():
    model, other = network(), network()
    with pytest.raises(
        ValueError, match=r"does not hold 2 of the 2 parameters to prune \(first: '0.weight'\)"
    ):
        guard(torch.optim.SGD(other.parameters(), lr=0.1), model, prune(model, density=0.5))


class TestCheck:
    """The integrity check names tensor, optimizer and remedy."""

    def setup_method(self):
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.mask = prune(self.model, density=0.3)
        self.guard = guard(self.optimizer, self.model, self.mask)

    def test_says_nothing_when_all_is_well(self):
        train(self.model, self.optimizer, 2)
        self.guard.check()

    def test_finds_lost_step_hooks(self):
        self.optimizer._optimizer_step_post_hooks.clear()
        with pytest.raises(RuntimeError, match=r"hooks are gone from this AdamW; .*rewound.guard"):
            self.guard.check()

    def test_finds_a_lost_gradient_hook(self):
        self.model[0].weight._post_accumulate_grad_hooks.clear()
        with pytest.raises(RuntimeError, match=r"gradient hook of '0.weight' is gone"):
            self.guard.check()

    def test_finds_a_replaced_parameter(self):
        self.model[0].weight = nn.Parameter(self.model[0].weight.detach().clone())
        with pytest.raises(RuntimeError, match=r"'0.weight' is another tensor than the one guarded.*AdamW"):
            self.guard.check()

    def test_finds_a_parameter_that_left_the_optimizer(self):
        self.optimizer.param_groups[0]["params"] = list(self.model[1].parameters())
        with pytest.raises(RuntimeError, match=r"'0.weight' is no longer among the parameters of this AdamW"):
            self.guard.check()

    def test_finds_weights_that_came_back(self):
        with torch.no_grad():
            self.model[3].weight.fill_(1.0)
        with pytest.raises(RuntimeError, match=r"pruned weights of '3.weight' are not zero.*mask.apply_"):
            self.guard.check()


def test_remove_lets_weights_grow_again():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = prune(model, density=0.3)
    guard(optimizer, model, mask).remove()
    train(model, optimizer, 1)
    assert pruned_values(model, mask).count_nonzero() > 0


def test_the_model_is_not_changed_in_kind():
    """Trap 19: same parameter objects, same state-dict keys, deepcopy without hooks."""
    model = network()
    before, keys = dict(model.named_parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard(optimizer, model, prune(model, density=0.3))
    train(model, optimizer, 2)
    assert list(model.state_dict()) == keys
    assert all(p is before[name] for name, p in model.named_parameters())
    copied = copy.deepcopy(model)
    copied(torch.randn(4, 6)).sum().backward()
    assert copied[0].weight.grad[copied[0].weight == 0].any()  # the copy's gradient is not masked


def test_a_weight_average_of_masked_networks_obeys_the_mask():
    """Trap 2."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    average.update_parameters(model)
    mask = prune(model, density=0.3)
    guard(optimizer, model, mask)
    mask.apply_(average)
    for _ in range(5):
        train(model, optimizer, 1)
        average.update_parameters(model)
    assert pruned_values(average.module, mask).count_nonzero() == 0
    assert average.module[0].weight.count_nonzero() == mask["0.weight"].sum()


def test_a_gradient_written_by_hand_is_masked_before_the_step_whatever_the_others_did():
    """Two micro-batches for one tensor, none for the other: as many gradients as tensors, and one of them not masked."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = prune(model, density=0.3)
    guard(optimizer, model, mask)
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            [int(p.grad[~mask[n]].count_nonzero()) for n, p in model.named_parameters() if n in mask]
        )
    )
    first, last = model[0].weight, model[3].weight
    for _ in range(2):
        (first * torch.randn_like(first)).sum().backward()
    last.grad = torch.randn_like(last)
    optimizer.step()
    model.zero_grad()
    first.square().sum().backward()
    last.square().sum().backward()
    first.grad = torch.randn_like(first)  # written over after the backward pass
    last.grad.add_(1)  # or in place: noise, a decay by hand
    optimizer.step()
    assert seen == [[0, 0], [0, 0]]


def test_codes_of_an_8_bit_optimizer_are_not_numbers():
    """Code 0 stands for some number, the lowest as a rule: writing it would bring momentum, not take it away."""

    class Coded(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("code", torch.full(p.shape, 7, dtype=torch.uint8))

    model = network()
    optimizer = Coded(model.parameters(), lr=0.1)
    guard(optimizer, model, prune(model, density=0.3))
    train(model, optimizer, 3)
    assert all(bool((slots["code"] == 7).all()) for slots in optimizer.state.values())
