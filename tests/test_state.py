"""A state is frozen: it never aliases what trains on, and it comes back to the bit."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from rewound.state import State, capture, forget_slots, persistent_tensors, plain, restore, revived

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
}


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))


def steps(model, optimizer, scheduler, n):
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        scheduler.step()


def bits(model, optimizer, scheduler):
    slots = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    return (
        [t.clone() for t in (*model.state_dict().values(), *slots)],
        scheduler.state_dict(),
        torch.get_rng_state(),
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0])) and a[1] == b[1] and torch.equal(a[2], b[2])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("through_file", [False, True])
def test_training_from_a_restored_state_is_the_same_training_to_the_bit(kind, through_file, tmp_path):
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    steps(model, optimizer, scheduler, 5)
    state = capture(model, optimizer, scheduler)
    if through_file:
        torch.save(state.to_plain(), tmp_path / "s.pt")
    steps(model, optimizer, scheduler, 5)
    first = bits(model, optimizer, scheduler)
    if through_file:  # into new objects, as after a crash
        state = State.from_plain(torch.load(tmp_path / "s.pt", weights_only=True))
        model = network()
        optimizer = OPTIMIZERS[kind](model.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    restore(state, model, optimizer, scheduler)
    steps(model, optimizer, scheduler, 5)
    assert same(bits(model, optimizer, scheduler), first)


def test_a_stored_state_never_aliases_live_tensors():
    """Trap 17, both ways: training does not change the state, restoring does not tie them together."""
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    steps(model, optimizer, scheduler, 2)
    state = capture(model, optimizer, scheduler, extras=[torch.Generator()])

    def digest():
        return [t.clone() for t in tensors(state.to_plain())]

    before = digest()
    steps(model, optimizer, scheduler, 3)
    restore(state, model, optimizer, scheduler, extras=[torch.Generator()])
    steps(model, optimizer, scheduler, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, digest()))


def tensors(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)


def test_restoring_keeps_the_parameter_objects_and_dtypes():
    model = network().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
        optimizer.state[p] = {"momentum_buffer": torch.full(p.shape, 1 / 3)}  # fp32 state of a bf16 weight
    state = capture(model, optimizer)
    objects = list(model.parameters())
    optimizer.state.clear()
    restore(state, model, optimizer)
    assert all(a is b for a, b in zip(objects, model.parameters()))
    buffers = [s["momentum_buffer"] for s in optimizer.state.values()]
    assert all(b.dtype == torch.float32 and (b == 1 / 3).all() for b in buffers)


def test_random_generators_of_torch_numpy_and_python():
    state = capture(nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)]), parts=("rng",))
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1))
    restore(state, nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)]))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)) == first


def test_only_the_parts_asked_for():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = capture(model, optimizer, parts=("clock",))
    assert state.model is None
    assert state.rng is None
    optimizer.param_groups[0]["lr"] = 5.0
    weight = model[0].weight.detach().clone()
    restore(state, model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(model[0].weight, weight)


def test_generators_and_grad_scalers_as_extras():
    generator, scaler = torch.Generator().manual_seed(3), torch.amp.GradScaler("cpu", init_scale=8.0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = capture(model, optimizer, extras=[generator, scaler])
    first = torch.rand(2, generator=generator)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0})
    restore(state, model, optimizer, extras=[generator, scaler])
    assert torch.equal(torch.rand(2, generator=generator), first)
    assert scaler.state_dict()["scale"] == 8.0


def test_plain_values_only_and_the_place_is_named():
    assert plain({"a": np.float64(2), "b": (1, Counter(x=2)), "c": torch.Size([2])}, "x") == {
        "a": 2.0, "b": (1, Counter(x=2)), "c": (2,),
    }  # fmt: skip
    with pytest.raises(TypeError, match=r"extras\[0\]\['hook'\] is a function, which cannot be stored"):
        plain({"hook": plain}, "extras[0]")


def test_a_state_of_another_model_is_refused_by_name():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = capture(model, optimizer)
    with pytest.raises(ValueError, match="differ in"):
        restore(state, nn.Linear(6, 8), optimizer)
    other = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(8, 5\), its stored state \(8, 6\)"):
        restore(state, other, optimizer)


def test_a_state_of_another_dtype_is_refused_and_nothing_is_written():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = capture(model, optimizer)
    other = network().double()
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(
        ValueError, match=r"'0.weight' is of torch.float64, its stored state of torch.float32"
    ):
        restore(state, other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters()))


def test_moments_lie_with_their_parameter_and_step_counters_on_the_cpu():
    """So that a state written on one device can be read on another."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    slots = capture(model, optimizer, parts=("optimizer",)).optimizer["by_parameter"][0]
    assert {name: slot["device"] for name, slot in slots.items()} == {
        "step": "cpu",
        "exp_avg": None,
        "exp_avg_sq": None,
    }


def test_arrays_of_numpy_come_back_as_arrays(tmp_path):
    given = {"order": np.arange(4, dtype=np.int32), "more": [np.ones((2, 2)), (1, torch.ones(1))]}
    torch.save(plain(given, "x"), tmp_path / "p.pt")
    again = revived(torch.load(tmp_path / "p.pt", weights_only=True))
    assert again["order"].dtype == np.int32
    assert again["order"].tolist() == [0, 1, 2, 3]
    assert isinstance(again["more"][0], np.ndarray)
    assert isinstance(again["more"][1], tuple)
    with pytest.raises(TypeError, match=r"extras\[0\] is a ndarray, which cannot be stored"):
        plain(np.array(["text"]), "extras[0]")


def test_persistent_tensors_are_those_of_the_modules_whatever_state_dict_is_made_to_show():
    model = network()
    model.register_buffer("cache", torch.zeros(1), persistent=False)
    model[1].register_buffer("count", torch.zeros(1))
    model._register_state_dict_hook(lambda module, state, *_: {f"renamed.{k}": v for k, v in state.items()})
    names = set(persistent_tensors(model))
    assert {"0.weight", "1.running_mean", "1.count"} <= names
    assert "cache" not in names


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_forgetful_optimizer_is_as_good_as_new(kind):
    model, other = network(), network()
    used, new = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](other.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    used.step()
    other.load_state_dict(model.state_dict())
    forget_slots(used)
    born = [[sorted(slots) for slots in optimizer.state.values()] for optimizer in (used, new)]
    assert born[0] == born[1]  # Adagrad's are there from the beginning
    x = torch.randn(8, 6)
    for net, optimizer in ((model.eval(), used), (other.eval(), new)):
        net.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
