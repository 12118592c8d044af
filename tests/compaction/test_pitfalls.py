"""Where tools for structured pruning go wrong, one test each.

Most of these are networks of a few layers, of which half of the units leave: every entry that has to go with them is looked
for where it is easily missed, and the network that is left is compared with the masked one on inputs it has not seen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.compaction.zoo import ZOO, difference, outputs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map

import rewound
from rewound.compaction.shrinking import shrink_
from rewound.compaction.units import Certificate, Group, Structure, masks_of
from rewound.mask import Mask


class Steps(nn.Module):
    """Layers by name, and a function that runs them."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(self, *inputs)


def prepared(model: nn.Module) -> nn.Module:
    """All parameters and statistics at random, so that nothing is zero by chance; float64, in evaluation mode."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and "slopes" not in name and "table" not in name:
            nn.init.uniform_(tensor, 0.2, 1.0) if "running" in name else nn.init.normal_(tensor, std=0.5)
    return model.double().eval()


def taken(group: Group) -> dict[tuple[str, int], list[list[int]]]:
    """Return what a group takes: (tensor, axis) -> the positions of each unit."""
    return {(s.tensor, s.axis): s.positions.tolist() for s in group.slices}


def group_of(structure: Structure, tensor: str, axis: int = 0) -> Group:
    return next(g for g in structure for s in g.slices if (s.tensor, s.axis) == (tensor, axis))


def exact(structure: Structure) -> list[Group]:
    return [g for g in structure if g.certificate <= Certificate.EXACT_AFTER_FOLD]


def half_mask(structure: Structure, groups: list[Group] | None = None, seed: int = 0) -> Mask:
    """Mask half of the units of these groups (of all exact ones), at random, but never all."""
    groups = exact(structure) if groups is None else groups
    random = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        stay = torch.zeros(group.size, dtype=torch.bool)
        stay[torch.randperm(group.size, generator=random)[: max(1, group.size // 2)]] = True
        kept[group.name] = stay
    return Mask(masks_of(structure.restricted(groups), kept))


def other(example: Any) -> Any:
    def unseen(x: Tensor) -> Tensor:
        return torch.randn_like(x) if x.is_floating_point() else x.flip(-1)

    return tree_map(unseen, example)


def assert_the_same(small: nn.Module, model: nn.Module, mask: Mask, example: Any) -> None:
    masked = copy.deepcopy(model)
    mask.apply_(masked)
    unseen = other(example)
    assert difference(outputs(small, unseen), outputs(masked, unseen)) <= 1e-10


def without_half(model: nn.Module, example: Any, groups: list[Group] | None = None) -> nn.Module:
    structure = rewound.find_units(model, example)
    mask = half_mask(structure, groups)
    small = rewound.compact(model, mask, example)
    assert_the_same(small, model, mask, example)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return small


def images(channels: int = 3, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size, dtype=torch.float64)


def features(*shape: int) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


# ---- what a dead unit still says --------------------------------------------------------------------------


def test_half_of_the_channels_is_a_quarter_of_the_weights():
    model = prepared(nn.Sequential(*(part for _ in range(6) for part in (conv(8, 8), nn.ReLU())), conv(8, 8)))
    mask = rewound.prune(model, 0.5, pattern="channel", allocation="uniform", example=images(8))
    inner = [name for name in mask if name.endswith("weight")][1:-1]
    assert {mask[name].double().mean().item() for name in inner} == {0.25}
    assert mask.unit_density == 0.5


def test_a_gate_leaves_with_its_feature_since_sigmoid_of_zero_is_a_half():
    """Squeeze and excite: the row of the gate, its bias, the column of the squeeze, the channel."""
    model = prepared(
        Steps(
            lambda m, x: m.last((y := m.conv(x)) * m.up(m.down(y.mean((2, 3))).relu()).sigmoid()[..., None, None]),
            conv=conv(3, 8), down=nn.Linear(8, 4), up=nn.Linear(4, 8), last=conv(8, 5),
        )
    )  # fmt: skip
    structure = rewound.find_units(model, images())
    group = group_of(structure, "conv.weight")
    assert {
        ("up.weight", 0),
        ("up.bias", 0),
        ("down.weight", 1),
        ("conv.bias", 0),
        ("last.weight", 1),
    } <= set(taken(group))
    small = without_half(model, images())
    assert (small.up.out_features, small.down.in_features, small.down.out_features) == (4, 4, 2)


def test_batch_norm_shift_and_bias_are_dead_with_their_channel():
    """Otherwise the masked network, whose accuracy one measures, is not the one that one ships."""
    model = prepared(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 5)))
    mask = rewound.prune(model, 0.5, pattern="channel", example=images())
    dead = ~mask["0.weight"].flatten(1).any(1)
    assert int(dead.sum()) == 4
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(mask[name], ~dead)
    mask.apply_(model)
    for training in (True, False):
        assert not model[:3].train(training)(images())[:, dead].any()


# ---- which indices leave together -------------------------------------------------------------------------


def test_over_a_residual_sum_a_channel_leaves_all_writers_or_none():
    model = prepared(
        Steps(
            lambda m, x: m.last((y := m.stem(x)) + m.b(m.a(y).relu())),
            stem=conv(3, 8),
            a=conv(8, 6),
            b=conv(6, 8),
            last=conv(8, 5),
        )
    )
    structure = rewound.find_units(model, images())
    group = group_of(structure, "stem.weight")
    assert {s.tensor for s in group.writers} == {"stem.weight", "b.weight"}
    assert {name for name, axis in taken(group) if axis == 1} == {"a.weight", "last.weight"}
    without_half(model, images())


def test_an_identity_shortcut_padded_by_zeros_shifts_the_channels():
    """Option A: channel i of the narrow stage is channel i + 2 of the wide one; those beside the padding stay."""

    def run(m: Steps, x: Tensor) -> Tensor:
        narrow = m.narrow(x).relu()
        return m.last((F.pad(narrow[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.wide(narrow)).relu())

    model = prepared(Steps(run, narrow=conv(3, 4), wide=conv(4, 8, stride=2), last=conv(8, 5)))
    structure = rewound.find_units(model, images())
    at = taken(group_of(structure, "narrow.weight"))
    assert at["narrow.weight", 0] == [[0], [1], [2], [3]]
    assert at["wide.weight", 0] == at["last.weight", 1] == [[2], [3], [4], [5]]
    without_half(model, images())


def test_the_same_tensor_concatenated_twice_has_two_columns():
    model = prepared(
        Steps(
            lambda m, x: m.last(torch.cat([y := m.a(x), m.b(x), y], 1)),
            a=conv(3, 4),
            b=conv(3, 6),
            last=conv(14, 5),
        )
    )
    structure = rewound.find_units(model, images())
    assert taken(group_of(structure, "a.weight"))["last.weight", 1] == [[i, i + 10] for i in range(4)]
    assert taken(group_of(structure, "b.weight"))["last.weight", 1] == [[i + 4] for i in range(6)]
    without_half(model, images())


def test_after_a_flatten_a_channel_is_a_block_of_columns():
    model = prepared(nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 5)))
    structure = rewound.find_units(model, images())
    assert taken(group_of(structure, "0.weight"))["4.weight", 1] == [
        list(range(9 * i, 9 * i + 9)) for i in range(8)
    ]
    without_half(model, images())
    last = prepared(
        Steps(
            lambda m, x: m.fc(m.conv(x).permute(0, 2, 3, 1).flatten(1)), conv=conv(3, 8), fc=nn.Linear(288, 5)
        )
    )
    structure = rewound.find_units(last, images())
    assert taken(group_of(structure, "conv.weight"))["fc.weight", 1][1] == list(range(1, 288, 8))
    without_half(last, images())


def test_a_depthwise_layer_with_a_multiplier_writes_several_for_each_channel_it_reads():
    model = prepared(nn.Sequential(conv(3, 6), nn.Conv2d(6, 18, 3, groups=6), nn.ReLU(), conv(18, 5)))
    structure = rewound.find_units(model, images())
    group = group_of(structure, "0.weight")
    assert taken(group)["1.weight", 0] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)]
    assert (group.kind, group.size) == ("group", 6)
    small = without_half(model, images(), [group])
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (3, 3, 9)


@pytest.mark.parametrize("width", [8, 16])
def test_groups_of_a_convolution_stay_equal_and_never_all_leave(width):
    model = prepared(nn.Sequential(conv(3, 8), conv(8, width, groups=4), nn.ReLU(), conv(width, 5)))
    structure = rewound.find_units(model, images())
    kinds = {group.kind: group for group in structure if any(s.tensor == "1.weight" for s in group.slices)}
    assert kinds["group"].size == 4
    assert taken(kinds["group"])["0.weight", 0] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    within = group_of(structure.restricted(g for g in structure if g.kind == "channel"), "0.weight")
    assert taken(within)["0.weight", 0] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    for seed in range(4):  # whatever leaves, the groups that are left are of one size
        mask = half_mask(structure, seed=seed)
        small = rewound.compact(model, mask, images())
        assert_the_same(small, model, mask, images())
        assert small[1].weight.shape[0] % small[1].groups == 0
    mask = rewound.prune(model, 0.05, pattern="unit", example=images())
    assert all(kept.any() for kept in rewound.compaction.units.alive(structure, mask).values())


def test_group_norm_goes_by_whole_groups_and_its_number_of_groups_still_divides():
    model = prepared(nn.Sequential(conv(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 5)))
    structure = rewound.find_units(model, images())
    whole, part = group_of(structure.restricted(exact(structure)), "0.weight"), None
    part = next(g for g in structure if g.certificate is Certificate.APPROXIMATE)
    assert (whole.kind, whole.size, part.size) == ("group", 4, 3)
    assert "GroupNorm" in part.why
    small = without_half(model, images())
    assert (small[1].num_groups, small[1].num_channels) == (2, 6)
    with pytest.raises(ValueError, match=r"approximate.*GroupNorm"):
        rewound.prune(model, 0.5, pattern=part.name, example=images())


def test_tied_weights_stay_tied_and_the_network_gets_smaller():
    model = Steps(
        lambda m, x: m.head(m.down(m.up(m.embed(x)).relu())),
        embed=nn.Embedding(11, 6),
        up=nn.Linear(6, 16),
        down=nn.Linear(16, 6),
        head=nn.Linear(6, 11, bias=False),
    )
    model.head.weight = model.embed.weight
    model = prepared(model)
    example = torch.tensor([[1, 2, 3], [4, 5, 6]])
    structure = rewound.find_units(model, example)
    width = group_of(structure, "embed.weight", 1)
    assert ("head.weight", 1) not in taken(width), "the shared tensor is counted once"
    small = without_half(model, example)
    assert small.head.weight is small.embed.weight
    assert small.embed.weight.shape == (11, 3)
    assert (small.embed.embedding_dim, small.head.in_features) == (3, 3)


def test_a_module_that_is_called_twice_has_one_width():
    model = prepared(
        Steps(
            lambda m, x: m.last(m.shared(m.shared(m.first(x)).relu()).relu()),
            first=conv(3, 8),
            shared=conv(8, 8),
            last=conv(8, 5),
        )
    )
    structure = rewound.find_units(model, images())
    group = group_of(structure, "shared.weight")
    assert len(structure) == 1
    assert {("shared.weight", 0), ("shared.weight", 1), ("first.weight", 0), ("last.weight", 1)} <= set(
        taken(group)
    )
    without_half(model, images())


def test_parameters_that_no_layer_holds_are_found():
    """Weights in plain Parameters, used by functions; a scale for each feature; a token."""

    def run(m: Steps, x: Tensor) -> Tensor:
        x = F.linear(x, m.w1, m.b1)
        x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) * m.scale
        return x.relu() @ m.w2.t()

    parts = {"w1": (8, 5), "b1": (8,), "token": (1, 1, 8), "scale": (8,), "w2": (3, 8)}
    model = prepared(Steps(run, **{name: nn.Parameter(torch.empty(shape)) for name, shape in parts.items()}))
    structure = rewound.find_units(model, features(4, 5))
    assert set(taken(group_of(structure, "w1"))) == {
        ("w1", 0),
        ("b1", 0),
        ("token", 2),
        ("scale", 0),
        ("w2", 1),
    }
    without_half(model, features(4, 5))


def test_layer_scale_and_class_token_have_the_width():
    """In a residual stream without norms its width is exact, free parameters and position tables included."""

    def run(m: Steps, x: Tensor) -> Tensor:
        x = torch.cat([m.token.expand(len(x), -1, -1), m.embed(x)], 1) + m.table
        return m.last(x + m.gamma * m.down(m.up(x).relu()))

    model = Steps(
        run, embed=nn.Linear(5, 8), up=nn.Linear(8, 12), down=nn.Linear(12, 8), last=nn.Linear(8, 3),
        token=nn.Parameter(torch.empty(1, 1, 8)), gamma=nn.Parameter(torch.empty(8)),
    )  # fmt: skip
    position = torch.arange(5)[:, None] / 10 ** (torch.arange(8) / 8)
    model.register_buffer(
        "table", torch.where(torch.arange(8) % 2 == 0, position.sin(), position.cos()), persistent=False
    )
    model = prepared(model)
    structure = rewound.find_units(model, features(4, 5))
    at = taken(group_of(structure, "embed.weight"))
    assert {("token", 2), ("gamma", 0), ("down.weight", 0), ("up.weight", 1), ("last.weight", 1)} <= set(at)
    assert at["table", 1] == [[i] for i in range(8)]
    small = without_half(model, features(4, 5))
    assert (small.table.shape, "table" in small.state_dict()) == ((5, 4), False)


# ---- attention ----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """With the numbers that a class keeps beside its layers, under the names that Hugging Face gives them."""

    def __init__(
        self,
        width: int = 8,
        heads: int = 4,
        dim: int = 6,
        bias: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, dim, heads * dim
        self.query, self.key, self.value = (nn.Linear(width, heads * dim) for _ in range(3))
        self.out, self.bias = nn.Linear(heads * dim, width), bias

    def turned(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.turned(layer(x)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(6)
        scores = scores if self.bias is None else self.bias(self, scores)
        attended = (scores.softmax(-1) @ v).permute(0, 2, 1, 3)
        return self.out(attended.reshape(*x.shape[:2], self.all_head_size))


def test_sizes_that_a_class_keeps_for_itself_are_set_right():
    model = prepared(Attention())
    structure = rewound.find_units(model, features(5, 8))
    heads = next(g for g in structure if g.kind == "head")
    assert taken(heads)["out.weight", 1] == [list(range(6 * h, 6 * h + 6)) for h in range(4)]
    small = without_half(model, features(5, 8), [heads])
    assert (small.num_attention_heads, small.attention_head_size, small.all_head_size) == (2, 6, 12)
    dims = [g for g in structure if g.kind == "head dim"]
    assert [g.certificate for g in dims] == [Certificate.EXACT] * 2  # the scale is a number in the code
    small = without_half(model, features(5, 8), dims)
    assert (small.num_attention_heads, small.attention_head_size, small.all_head_size) == (4, 3, 12)
    without_half(model, features(5, 8))


def test_rotary_pairs_leave_together():
    """Dimension i turns with i + d / 2: neither may leave alone."""

    def run(m: Steps, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] * m.slopes  # [time, d / 2]
        cos, sin = (torch.cat([f, f], -1).to(x) for f in (angle.cos(), angle.sin()))
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))

        def turned(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        return m.out(
            F.scaled_dot_product_attention(turned(q), turned(k), v, scale=0.3).transpose(1, 2).flatten(2)
        )

    model = Steps(run, q=nn.Linear(5, 16), k=nn.Linear(5, 16), v=nn.Linear(5, 16), out=nn.Linear(16, 5))
    model.register_buffer("slopes", 10.0 ** -torch.arange(4))
    model = prepared(model)
    structure = rewound.find_units(model, features(6, 5))
    dims = next(g for g in structure if g.kind == "head dim" and ("q.weight", 0) in taken(g))
    assert (
        taken(dims)["q.weight", 0]
        == taken(dims)["k.weight", 0]
        == [[i, i + 4, i + 8, i + 12] for i in range(4)]
    )
    assert taken(dims)["slopes", 0] == [[0], [1], [2], [3]]
    without_half(model, features(6, 5), [dims])


def test_a_table_of_relative_positions_has_an_axis_of_heads():
    def biased(m: Any, scores: Tensor) -> Tensor:
        distance = torch.arange(5)[:, None] - torch.arange(5) + 4
        return scores + m.table_of_bias[distance].permute(2, 0, 1)

    model = Attention(bias=biased)
    model.table_of_bias = nn.Parameter(torch.randn(9, 4))
    model = prepared(model)
    structure = rewound.find_units(model, features(5, 8))
    heads = next(g for g in structure if g.kind == "head")
    assert taken(heads)["table_of_bias", 1] == [[0], [1], [2], [3]]
    assert without_half(model, features(5, 8), [heads]).table_of_bias.shape == (9, 2)


def test_slopes_of_alibi_have_an_axis_of_heads_or_keep_all_heads():
    def biased(m: Any, scores: Tensor) -> Tensor:
        return scores - m.slopes[:, None, None] * torch.arange(5)

    model = Attention(bias=biased)
    model.register_buffer("slopes", 0.5 ** torch.arange(4))
    model = prepared(model)
    structure = rewound.find_units(model, features(5, 8))
    heads = next(g for g in structure if g.kind == "head")
    mask = half_mask(structure, [heads])
    small = rewound.compact(model, mask, features(5, 8))
    assert_the_same(small, model, mask, features(5, 8))
    living = rewound.coordinates(small).kept["slopes"][0]
    assert torch.equal(small.slopes, model.slopes[living])

    made = prepared(Attention(bias=lambda m, scores: scores - (0.5 ** torch.arange(4))[:, None, None]))
    structure = rewound.find_units(made, features(5, 8))
    assert not [g for g in structure if g.kind == "head"], "which slope is whose is written into the code"


@pytest.mark.parametrize("order", ["3 h d", "h 3 d", "h d 3"])
def test_queries_keys_and_values_in_one_matrix_may_be_interleaved_in_three_ways(order):
    """ViT and nn.MultiheadAttention, GPT-NeoX and BLOOM, and the third."""
    sizes = {"3": 3, "h": 4, "d": 6}

    def run(m: Steps, x: Tensor) -> Tensor:
        parts = order.split()
        qkv = m.qkv(x).view(*x.shape[:2], *(-1 if p == "h" else sizes[p] for p in parts))
        q, k, v = qkv.permute(2 + parts.index("3"), 0, 2 + parts.index("h"), 1, 2 + parts.index("d"))
        return m.out(((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).flatten(2))

    model = prepared(Steps(run, qkv=nn.Linear(8, 72), out=nn.Linear(24, 8)))
    structure = rewound.find_units(model, features(5, 8))
    heads = next(g for g in structure if g.kind == "head")
    stride = {"3": math.prod(sizes[p] for p in order.split()[order.split().index("3") + 1 :])}
    for part in order.split():
        stride[part] = math.prod(sizes[p] for p in order.split()[order.split().index(part) + 1 :])
    for h, rows in enumerate(taken(heads)["qkv.weight", 0]):
        wanted = {h * stride["h"] + i * stride["3"] + j * stride["d"] for i in range(3) for j in range(6)}
        assert set(rows) == wanted
    small = without_half(model, features(5, 8), [heads])
    assert small.qkv.out_features == 36


def test_a_transposed_linear_layer_writes_columns():
    """Hugging Face's Conv1D: weight [in, out]."""

    def conv1d(m: nn.Module, x: Tensor) -> Tensor:
        return torch.addmm(m.bias, x.view(-1, x.shape[-1]), m.weight).view(*x.shape[:-1], -1)

    def layer(inputs: int, outputs: int) -> Steps:
        return Steps(
            conv1d, weight=nn.Parameter(torch.empty(inputs, outputs)), bias=nn.Parameter(torch.empty(outputs))
        )

    model = prepared(nn.Sequential(layer(5, 8), nn.GELU(), layer(8, 3)))
    structure = rewound.find_units(model, features(4, 5))
    group = group_of(structure, "0.weight", 1)
    assert {(s.tensor, s.axis, s.role) for s in group.slices} == {
        ("0.weight", 1, "writes"), ("0.bias", 0, "affine"), ("2.weight", 0, "reads"),
    }  # fmt: skip
    without_half(model, features(4, 5))


