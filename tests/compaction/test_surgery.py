"""``compact``: what it takes from a model is a smaller copy, and what it does to the model is nothing."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.compaction.test_zoo import _KINDS, fingerprint, half_of
from tests.compaction.zoo import ZOO, another, difference, outputs
from torch import Tensor, nn

import rewound
from rewound.compaction.units import Certificate, Group, Structure, masks_of
from rewound.mask import Mask

IMAGE = torch.ones(2, 3, 8, 8)


def convnet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)
    )  # fmt: skip
    model[1].running_mean.normal_()
    return model.eval()


def candidates(structure: Structure) -> list[Group]:
    return [g for g in structure if g.certificate <= Certificate.EXACT_AFTER_FOLD and g.kind in _KINDS]


def half_mask(model: nn.Module, example: Any, seed: int = 0) -> Mask:
    structure = rewound.find_units(model, example)
    groups = candidates(structure)
    return Mask(masks_of(structure.restricted(groups), half_of(groups, seed)))


# -- the model that is given ---------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was_in_training_mode_with_gradients_hooks_and_frozen_weights():
    model = convnet().train()
    model[0].weight.requires_grad_(False)
    model(IMAGE).sum().backward()
    model[3].register_forward_hook(lambda module, arguments, output: output * 2)
    model[3].extra = [1, {"a": 2}]
    handle = model[6].weight.register_hook(lambda gradient: gradient)
    mask = half_mask(model, IMAGE)
    before, gradient, names = fingerprint(model), model[6].weight.grad.clone(), set(vars(model))
    objects = {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}

    small = rewound.compact(model, mask, IMAGE)

    assert fingerprint(model) == before
    assert {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]} == objects
    assert torch.equal(model[6].weight.grad, gradient)
    assert set(vars(model)) == names
    assert small.training
    assert all(m.training for m in small.modules())
    assert all(p.grad is None for p in small.parameters())
    handle.remove()


def test_no_random_number_is_drawn_and_nothing_is_switched():
    model, mask = convnet(), half_mask(convnet(), IMAGE)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    switches = torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    rewound.compact(model, mask, IMAGE)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
    ) == switches
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_model_with_dropout_is_proven_without_it():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    small = rewound.compact(model, half_mask(model, torch.ones(2, 4)), torch.ones(2, 4))
    assert small[2].training


def test_nothing_is_shared_with_the_model():
    model = convnet()
    small = rewound.compact(model, half_mask(model, IMAGE), IMAGE)
    memory = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not memory & {t.untyped_storage().data_ptr() for t in [*small.parameters(), *small.buffers()]}
    before = model(IMAGE)
    with torch.no_grad():
        for tensor in [*small.parameters(), *small.buffers()]:
            tensor.zero_()
    assert torch.equal(model(IMAGE), before)


# -- what comes along ----------------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_frozen_and_marks_stay():
    model = convnet()
    model[3].weight.requires_grad_(False)
    model[6].bias.requires_grad_(False)
    model[0].bias._no_weight_decay = True
    model[6].bias._no_weight_decay = True
    small = rewound.compact(model, half_mask(model, IMAGE), IMAGE)
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["3.weight", "6.bias"]
    assert [n for n, p in small.named_parameters() if hasattr(p, "_no_weight_decay")] == ["0.bias", "6.bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_stays(dtype):
    model = convnet().to(dtype)
    small = rewound.compact(model, half_mask(model, IMAGE.to(dtype)), IMAGE.to(dtype))
    assert {t.dtype for t in small.state_dict().values()} == {dtype, torch.int64}
    assert small(IMAGE.to(dtype)).dtype is dtype


def test_channels_last_stays():
    model = convnet().to(memory_format=torch.channels_last)
    small = rewound.compact(model, half_mask(model, IMAGE), IMAGE)
    for layer in (small[0], small[3]):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()
    plain = rewound.compact(convnet(), half_mask(convnet(), IMAGE), IMAGE)
    assert plain[3].weight.is_contiguous()
    assert torch.equal(plain[3].weight, small[3].weight)


def test_hooks_are_copied_and_work_on_the_small_network():
    model, calls = convnet(), []
    model[3].register_forward_hook(lambda module, arguments, output: calls.append((module, output.shape)))
    mask = half_mask(model, IMAGE)
    small = rewound.compact(model, mask, IMAGE)
    calls.clear()
    small(IMAGE)
    assert calls == [(small[3], (2, 3, 4, 4))]


@pytest.mark.parametrize(
    "name", ["tied_autoencoder", "lstm_language_model", "gru_seq2seq_tied", "shared_module"]
)
def test_what_was_tied_stays_tied_and_there_is_less_of_it(name):
    model, example = ZOO[name]()
    small = rewound.compact(model, half_mask(model, example), example)
    assert fingerprint(small)["ties"] == fingerprint(model)["ties"]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_weights_pruned_one_by_one_besides_stay_pruned():
    """In tensors that are cut, and in those that are not."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    structure = rewound.find_units(model, torch.ones(1, 4))
    mask = masks_of(structure.restricted([structure["0"]]), {"0": torch.arange(8) > 3})
    mask["4.weight"] = torch.ones(2, 6, dtype=torch.bool)
    mask["4.weight"][0, 1] = mask["2.weight"][2, 5] = False
    small = rewound.compact(model, mask, torch.ones(1, 4))
    assert small[4].weight[0, 1] == 0
    assert small[2].weight[2, 1] == 0
    assert int((small[4].weight == 0).sum() + (small[2].weight == 0).sum()) == 2
    assert model[4].weight[0, 1] != 0


