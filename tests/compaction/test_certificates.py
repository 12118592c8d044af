"""What each certificate promises: exact, exact after a constant is folded, exact after a factor is set, approximate."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.compaction.zoo import ZOO, another
from tests.compaction.zoo_layers import Steps
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import rewound
from rewound.compaction import proof
from rewound.compaction.coordinates import Coordinates, Scale
from rewound.compaction.coupling import couple
from rewound.compaction.foreign import leaving
from rewound.compaction.mending import Added
from rewound.compaction.rewriting import Rewritten
from rewound.compaction.shrinking import shrink_
from rewound.compaction.surgery import edits_of
from rewound.compaction.units import Certificate, masks_of

TOLERANCE = 1e-10
IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64 and evaluation mode, nothing of it zero by chance."""
    random = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=random, dtype=torch.float64))
    return model


def convnet(
    *, padding: int = 0, kernel: int = 3, bias: bool = True, act: nn.Module | None = None
) -> nn.Sequential:
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act or nn.ReLU(), nn.Conv2d(8, 5, kernel, padding=padding, bias=bias),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
        )
    )  # fmt: skip


def filters(model: nn.Module, *rows: int, name: str = "0.weight", axis: int = 0) -> dict[str, Tensor]:
    """Return a mask of these rows of one weight, and of nothing else."""
    keep = torch.ones_like(model.get_parameter(name), dtype=torch.bool)
    keep.index_fill_(axis, torch.tensor(rows), False)
    return {name: keep}


def require_same(
    model: nn.Module, mask: Mapping[str, Tensor] | None, small: nn.Module, *examples: Any
) -> None:
    """Assert that the smaller network is the masked one."""
    masked = proof.masked_copy(model, mask or {})
    for example in examples:
        theirs = proof.run_in_float64(masked, example)
        assert proof.difference(proof.run_in_float64(small, example), theirs) <= TOLERANCE


def compacted(model: nn.Module, mask: Mapping[str, Tensor] | None, example: Any) -> nn.Module:
    small = rewound.compact(model, mask, example)
    require_same(model, mask, small, example, another(example))
    return small


def shapes(model: nn.Module, *names: str) -> list[tuple[int, ...]]:
    return [tuple(model.get_parameter(name).shape) for name in names]


# -- after a fold: what a constant leaves --------------------------------------------------------------------------------


def test_filters_that_ln_structured_masks_leave_and_what_their_batch_norm_gives_is_folded():
    model = convnet()
    pruned = copy.deepcopy(model)
    torch_prune.ln_structured(pruned[0], "weight", amount=3, n=2, dim=0)
    mask = {"0.weight": pruned[0].weight_mask.bool()}
    small = compacted(model, mask, IMAGES)
    assert shapes(small, "0.weight", "1.weight", "3.weight") == [(5, 3, 3, 3), (5,), (5, 5, 3, 3)]
    assert not torch.equal(small[3].bias, model[3].bias)
    torch.testing.assert_close(small(IMAGES), pruned(IMAGES), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask", [None, {}])
def test_zeros_are_zeros_without_any_mask(mask):
    model = convnet()
    torch_prune.remove(torch_prune.ln_structured(model[0], "weight", amount=3, n=2, dim=0), "weight")
    assert compacted(model, mask, IMAGES)[0].out_channels == 5


def test_a_constant_that_meets_zero_padding_stays_and_says_so():
    model = convnet(padding=1, act=nn.Sigmoid())
    with pytest.raises(
        ValueError, match=r"nothing can leave: 2 of the 8 units of '0' .*'3' pads its input with zeros"
    ):
        rewound.compact(model, filters(model, 1, 4), IMAGES)


def test_where_some_leave_a_warning_names_those_that_stay():
    model = convnet(padding=1)
    with torch.no_grad():
        model[1].bias[4], model[1].weight[4], model[0].bias[4] = -9.0, 0.1, 0.0  # ReLU makes it zero
        model[1].bias[1], model[1].weight[1], model[0].bias[1] = 9.0, 0.1, 0.0
    with pytest.warns(
        UserWarning, match=r"1 of the 8 units of '0' \(channel\) stay, .*'3' pads its input with zeros"
    ):
        small = compacted(model, filters(model, 1, 4), IMAGES)
    assert rewound.coordinates(small).kept["0.weight"][0].tolist() == [0, 1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 1},
        {"act": nn.Sigmoid()},
        {"act": nn.Softplus()},
        {"bias": False},
        {"act": nn.ReLU(inplace=True)},
    ],
    ids=str,
)
def test_constants_go_through_any_function_into_any_reader_without_padding(options):
    model = convnet(**options)
    assert compacted(model, filters(model, 0, 3, 7), IMAGES)[0].out_channels == 5


