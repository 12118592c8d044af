"""Models of transformers, built from small configurations; nothing is downloaded.

Widths, heads, lengths and vocabularies are all different numbers, so that one size never stands for another.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def model_of(name: str, config: str, *, attention: str = "", experts: str = "", **options: Any) -> nn.Module:
    """Build ``transformers.<name>`` from ``transformers.<config>(**options)``."""
    transformers = importlib.import_module("transformers")
    made = getattr(transformers, config)(**options)
    if attention:
        made._attn_implementation = attention
    if experts:
        made._experts_implementation = experts
    return getattr(transformers, name)(made)


def ids(vocabulary: int = 37, length: int = 7) -> Tensor:
    return torch.randint(3, vocabulary, (2, length))


def text(name: str, config: str, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    options.setdefault("vocab_size", 37)
    return lambda: (model_of(name, config, **options), {"input_ids": ids()})


def masked(name: str, config: str, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    """The same with an attention mask: the second sentence is two tokens shorter."""
    options.setdefault("vocab_size", 37)

    def build() -> tuple[nn.Module, Any]:
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, 5:] = 0
        return model_of(name, config, **options), {"input_ids": ids(), "attention_mask": mask}

    return build


def pixels(name: str, config: str, *, size: int = 32, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (model_of(name, config, **options), {"pixel_values": torch.randn(2, 3, size, size)})


BERT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
LLAMA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
_BACKBONE = {
    "embedding_size": 6,
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}


def _t5() -> tuple[nn.Module, Any]:
    sizes = {"d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    model = model_of(
        "T5ForConditionalGeneration", "T5Config", vocab_size=37, decoder_start_token_id=0, **sizes
    )
    return model, {"input_ids": ids(), "decoder_input_ids": ids(length=5)}


def _bart() -> tuple[nn.Module, Any]:
    sides = {f"{s}_{k}": n for s in ("encoder", "decoder") for k, n in SIDE.items()}
    model = model_of(
        "BartForConditionalGeneration",
        "BartConfig",
        vocab_size=37,
        d_model=24,
        max_position_embeddings=16,
        **sides,
    )
    return model, {"input_ids": ids(), "decoder_input_ids": ids(length=5)}


SIDE = {"layers": 1, "attention_heads": 4, "ffn_dim": 40}


def _whisper() -> tuple[nn.Module, Any]:
    sides = {f"{s}_{k}": n for s in ("encoder", "decoder") for k, n in SIDE.items()}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"num_mel_bins": 10, "max_source_positions": 9, "max_target_positions": 8}
    model = model_of(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        vocab_size=37,
        d_model=24,
        **lengths,
        **tokens,
        **sides,
    )
    return model, {"input_features": torch.randn(2, 10, 18), "decoder_input_ids": ids(length=5)}


def _detr() -> tuple[nn.Module, Any]:
    backbone = importlib.import_module("transformers").ResNetConfig(**_BACKBONE)
    sides = {f"{s}_{k}": n for s in ("encoder", "decoder") for k, n in SIDE.items()}
    model = model_of(
        "DetrForObjectDetection",
        "DetrConfig",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=24,
        num_queries=6,
        num_labels=3,
        **sides,
    )
    return model, {"pixel_values": torch.randn(2, 3, 64, 64)}


def _wav2vec2() -> tuple[nn.Module, Any]:
    options = dict(
        BERT,
        vocab_size=17,
        conv_dim=(6, 8, 10),
        conv_kernel=(5, 3, 2),
        conv_stride=(4, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=3,
    )
    options.pop("max_position_embeddings")
    return model_of("Wav2Vec2ForCTC", "Wav2Vec2Config", **options), {"input_values": torch.randn(2, 200)}


def _clip() -> tuple[nn.Module, Any]:
    text = dict(BERT, vocab_size=37, eos_token_id=36)
    vision = {k: v for k, v in VIT.items() if k != "num_labels"}
    model = model_of("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=10)
    return model, {"input_ids": ids(), "pixel_values": torch.randn(2, 3, 32, 32)}


def _mamba() -> tuple[nn.Module, Any]:
    options = {"hidden_size": 12, "state_size": 5, "num_hidden_layers": 2, "time_step_rank": 3, "expand": 2}
    return model_of("MambaForCausalLM", "MambaConfig", vocab_size=37, **options), {"input_ids": ids()}


MODELS = {
    # encoders of text
    "hf_bert_masked_lm": masked("BertForMaskedLM", "BertConfig", **BERT),
    "hf_bert_classifier": text("BertForSequenceClassification", "BertConfig", num_labels=3, **BERT),
    "hf_bert_eager": masked("BertForSequenceClassification", "BertConfig", attention="eager", **BERT),
    "hf_roberta": text("RobertaForSequenceClassification", "RobertaConfig", num_labels=3, **BERT),
    "hf_distilbert": text(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        dim=24,
        n_layers=2,
        n_heads=4,
        hidden_dim=40,
        max_position_embeddings=16,
    ),
    "hf_albert": text("AlbertForMaskedLM", "AlbertConfig", embedding_size=10, num_labels=3, **BERT),
    "hf_electra": text("ElectraForTokenClassification", "ElectraConfig", embedding_size=10, **BERT),
    # decoders of text
    "hf_gpt2": text(
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=16,
        n_inner=40,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "hf_opt": text(
        "OPTForCausalLM",
        "OPTConfig",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=40,
        max_position_embeddings=16,
        word_embed_proj_dim=10,
    ),
    "hf_gpt_neox": text(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", rotary_pct=0.5, **dict(BERT, num_attention_heads=3)
    ),
    "hf_bloom": text("BloomForCausalLM", "BloomConfig", hidden_size=24, n_layer=2, n_head=4),
    "hf_llama": text("LlamaForCausalLM", "LlamaConfig", attention="sdpa", **LLAMA),
    "hf_llama_eager": text("LlamaForCausalLM", "LlamaConfig", attention="eager", **LLAMA),
    "hf_llama_tied": masked(
        "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, attention_bias=True, **LLAMA
    ),
    "hf_mistral": text("MistralForCausalLM", "MistralConfig", sliding_window=4, **LLAMA),
    "hf_qwen2": text(
        "Qwen2ForCausalLM", "Qwen2Config", **{k: v for k, v in LLAMA.items() if k != "head_dim"}
    ),
    "hf_mamba": _mamba,
    # encoder-decoders, sound, two towers
    "hf_t5": _t5,
    "hf_bart": _bart,
    "hf_whisper": _whisper,
    "hf_wav2vec2": _wav2vec2,
    "hf_clip": _clip,
    # images
    "hf_vit": pixels("ViTForImageClassification", "ViTConfig", **VIT),
    "hf_deit": pixels("DeiTForImageClassification", "DeiTConfig", **VIT),
    "hf_swin": pixels(
        "SwinForImageClassification",
        "SwinConfig",
        image_size=32,
        patch_size=4,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[3, 4],
        window_size=4,
        num_labels=5,
    ),
    "hf_convnext": pixels(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        hidden_sizes=[8, 12],
        depths=[1, 2],
        num_stages=2,
        num_labels=5,
    ),
    "hf_segformer": pixels(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 5],
        sr_ratios=[4, 2, 1, 1],
        decoder_hidden_size=14,
        num_labels=3,
        size=64,
    ),
    "hf_mobilevit": pixels(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        hidden_sizes=[12, 16, 20],
        neck_hidden_sizes=[6, 8, 10, 12, 14, 16, 18],
        num_attention_heads=4,
        image_size=64,
        num_labels=5,
        size=64,
    ),
    "hf_resnet": pixels("ResNetForImageClassification", "ResNetConfig", num_labels=5, **_BACKBONE),
    "hf_regnet": pixels(
        "RegNetForImageClassification",
        "RegNetConfig",
        embedding_size=6,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        groups_width=4,
        num_labels=5,
    ),
    "hf_detr": _detr,
}
