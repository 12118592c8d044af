"""Every network of the zoo: what is pruned in structure and made small is the masked network, to 1e-10, with no
configuration; or it is refused and told why."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tests.compaction.zoo import REFUSED, ZOO, Example, another, difference, outputs
from torch import Tensor, nn

import rewound
from rewound.compaction.coupling import find_units
from rewound.compaction.units import Certificate, Group, masks_of
from rewound.mask import Mask

_KINDS = ("channel", "hidden unit", "head", "query head", "group")


def built(name: str) -> tuple[nn.Module, Example]:
    if name.startswith("hf_"):
        pytest.importorskip("transformers")
    return ZOO[name]()


def half_of(groups: Sequence[Group], seed: int) -> dict[str, Tensor]:
    """Return group name -> which units stay: a random half of each group, at least one."""
    random = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        stay = torch.zeros(group.size, dtype=torch.bool)
        stay[torch.randperm(group.size, generator=random)[: max(1, group.size // 2)]] = True
        kept[group.name] = stay
    return kept


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return everything about a module that ``compact`` must not touch: bits, ties, flags, sizes, hooks."""
    ties: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        ties.setdefault(id(parameter), []).append(name)
    return {
        "bits": {name: _digest(tensor) for name, tensor in model.state_dict().items()},
        "buffers": {name: _digest(tensor) for name, tensor in model.named_buffers()},
        "ties": sorted(ties.values()),
        "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "modules": {name: _plain(vars(module)) for name, module in model.named_modules()},
        "config": repr(getattr(model, "config", None)),
    }


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(repr(tensor.dtype).encode() + tensor.detach().numpy().tobytes()).hexdigest()


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes, modes and counts of hooks."""
    kept = {
        name: value
        for name, value in attributes.items()
        if isinstance(value, bool | int | float | str | tuple)
    }
    return kept | {name: len(value) for name, value in attributes.items() if name.endswith("_hooks")}


def ties(model: nn.Module) -> list[list[str]]:
    """Return the groups of names that share one parameter."""
    return [names for names in fingerprint(model)["ties"] if len(names) > 1]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- the zoo itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_built_runs_and_is_the_same_each_time(name):
    (one, example), (two, again) = built(name), built(name)
    assert fingerprint(one) == fingerprint(two)
    assert not any(module.training for module in one.modules())
    ours = outputs(one, example)
    assert difference(ours, outputs(two, again)) == 0.0
    assert difference(outputs(one, another(example)), ours) > 1e-6, "the model does not listen to its input"


def test_no_parameter_of_the_zoo_is_zero_or_one_by_chance():
    for name in ("hf_vit", "vit_fused_qkv", "hf_convnext", "resnet_20", "hf_detr"):
        model, _ = built(name)
        for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not tensor_name.endswith("position_ids"):
                assert not (tensor == 0).any(), (name, tensor_name)
                assert not (tensor == 1).all(), (name, tensor_name)


def test_half_of_the_units_is_half_and_never_none():
    groups = [Group("a", "channel", 7, ()), Group("b", "head", 1, ()), Group("c", "channel", 2, ())]
    assert {name: int(kept.sum()) for name, kept in half_of(groups, 0).items()} == {"a": 3, "b": 1, "c": 1}


def test_a_fingerprint_sees_bits_sizes_flags_ties_and_hooks():
    changes = [
        lambda m: m[0].weight.data.view(-1)[0].add_(1e-3),
        lambda m: setattr(m[0], "out_channels", 3),
        lambda m: m[2].train(),
        lambda m: m[1].weight.requires_grad_(False),
        lambda m: setattr(m[1], "bias", m[1].weight),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m[0].register_forward_hook(lambda *_: None),
    ]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    for change in changes:
        other = copy.deepcopy(model)
        assert fingerprint(other) == fingerprint(model)
        change(other)
        assert fingerprint(other) != fingerprint(model)


# -- compaction --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the code of .* has a size written into it")  # a graph is as good here
@pytest.mark.parametrize("name", ZOO)
def test_half_of_all_units_leave_and_the_function_is_that_of_the_masked_model(name):
    model, example = built(name)
    next(model.parameters()).requires_grad_(False)
    before = fingerprint(model)
    structure = find_units(model, example)
    groups = [g for g in structure if g.certificate <= Certificate.EXACT_AFTER_FOLD and g.kind in _KINDS]
    assert groups, f"nothing can leave: {structure.fixed}"
    mask = Mask(masks_of(structure.restricted(groups), half_of(groups, seed=0)))
    small = rewound.compact(model, mask, example)

    assert fingerprint(model) == before
    assert size(small) < size(model)
    assert ties(small) == ties(model)
    assert fingerprint(small)["trained"] == before["trained"]
    assert small.state_dict().keys() == model.state_dict().keys()
    assert not any(module.training for module in small.modules())
    masked = copy.deepcopy(model)
    mask.apply_(masked)
    for inputs in (example, another(example)):
        assert difference(outputs(small, inputs), outputs(masked, inputs)) <= 1e-10
    assert difference(outputs(masked, example), outputs(model, example)) > 1e-6  # something did leave
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, (_, word) in REFUSED.items()])
def test_what_cannot_be_proved_is_refused_and_says_why(name, word):
    model, example = REFUSED[name][0]()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=word):
        rewound.prune(model, 0.5, pattern="unit", example=example)
    assert fingerprint(model) == before