def test_windows_are_rolled_over_places_not_channels():
    """Swin: shift, cut into windows, work, put together, shift back; the mask of windows has no channel."""

    def run(m: Steps, x: Tensor) -> Tensor:
        n, h, w, _ = x.shape
        x = m.embed(x).roll((-1, -1), (1, 2))
        x = x.view(n, h // 2, 2, w // 2, 2, -1).transpose(2, 3).flatten(0, 2).flatten(1, 2)
        x = x + m.down(m.up(x).relu()) * m.window_mask[:, None]
        x = x.view(n, h // 2, w // 2, 2, 2, -1).transpose(2, 3).reshape(n, h, w, -1)
        return m.last(x.roll((1, 1), (1, 2)))

    model = Steps(
        run, embed=nn.Linear(3, 8), up=nn.Linear(8, 12), down=nn.Linear(12, 8), last=nn.Linear(8, 3)
    )
    model.register_buffer("window_mask", torch.randn(4))
    model = prepared(model)
    small = without_half(model, torch.randn(2, 4, 4, 3, dtype=torch.float64))
    assert (small.embed.out_features, small.up.out_features, small.window_mask.shape) == (4, 6, (4,))


# ---- experts, state spaces, recurrent layers ----------------------------------------------------------------


def test_rows_of_a_router_stay_and_hidden_units_of_experts_leave_by_themselves():
    def run(m: Steps, x: Tensor) -> Tensor:
        weight, chosen = m.router(x).softmax(-1).topk(2, -1)
        gates = torch.zeros_like(m.router(x)).scatter(-1, chosen, weight)
        return m.last(sum(gates[..., i, None] * expert(x) for i, expert in enumerate(m.experts)))

    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, n), nn.ReLU(), nn.Linear(n, 6)) for n in (4, 6, 8))
    model = prepared(Steps(run, router=nn.Linear(8, 3), experts=experts, last=nn.Linear(6, 2)))
    structure = rewound.find_units(model, features(5, 8))
    assert "softmax" in structure.fixed["router.weight", 0]
    assert [g.size for g in structure if g.name.startswith("experts") and g.name.endswith("0")] == [4, 6, 8]
    small = without_half(model, features(5, 8))
    assert [expert[0].out_features for expert in small.experts] == [2, 3, 4]
    assert small.router.out_features == 3


