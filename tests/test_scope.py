from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from rewound.scope import Scope, as_scope, find_scope

CASES = {
    "linear": (lambda: nn.Linear(3, 2), ["weight"]),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), ["weight"]),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), ["weight"]),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), ["weight"]),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), ["weight"]),
    "conv1d-t": (lambda: nn.ConvTranspose1d(2, 3, 3), ["weight"]),
    "conv2d-t": (lambda: nn.ConvTranspose2d(2, 3, 3), ["weight"]),
    "conv3d-t": (lambda: nn.ConvTranspose3d(2, 3, 3), ["weight"]),
    "lstm": (
        lambda: nn.LSTM(4, 4, proj_size=2, bidirectional=True),
        [f"weight_{part}_l0{d}" for d in ("", "_reverse") for part in ("ih", "hh", "hr")],
    ),
    "gru": (lambda: nn.GRU(4, 4), ["weight_ih_l0", "weight_hh_l0"]),
    "rnn": (lambda: nn.RNN(4, 4, num_layers=2), [f"weight_{p}_l{i}" for i in (0, 1) for p in ("ih", "hh")]),
    "lstm cell": (lambda: nn.LSTMCell(4, 4), ["weight_ih", "weight_hh"]),
    "gru cell": (lambda: nn.GRUCell(4, 4), ["weight_ih", "weight_hh"]),
    "rnn cell": (lambda: nn.RNNCell(4, 4), ["weight_ih", "weight_hh"]),
    "attention": (lambda: nn.MultiheadAttention(8, 2), ["in_proj_weight", "out_proj.weight"]),
    "attention of three": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
}


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3))
        self.scale = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(3, 3)


class Conv1D(nn.Module):  # the name and layout of Hugging Face's, which GPT-2 is made of
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize("case", CASES)
def test_known_layers(case):
    make, names = CASES[case]
    scope = find_scope(make())
    assert sorted(scope.names) == sorted(names)
    assert set(scope.reasons) == {name for name, _ in make().named_parameters()} - set(names)
    assert all("bias" in reason for reason in scope.reasons.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype(dtype):
    assert find_scope(nn.Linear(2, 2).to(dtype)).names == ("weight",)


def test_hugging_face_conv1d_by_its_class_name():
    assert find_scope(Conv1D()).names == ("weight",)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.LayerNorm([2, 3]),
        nn.GroupNorm(2, 4),
        nn.RMSNorm([2, 3]),
        nn.InstanceNorm1d(3, affine=True),
    ],
)
def test_norms_are_never_pruned(norm):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), norm)
    scope = find_scope(model)
    assert scope.names == ("0.weight",)
    assert "norm" in scope.reasons["1.weight"]
    with pytest.raises(ValueError, match="norms are never pruned"):
        find_scope(model, include=["1.weight"])


def test_norms_of_other_libraries_are_known_by_their_class_name():
    LlamaRMSNorm = type("LlamaRMSNorm", (Own,), {})
    scope = find_scope(LlamaRMSNorm())
    assert scope.names == ("linear.weight",)
    assert "norm" in scope.reasons["kernel"]


def test_frozen_is_left_out_with_a_remedy():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    scope = find_scope(model)
    assert scope.names == ("1.weight",)
    assert "requires_grad_(True)" in scope.reasons["0.weight"]


def test_embedding_is_out_unless_asked_for():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    assert find_scope(model).names == ("1.weight",)
    assert "embeddings=True" in find_scope(model).reasons["0.weight"]
    assert find_scope(model, embeddings=True).names == ("0.weight", "1.weight")
    assert find_scope(model, include=["0.weight"]).names == ("0.weight",)
    assert find_scope(model, include=["0.*"]).names == ("0.weight",)
    assert find_scope(nn.Sequential(nn.EmbeddingBag(5, 3)), embeddings=True).names == ("0.weight",)


def test_a_wide_pattern_does_not_bring_in_embeddings_unsaid():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    scope = find_scope(model, include=["*"])
    assert scope.names == ("1.weight",)
    assert "embedding" in scope.reasons["0.weight"]


def test_tied_embedding_and_head_follow_the_embedding():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5))
    model[2].weight = model[0].weight
    scope = find_scope(model)
    assert scope.names == ("1.weight",)
    assert scope.reasons["0.weight"].startswith("shared by 0.weight and 2.weight: an embedding")
    both = find_scope(model, embeddings=True)
    assert both.names == ("0.weight", "1.weight")
    assert both.size == 15 + 9
    assert both.aliases == {"0.weight": ("0.weight", "2.weight")}
    assert find_scope(model, include=["2.weight"]).names == ("0.weight",)


def test_tied_linears_are_counted_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    scope = find_scope(model)
    assert scope.names == ("0.weight",)
    assert scope.size == 9
    assert "also named 1.weight" in str(scope)


def test_two_parameters_on_one_memory_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    scope = find_scope(model)
    assert scope.names == ("2.weight",)
    assert "make them one" in scope.reasons["0.weight"]
    assert "'0.weight'" in scope.reasons["1.weight"]


