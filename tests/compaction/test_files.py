"""A compact network saved and loaded is the same network, bit for bit; any other file, or any other class, is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.compaction.test_zoo import _KINDS, half_of
from tests.compaction.zoo import ZOO, another, outputs
from torch import Tensor, nn

import rewound
from rewound.compaction import files
from rewound.compaction.shrinking import shrink_
from rewound.compaction.surgery import edits_of
from rewound.compaction.units import Certificate, masks_of
from rewound.parameters import tied_names

EXAMPLE = torch.ones(2, 3, 8, 8)


class Net(nn.Module):
    """Everything a file must carry: statistics, a tie, a frozen weight, marks, and buffers that no state dict has."""

    def __init__(self, width: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.again = nn.Conv2d(width, width, 1, bias=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.head = nn.Linear(width, 5)
        self.heads = heads
        self.conv.weight.requires_grad_(False)
        self.norm.weight._no_weight_decay = True
        self.register_buffer("gain", torch.linspace(0.5, 2, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu() * self.gain.reshape(-1, 1, 1)
        x = self.again(x).relu().flatten(2).transpose(1, 2)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


def net(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    model = Net(**sizes)
    with torch.no_grad():
        for tensor in [*model.parameters(), model.norm.running_mean]:
            tensor.normal_()
    return model.eval()


def halved(model: nn.Module, example: Any, seed: int = 0) -> nn.Module:
    """Return the network without half of all its units that can leave."""
    structure = rewound.find_units(model, example)
    groups = [g for g in structure if g.certificate <= Certificate.EXACT_AFTER_FOLD and g.kind in _KINDS]
    return rewound.compact(model, masks_of(structure.restricted(groups), half_of(groups, seed)), example)


def emptied(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory of the same network with nothing in it that the file must bring."""

    def built() -> nn.Module:
        model = factory()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.zero_()
        return model

    return built