def test_a_reader_without_a_bias_gets_one_and_that_is_noted():
    model = convnet(bias=False)
    model[3].weight.requires_grad_(False)
    small = compacted(model, filters(model, 0, 3), IMAGES)
    assert small[3].bias.shape == (5,)
    assert not small[3].bias.requires_grad
    assert edits_of(small)["3", "bias"] == Added(5)
    # what is zero adds nothing, so no bias comes where none is needed
    whole = rewound.prune(model, 0.5, pattern="channel", example=IMAGES)
    assert compacted(model, whole, IMAGES)[3].bias is None


def test_a_linear_layer_after_a_flatten_takes_all_places_of_a_map():
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    )
    model = randomised(nn.Sequential(*layers))
    small = compacted(model, filters(model, 2, 5), IMAGES)
    assert small[4].in_features == 54
    keep = filters(model, 2, 5)["0.weight"]
    constant = torch.tanh(model[0].bias[~keep.all((1, 2, 3))]).repeat_interleave(9)
    columns = model[4].weight[:, torch.cat([torch.arange(u * 9, u * 9 + 9) for u in (2, 5)])]
    torch.testing.assert_close(small[4].bias, model[4].bias + columns @ constant)


def test_a_scale_of_zero_in_a_batch_norm_is_a_constant_too():
    model = convnet()
    with torch.no_grad():
        model[1].weight[[2, 6]] = 0
    assert compacted(model, None, IMAGES)[1].num_features == 6
    mask = {"1.weight": torch.arange(8) % 4 > 0}
    assert compacted(convnet(), mask, IMAGES)[1].num_features == 6


class Residual(nn.Module):
    """A stem, a branch, their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(torch.sigmoid(self.inner(x)))).mean((2, 3)))


def test_a_residual_sum_with_a_varying_channel_keeps_it():
    model = randomised(Residual())
    with pytest.raises(ValueError, match=r"2 of the 6 units of 'stem' .* they vary with the input"):
        rewound.compact(model, filters(model, 0, 1, name="outer.weight"), IMAGES)
    both = filters(model, 0, 1, name="outer.weight") | filters(model, 1, 2, name="stem.weight")
    with pytest.warns(
        UserWarning, match=r"1 of the 6 units of 'stem' .*'inner' reads them.*'head' reads them"
    ):
        small = compacted(model, both, IMAGES)
    assert rewound.coordinates(small).kept["stem.weight"][0].tolist() == [0, 2, 3, 4, 5]


def test_what_nobody_reads_leaves_whatever_it_holds():
    model = convnet(padding=1)
    small = compacted(model, filters(model, 1, 6, name="3.weight", axis=1), IMAGES)
    assert rewound.coordinates(small).kept["0.weight"][0].tolist() == [0, 2, 3, 4, 5, 7]


def test_dead_neurons_of_a_sparse_network_leave_and_then_those_that_only_they_read():
    model = randomised(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    mask["4.weight"][:, 3] = False  # nobody reads neuron 3 of the second layer
    mask["2.weight"][[0, 1, 2, 4, 5], 1] = False  # and only it reads neuron 1 of the first
    small = compacted(model, mask, torch.randn(3, 4, dtype=torch.float64))
    assert shapes(small, "0.weight", "2.weight", "4.weight") == [(4, 4), (5, 4), (2, 5)]


def test_a_channel_that_is_zero_on_the_example_only_stays():
    model = convnet()
    with torch.no_grad():
        model[1].bias[2] = -100.0  # dead under ReLU for every image that there is; not for every input
    with pytest.raises(ValueError, match="no unit of this network is zero"):
        rewound.compact(model, None, IMAGES)


def test_a_layer_that_starts_at_zero_leaves_only_if_it_is_asked_for():
    model = convnet()
    with torch.no_grad():
        model[7].weight.zero_()
    small = compacted(model, filters(model, 0), IMAGES)
    assert (small[0].out_channels, small[3].out_channels) == (7, 5)
    small = compacted(model, None, IMAGES)  # zeros are zeros, but no layer becomes empty
    assert (small[0].out_channels, small[3].out_channels) == (8, 1)


class Twice(nn.Module):
    """One layer without a bias reads two others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.tanh(self.a(x))) * self.shared(torch.tanh(self.b(x)))


