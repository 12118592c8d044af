"""What a network costs at given widths, without building it: exactly what the compact network costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.compaction.zoo import ZOO
from torch import nn

import rewound
from rewound.compaction.budget import Extents, multiply_adds_at, parameters_at, widths_of
from rewound.compaction.coupling import couple, find_units
from rewound.compaction.operators import operators_of
from rewound.compaction.units import Certificate, masks_of
from rewound.mask import Mask
from rewound.measure import cost

KINDS = ("channel", "hidden unit", "head", "query head", "group")
A_DOZEN = [
    "resnet_20_option_a", "densenet", "mobilenet_v2", "shufflenet_v1", "grouped_mixture", "unet", "squeeze_excite",
    "lstm_seq2seq_tied", "lstm_projected", "gru_written_out", "vit_fused_qkv", "decoder_gqa_repeat", "decoder_multi_query",
    "linear_attention", "einsum_classifier", "transformer", "hf_bert_classifier", "hf_llama_tied", "hf_bart",
]  # fmt: skip


def built(name):
    if name.startswith("hf_"):
        pytest.importorskip("transformers")
    return ZOO[name]()


def candidates(model, example):
    structure = find_units(model, example)
    groups = [g for g in structure if g.certificate <= Certificate.EXACT_AFTER_FOLD and g.kind in KINDS]
    return structure.restricted(groups)


def some_of(structure, seed):
    """Return group name -> which units stay, a random number of each, at least one and not all."""
    random = torch.Generator().manual_seed(seed)
    kept = {}
    for group in structure:
        count = int(torch.randint(1, group.size, (), generator=random))
        kept[group.name] = torch.zeros(group.size, dtype=torch.bool)
        kept[group.name][torch.randperm(group.size, generator=random)[:count]] = True
    return kept


@pytest.mark.filterwarnings("ignore:the code of")  # some come back as graphs
@pytest.mark.parametrize("name", A_DOZEN)
def test_parameters_and_multiply_adds_are_those_of_the_compact_network(name):
    model, example = built(name)
    structure = candidates(model, example)
    kept = some_of(structure, seed=0)
    small = rewound.compact(model, Mask(masks_of(structure, kept)), example)
    for network, widths in ((model, widths_of(structure, {})), (small, widths_of(structure, kept))):
        assert parameters_at(structure)(widths).tolist() == [cost.parameters(network)]
        multiply_adds = multiply_adds_at(structure)(widths)
        assert multiply_adds.tolist() == pytest.approx([cost.flops(network, example) / 2], rel=1e-12)


def test_many_width_vectors_at_once_are_each_as_alone():
    model, example = built("vit_fused_qkv")
    structure = candidates(model, example)
    rng = np.random.default_rng(0)
    vectors = np.array([[rng.integers(1, g.size + 1) for g in structure] for _ in range(1500)])
    for cost_at in (parameters_at(structure), multiply_adds_at(structure)):
        together = cost_at(vectors)
        assert len(set(together.tolist())) > 100
        assert together[[0, 511, 512, 1499]].tolist() == [cost_at(vectors[i])[0] for i in (0, 511, 512, 1499)]


def test_what_an_earlier_mask_prunes_of_other_groups_is_gone():
    model, example = built("resnet_20_option_a")
    whole = candidates(model, example)
    first, second = whole.groups[1], whole.groups[2]
    half = {first.name: torch.arange(first.size) < first.size // 2}
    mask = masks_of(whole.restricted([first]), half)
    rest = whole.restricted([second])
    kept = {**half, second.name: torch.arange(second.size) < 3}
    for cost_at in (parameters_at, multiply_adds_at):
        assert cost_at(rest, mask)([[3]])[0] == cost_at(whole)(widths_of(whole, kept))[0]
        assert cost_at(rest, mask)([[3]])[0] < cost_at(rest)([[3]])[0]


def test_parameters_that_no_operator_meets_count_too():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    structure = find_units(model, torch.zeros(1, 3))
    assert parameters_at(structure, besides=7)([[4]]).tolist() == [26 + 7]


def test_axes_that_shrink_alike_are_one():
    extents = Extents([4, 6])
    a = extents.add(4, [np.zeros(4, dtype=int)])
    assert extents.add(4, [np.zeros(4, dtype=int)]) == a
    b = extents.add(8, [np.repeat(0, 8)])
    c = extents.add(8, [np.r_[np.repeat(0, 4), np.repeat(-1, 4)]])
    assert extents.share(a) == extents.share(b) != extents.share(c)
    assert extents.groups_of(c) == {0}
    assert extents.at([[2, 6]])[0, [a, b, c]].tolist() == [2, 4, 6]


# -- operators ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet_20", "unet", "lstm_seq2seq_tied", "hf_llama", "decoder_gqa_repeat"])
def test_an_operator_at_given_widths_has_the_sizes_it_has_in_the_compact_network(name):
    model, example = built(name)
    structure = candidates(model, example)
    kept = some_of(structure, seed=1)
    small = rewound.compact(model, Mask(masks_of(structure, kept)), example)
    coupling = couple(model, example)
    extents, operators = operators_of(coupling)
    axes = extents.at(widths_of(coupling.structure, kept))[0]
    found = {
        (operator.name, tuple(operator.at([axes[axis] / whole for axis, whole in operator.variables]).shapes))
        for operator in operators
    }
    there = {
        (str(node.target), tuple(tuple(n.meta["val"].shape) for n in _tensors_of(node)))
        for node in couple(small, example).capture.graph.nodes
        if node.op == "call_function"
    }
    assert len(found) > 5
    assert {case for case in found if not case[0].startswith("aten.cat")} <= there


def _tensors_of(node):
    leaves = torch.utils._pytree.tree_leaves((node.args, node.kwargs))
    return [n for n in leaves if hasattr(n, "meta") and isinstance(n.meta.get("val"), torch.Tensor)]


@pytest.mark.parametrize(
    "name",
    ["resnet_20", "densenet", "mobilenet_v2", "shufflenet_v2", "group_norm", "lstm_seq2seq", "gru_cell", "bilstm_classifier",
     "decoder_gqa", "vit_matmul", "transformer_encoder", "conv3d", "unet"],
)  # fmt: skip
def test_operators_can_be_called_at_any_width(name):
    model, example = built(name)
    coupling = couple(model, example)
    _, operators = operators_of(coupling)
    assert operators
    with torch.no_grad():
        for operator in {operator.key: operator for operator in operators}.values():
            for share in (1.0, 0.5, 0.0):
                shares = [max(1, round(units * share)) / units for units in operator.units]
                operator.at(shares).make()()  # raises if the sizes do not fit each other


def test_numbers_of_groups_shrink_with_the_channels():
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.ConvTranspose2d(12, 12, 3, groups=12), nn.Conv2d(12, 2, 1),
    ).eval()  # fmt: skip
    _, operators = operators_of(couple(model, torch.zeros(1, 3, 8, 8)))
    grouped = [operator for operator in operators if operator.groups]
    assert len(grouped) == 2
    for operator in grouped:
        call = operator.at([0.25]).make()
        assert call().shape[1] == 3


def test_a_tensor_lies_in_memory_as_in_the_network():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(
        memory_format=torch.channels_last
    )
    example = torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)
    _, operators = operators_of(couple(model, example))
    seen = [op.at([1.0] * len(op.variables)).make().__closure__ for op in operators if "conv2d" in op.name]
    tensors = [t for cells in seen for cell in cells for t in _flat(cell.cell_contents) if t.ndim == 4]
    assert tensors
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def _flat(value):
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