def told(model: nn.Module) -> dict[str, Any]:
    """Return everything that must come back, but for the values."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    where = rewound.coordinates(model)
    return {
        "repr": repr(model),
        "tensors": {n: (tuple(t.shape), t.dtype, t.stride(), t.requires_grad) for n, t in named},
        "in state dict": list(model.state_dict()),
        "ties": tied_names(model),
        "edits": edits_of(model),
        "kept": {name: {a: index.tolist() for a, index in axes.items()} for name, axes in where.kept.items()},
        "shapes": where.shapes,
        "aliases": where.aliases,
        "scale": {name: (scale.factor.tolist(), scale.around) for name, scale in where.scale.items()},
    }


def require_same(one: nn.Module, two: nn.Module, *inputs: Any) -> None:
    assert told(one) == told(two)
    for x in inputs:
        for (path, ours), (_, theirs) in zip(outputs(one, x), outputs(two, x)):
            assert torch.equal(ours, theirs), path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "small.safetensors"


@pytest.fixture
def saved(path) -> Path:
    rewound.save(halved(net(), EXAMPLE), path)
    return path


# -- round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["resnet_20", "mobilenet_v2", "shufflenet_v1", "unet", "weight_norm", "prelu", "tied_autoencoder", "free_parameters",
     "group_norm", "decoder_gqa", "transformer_encoder", "lstm_language_model", "gru_seq2seq_tied", "lstm_projected",
     "hf_bert_masked_lm", "hf_gpt2", "hf_llama", "hf_t5"],
)  # fmt: skip
def test_what_is_loaded_is_what_was_saved_bit_for_bit(name, path):
    if name.startswith("hf_"):
        pytest.importorskip("transformers")
    model, example = ZOO[name]()
    small = halved(model, example)
    rewound.save(small, path)
    loaded = rewound.load(emptied(lambda: ZOO[name]()[0]), path)
    require_same(loaded, small, example, another(example))
    again = path.with_name("again")
    rewound.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_and_the_order_in_memory_come_from_the_file(dtype, path):
    model = net().to(dtype).to(memory_format=torch.channels_last)
    small = halved(model, EXAMPLE.to(dtype))
    rewound.save(small, path)
    loaded = rewound.load(net, path)
    require_same(loaded, small, EXAMPLE.to(dtype))
    assert loaded.again.weight.dtype is dtype
    assert loaded.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_come_back(dtype, path):
    def build(values: list[complex]) -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_buffer("phase", torch.tensor(values, dtype=dtype).conj())
        return model

    rewound.save(build([1 + 2j, 3 - 1j]), path)
    assert torch.equal(
        rewound.load(lambda: build([0, 0]), path).phase, torch.tensor([1 - 2j, 3 + 1j], dtype=dtype)
    )


def test_a_factory_on_the_meta_device_costs_no_memory_and_gives_the_same(path):
    small = halved(net(), EXAMPLE)
    rewound.save(small, path)

    def on_meta() -> nn.Module:
        with torch.device("meta"):
            return Net().eval()

    loaded = rewound.load(on_meta, path)
    assert {t.device.type for t in [*loaded.parameters(), *loaded.buffers()]} == {"cpu"}
    require_same(loaded, small, EXAMPLE)


def test_a_buffer_that_no_state_dict_has_is_saved_and_cut(path):
    small = halved(net(), EXAMPLE)
    assert "gain" not in small.state_dict()
    assert len(small.gain) == 3
    rewound.save(small, path)
    assert torch.equal(rewound.load(net, path).gain, small.gain)


def test_a_buffer_that_the_code_makes_as_it_needs_it_is_put_back(path):
    model = net()
    model.register_buffer("positions", torch.arange(4), persistent=False)
    rewound.save(model, path)
    loaded = rewound.load(net, path)
    assert torch.equal(loaded.positions, torch.arange(4))
    assert "positions" not in loaded.state_dict()


def test_what_was_trained_is_trained_and_marks_are_those_of_the_class(path):
    small = halved(net(), EXAMPLE)
    small.head.bias.requires_grad_(False)
    rewound.save(small, path)
    loaded = rewound.load(net, path)
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["conv.weight", "head.bias"]
    assert loaded.norm.weight._no_weight_decay is True
    assert not loaded.training
    assert rewound.load(Net, path).training


def test_a_network_that_was_never_compacted_is_saved_too(path):
    rewound.save(net(), path)
    loaded = rewound.load(lambda: net(seed=1), path)
    require_same(loaded, net(), EXAMPLE)
    assert not rewound.coordinates(loaded).kept


def test_a_network_compacted_twice_is_rebuilt_from_the_class_that_was_whole(path):
    dense = net(width=12)
    once = halved(dense, EXAMPLE)
    twice = halved(once, EXAMPLE, seed=1)
    rewound.save(twice, path)
    loaded = rewound.load(lambda: net(seed=1, width=12), path)
    require_same(loaded, twice, EXAMPLE)
    where = rewound.coordinates(loaded)
    assert where.shapes["conv.weight"] == dense.conv.weight.shape
    assert torch.equal(where.cut("conv.weight", dense.conv.weight), loaded.conv.weight)


def test_what_is_loaded_can_be_compacted_again_and_saved_again(path):
    rewound.save(halved(net(width=12), EXAMPLE), path)
    smaller = halved(rewound.load(lambda: net(width=12), path), EXAMPLE, seed=1)
    rewound.save(smaller, path)
    require_same(rewound.load(lambda: net(width=12), path), smaller, EXAMPLE)


def test_a_bias_that_was_added_for_a_constant_comes_back(path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)
        )

    mask = torch.ones(4, 3, 1, 1, dtype=torch.bool)
    mask[:2] = False
    model = build()
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    small = rewound.compact(model, {"0.weight": mask}, EXAMPLE)
    assert small[2].bias is not None
    rewound.save(small, path)
    loaded = rewound.load(build, path)
    require_same(loaded, small, EXAMPLE)
    smaller = halved(loaded, EXAMPLE)
    assert smaller[2].bias.shape == (2,)
    rewound.save(smaller, path)
    require_same(rewound.load(build, path), smaller, EXAMPLE)


def test_the_factors_of_a_width_that_left_come_back(path):
    pytest.importorskip("transformers")
    model, example = ZOO["hf_llama"]()
    structure = rewound.find_units(model, example)
    (width,) = [g for g in structure if g.kind == "width"]
    mask = masks_of(structure.restricted([width]), {width.name: torch.arange(width.size) > 7})
    small = rewound.compact(model, mask, example)
    assert rewound.coordinates(small).scale
    rewound.save(small, path)
    require_same(rewound.load(emptied(lambda: ZOO["hf_llama"]()[0]), path), small, example)


def test_a_network_made_smaller_where_it_stands_is_saved_as_one(path):
    model = net()
    structure = rewound.find_units(model, EXAMPLE)
    groups = [g for g in structure if g.certificate is Certificate.EXACT]
    mask = rewound.Mask(masks_of(structure.restricted(groups), half_of(groups, 0)))
    mask.apply_(model)
    shrink_(model, mask, EXAMPLE)
    rewound.save(model, path)
    require_same(rewound.load(net, path), model, EXAMPLE)


def test_a_tie_that_the_factory_forgot_is_tied_again(path):
    def build(tied: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        if tied:
            model[1].weight = model[0].weight
        return model

    rewound.save(build(tied=True), path)
    loaded = rewound.load(lambda: build(tied=False), path)
    assert loaded[0].weight is loaded[1].weight


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.weights = [self.a.weight, self.b.weight]
        self.by_name = {"bias": self.a.bias}

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weights[0].T + self.by_name["bias"]).relu() @ self.weights[1].T


def test_lists_of_parameters_that_a_module_keeps_hold_the_new_ones(path):
    small = Listed()
    rewound.save(small, path)
    loaded = rewound.load(Listed, path)
    assert loaded.weights[0] is loaded.a.weight
    assert loaded.by_name["bias"] is loaded.a.bias
    assert torch.equal(loaded(torch.ones(1, 4)), small(torch.ones(1, 4)))


def test_wrappers_are_looked_through(path):
    small = halved(net(), EXAMPLE)
    rewound.save(torch.compile(small, backend="eager"), path)
    require_same(rewound.load(lambda: torch.compile(net(seed=1), backend="eager"), path), small, EXAMPLE)


def test_a_compiled_part_goes_by_the_names_it_has_without(path):
    small = halved(net(), EXAMPLE)
    rewound.save(small, path)

    def partly_compiled() -> nn.Module:
        model = net(seed=1)
        model.conv = torch.compile(model.conv, backend="eager")
        return model

    loaded = rewound.load(partly_compiled, path)
    assert torch.equal(loaded.conv._orig_mod.weight, small.conv.weight)
    assert loaded.conv._orig_mod.out_channels == small.conv.out_channels


def test_anybody_can_read_the_tensors(saved):
    tensors = load_file(saved)
    assert tensors["again.weight"].shape == (3, 3, 1, 1)
    assert tensors["rewound/kept/0/again.weight"].shape == (3,)
    with safe_open(saved, "pt") as file:
        description = json.loads(file.metadata()["rewound"])
    assert description["class"] == "Net"
    assert description["tensors"]["again.weight"]["shape"] == [6, 6, 1, 1]


# -- whole or not at all ------------------------------------------------------------------------------------------------------


def test_a_save_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        rewound.save(net(), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere' to save 'x' in: make it first"):
        rewound.save(net(), tmp_path / "nowhere" / "x")


def test_reading_runs_no_code_of_the_file_and_needs_no_pickle(saved):
    code = f"""