def test_a_layer_that_is_called_twice_takes_one_constant_but_not_two():
    x = torch.randn(3, 4, dtype=torch.float64)
    model = randomised(Twice())
    mask = filters(model, 2, name="a.weight") | filters(model, 2, name="b.weight")
    with pytest.raises(ValueError, match="'shared' is called several times, with different constants"):
        rewound.compact(model, mask, x)
    with torch.no_grad():
        model.b.bias[2] = model.a.bias[2]
    assert compacted(model, mask, x).shared.bias.shape == (3,)


def _pools(m: Steps, x: Tensor) -> Tensor:
    x = torch.cat(
        [
            F.max_pool2d(x := torch.tanh(m.conv(x)), 3, 2, 1),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        ],
        1,
    )
    return m.head(F.interpolate(x, scale_factor=2, mode="bilinear").mean((2, 3)))


def _padded_pool(m: Steps, x: Tensor) -> Tensor:
    return m.head(F.avg_pool2d(torch.tanh(m.conv(x)), 3, 2, 1).repeat(1, 2, 1, 1).mean((2, 3)))


def test_pooling_and_concatenation_pass_constants_unless_zeros_come_in():
    model = randomised(Steps(_pools, conv=nn.Conv2d(3, 6, 3), head=nn.Linear(12, 2)))
    small = compacted(model, filters(model, 1, 2, name="conv.weight"), IMAGES)
    assert small.head.in_features == 8
    model = randomised(Steps(_padded_pool, conv=nn.Conv2d(3, 6, 3), head=nn.Linear(12, 2)))
    with pytest.raises(ValueError, match="'head' reads them, and they vary"):
        rewound.compact(model, filters(model, 1, 2, name="conv.weight"), IMAGES)


def _lstm(m: Steps, x: Tensor) -> Tensor:
    return m.head(m.lstm(x)[0][:, -1])


def test_a_hidden_unit_with_no_candidate_is_zero_for_ever():
    model = randomised(Steps(_lstm, lstm=nn.LSTM(4, 6, batch_first=True), head=nn.Linear(6, 2)))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    rows = [12 + 1, 12 + 4]  # of the third gate
    mask = {}
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        mask |= filters(model, *rows, name=f"lstm.{name}")
    # no row of a unit is masked in all four gates, so it is not asked for; as zeros it would not be found either
    with pytest.raises(ValueError, match="no unit is wholly masked"):
        rewound.compact(model, mask, x)
    mask |= filters(model, 1, 4, name="lstm.weight_hh_l0", axis=1) | filters(
        model, 1, 4, name="head.weight", axis=1
    )
    assert compacted(model, mask, x).lstm.hidden_size == 4


