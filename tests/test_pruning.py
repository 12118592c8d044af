from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewound.criteria import CRITERIA
from rewound.evidence import Evidence
from rewound.pruning import prune
from rewound.scope import find_scope

OF_WEIGHTS = [name for name, criterion in CRITERIA.items() if not getattr(criterion, "of_units", False)]
MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3)),
    "conv": lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Conv3d(1, 2, 2)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose1d(1, 2, 3), nn.ConvTranspose2d(2, 3, 3)),
    "lstm": lambda: nn.LSTM(4, 4, proj_size=2, bidirectional=True),
    "gru": lambda: nn.GRU(4, 4, num_layers=2),
    "cells": lambda: nn.Sequential(nn.LSTMCell(3, 3), nn.GRUCell(3, 3), nn.RNNCell(3, 3)),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "attention of three": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "bf16": lambda: nn.Linear(16, 16).bfloat16(),
    "fp16": lambda: nn.Linear(16, 16).half(),
    "mixed": lambda: nn.Sequential(
        nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8).double(), nn.Linear(8, 8).half()
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("density", [0.01, 0.2, 0.77, 1.0])
def test_exact_count_on_every_kind_of_layer(name, density):
    model = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    mask = prune(model, density)
    scope = find_scope(model)
    assert tuple(mask) == scope.names
    assert mask.kept == round(density * scope.size)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    mask.apply_(model)
    kept = {n: int(p.count_nonzero()) for n, p in model.named_parameters() if n in mask}
    assert sum(kept.values()) <= mask.kept


def test_keeps_the_largest(mlp):
    mask = prune(mlp, 0.2)
    sizes = {name: mlp.get_parameter(name).detach().abs() for name in mask}
    smallest_kept = min(sizes[name][keep].min() for name, keep in mask.items() if keep.any())
    largest_pruned = max(sizes[name][~keep].max() for name, keep in mask.items())
    assert smallest_kept > largest_pruned


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(1, 40), st.booleans())
def test_counts_are_exact_and_masks_nested(densities, width, ties):
    torch.manual_seed(width)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    if ties:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 2).round())
    mask = None
    for density in sorted(densities, reverse=True):
        smaller = prune(model, density, mask=mask)
        assert smaller.kept == round(density * 5 * width)
        assert mask is None or smaller <= mask
        mask = smaller


def test_twenty_percent_of_the_survivors_for_seventeen_rounds():
    """Trap 12: the fraction is of the survivors; after k rounds the density is 0.8^k to within rounding."""
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 30))
    mask = prune(model, 1.0)
    for k in range(1, 18):
        kept = mask.kept - round(0.2 * mask.kept)
        smaller = prune(model, kept / mask.size, mask=mask)
        assert smaller.kept == kept
        assert smaller <= mask
        assert abs(smaller.density - 0.8**k) < 3 / mask.size
        mask = smaller
        mask.apply_(model)


def test_pruned_weights_never_come_back_even_if_they_grew(mlp):
    mask = prune(mlp, 0.5)
    with torch.no_grad():
        for name, keep in mask.items():
            mlp.get_parameter(name).masked_fill_(~keep, 100.0)
    assert prune(mlp, 0.4, mask=mask) <= mask
    assert prune(mlp, mask.density, mask=mask) == mask


def test_ties_keep_the_earlier_position():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer in model:
        nn.init.ones_(layer.weight)
    mask = prune(model, 5 / 8)
    assert mask["0.weight"].tolist() == [[True, True], [True, True]]
    assert mask["1.weight"].tolist() == [[True, False], [False, False]]


def test_a_weight_that_is_zero_is_not_pruned_for_that():
    """Trap 13."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    assert prune(layer, 1.0).kept == 4
    assert prune(layer, 0.75).kept == 3
    mask = prune(layer, 0.75, mask=prune(layer, 1.0))
    assert mask["weight"].tolist() == [[True, True], [True, False]]


def test_tied_weights_are_decided_once():
    """Trap 10."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    mask = prune(model, 0.5)
    assert tuple(mask) == ("0.weight", "2.weight")
    assert (mask.size, mask.kept) == (24, 12)
    mask.apply_(model)
    assert torch.equal(model[1].weight != 0, mask["0.weight"])


def test_one_weight_and_nothing_left():
    layer = nn.Linear(1, 1)
    assert prune(layer, 1.0)["weight"].tolist() == [[True]]
    assert prune(layer, 0.4)["weight"].tolist() == [[False]]