import pickle
def refuse(*_, **__): raise AssertionError("pickle was used")
pickle.loads = pickle.load = pickle.Unpickler = refuse
import rewound
from tests.compaction.test_files import Net
rewound.load(Net, {str(saved)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# -- refusals ---------------------------------------------------------------------------------------------------------------


class _Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"a": 1}


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), ValueError, "'weight' is on the meta device"),
        (lambda: nn.LazyLinear(2), ValueError, "'weight' has no shape yet: run the model once"),
        (lambda: _Extra(2, 2), TypeError, "the state dict has '_extra_state'"),
        (lambda: "a model", TypeError, "'model' must be a torch.nn.Module"),
    ],
)
def test_what_cannot_be_saved_is_refused(build, error, message, path):
    with pytest.raises(error, match=message):
        rewound.save(build(), path)
    assert not path.exists()


class Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().reshape(len(x), 8))


def test_a_graph_is_refused_with_the_way_that_works(path):
    model, x = Hard().eval(), torch.randn(3, 4)
    with pytest.warns(UserWarning, match="has a size written into it"):
        small = halved(model, x)
    with pytest.raises(TypeError, match=r"is a graph of operators .* torch.export.save"):
        rewound.save(small, path)
    torch.export.save(torch.export.export(small.eval(), (x,)), path)  # as the message says
    assert torch.equal(torch.export.load(path).module()(x), small(x))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: net(width=9), r"'conv.weight' is \[9, 3, 3, 3\] in it, and was, before it was cut, \[6, 3, 3, 3\] in"),
        (lambda: net(heads=2), r"'num_heads' of module 'attention' is 2 in it, and was 3 before units left"),
        (lambda: nn.Linear(3, 4), r"holds a Net, and what 'model_factory' builds \(Linear\) .* it has no 'conv.weight'"),
        (lambda: halved(net(), EXAMPLE), r"'conv.weight' is \[3, 3, 3, 3\] in it"),
    ],
)  # fmt: skip
def test_another_network_is_refused_and_the_difference_named(factory, message, saved):
    with pytest.raises(ValueError, match=message):
        rewound.load(factory, saved)


