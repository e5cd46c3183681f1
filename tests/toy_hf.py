"""Segment Anything models of transformers of 50 to 400 k parameters, with noise on every parameter."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import nn

from samtune.models.hf.build import build_hf
from samtune.models.hf.model import HfSam

SIZE = 64
_DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
_VIT = {
    "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE,
    "patch_size": 16, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 64,
}  # fmt: skip
_HIERA = {
    "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [SIZE, SIZE],
    "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 48, 64],
    "num_attention_heads_per_stage": [1, 2, 2, 4], "window_size_per_stage": [4, 2, 2, 2],
    "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
}  # fmt: skip
_SAM3 = {
    "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": SIZE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1],
    "pretrain_image_size": 32,
}  # fmt: skip
_RESNET = {
    "model_type": "timm_wrapper", "architecture": "repvit_m1", "num_classes": 0,
    "model_args": {
        "in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3],
        "embed_dim": [8, 16, 16, 24], "depth": [1, 1, 1, 1],
    },
}  # fmt: skip
_FPN = {"fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
CONFIGS: dict[str, dict[str, Any]] = {
    "sam_hf": {"vision_config": _VIT, "mask_decoder_config": _DECODER},
    "sam_hq": {"vision_config": _VIT, "mask_decoder_config": {**_DECODER, "vit_dim": 32}},
    "sam2": {
        "vision_config": {
            "model_type": "sam2_vision_model", "backbone_config": _HIERA, "backbone_channel_list": [64, 48, 32, 16],
            **_FPN,
        },
        "mask_decoder_config": _DECODER,
    },
    "sam3": {
        "vision_config": {"model_type": "sam3_vision_model", "backbone_config": _SAM3, **_FPN},
        "mask_decoder_config": _DECODER,
    },
    "edgetam": {
        "vision_config": {
            "model_type": "edgetam_vision_model", "backbone_config": _RESNET,
            "backbone_channel_list": [24, 16, 16, 8], **_FPN,
        },
        "mask_decoder_config": _DECODER,
    },
}  # fmt: skip


def toy_hf(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> HfSam:
    """Returns the model of a family for 64 px, in which every parameter has a part."""
    return deepcopy(_toy_hf(family, seed, dtype))


def config_of(family: str) -> dict[str, Any]:
    """Returns the JSON config of a family's toy model."""
    return {**CONFIGS[family], "prompt_encoder_config": {"hidden_size": 32, "image_size": SIZE, "patch_size": 16}}


@cache
def _toy_hf(family: str, seed: int, dtype: torch.dtype) -> HfSam:
    generator = torch.Generator().manual_seed(seed)
    model = build_hf(family, checkpoint="random", config=config_of(family))
    with torch.no_grad():
        for parameter in model.parameters():
            start = torch.ones(()) if parameter.ndim == 1 and bool((parameter == 1).all()) else torch.zeros(())
            fan_in = max(parameter[0].numel(), 4)
            parameter.copy_(start + torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        features = model.net.shared_image_embedding.positional_embedding
        features.copy_(torch.randn(features.shape, generator=generator))
        model.net.prompt_encoder.shared_embedding.positional_embedding.copy_(features)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.to(dtype)