@pytest.mark.parametrize(
    "wrap",
    [lambda m: torch.compile(m, backend="eager"), torch.optim.swa_utils.AveragedModel, nn.DataParallel],
    ids=["compile", "averaged", "parallel"],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]):
    mask = half_mask(convnet(), IMAGE)
    small = rewound.compact(wrap(convnet()), mask, IMAGE)
    plain = rewound.compact(convnet(), mask, IMAGE)
    assert type(small) is nn.Sequential
    assert list(small.state_dict()) == list(plain.state_dict())
    assert torch.equal(small(IMAGE), plain(IMAGE))


def test_a_compiled_part_is_compacted_and_stays_compiled():
    model = convnet()
    model[0] = torch.compile(model[0], backend="eager")
    small = rewound.compact(model, half_mask(model, IMAGE), IMAGE)
    assert small[0]._orig_mod.out_channels == 4
    assert torch.equal(small(IMAGE), rewound.compact(convnet(), half_mask(convnet(), IMAGE), IMAGE)(IMAGE))


# -- rounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet_20", "densenet", "decoder_gqa", "lstm_language_model", "transformer_encoder_pre_norm"]
)
def test_two_cuts_are_one_of_both(name):
    """Cutting what was cut, and cutting the original once by the map of both, give the same bits."""
    model, example = ZOO[name]()
    once = rewound.compact(model, half_mask(model, example), example)
    twice = rewound.compact(once, half_mask(once, example, seed=1), example)
    where, first = rewound.coordinates(twice), rewound.coordinates(once)
    masked = copy.deepcopy(model)
    half_mask(model, example).apply_(masked)
    kept = where.cut_all(dict(masked.named_parameters()))
    assert where.shapes.items() >= first.shapes.items()
    smaller = 0
    for tensor, p in twice.named_parameters():
        assert torch.equal(kept[tensor], p), tensor
        smaller += p.numel() < dict(once.named_parameters())[tensor].numel()
        for axis, index in where.kept.get(tensor, {}).items():
            assert set(index.tolist()) <= set(first.kept.get(tensor, {}).get(axis, index).tolist())
    assert smaller


def test_the_map_carries_an_earlier_snapshot_and_back():
    model = convnet()
    earlier = {
        name: torch.rand_like(t) if t.is_floating_point() else t for name, t in model.state_dict().items()
    }
    mask = half_mask(model, IMAGE)
    small = rewound.compact(model, mask, IMAGE)
    where = rewound.coordinates(small)
    small.load_state_dict(where.cut_all(earlier))
    rewinded = convnet()
    rewinded.load_state_dict(earlier)
    mask.apply_(rewinded)
    assert (
        difference(outputs(small.double(), IMAGE.double()), outputs(rewinded.double(), IMAGE.double()))
        < 1e-12
    )
    back = where.put_back("3.weight", small[3].weight)
    assert torch.equal(back, rewinded[3].weight)


# -- attention ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "query head"])
def test_grouped_queries_pruned_under_one_implementation_of_attention_run_under_another(kind):
    pytest.importorskip("transformers")
    model, example = ZOO["hf_llama"]()
    assert model.config._attn_implementation == "sdpa"
    structure = rewound.find_units(model, example)
    groups = [g for g in structure if g.kind == kind]
    assert len(groups) == 2
    mask = masks_of(structure.restricted(groups), {g.name: torch.arange(g.size) > 0 for g in groups})
    small = rewound.compact(model, mask, example)
    assert (
        difference(outputs(small, another(example)), outputs(_masked(model, mask), another(example))) < 1e-12
    )
    expected = outputs(small, example)
    small.config._attn_implementation = "eager"
    assert difference(outputs(small, example), expected) < 1e-6  # its softmax is in float32


def _masked(model: nn.Module, mask: Any) -> nn.Module:
    masked = copy.deepcopy(model)
    Mask(mask).apply_(masked)
    return masked