@pytest.mark.parametrize("density", [0, -0.1, 1.2, math.nan, "0.2", True])
def test_density_must_be_a_share(mlp, density):
    with pytest.raises(ValueError, match=r"'density' must be in \(0, 1\]"):
        prune(mlp, density)


def test_more_than_the_mask_has_left_is_refused(mlp):
    with pytest.raises(ValueError, match=r"asks to keep 45 of 90 weights, and the mask has only 18 left"):
        prune(mlp, 0.5, mask=prune(mlp, 0.2))


def test_the_scope_is_that_of_the_mask():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    mask = prune(model, 0.5, scope=["0.weight", "1.weight"])
    assert set(prune(model, 0.3, mask=mask)) == {"0.weight", "1.weight"}
    with pytest.raises(
        ValueError, match=r"'mask' and the scope must be of the same tensors; '0.weight' is only in 'mask'"
    ):
        prune(model, 0.3, mask=mask, scope=["1.weight"])


def test_masks_of_other_models_are_refused(mlp):
    other = nn.Sequential(nn.Linear(6, 5), nn.Identity(), nn.Identity(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="the mask is another model's"):
        prune(mlp, 0.1, mask=prune(other, 0.5))
    with pytest.raises(TypeError, match="'mask' must be a Mask"):
        prune(mlp, 0.1, mask={"0.weight": torch.ones(10, 6)})


def test_evidence_must_be_of_this_model_and_scope(mlp):
    with pytest.raises(ValueError, match="taken from another model"):
        prune(mlp, 0.5, evidence=Evidence(copy.deepcopy(mlp)))
    with pytest.raises(ValueError, match="'evidence' and the scope"):
        prune(mlp, 0.5, evidence=Evidence(mlp), scope=["0.weight"])
    with pytest.raises(TypeError, match="'evidence' must be an Evidence"):
        prune(mlp, 0.5, evidence=lambda model, scope: None)
    assert tuple(prune(mlp, 0.5, evidence=Evidence(mlp, ["0.weight"]))) == ("0.weight",)
    assert prune(torch.compile(mlp, backend="eager"), 0.5, evidence=Evidence(mlp)) == prune(mlp, 0.5)


def test_unknown_names_say_what_is_known(mlp):
    with pytest.raises(ValueError, match="unknown criterion 'magnitud': did you mean 'magnitude'"):
        prune(mlp, 0.5, criterion="magnitud")
    with pytest.raises(ValueError, match="unknown pattern 'wieght': did you mean 'weight'"):
        prune(mlp, 0.5, pattern="wieght")
    with pytest.raises(ValueError, match="unknown allocation 'local'"):
        prune(mlp, 0.5, allocation="local")


def test_nan_weights_are_named(mlp):
    mlp[3].weight.data[0, :2] = math.nan
    with pytest.raises(ValueError, match=r"2 of 30 scores of '3.weight' are NaN"):
        prune(mlp, 0.5)


def test_a_criterion_of_ones_own(mlp):
    def smallest(evidence):
        return {name: -w.abs() for name, w in evidence.weights.items()}

    low, high = prune(mlp, 0.5, criterion=smallest), prune(mlp, 0.5)
    assert (low & high).kept == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: list(s), TypeError, "must return a mapping"),
        (lambda s: {"0.weight": s["0.weight"]}, ValueError, "no scores for '3.weight'"),
        (lambda s: {**s, "x": s["0.weight"]}, ValueError, "scores for 'x', which is not in scope"),
        (
            lambda s: {**s, "0.weight": s["0.weight"].T},
            ValueError,
            r"'0.weight' are \(6, 10\), the weight \(10, 6\)",
        ),
        (lambda s: {**s, "0.weight": 1.0}, TypeError, "must be a tensor"),
        (lambda s: {**s, "0.weight": s["0.weight"] > 0}, TypeError, "must be floating point"),
        (
            lambda s: {**s, "0.weight": s["0.weight"] * math.nan},
            ValueError,
            "60 of 60 scores of '0.weight' are NaN",
        ),
    ],
)
def test_wrong_scores_are_refused(mlp, change, error, message):
    with pytest.raises(error, match=message):
        prune(mlp, 0.5, criterion=lambda evidence: change(dict(evidence.weights)))


def test_infinite_scores_are_kept_first(mlp):
    def protect(evidence):
        return {
            n: torch.full(w.shape, math.inf if n == "3.weight" else 1.0) for n, w in evidence.weights.items()
        }

    assert prune(mlp, 40 / 90, criterion=protect).counts == {"0.weight": 10, "3.weight": 30}


