"""The config of a smaller Hugging Face model tells the sizes that it has, where all its layers agree on one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.compaction.zoo import ZOO, another, difference, outputs
from torch import Tensor, nn

import rewound
from rewound.compaction.units import masks_of

transformers = pytest.importorskip("transformers")


def without(name: str, leave: dict[str, list[int]]) -> tuple[nn.Module, nn.Module, Any]:
    """Return a model of the zoo, the same without some of its units, and its example. leave: end of a group's name -> the units
    that leave it."""
    model, example = ZOO[name]()
    structure = rewound.find_units(model, example)
    kept: dict[str, Tensor] = {}
    for end, units in leave.items():
        groups = [g for g in structure if g.name.endswith(end)]
        assert groups, end
        for group in groups:
            kept[group.name] = torch.ones(group.size, dtype=torch.bool)
            kept[group.name][units] = False
    groups = [g for g in structure if g.name in kept]
    return model, rewound.compact(model, masks_of(structure.restricted(groups), kept), example), example


def changed(model: nn.Module, small: nn.Module) -> dict[str, Any]:
    """Return the entries of the config that are not what they were."""
    before, after = model.config.to_dict(), small.config.to_dict()
    return {name: after[name] for name in after if before.get(name, "absent") != after[name]}


@pytest.mark.parametrize(
    ("name", "leave", "expected"),
    [
        ("hf_llama", {"self_attn.q_proj": [0]}, {"num_attention_heads": 3, "num_key_value_heads": 1}),
        ("hf_llama", {"[query head]": [1]}, {"num_attention_heads": 4}),
        ("hf_llama", {"mlp.gate_proj": [0, 5, 7]}, {"intermediate_size": 37}),
        ("hf_bert_masked_lm", {"self.query": [1]}, {"num_attention_heads": 3, "head_dim": 6}),
        ("hf_bert_masked_lm", {"intermediate.dense": [3]}, {"intermediate_size": 39}),
        ("hf_gpt2", {"attn.c_attn": [0, 2], "mlp.c_fc": [1]}, {"n_head": 2, "n_inner": 39, "head_dim": 6}),
        ("hf_t5", {"DenseReluDense.wi": [1]}, {"d_ff": 39}),
        ("hf_whisper", {"fc1": [0, 1]}, {"encoder_ffn_dim": 38, "decoder_ffn_dim": 38}),
        ("hf_distilbert", {"ffn.lin1": [0]}, {"hidden_dim": 39}),
    ],
)  # fmt: skip
def test_what_all_layers_agree_on_is_told(name, leave, expected):
    model, small, example = without(name, leave)
    before = copy.deepcopy(model.config)
    assert changed(model, small) == expected
    assert model.config.to_dict() == before.to_dict()
    assert small.config is not model.config
    small.config.validate()
    assert difference(outputs(small, another(example)), outputs(copy.deepcopy(small), another(example))) == 0


@pytest.mark.parametrize("end", ["layers.0.mlp.gate_proj", "layers.0.self_attn.q_proj"])
def test_what_layers_differ_in_stays(end):
    model, small, _ = without("hf_llama", {end: [0]})
    assert changed(model, small) == {}


def test_layers_cut_to_different_sizes_have_no_common_one():
    model, small, _ = without("hf_llama", {"layers.0.mlp.gate_proj": [0], "layers.1.mlp.gate_proj": [0, 1]})
    assert changed(model, small) == {}


def test_what_the_class_would_refuse_stays():
    """transformers itself wants the width to be a multiple of the heads, and would not read such a config again."""
    config = transformers.LlamaConfig(
        hidden_size=24, num_attention_heads=6, num_key_value_heads=6, intermediate_size=40, num_hidden_layers=1, vocab_size=20
    )  # fmt: skip
    model, ids = transformers.LlamaModel(config).eval(), torch.arange(6)[None]
    structure = rewound.find_units(model, ids)
    (group,) = [g for g in structure if g.kind == "head"]
    mask = masks_of(structure.restricted([group]), {group.name: torch.arange(6) > 0})
    small = rewound.compact(model, mask, ids)
    assert small.layers[0].self_attn.q_proj.out_features == 20
    assert small.config.num_attention_heads == 6


def test_the_class_builds_the_smaller_network_from_its_config(tmp_path):
    leave = {"self_attn.q_proj": [0], "[query head]": [1], "mlp.gate_proj": [0, 5, 7]}
    _, small, example = without("hf_llama", leave)
    again = type(small)(small.config).double().eval()
    again.load_state_dict(small.state_dict())
    assert difference(outputs(again, example), outputs(small, example)) < 1e-14
    small.save_pretrained(tmp_path)
    loaded = type(small).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert difference(outputs(loaded, example), outputs(small, example)) < 1e-14


def test_halves_with_copies_of_the_config_are_told_too():
    _, small, _ = without("hf_t5", {"DenseReluDense.wi": [1]})
    assert (small.encoder.config.d_ff, small.decoder.config.d_ff) == (39, 39)


def test_configs_inside_a_config():
    _, small, _ = without("hf_clip", {"mlp.fc1": [1]})
    assert small.config.text_config.intermediate_size == small.config.vision_config.intermediate_size == 39
    assert small.text_model.config is small.config.text_config


def test_a_model_of_transformers_inside_ones_own():
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert, _ = ZOO["hf_bert_classifier"]()

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.bert(**inputs).logits.mean(-1)

    model, example = Classifier(), ZOO["hf_bert_classifier"]()[1]
    structure = rewound.find_units(model, example)
    groups = [g for g in structure if g.name.endswith("intermediate.dense")]
    mask = masks_of(structure.restricted(groups), {g.name: torch.arange(40) > 7 for g in groups})
    assert rewound.compact(model, mask, example).bert.config.intermediate_size == 32


def test_text_is_written_as_before_with_a_cache_of_keys_and_values():
    """The caches take their sizes from the config."""
    _, small, example = without("hf_llama", {"self_attn.q_proj": [0], "[query head]": [1]})
    ids = example["input_ids"][:1]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    written = [small.generate(ids, cache_implementation=kind, **settings) for kind in ("dynamic", "static")]
    slowly = ids
    for _ in range(4):
        slowly = torch.cat([slowly, small(slowly).logits[:, -1:].argmax(-1)], 1)
    assert all(torch.equal(text, slowly) for text in written)


def test_loading_sets_the_config_of_the_network_and_leaves_that_of_the_factory(tmp_path):
    model, small, example = without("hf_t5", {"DenseReluDense.wi": [1]})
    rewound.save(small, tmp_path / "small")
    config = copy.deepcopy(model.config)

    def build() -> nn.Module:
        return type(model)(config).double().eval()

    for _ in range(2):  # the second time the factory builds from the same config
        loaded = rewound.load(build, tmp_path / "small")
        assert loaded.config.to_dict() == small.config.to_dict()
        assert loaded.decoder.config.d_ff == 39
        assert difference(outputs(loaded, example), outputs(small, example)) == 0
    assert config.to_dict() == model.config.to_dict()


def test_a_config_that_another_model_was_built_from_is_not_touched():
    model, example = ZOO["hf_llama"]()
    other = type(model)(model.config)
    structure = rewound.find_units(model, example)
    groups = [g for g in structure if g.name.endswith("gate_proj")]
    rewound.compact(
        model, masks_of(structure.restricted(groups), {g.name: torch.arange(40) > 0 for g in groups}), example
    )
    assert other.config.intermediate_size == 40