class Inflexible(nn.Module):
    """Code with a size written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 49, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).reshape(x.shape[0], 8 * 49))


def test_a_constant_is_folded_in_a_graph_too():
    model = randomised(Inflexible())
    with pytest.warns(UserWarning, match="returned as a graph"):
        small = compacted(model, filters(model, 1, 5, name="conv.weight"), IMAGES)
    assert isinstance(small, Rewritten)
    assert shapes(small, "conv.weight", "head.weight", "head.bias") == [(6, 3, 3, 3), (2, 294), (2,)]


def test_masks_that_torch_still_applies_are_to_be_made_permanent_first():
    model = convnet()
    torch_prune.ln_structured(model[0], "weight", amount=3, n=2, dim=0)
    with pytest.raises(ValueError, match=r"call its remove\(\) for each layer first"):
        rewound.compact(model, None, IMAGES)


def test_weights_in_float32_are_proven_before_they_are_rounded():
    model = convnet().float()
    mask = filters(model, 1, 2, 3)
    small = rewound.compact(model, mask, IMAGES.float())
    assert small[3].bias.dtype is torch.float32
    masked = proof.masked_copy(model, mask)
    torch.testing.assert_close(small(IMAGES.float()), masked(IMAGES.float()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "resnet_20",
        "mobilenet_v2",
        "densenet",
        "unet",
        "grouped_mixture",
        "squeeze_excite",
        "shared_module",
        "vit_matmul",
        "lstm_seq2seq",
        "hf_gpt2",
    ],
)
@pytest.mark.parametrize("role", ["writes", "reads", "affine"])
def test_any_mask_of_rows_or_columns_gives_the_masked_network_or_is_refused(name, role):
    if name.startswith("hf_"):
        pytest.importorskip("transformers")
    model, example = ZOO[name]()
    random = torch.Generator().manual_seed(1)
    mask: dict[str, Tensor] = {}
    for group in rewound.find_units(model, example):
        dead = torch.rand(group.size, generator=random) < 0.4
        for s in group.slices:
            if s.role == role and bool(dead.any()):
                keep = mask.setdefault(
                    s.tensor, torch.ones_like(model.get_parameter(s.tensor), dtype=torch.bool)
                )
                keep.index_fill_(s.axis, s.positions[dead].reshape(-1), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small = rewound.compact(model, mask, example)
        except ValueError:  # refused: nothing can leave
            return
    require_same(model, mask, small, example, another(example))


# -- after a factor: the width of an RMSNorm, the scale of an attention --------------------------------------------------


def half_of(model: nn.Module, example: Any, kinds: Iterable[str]) -> rewound.Mask:
    scope = rewound.find_scope(model, embeddings=True)
    return rewound.prune(
        model, 0.5, pattern=tuple(kinds), example=example, scope=scope, allow="exact after rescale"
    )


@pytest.mark.parametrize(
    ("name", "eps"),
    [("hf_llama", "variance_epsilon"), ("hf_qwen3", "variance_epsilon"), ("hf_gemma2", "eps")],
)
def test_the_width_of_an_rms_norm_leaves_with_a_factor(name, eps):
    pytest.importorskip("transformers")
    model, example = ZOO[name]()
    assert [g.certificate for g in rewound.find_units(model, example) if g.kind == "width"] == [
        Certificate.EXACT_AFTER_RESCALE
    ]
    small = compacted(model, half_of(model, example, ["width"]), example)
    assert type(small) is type(model)
    assert small.model.embed_tokens.weight.shape[1] == 12
    norm, before = small.model.norm, model.model.norm
    assert getattr(norm, eps) == pytest.approx(2 * getattr(before, eps))
    around = 1.0 if name == "hf_gemma2" else 0.0
    kept = rewound.coordinates(small).kept["model.norm.weight"][0]
    torch.testing.assert_close(norm.weight + around, (before.weight[kept] + around) * 2**0.5)
    if name == "hf_gemma2":
        assert small.lm_head.weight is small.model.embed_tokens.weight


def test_an_eps_that_is_written_into_the_code_makes_a_graph():
    model, example = ZOO["decoder_gqa"]()
    with pytest.warns(UserWarning, match=r"its eps of 1e-06 is no attribute of the module 'norm1'"):
        small = compacted(model, half_of(model, example, ["width"]), example)
    assert isinstance(small, Rewritten)
    assert not rewound.coordinates(small).scale


class Norms(nn.Module):
    """PyTorch's own RMSNorm, pre-norm: a residual stream of any width."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 10)
        self.norm, self.norm2 = nn.RMSNorm(10, **options), nn.RMSNorm(10, eps=1e-3)
        self.up, self.down, self.head = nn.Linear(10, 7), nn.Linear(7, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        return self.head(self.norm2(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_eps_of_none_becomes_a_number(dtype):
    model, x = randomised(Norms()).to(dtype), torch.randn(3, 4).to(dtype)
    mask = half_of(model, x, ["width"])
    small = rewound.compact(model, mask, x)
    assert small.norm.eps == 2 * torch.finfo(dtype).eps
    assert (small.norm2.eps, small.norm.normalized_shape) == (2e-3, (5,))
    masked = proof.masked_copy(model, mask)
    torch.testing.assert_close(small(x), masked(x))


def test_a_norm_without_a_weight_makes_a_graph():
    model, x = randomised(Norms(elementwise_affine=False, eps=1e-4)), torch.randn(3, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="no weight follows that could take the factor"):
        assert isinstance(compacted(model, half_of(model, x, ["width"]), x), Rewritten)


class Attention(nn.Module):
    """Heads of the default scale; queries and keys from one matrix or three, with or without a norm, rotated or not."""

    def __init__(
        self, fused: bool = False, norm: bool = False, rotary: bool = False, by_hand: bool = False
    ) -> None:
        super().__init__()
        self.fused, self.rotary, self.by_hand = fused, rotary, by_hand
        if fused:
            self.qkv = nn.Linear(5, 36)
        else:
            self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))
        self.q_norm = nn.RMSNorm(4, eps=1e-2) if norm else nn.Identity()
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (y.unflatten(-1, (3, -1)).transpose(1, 2) for y in parts)
        q = self.q_norm(q)
        if self.rotary:
            angles = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None]
            q, k = (y * angles.cos() + torch.cat(y.chunk(2, -1)[::-1], -1) * angles.sin() for y in (q, k))
        if self.by_hand:
            y = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