@pytest.mark.parametrize("criterion", OF_WEIGHTS)
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_every_criterion_with_every_allocation(mlp, criterion, allocation):
    evidence = Evidence(
        mlp,
        batches=[(torch.randn(8, 6), torch.randint(3, (8,)))],
        loss=nn.functional.cross_entropy,
        movement={"0.weight": torch.randn(10, 6), "3.weight": torch.randn(3, 10)},
    )
    mask = prune(mlp, 0.3, criterion=criterion, allocation=allocation, evidence=evidence)
    assert mask.kept == 27


def test_order_is_that_of_the_scope_whatever_the_allocation(convnet):
    for allocation in ("global", "lamp", {"4.weight": 0.5}, {"0.weight": 0.5}):
        assert list(prune(convnet, 0.5, allocation=allocation)) == ["0.weight", "4.weight"]


def test_wrapped_models_give_the_same_mask(mlp):
    mask = prune(mlp, 0.3)
    for wrapped in (
        torch.compile(mlp, backend="eager"),
        nn.DataParallel(mlp),
        torch.optim.swa_utils.AveragedModel(mlp),
    ):
        assert prune(wrapped, 0.3) == mask


def test_the_mask_does_not_alias_the_one_it_came_from(mlp):
    start = prune(mlp, 1.0)
    same = prune(mlp, 1.0, mask=start)
    assert same == start
    assert all(same[name].data_ptr() != start[name].data_ptr() for name in start)


def test_sharded_models_give_whole_masks(tmp_path):
    """Trap 33, in one process: FSDP2 parameters are DTensors, masks are whole tensors."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    loss = nn.functional.cross_entropy
    plain = {
        c: prune(model, 0.3, criterion=c, evidence=Evidence(model, batches=batches, loss=loss))
        for c in OF_WEIGHTS
        if c != "movement"
    }
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert hasattr(model[0].weight, "full_tensor")
        for criterion, expected in plain.items():
            evidence = Evidence(model, batches=batches, loss=loss)
            mask = prune(model, 0.3, criterion=criterion, evidence=evidence)
            assert mask == expected
            assert all(type(keep) is torch.Tensor for keep in mask.values())
        assert model[0].weight.grad is None
        plain["magnitude"].apply_(model)
        whole = model[0].weight.full_tensor()
        assert torch.equal(whole != 0, plain["magnitude"]["0.weight"])
    finally:
        dist.destroy_process_group()


ONE_OF_TWO_RANKS = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from rewound.evidence import Evidence
from rewound.movement import watch_movement
from rewound.pruning import prune

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))

generator = torch.Generator().manual_seed(rank)  # every rank has data of its own
batches = [(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))]
loss = nn.functional.cross_entropy

def mask_of(wrapped):
    return prune(wrapped, 0.3, criterion="gradient", evidence=Evidence(wrapped, batches=batches, loss=loss))

sharded = model()
fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
by_movement = torch.optim.SGD(sharded.parameters(), lr=0.1)
movement = watch_movement(by_movement, sharded)
loss(sharded(batches[0][0]), batches[0][1]).backward()
by_movement.step()
prune(sharded, 0.3, criterion="movement", evidence=Evidence(sharded, movement=movement)).apply_(sharded)
after = prune(sharded, 0.3)

fresh = model()
fully_shard(fresh, mesh=init_device_mesh("cpu", (2,)))
print(mask_of(nn.parallel.DistributedDataParallel(model())).fingerprint)
print(mask_of(fresh).fingerprint)
print(mask_of(model()).fingerprint)  # not distributed: the rank's own data decide
print(prune(fresh, 0.3).fingerprint)
print(prune(model(), 0.3).fingerprint)
print(after.fingerprint, sum(int(sharded.get_parameter(n).full_tensor().count_nonzero()) for n in after), flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # the interpreter's own way out races with gloo's threads
"""


def test_two_ranks_decide_alike(tmp_path):
    """Trap 33: equal masks on all ranks, though each has other data; also where rows do not divide evenly."""
    command = [sys.executable, "-c", ONE_OF_TWO_RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    outputs = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    (ddp, fsdp, alone, fsdp_size, size, moved), other = outputs
    assert other == [ddp, fsdp, other[2], fsdp_size, size, moved]
    assert other[2] != alone
    assert ddp == fsdp
    assert fsdp_size == size
    assert moved.split()[1] == "27"