def test_a_class_with_more_in_it_is_refused(saved):
    def more() -> nn.Module:
        model = net()
        model.more = nn.Linear(2, 2)
        return model

    with pytest.raises(ValueError, match=r"it has 'more.weight', 'more.bias', and the file does not"):
        rewound.load(more, saved)


def test_a_parameter_is_not_a_buffer(path):
    rewound.save(net(), path)

    def other() -> nn.Module:
        model = net()
        bias = model.head.bias.detach()
        del model.head.bias
        model.head.register_buffer("bias", bias)
        return model

    with pytest.raises(ValueError, match=r"'head.bias' is a buffer in it, and a parameter in the file"):
        rewound.load(other, path)


def test_an_attribute_that_is_not_there_any_more_is_named(path):
    model = Attributed()
    rewound.save(halved(model, torch.ones(1, 4)), path)

    def other() -> nn.Module:
        fresh = Attributed()
        del fresh.width
        return fresh

    with pytest.raises(
        ValueError, match="the model has no attribute 'width', which was changed when units left"
    ):
        rewound.load(other, path)


class Attributed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width = nn.Linear(4, 8), nn.Linear(8, 2), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().reshape(-1, self.width))


@pytest.mark.parametrize("factory", [net(), "Net", None])
def test_a_factory_is_something_to_call(factory, saved):
    with pytest.raises(TypeError, match="'model_factory' must be a function that builds the network"):
        rewound.load(factory, saved)


def test_a_factory_gives_a_module(saved):
    with pytest.raises(TypeError, match=r"'model_factory' must return a torch.nn.Module \(got dict\)"):
        rewound.load(dict, saved)


def test_a_truncated_file_is_named(saved):
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=r"small.safetensors' is not a file of rewound.save, or is truncated"
    ):
        rewound.load(net, saved)


def test_any_altered_byte_is_noticed(saved):
    good = saved.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for place in (
        start,
        (start + len(good)) // 2,
        len(good) - 1,
        good.index(b"num_heads"),
        good.index(b'"shape'),
    ):
        saved.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"small.safetensors' (was altered|is not a file)"):
            rewound.load(net, saved)


def test_a_file_of_something_else_is_named(path):
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"holds tensors, but not what rewound.save writes"):
        rewound.load(net, path)
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"is not a file of rewound\.save"):
        rewound.load(net, path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        rewound.load(net, path.with_name("other"))


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a file says, checksum included: as a later version, or somebody with bad intentions, would write it."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["rewound"])
    change(description)
    description["sum"] = files._sum(description, tensors)
    save_file(tensors, path, metadata={"rewound": json.dumps(description)})


def test_a_later_format_says_to_update(saved):
    rewritten(saved, lambda d: d.update(format=2))
    with pytest.raises(
        ValueError, match="is of format 2, and this version of rewound reads formats up to 1: update rewound"
    ):
        rewound.load(net, saved)


def test_a_class_that_a_file_names_is_not_looked_up(saved):
    def change(description: dict[str, Any]) -> None:
        (edit,) = [e for e in description["edits"] if e[1] == "__class__"]
        edit[3] = {"class": "Popen"}

    rewritten(saved, change)
    with pytest.raises(ValueError, match="it names the class 'Popen', which is not one"):
        rewound.load(net, saved)