SEQUENCE = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def query_heads(model: nn.Module) -> dict[str, Tensor]:
    """Return the mask of half of the dimensions of queries and keys."""
    structure = rewound.find_units(model, SEQUENCE)
    groups = [
        g for g in structure if g.kind == "head dim" and g.writers[0].tensor in ("q.weight", "qkv.weight")
    ]
    assert groups
    return masks_of(structure.restricted(groups), {g.name: torch.arange(g.size) % 2 > 0 for g in groups})


@pytest.mark.parametrize(
    "options",
    [{}, {"fused": True}, {"rotary": True}, {"fused": True, "rotary": True}, {"by_hand": True}],
    ids=str,
)
def test_the_default_scale_of_an_attention_is_made_up_for_by_the_queries(options):
    model = randomised(Attention(**options))
    small = compacted(model, query_heads(model), SEQUENCE)
    assert type(small) is Attention
    scale = rewound.coordinates(small).scale
    assert set(scale) == ({"qkv.weight", "qkv.bias"} if "fused" in options else {"q.weight", "q.bias"})
    if options == {"fused": True}:  # of the 18 rows that are left only those of the queries
        assert scale["qkv.bias"].factor.tolist() == pytest.approx([0.5**0.5] * 6 + [1.0] * 12)


def test_a_group_with_two_marks_gets_both_factors():
    model = randomised(Attention(norm=True))
    (group,) = [
        g
        for g in rewound.find_units(model, SEQUENCE)
        if g.kind == "head dim" and g.writers[0].tensor == "q.weight"
    ]
    assert group.certificate is Certificate.EXACT_AFTER_RESCALE
    small = compacted(model, query_heads(model), SEQUENCE)
    # the mean's sqrt(4 / 2) and the scale's sqrt(2 / 4) make one
    assert rewound.coordinates(small).scale["q_norm.weight"].factor.tolist() == pytest.approx([1.0])
    assert small.q_norm.eps == 2e-2


def test_of_a_multihead_attention_the_class_keeps_the_scale():
    model, example = ZOO["multihead_attention"]()
    small = compacted(model, half_of(model, example, ["head dim"]), example)
    assert not rewound.coordinates(small).scale


# -- and what goes with the factors --------------------------------------------------------------------------------------


def test_a_snapshot_of_other_weights_is_cut_with_the_same_factors():
    x = torch.randn(3, 4, dtype=torch.float64)
    model, earlier = randomised(Norms(eps=1e-4)), randomised(Norms(eps=1e-4), seed=1)
    mask = half_of(model, x, ["width"])
    small = rewound.compact(model, mask, x)
    where = rewound.coordinates(small)
    small.load_state_dict(where.cut_all(earlier.state_dict()))
    require_same(earlier, mask, small, x)
    for name, tensor in small.state_dict().items():
        whole = where.put_back(name, tensor)
        kept = torch.ones(whole.shape, dtype=torch.bool) if name not in mask else mask[name]
        torch.testing.assert_close(whole, earlier.state_dict()[name] * kept)
        assert torch.equal(where.cut(name, whole != 0), tensor != 0)  # a mask has no factor


def test_factors_of_two_rounds_are_one():
    x = torch.randn(3, 4, dtype=torch.float64)
    model, earlier = randomised(Norms(eps=1e-4)), randomised(Norms(eps=1e-4), seed=1)
    first = half_of(model, x, ["width"])
    small = rewound.compact(model, first, x)
    second = half_of(small, x, ["width"])
    smaller = rewound.compact(small, second, x)
    where = rewound.coordinates(smaller)
    assert smaller.norm.eps == pytest.approx(1e-4 * 10 / smaller.norm.weight.numel())
    assert where.scale["norm.weight"].factor.item() == pytest.approx(
        (10 / smaller.norm.weight.numel()) ** 0.5
    )
    both = {name: keep.clone() for name, keep in first.items()}
    back = rewound.coordinates(small)
    for name, keep in second.items():
        both[name] &= back.put_back(name, keep)
    smaller.load_state_dict(where.cut_all(earlier.state_dict()))
    require_same(earlier, both, smaller, x)