def test_unknown_class_is_out_unless_asked_for():
    scope = find_scope(Own())
    assert scope.names == ("linear.weight",)
    assert "class Own is not known: scope=['kernel'] includes it" in scope.reasons["kernel"]
    assert "vector" in scope.reasons["scale"]
    assert find_scope(Own(), include=["kernel"]).names == ("kernel",)
    assert as_scope(Own(), ["kernel", "linear.weight"]).names == ("kernel", "linear.weight")


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrizations.weight.original0"


def torch_pruned():
    return torch_prune.random_unstructured(nn.Linear(2, 2), "weight", 0.5), "weight_orig"


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(2, 2)), "weight_v"


def old_spectral_norm():
    return nn.utils.spectral_norm(nn.Linear(2, 2)), "weight_orig"


def lazy():
    return nn.LazyLinear(2), "weight"


def meta():
    return nn.Linear(2, 2, device="meta"), "weight"


def complex_():
    return nn.Linear(2, 2, dtype=torch.complex64), "weight"


def sparse():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer, "weight"


def integer():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    return layer, "weight"


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (parametrized, "remove_parametrizations"),
        (torch_pruned, "prune.remove"),
        (old_weight_norm, "remove_weight_norm"),
        (old_spectral_norm, "remove_spectral_norm"),
        (lazy, "run one batch"),
        (meta, "load the weights"),
        (complex_, "complex"),
        (sparse, "to_dense"),
        (integer, "quantise after"),
    ],
)
def test_what_cannot_be_pruned_says_what_to_do(make, advice):
    layer, name = make()
    scope = find_scope(nn.Sequential(layer, nn.Linear(2, 2)))
    assert scope.names == ("1.weight",)
    assert advice in scope.reasons[f"0.{name}"]
    with pytest.raises(ValueError, match=advice):
        find_scope(nn.Sequential(layer, nn.Linear(2, 2)), include=[f"0.{name}"])
    with pytest.raises(ValueError, match="nothing to prune"):
        find_scope(layer)


def test_nothing_prunable_lists_the_reasons():
    with pytest.raises(
        ValueError, match=r"nothing to prune in Sequential(.|\n)*0.weight: an embedding(.|\n)*norm"
    ):
        find_scope(nn.Sequential(nn.Embedding(2, 2), nn.LayerNorm(2)))
    with pytest.raises(ValueError, match="no parameters"):
        find_scope(nn.ReLU())


def test_patterns(mlp):
    assert as_scope(mlp, ["0.*"]).names == ("0.weight",)
    assert as_scope(mlp, "0.*").names == ("0.weight",)
    assert as_scope(mlp, ["!0.*"]).names == ("3.weight",)
    assert as_scope(mlp, ["*.weight", "!0.weight"]).names == ("3.weight",)
    assert find_scope(mlp, exclude=["0.weight"]).reasons["0.weight"] == "excluded by '0.weight'"
    assert "not matched" in as_scope(mlp, ["0.*"]).reasons["3.weight"]


def test_unmatched_patterns_name_the_nearest(mlp):
    with pytest.raises(ValueError, match=r"matches '3\.weigt'; nearest: '3\.weight'"):
        as_scope(mlp, ["3.weigt"])
    with pytest.raises(ValueError, match=r"matches '3'; it is a module: write '3\.\*'"):
        as_scope(mlp, ["3"])
    with pytest.raises(ValueError, match="matches 'x'"):
        as_scope(mlp, ["!x"])
    with pytest.raises(ValueError, match="no name or pattern"):
        as_scope(mlp, [])
    with pytest.raises(TypeError, match="names or glob patterns"):
        as_scope(mlp, [3])


def test_function_is_asked_only_about_what_can_be_pruned(mlp):
    asked = []

    def wanted(name, module, parameter):
        asked.append((name, type(module), parameter.ndim))
        return name == "3.weight"

    assert as_scope(mlp, wanted).names == ("3.weight",)
    assert asked == [("0.weight", nn.Linear, 2), ("3.weight", nn.Linear, 2)]


def test_a_scope_is_checked_against_the_model(mlp):
    scope = find_scope(mlp)
    assert as_scope(mlp, scope) is scope
    with pytest.raises(ValueError, match="no such parameter"):
        as_scope(mlp, Scope(("9.weight",), {"9.weight": 9}, {}))
    with pytest.raises(ValueError, match="find the scope of this model"):
        as_scope(nn.Sequential(nn.Linear(5, 5)), Scope(("0.weight",), {"0.weight": 9}, {}))


def test_names_do_not_depend_on_wrappers(mlp):
    names = find_scope(mlp).names
    inner = nn.Sequential(*mlp)
    inner[0] = torch.compile(mlp[0], backend="eager")
    for model in (
        torch.compile(mlp, backend="eager"),
        nn.DataParallel(mlp),
        torch.optim.swa_utils.AveragedModel(mlp),
        inner,
    ):
        assert find_scope(model).names == names


def test_hugging_face_gpt2_and_bert():
    transformers = pytest.importorskip("transformers", reason="needs the extra 'huggingface'")
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=7)
    )
    scope = find_scope(gpt2)
    assert [name.split(".")[-2] for name in scope.names] == ["c_attn", "c_proj", "c_fc", "c_proj"]
    assert "lm_head.weight" in scope.reasons["transformer.wte.weight"]
