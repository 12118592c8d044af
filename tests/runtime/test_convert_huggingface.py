"""Models of Hugging Face, small and unpretrained, with and without masks."""

from __future__ import annotations

import pytest
import torch
from tests.runtime.converted import compared, in_torch, ops

from rewound.runtime import structure

transformers = pytest.importorskip("transformers")

_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_TEXT = {**_TINY, "vocab_size": 50}
_IMAGE = {**_TINY, "image_size": 16, "patch_size": 4}
# their code computes parts of a float64 model in float32
_CASTS = 1e-6


def _ids(masked: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 50, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if masked else {"input_ids": ids}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert(attention, masked):
    config = transformers.BertConfig(**_TEXT, attn_implementation=attention)
    graph = compared(transformers.BertModel(config), _ids(masked))
    assert in_torch(graph) == []
    assert ops(graph)["attention"] == 2
    assert ops(graph)["linear"] == 13
    assert "softmax" not in ops(graph)
    results = structure.restored(graph.structure["results"], ["hidden", "pooled"])
    assert results.last_hidden_state == results[0] == "hidden"


def test_other_encoders():
    distilbert = transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=50)
    assert in_torch(compared(transformers.DistilBertModel(distilbert), _ids(True))) == []
    # positions that follow from the ids are looked up in torch
    roberta = transformers.RobertaConfig(**_TEXT, max_position_embeddings=20, pad_token_id=1)
    assert in_torch(compared(transformers.RobertaModel(roberta), _ids(True))) == ["embedding"]
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
    assert in_torch(compared(transformers.T5EncoderModel(t5), _ids(True), tolerance=_CASTS)) == []


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_decoders(attention):
    config = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": attention}
    gpt2 = transformers.GPT2Config(**config, n_embd=16, n_layer=1, n_head=2, n_positions=20)
    graph = compared(transformers.GPT2LMHeadModel(gpt2), _ids(False))
    assert in_torch(graph) == []
    (node,) = (node for node in graph.nodes if node.op == "attention")
    assert node.attributes["causal"]
    llama = transformers.LlamaConfig(**_TINY, **config, num_key_value_heads=1)
    graph = compared(transformers.LlamaForCausalLM(llama), _ids(False), tolerance=_CASTS)
    assert in_torch(graph) == []
    assert [node.attributes["kind"] for node in graph.nodes if node.op == "norm"] == ["rms"] * 5


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("ViTForImageClassification", _IMAGE, 16),
        ("DeiTModel", _IMAGE, 16),
        ("ConvNextForImageClassification", {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}, 16),
        ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2]}, 16),
        ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.1, "image_size": 32, "min_depth": 4}, 32),
        (
            "SwinForImageClassification",
            {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4},
            16,
        ),
        (
            "SegformerForSemanticSegmentation",
            {
                "hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "decoder_hidden_size": 8,
                "num_encoder_blocks": 2, "sr_ratios": [4, 2], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2],
            },
            32,
        ),
    ],
)  # fmt: skip
def test_image_models(name, config, size):
    made = getattr(transformers, name).config_class(**config)
    example = {"pixel_values": torch.randn(1, 3, size, size)}
    assert in_torch(compared(getattr(transformers, name)(made), example, batches=(2,))) == []
