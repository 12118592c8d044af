"""More of transformers: images, sound, series and several kinds of input at once."""

from __future__ import annotations

from typing import Any

import torch
from tests.compaction.zoo_huggingface import BERT, VIT, ids, model_of, pixels
from torch import nn


def _sound(name: str, config: str, **options: Any):
    sizes = {key: n for key, n in BERT.items() if key != "max_position_embeddings"}
    sizes.update(
        vocab_size=17,
        conv_dim=(6, 8, 10),
        conv_kernel=(5, 3, 2),
        conv_stride=(4, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=3,
    )
    return lambda: (model_of(name, config, **{**sizes, **options}), {"input_values": torch.randn(2, 200)})


def _siglip() -> tuple[nn.Module, Any]:
    text = {**BERT, "vocab_size": 37}
    vision = {key: n for key, n in VIT.items() if key != "num_labels"}
    model = model_of("SiglipModel", "SiglipConfig", text_config=text, vision_config=vision)
    return model, {"input_ids": ids(), "pixel_values": torch.randn(2, 3, 32, 32)}


def _spectrogram() -> tuple[nn.Module, Any]:
    sizes = {key: n for key, n in VIT.items() if key != "image_size"}
    model = model_of(
        "ASTForAudioClassification",
        "ASTConfig",
        max_length=24,
        num_mel_bins=16,
        frequency_stride=8,
        time_stride=8,
        **sizes,
    )
    return model, {"input_values": torch.randn(2, 24, 16)}


def _series() -> tuple[nn.Module, Any]:
    model = model_of(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        num_input_channels=3,
        context_length=24,
        patch_length=6,
        patch_stride=6,
        d_model=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=40,
        prediction_length=5,
        loss="mse",
    )
    return model, {"past_values": torch.randn(2, 24, 3)}


def _table() -> tuple[nn.Module, Any]:
    model = model_of("PerceiverForSequenceClassification", "PerceiverConfig", **_PERCEIVER)
    return model, {"inputs": ids(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


_PERCEIVER = {
    "num_latents": 5,
    "d_latents": 24,
    "d_model": 20,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 4,
    "vocab_size": 37,
    "max_position_embeddings": 16,
    "num_labels": 3,
}


def _convnext_backbone() -> Any:
    import transformers

    return transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


MODELS = {
    "hf_beit": pixels("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True, **VIT),
    "hf_dinov2": pixels("Dinov2ForImageClassification", "Dinov2Config", use_swiglu_ffn=True, **VIT),
    "hf_swinv2": pixels(  # cosine attention, a perceptron for the position bias
        "Swinv2ForImageClassification",
        "Swinv2Config",
        image_size=32,
        patch_size=4,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[3, 4],
        window_size=4,
        num_labels=5,
    ),
    "hf_mobilenet_v2": pixels(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        depth_multiplier=0.25,
        depth_divisible_by=4,
        min_depth=4,
        num_labels=5,
    ),
    "hf_efficientnet": pixels(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        in_channels=[32, 32],
        out_channels=[32, 48],
        kernel_sizes=[3, 5],
        strides=[1, 2],
        num_block_repeats=[1, 2],
        expand_ratios=[1, 4],
        hidden_dim=320,
        width_coefficient=0.25,
        depth_coefficient=1.0,
        depth_divisor=4,
        depthwise_padding=[],
        num_labels=5,
    ),
    "hf_poolformer": pixels(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        num_labels=5,
    ),
    "hf_cvt": pixels(  # convolutions project queries, keys and values
        "CvtForImageClassification",
        "CvtConfig",
        embed_dim=[8, 12],
        depth=[1, 2],
        num_heads=[2, 3],
        patch_sizes=[7, 3],
        patch_stride=[4, 2],
        patch_padding=[2, 1],
        mlp_ratio=[2.0, 2.0],
        drop_rate=[0.0, 0.0],
        attention_drop_rate=[0.0, 0.0],
        drop_path_rate=[0.0, 0.0],
        qkv_bias=[True, True],
        cls_token=[False, True],
        qkv_projection_method=["dw_bn", "dw_bn"],
        kernel_qkv=[3, 3],
        padding_kv=[1, 1],
        stride_kv=[2, 2],
        padding_q=[1, 1],
        stride_q=[1, 1],
        num_labels=5,
    ),
    "hf_pvt": pixels(
        "PvtForImageClassification",
        "PvtConfig",
        image_size=64,
        hidden_sizes=[8, 12, 15, 20],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        sequence_reduction_ratios=[4, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
        num_labels=5,
        size=64,
    ),
    "hf_focalnet": pixels(
        "FocalNetForImageClassification",
        "FocalNetConfig",
        image_size=32,
        embed_dim=8,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        num_labels=5,
    ),
    "hf_yolos": pixels(
        "YolosForObjectDetection",
        "YolosConfig",
        num_detection_tokens=4,
        **{**VIT, "image_size": [32, 32], "num_labels": 3},
    ),
    "hf_dpt": pixels(  # a transformer whose tokens become images again, fused at four scales
        "DPTForDepthEstimation",
        "DPTConfig",
        neck_hidden_sizes=[6, 8, 10, 12],
        fusion_hidden_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=False,
        **{**VIT, "num_hidden_layers": 4, "patch_size": 8},
    ),
    "hf_upernet": lambda: (
        model_of(
            "UperNetForSemanticSegmentation",
            "UperNetConfig",
            hidden_size=10,
            auxiliary_in_channels=16,
            auxiliary_channels=6,
            pool_scales=[1, 2],
            num_labels=3,
            backbone_config=_convnext_backbone(),
        ),
        {"pixel_values": torch.randn(2, 3, 64, 64)},
    ),
    # sound, series, several kinds of input
    "hf_hubert": _sound("HubertForCTC", "HubertConfig", feat_extract_norm="layer", do_stable_layer_norm=True),
    "hf_wavlm": _sound("WavLMForCTC", "WavLMConfig", num_buckets=8, max_bucket_distance=16),
    "hf_audio_spectrogram": _spectrogram,
    "hf_patch_tst": _series,
    "hf_perceiver": _table,
    "hf_siglip": _siglip,
}