def test_experts_in_one_tensor_picked_by_number_have_hidden_units_and_no_heads():
    """A product in batches of experts is no attention; an expert itself stays, for the router's softmax runs over all."""

    def run(m: Steps, x: Tensor) -> Tensor:
        weight, chosen = m.router(x).softmax(-1).topk(2, -1)
        chosen, tokens = chosen.reshape(-1), x.repeat_interleave(2, 0)[..., None]
        hidden = F.silu(torch.bmm(m.up[chosen], tokens))
        y = torch.bmm(m.down[chosen], hidden).squeeze(-1) * weight.reshape(-1, 1)
        return m.last(y.view(len(x), 2, -1).sum(1))

    up, down = nn.Parameter(torch.zeros(3, 10, 8)), nn.Parameter(torch.zeros(3, 6, 10))
    model = prepared(Steps(run, router=nn.Linear(8, 3), up=up, down=down, last=nn.Linear(6, 2)))
    structure = rewound.find_units(model, torch.randn(5, 8, dtype=torch.float64))
    assert {g.name: (g.kind, g.size) for g in structure} == {
        "up": ("hidden unit", 10),
        "down": ("hidden unit", 6),
    }
    assert [(s.tensor, s.axis, s.role) for s in structure["up"].slices] == [
        ("up", 1, "writes"),
        ("down", 2, "reads"),
    ]
    assert "picked by number" in structure.fixed["up", 0]
    assert "softmax" in structure.fixed["router.weight", 0]
    small = without_half(model, torch.randn(5, 8, dtype=torch.float64))
    assert (small.up.shape, small.down.shape, small.router.out_features) == ((3, 5, 8), (3, 3, 5), 3)


