"""DINOv2 and DINOv3 of transformers of 20 to 30 k parameters, with noise on every parameter."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch

from samtune.models.hf.build_dino import build_dino
from samtune.models.hf.dino import Dino

SIZE = 32
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "dinov2": {**_VIT, "image_size": 48, "mlp_ratio": 2},
    "dinov3": {**_VIT, "image_size": SIZE, "intermediate_size": 64, "num_register_tokens": 3, "key_bias": False},
}


def toy_dino(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, grid: bool = False, **more: Any
) -> Dino:
    """Returns the model of a family for 32 px and three classes."""
    return deepcopy(_toy_dino(family, seed, dtype, grid, tuple(more.items())))


@cache
def _toy_dino(family: str, seed: int, dtype: torch.dtype, grid: bool, more: tuple[tuple[str, Any], ...]) -> Dino:
    how: Any = {"config": {**CONFIGS[family], **dict(more)}, "image_size": SIZE, "seed": seed, "grid": grid}
    model = build_dino(family, classes=3, checkpoint="random", **how)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            start = torch.ones(()) if parameter.ndim == 1 and bool((parameter == 1).all()) else torch.zeros(())
            fan_in = max(parameter[0].numel(), 4)
            parameter.copy_(start + torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.to(dtype)