def test_heads_of_torchs_attention_leave_and_later_its_head_dimension():
    """The scale of the scores is that of the head dimension it was trained with."""
    torch.manual_seed(0)
    model, x = (
        nn.MultiheadAttention(12, 3, batch_first=True).double().eval(),
        torch.randn(2, 5, 12, dtype=torch.double),
    )
    example = {"query": x, "key": x, "value": x, "need_weights": False}
    for _ in range(2):
        structure = rewound.find_units(model, example)
        group = next(g for g in structure if any(s.tensor == "in_proj_weight" for s in g.writers))
        mask = masks_of(structure.restricted([group]), {group.name: torch.arange(group.size) == 0})
        small = rewound.compact(model, mask, example)
        assert (
            difference(outputs(small, another(example)), outputs(_masked(model, mask), another(example)))
            < 1e-12
        )
        model = small
    assert model.in_proj_weight.shape == (3, 12)


# -- code with a size written into it -------------------------------------------------------------------------------------------


class Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("gain", torch.linspace(1, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.inner(x) * self.gain).relu()
        return self.last(hidden.reshape(-1, 8))


@pytest.fixture
def graph() -> tuple[nn.Module, Mask, nn.Module]:
    torch.manual_seed(0)
    model, example = Hard().eval(), torch.randn(3, 4)
    model.inner.bias.requires_grad_(False)
    mask = half_mask(model, example)
    message = r"the code of Hard has a size written into it.*test_surgery.py:\d+: return self.last\(hidden"
    with pytest.warns(UserWarning, match=message):
        small = rewound.compact(model, mask, example)
    return model, mask, small


def test_a_size_written_into_the_code_is_named_and_the_graph_computes_the_same_for_any_batch(graph):
    model, mask, small = graph
    masked = _masked(model, mask)
    for batch in (1, 2, 3, 7):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(small(x), masked(x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_graph_has_the_names_it_had_is_copied_and_trains_as_an_ordinary_module(graph):
    model, _, small = graph
    assert list(small.state_dict()) == list(model.state_dict())
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["inner.bias"]
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = copy.deepcopy(small)
    assert torch.equal(other(x), small(x))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(other(x), small(x))
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert rewound.coordinates(small).kept["inner.weight"].keys() == {0}


def test_a_graph_is_called_as_the_model_was(graph):
    *_, small = graph
    with pytest.raises(TypeError, match="captured with 1 inputs"):
        small(torch.ones(1, 4), torch.ones(1, 4))


# -- refusals ---------------------------------------------------------------------------------------------------------------


def test_a_mask_that_leaves_no_unit_dead_says_what_would_have_to_be_masked():
    model = convnet()
    message = r"no unit is wholly masked.*of '0', for one, .*0.weight\[0\], 0.bias\[0\], .*pattern='channel'"
    with pytest.raises(ValueError, match=message):
        rewound.compact(model, rewound.prune(model, 0.5), IMAGE)
    with pytest.raises(ValueError, match="the mask covers no tensor of any unit that can leave"):
        rewound.compact(model, {"6.bias": torch.zeros(5, dtype=torch.bool)}, IMAGE)


def test_a_network_that_nothing_can_leave_says_why():
    mask = {"weight": torch.zeros(2, 4, dtype=torch.bool)}
    message = r"nothing in this network can leave it:\n.*is an output of the model: weight\[0\], bias\[0\]"
    with pytest.raises(ValueError, match=message):
        rewound.compact(nn.Linear(4, 2), mask, torch.ones(1, 4))


WEIGHT = torch.ones(8, 3, 3, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"0.weigth": WEIGHT}, r"the mask has '0.weigth', the model has no such parameter \(nearest: '0"),
        (
            {"0.weight": WEIGHT[:4]},
            r"the mask of '0.weight' is bool \(4, 3, 3, 3\), the tensor \(8, 3, 3, 3\)",
        ),
        ({"0.weight": WEIGHT.float()}, r"the mask of '0.weight' is float32 \(8, 3, 3, 3\), .* must be bool"),
    ],
)
def test_a_mask_of_another_model_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        rewound.compact(convnet(), mask, IMAGE)


def test_the_mask_of_a_compacted_model_does_not_fit_it_any_more():
    model = convnet()
    mask = half_mask(model, IMAGE)
    with pytest.raises(
        ValueError, match=r"the mask of '0.weight' is bool \(8, 3, 3, 3\), the tensor \(4, 3, 3, 3\)"
    ):
        rewound.compact(rewound.compact(model, mask, IMAGE), mask, IMAGE)


def test_a_network_whose_masked_units_speak_is_refused():
    """A unit of which everything is masked in the table, but whose constant the code adds itself."""

    class Speaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) + h.shape[-1]  # a number that follows the width

    model = Speaks().double().eval()
    structure = rewound.find_units(model, torch.ones(1, 4).double())
    mask = masks_of(structure, {"a": torch.arange(8) > 3})
    with pytest.warns(
        UserWarning, match="Speaks without its masked units is not the same function: it differs by"
    ):
        small = rewound.compact(model, mask, torch.ones(1, 4).double())
    x = torch.randn(3, 4).double()
    torch.testing.assert_close(small(x), _masked(model, mask)(x))