@pytest.mark.parametrize("spread", ["expand", "repeat"])
def test_a_weight_spread_over_the_batch_is_a_weight(spread):
    def run(m: Steps, x: Tensor) -> Tensor:
        spread_up = m.up.expand(len(x), -1, -1) if spread == "expand" else m.up.repeat(len(x), 1, 1)
        return m.last(torch.bmm(x, spread_up).relu())

    model = prepared(Steps(run, up=nn.Parameter(torch.zeros(1, 8, 10)), last=nn.Linear(10, 2)))
    (group,) = rewound.find_units(model, torch.randn(2, 4, 8, dtype=torch.float64))
    assert (group.name, group.kind, group.size) == ("up", "hidden unit", 10)
    assert [s.role for s in group.slices] == ["writes", "reads"]
    without_half(model, torch.randn(2, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize("name", ["hf_mixtral", "hf_qwen2_moe"])
def test_hidden_units_of_routed_experts_are_told_from_head_dimensions(name):
    pytest.importorskip("transformers")
    structure = rewound.find_units(*ZOO[name]())
    kinds = {s.tensor: g.kind for g in structure for s in g.writers}
    assert kinds["model.layers.0.mlp.experts.gate_up_proj"] == "hidden unit"
    assert kinds["model.layers.0.mlp.experts.down_proj"] == "width"
    assert {g.kind for g in structure for s in g.slices if "experts" in s.tensor} == {"hidden unit", "width"}


def test_the_two_halves_of_a_state_space_layer_leave_together():
    """Mamba: the input projection makes x and z, a depthwise convolution and the scan's A and D follow x."""
    pytest.importorskip("transformers")
    model, example = ZOO["hf_mamba"]()
    structure = rewound.find_units(model, example)
    mixer = "backbone.layers.0.mixer"
    at = taken(group_of(structure, f"{mixer}.conv1d.weight"))
    size = len(at[f"{mixer}.conv1d.weight", 0])
    assert at[f"{mixer}.in_proj.weight", 0] == [[i, i + size] for i in range(size)]
    assert {
        (f"{mixer}.{name}", axis)
        for name, axis in (("A_log", 0), ("D", 0), ("out_proj.weight", 1), ("x_proj.weight", 1))
    } <= set(at)


def test_a_hidden_unit_of_an_lstm_has_a_row_in_every_gate_and_a_column_in_what_follows():
    def run(m: Steps, x: Tensor) -> Tensor:
        start = (m.h0.expand(-1, len(x), -1).contiguous(), m.c0.expand(-1, len(x), -1).contiguous())
        return m.out(m.lstm(x, start)[0])

    model = prepared(
        Steps(
            run, lstm=nn.LSTM(5, 6, 2, batch_first=True), out=nn.Linear(6, 3),
            h0=nn.Parameter(torch.empty(2, 1, 6)), c0=nn.Parameter(torch.empty(2, 1, 6)),
        )
    )  # fmt: skip
    structure = rewound.find_units(model, features(4, 5))
    at = taken(group_of(structure, "lstm.weight_ih_l0"))
    gates = [[i, i + 6, i + 12, i + 18] for i in range(6)]
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert at[f"lstm.{name}_l0", 0] == at[f"lstm.{name}_l1", 0] == gates
    columns = [
        ("lstm.weight_hh_l0", 1),
        ("lstm.weight_ih_l1", 1),
        ("lstm.weight_hh_l1", 1),
        ("out.weight", 1),
        ("h0", 2),
        ("c0", 2),
    ]
    for key in columns:
        assert at[key] == [[i] for i in range(6)]
    small = without_half(model, features(4, 5))
    assert (small.lstm.hidden_size, small.h0.shape) == (3, (2, 1, 3))


# ---- wrappers, and weights that are computed ----------------------------------------------------------------


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def scaled(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Twice())
    return layer


class LowRank(nn.Module):
    """LoRA: a frozen layer and two thin ones beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_weight_norm_keeps_its_units_by_name_and_the_rest_may_leave():
    model = prepared(
        nn.Sequential(parametrizations.weight_norm(conv(3, 8)), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4))
    )
    structure = rewound.find_units(model, images())
    assert "remove_weight_norm" in structure.fixed["0.bias", 0]
    small = without_half(model, images())
    assert (small[0].out_channels, small[2].out_channels) == (8, 3)


def test_a_parametrized_weight_is_cut_underneath_and_reading_it_changes_nothing():
    """Spectral norm iterates whenever its weight is read in training mode: nobody may read it but the model."""
    layers = (
        scaled(conv(3, 8)),
        nn.ReLU(),
        parametrizations.spectral_norm(conv(8, 6)),
        nn.ReLU(),
        conv(6, 4),
    )
    model = prepared(nn.Sequential(*layers)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    small = without_half(model, images())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert small[0].parametrizations.weight.original.shape == (4, 3, 3, 3)
    assert small[2].parametrizations.weight.original.shape == (3, 4, 3, 3)
    small.train()(images()).sum().backward()


def test_adapters_of_low_rank_follow_the_layer_they_adapt():
    model = prepared(nn.Sequential(LowRank(nn.Linear(5, 8), 2), nn.ReLU(), LowRank(nn.Linear(8, 3), 2)))
    structure = rewound.find_units(model, features(4, 5))
    group = group_of(structure, "0.base.weight")
    assert {
        ("0.base.weight", 0),
        ("0.base.bias", 0),
        ("0.up.weight", 0),
        ("2.base.weight", 1),
        ("2.down.weight", 1),
    } == set(taken(group))
    without_half(model, features(4, 5))
    mask = rewound.prune(model, 0.5, pattern="unit", example=features(4, 5))
    assert "0.base.weight" not in mask, "its writer is frozen, so its units are no candidates"


def test_frozen_weights_keep_their_units_and_stay_frozen():
    model = prepared(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4)))
    model[0].requires_grad_(False)
    mask = rewound.prune(model, 0.5, pattern="channel", example=images())
    small = rewound.compact(model, mask, images())
    assert (small[0].out_channels, small[2].out_channels) == (8, 4)
    assert not small[0].weight.requires_grad
    assert small[2].weight.requires_grad
    with pytest.raises(ValueError, match="requires_grad"):
        rewound.prune(model.requires_grad_(False), 0.5, pattern="channel", example=images())


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"]
)
def test_wrappers_and_hooks_do_not_hide_the_model(wrap):
    model = prepared(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))
    seen = []
    model[0].register_forward_hook(lambda module, args, result: seen.append(result.shape[1]))
    mask = rewound.prune(wrap(model), 0.5, pattern="channel", example=images())
    small = rewound.compact(wrap(model), mask, images())
    assert_the_same(small, model, mask, images())
    seen.clear()
    small(images())
    assert seen == [4]


def test_a_distributed_wrapper_is_not_shrunk_in_mid_training():
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).double()
    mask = rewound.prune(model, 0.5, pattern="channel", example=images())
    with pytest.raises(ValueError, match=r"DataParallel keeps the sizes.*shrink=False.*rewound\.compact"):
        shrink_(nn.DataParallel(model), mask, images())


def test_what_only_training_uses_is_named_and_left_alone():
    """An auxiliary head runs in training mode only, and capturing looks at evaluation."""

    def run(m: Steps, x: Tensor) -> Any:
        y = m.body(x).relu()
        result = m.last(y.mean((2, 3)))
        return (result, m.aux(x.mean((2, 3)))) if m.training else result

    model = prepared(Steps(run, body=conv(3, 8), aux=nn.Linear(3, 5), last=nn.Linear(8, 5)))
    structure = rewound.find_units(model, images())
    assert {group.name for group in structure} == {"body"}
    assert "in evaluation mode" in structure.fixed["aux.weight", 0]
    small = without_half(model, images())
    assert len(small.train()(images())) == 2


# ---- precision, statistics, training ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_cut_exactly_and_proven_in_double(dtype):
    model = prepared(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))).to(dtype)
    example = features(5).to(dtype)
    mask = rewound.prune(model, 0.5, pattern="hidden unit", example=example)
    small = rewound.compact(model, mask, example)
    assert {p.dtype for p in small.parameters()} == {dtype}
    living = mask["0.weight"].any(1)
    assert torch.equal(small[0].weight, model[0].weight[living])
    assert torch.equal(small[2].weight, model[2].weight[:, living])


def test_master_copies_of_another_precision_are_refused_by_name():
    """An optimizer over float32 copies of half weights holds no parameter of the model: which is whose is not known."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).half()
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1, momentum=0.9)
    example = torch.randn(2, 5).half()
    small = rewound.compact(model, rewound.prune(model, 0.5, pattern="hidden unit", example=example), example)
    with pytest.raises(
        ValueError, match=r"holds a tensor of shape \(8, 5\) that is no parameter of this Sequential"
    ):
        rewound.carry_over(optimizer, model, small)


def test_a_dead_channel_in_training_mode_stays_zero_and_its_variance_fades_without_harm():
    """Its batch variance is 0, so its running variance goes to 0: what divides by it is masked, and leaves."""
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    mask = rewound.prune(model, 0.5, pattern="channel", example=images())
    rewound.guard(optimizer, model, mask)
    dead = ~mask["1.weight"]
    for _ in range(60):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
        assert not model[:3](images())[:, dead].any()
    assert model[1].running_var[dead].max() < 1e-2
    assert model[1].running_var[~dead].min() > 1e-2
    small = rewound.compact(model, mask, images())
    unseen = images()
    for training in (True, False):  # in training mode too: batch statistics are of each channel by itself
        torch.testing.assert_close(
            small.train(training)(unseen), model.train(training)(unseen), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_momentum_and_weight_decay_move_nothing_of_a_dead_unit(decay):
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)

    def step() -> None:
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()

    step()  # momentum is there before the mask is
    mask = rewound.prune(model, 0.5, pattern="channel", example=images())
    rewound.guard(optimizer, model, mask)
    for _ in range(5):
        step()
        for name, kept in mask.items():
            assert not model.get_parameter(name)[~kept].any(), name


def test_no_denormal_is_left_where_something_was_pruned():
    """Weights that decay towards zero end as denormals, ten times as slow on a CPU; pruned ones are zeros at once."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.9999)
    mask = rewound.prune(model, 0.5, pattern="hidden unit", example=torch.randn(2, 8))
    rewound.guard(optimizer, model, mask)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(2, 8)).sum().backward()
        optimizer.step()
    for name, kept in mask.items():
        left = model.get_parameter(name)[~kept]
        assert not ((left != 0) & (left.abs() < tiny)).any()
        assert not left.any()


def test_one_ranking_for_all_layers_empties_none():
    """By default every group keeps a twentieth of its units under one global ranking, however small its weights are."""
    model = prepared(
        nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(40, 40), nn.ReLU())), nn.Linear(40, 3))
    )
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    example = features(40)
    mask = rewound.prune(model, 0.3, pattern="hidden unit", allocation="global", example=example)
    living = rewound.compaction.units.alive(rewound.find_units(model, example), mask)
    assert int(living["2"].sum()) == 2
    assert rewound.compact(model, mask, example)[2].out_features == 2


def test_odd_widths_are_rounded_when_asked():
    model = prepared(
        nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 3))
    )
    mask = rewound.prune(model, 0.4, pattern="hidden unit", example=features(5), multiple=8)
    small = rewound.compact(model, mask, features(5))
    assert {small[0].out_features % 8, small[2].out_features % 8} == {0}


def test_sums_of_another_length_are_compared_with_a_tolerance_not_bit_by_bit():
    """Kernels add up in another order when there is less to add: in float32 the last bits differ, in float64 1e-10 does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 515), nn.ReLU(), nn.Linear(515, 8))
    example = torch.randn(16, 64)
    mask = rewound.prune(model, 0.37, pattern="hidden unit", example=example)
    small = rewound.compact(model, mask, example)
    masked = copy.deepcopy(model)
    mask.apply_(masked)
    torch.testing.assert_close(small(example), masked(example), rtol=1e-4, atol=1e-5)
    exact_inputs = example.double()
    assert difference(outputs(small.double(), exact_inputs), outputs(masked.double(), exact_inputs)) <= 1e-10
