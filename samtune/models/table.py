"""The models by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from samtune.models.backbone import TunableModel


@dataclass(frozen=True)
class ModelEntry:
    """A row of `MODELS`."""

    build: str
    gives: Literal["masks", "classes"]


_SAM = ModelEntry("samtune.models.sam.model:build_sam", "masks")
OTHERS = ModelEntry("samtune.models.timm.model:build_classifier", "classes")
MODELS: dict[str, ModelEntry] = {
    "sam_tiny": _SAM,
    "sam_vit_b": _SAM,
    "sam_vit_l": _SAM,
    "sam_vit_h": _SAM,
    "vit_mini": OTHERS,
    "vit_base_patch16_224.mocov3": OTHERS,
}


def build_model(
    name: str, *, checkpoint: str | Path | None = None, image_size: int | None = None, **options: Any
) -> TunableModel:
    """Builds a pretrained model in eval mode."""
    module, _, function = MODELS.get(name, OTHERS).build.partition(":")
    built: TunableModel = getattr(import_module(module), function)(
        name, checkpoint=checkpoint, image_size=image_size, **options
    )
    return built