def test_a_factor_of_some_positions_is_cut_with_them():
    one = Coordinates(
        {"w": {0: torch.tensor([0, 2, 3])}},
        {"w": torch.Size([4, 2])},
        scale={"w": Scale(torch.tensor([[1.0], [2.0], [3.0]]).double())},
    )
    two = Coordinates(
        {"w": {0: torch.tensor([1, 2])}},
        {"w": torch.Size([3, 2])},
        scale={"w": Scale(torch.tensor([[10.0]]).double())},
    )
    both = one.then(two)
    assert both.cut("w", torch.ones(4, 2)).tolist() == [[20.0, 20.0], [30.0, 30.0]]
    assert both.put_back("w", both.cut("w", torch.ones(4, 2))).tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert both.cut("w", torch.ones(4, 2), scaled=False).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    with pytest.raises(ValueError, match="make no factor"):
        one.then(Coordinates({}, {}, scale={"w": Scale(torch.ones(1, 1), around=1.0)}))


def test_an_optimizer_is_carried_over_with_a_warning():
    x = torch.randn(3, 4, dtype=torch.float64)
    model = randomised(Norms(eps=1e-4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    small = rewound.compact(model, half_of(model, x, ["width"]), x)
    with pytest.warns(UserWarning, match="multiplied by a factor"):
        carried = rewound.carry_over(optimizer, model, small)
    where, slot = rewound.coordinates(small), optimizer.state[model.norm.weight]["momentum_buffer"]
    assert torch.equal(
        carried.state[small.norm.weight]["momentum_buffer"], where.cut("norm.weight", slot, scaled=False)
    )


def test_a_network_is_not_rescaled_in_mid_training():
    x = torch.randn(3, 4, dtype=torch.float64)
    model = randomised(Norms(eps=1e-4))
    mask = half_of(model, x, ["width"])
    with pytest.raises(
        ValueError, match=r"by the units of 'inlet' \(width: it is the width of an RMSNorm.*shrink=False"
    ):
        shrink_(model, mask, x)
    assert model.norm.weight.shape == (10,)


# -- approximate, and exact ----------------------------------------------------------------------------------------------


class LayerNormed(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(10), nn.LayerNorm(10)


def test_the_width_of_a_layer_norm_is_refused_with_its_certificate_and_the_way_out():
    x = torch.randn(3, 4, dtype=torch.float64)
    model = randomised(LayerNormed())
    mask = rewound.prune(model, 0.5, pattern="width", example=x, allow="approximate")
    with pytest.raises(
        RuntimeError,
        match=r"5 units of 'inlet' \(width\) leave only approximately: it is the width of a LayerNorm",
    ) as e:
        rewound.compact(model, mask, x)
    assert "Prune without allow='approximate'" in str(e.value)
    assert "differs by" in str(e.value)
    with pytest.raises(ValueError, match="allow='approximate' admits it"):
        rewound.prune(model, 0.5, pattern="width", example=x, allow="exact after rescale")


def test_whole_groups_of_a_group_norm_leave_exactly_and_parts_of_them_do_not():
    layers = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 2)
    model = randomised(nn.Sequential(*layers))
    structure = rewound.find_units(model, IMAGES)
    assert {g.kind: g.certificate for g in structure} == {
        "group": Certificate.EXACT,
        "channel": Certificate.APPROXIMATE,
    }
    whole, part = (next(g for g in structure if g.kind == kind) for kind in ("group", "channel"))
    mask = masks_of(structure.restricted([whole]), {whole.name: torch.tensor([True, False, True, False])})
    assert compacted(model, mask, IMAGES)[1].num_groups == 2
    mask = masks_of(structure.restricted([part]), {part.name: torch.tensor([True, False])})
    with pytest.raises(RuntimeError, match="is part of a GroupNorm's group"):
        rewound.compact(model, mask, IMAGES)


def test_a_mask_of_filters_leaves_approximate_units_alone_and_says_why():
    model = randomised(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 2))
    )
    with pytest.raises(
        ValueError, match=r"nothing can leave: .*'0'.*approximate .*is part of a GroupNorm's group"
    ):
        rewound.compact(model, filters(model, 0, 2, 4, 6), IMAGES)


def test_nothing_is_reckoned_where_units_are_masked_whole(monkeypatch):
    model = convnet()
    mask = rewound.prune(model, 0.5, pattern="channel", example=IMAGES)
    monkeypatch.setattr("rewound.compaction.foreign.constants", None)
    assert not leaving(model, couple(model, IMAGES), mask).folds
