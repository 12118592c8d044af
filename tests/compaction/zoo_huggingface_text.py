"""More text models of transformers: what each adds is said beside it."""

from __future__ import annotations

from typing import Any

import torch
from tests.compaction.zoo_huggingface import BERT, LLAMA, SIDE, ids, masked, model_of, text
from torch import nn

PLAIN_LLAMA = {key: n for key, n in LLAMA.items() if key != "head_dim"}
_SIDES = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in SIDE.items()}
_TEXT_PAIR = {"vocab_size": 37, "d_model": 24, "max_position_embeddings": 16, "pad_token_id": 0}


def _pair(name: str, config: str, **options: Any):
    options = {**_TEXT_PAIR, **_SIDES, "decoder_start_token_id": 1, **options}
    return lambda: (
        model_of(name, config, **options),
        {"input_ids": ids(), "decoder_input_ids": ids(length=5)},
    )


def _gemma() -> dict[str, Any]:
    return {**LLAMA, "vocab_size": 37, "query_pre_attn_scalar": 4, "sliding_window": 4}


def _layout() -> tuple[nn.Module, Any]:
    sizes = {**BERT, "vocab_size": 37, "max_2d_position_embeddings": 32}
    boxes = torch.randint(0, 15, (2, 7, 2))
    model = model_of("LayoutLMForTokenClassification", "LayoutLMConfig", **sizes)
    return model, {"input_ids": ids(), "bbox": torch.cat([boxes, boxes + 9], dim=-1)}


MODELS = {
    # encoders of text
    "hf_deberta_v2": masked(  # disentangled attention, gathered relative positions
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        num_labels=3,
        **BERT,
    ),
    "hf_mpnet": text("MPNetForMaskedLM", "MPNetConfig", **BERT),  # a table of relative position biases
    "hf_mobilebert": text(  # bottlenecks, a norm that only scales and shifts
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        embedding_size=10,
        intra_bottleneck_size=16,
        num_feedforward_networks=2,
        num_labels=3,
        **{**BERT, "true_hidden_size": 16},
    ),
    "hf_squeezebert": text(  # grouped 1 x 1 convolutions for linear layers
        "SqueezeBertForSequenceClassification", "SqueezeBertConfig", embedding_size=24, num_labels=3, **BERT
    ),
    "hf_fnet": text(  # a Fourier transform over the features: the residual width cannot leave
        "FNetForMaskedLM",
        "FNetConfig",
        hidden_size=24,
        num_hidden_layers=2,
        intermediate_size=40,
        max_position_embeddings=16,
    ),
    "hf_convbert": text(  # a convolution whose kernel is computed from the input
        "ConvBertForSequenceClassification",
        "ConvBertConfig",
        embedding_size=10,
        head_ratio=2,
        num_labels=3,
        **{**BERT, "conv_kernel_size": 3},
    ),
    "hf_xlnet": text(  # einsums, relative positions by a shift
        "XLNetForSequenceClassification",
        "XLNetConfig",
        d_model=24,
        n_layer=2,
        n_head=4,
        d_inner=40,
        num_labels=3,
    ),
    "hf_modernbert": text(  # fused gate, rotary, local and global attention
        "ModernBertForMaskedLM", "ModernBertConfig", pad_token_id=0, local_attention=4, **BERT
    ),
    "hf_esm": text(
        "EsmForMaskedLM",
        "EsmConfig",
        position_embedding_type="rotary",
        pad_token_id=1,
        mask_token_id=2,
        **BERT,
    ),
    "hf_roformer": text(
        "RoFormerForMaskedLM", "RoFormerConfig", embedding_size=10, **BERT
    ),  # interleaved pairs
    "hf_layoutlm": _layout,  # six tables of positions summed
    # decoders of text
    "hf_gpt_neo": text(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        intermediate_size=40,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=16,
    ),
    "hf_gptj": text(
        "GPTJForCausalLM", "GPTJConfig", n_embd=24, n_layer=2, n_head=3, n_positions=16, rotary_dim=4
    ),
    "hf_codegen": text(  # one matrix for queries, values and keys, cut for model parallelism
        "CodeGenForCausalLM", "CodeGenConfig", n_embd=24, n_layer=2, n_head=4, n_positions=16, rotary_dim=4
    ),
    "hf_gpt_bigcode": text(  # one key and value head for all, fused with the queries
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=16,
        n_inner=40,
    ),
    "hf_falcon": text(  # fused queries with grouped keys and values, parallel blocks
        "FalconForCausalLM",
        "FalconConfig",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "hf_mpt": text(
        "MptForCausalLM", "MptConfig", d_model=24, n_layers=2, n_heads=4, max_seq_len=16, expansion_ratio=2
    ),
    "hf_phi3": text(
        "Phi3ForCausalLM",
        "Phi3Config",
        pad_token_id=0,
        **PLAIN_LLAMA,
    ),
    "hf_qwen3": text("Qwen3ForCausalLM", "Qwen3Config", **LLAMA),  # a norm over each head's features
    "hf_olmo2": text(
        "Olmo2ForCausalLM",
        "Olmo2Config",
        pad_token_id=0,
        **PLAIN_LLAMA,
    ),
    "hf_gemma2": text(
        "Gemma2ForCausalLM", "Gemma2Config", **_gemma()
    ),  # norms before and after, capped logits
    "hf_gemma3": text("Gemma3ForCausalLM", "Gemma3TextConfig", **_gemma()),
    "hf_cohere": text(
        "CohereForCausalLM",
        "CohereConfig",
        pad_token_id=0,
        **PLAIN_LLAMA,
    ),
    "hf_stablelm": text(
        "StableLmForCausalLM",
        "StableLmConfig",
        partial_rotary_factor=0.5,
        **PLAIN_LLAMA,
    ),
    "hf_starcoder2": text("Starcoder2ForCausalLM", "Starcoder2Config", **PLAIN_LLAMA),
    "hf_mixtral": text(
        "MixtralForCausalLM", "MixtralConfig", experts="batched_mm", num_local_experts=3, **LLAMA
    ),
    "hf_qwen2_moe": text(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        experts="batched_mm",
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=10,
        shared_expert_intermediate_size=14,
        **PLAIN_LLAMA,
    ),
    "hf_rwkv": text(
        "RwkvForCausalLM",
        "RwkvConfig",
        hidden_size=24,
        num_hidden_layers=2,
        attention_hidden_size=24,
        intermediate_size=40,
        context_length=16,
    ),
    "hf_mamba2": text(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        hidden_size=12,
        num_heads=6,
        head_dim=4,
        state_size=5,
        n_groups=2,
        num_hidden_layers=2,
        expand=2,
        chunk_size=4,
    ),
    # encoder-decoders
    "hf_marian": _pair("MarianMTModel", "MarianConfig", decoder_vocab_size=37),
    "hf_mbart": _pair("MBartForConditionalGeneration", "MBartConfig"),
    "hf_m2m_100": _pair("M2M100ForConditionalGeneration", "M2M100Config"),
    "hf_pegasus": _pair("PegasusForConditionalGeneration", "PegasusConfig"),
    "hf_blenderbot": _pair("BlenderbotForConditionalGeneration", "BlenderbotConfig"),
}
