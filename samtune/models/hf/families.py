"""The models of transformers, by the name of their family: facts that need no library."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Family:
    """What tells one family from another.

    Attributes:
        prefix: of its classes: `PREFIXModel` and `PREFIXConfig`.
        types: what `model_type` in a config.json of its checkpoints says; those of videos hold a model of images.
        hub: repository of its published weights, the smallest of several.
        processor: class of its processor, and `image_processor` of the part that reads images.
        colours: mean and standard deviation of RGB values of 0 to 1.
        gated: whether the repository asks for consent to a licence of its own.
        config: what of the published config is not the default of its class.
        modules: the parts that its weights are of.
    """

    prefix: str
    types: tuple[str, ...]
    hub: str
    processor: str
    image_processor: str
    colours: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    gated: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ("vision_encoder", "prompt_encoder", "mask_decoder")


_REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1.dist_in1k",
    "num_classes": 0,
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}


FAMILIES = {
    "sam_hf": Family("Sam", ("sam",), "facebook/sam-vit-base", "SamProcessor", "SamImageProcessor"),
    "sam_hq": Family("SamHQ", ("sam_hq",), "syscv-community/sam-hq-vit-base", "SamHQProcessor", "SamImageProcessor"),
    "sam2": Family(
        "Sam2", ("sam2", "sam2_video"), "facebook/sam2.1-hiera-tiny", "Sam2Processor", "Sam2ImageProcessor"
    ),
    "sam3": Family(
        "Sam3Tracker", ("sam3_tracker", "sam3_tracker_video", "sam3_video"), "facebook/sam3", "Sam3TrackerProcessor",
        "Sam3ImageProcessor", HALF, gated=True,
    ),
    "edgetam": Family(
        "EdgeTam", ("edgetam", "edgetam_video"), "yonigozlan/EdgeTAM-hf", "Sam2Processor", "Sam2ImageProcessor",
        config={"vision_config": {"model_type": "edgetam_vision_model", "backbone_config": _REPVIT}},
    ),
}  # fmt: skip

DINOS = {
    "dinov2": Family(
        "Dinov2", ("dinov2",), "facebook/dinov2-base", "BitImageProcessor", "BitImageProcessor",
        config={"image_size": 518}, modules=("embeddings", "encoder", "layernorm"),
    ),
    "dinov3": Family(
        "DINOv3ViT", ("dinov3_vit",), "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3ViTImageProcessor",
        "DINOv3ViTImageProcessor", gated=True, modules=("embeddings", "norm"),
        config={
            "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_register_tokens": 4,
        },
    ),
}  # fmt: skip
"""Backbones without a head of their own."""
ALL = {**FAMILIES, **DINOS}


def family_named(kind: object) -> str | None:
    """Returns the family, a key of `ALL`, of the `model_type` in a config.json; None of any other network."""
    return next((name for name, family in ALL.items() if kind in family.types), None)


def unknown_architecture(config: Mapping[str, Any], found: Iterable[str], wanted: Family) -> str:
    """Says what a network is that is of no family: its name, and its modules beside those of the family `wanted`.

    Args:
        config: its config.json.
        found: modules that its weights are of; those that the config has settings of, where the weights are not there.
    """
    parts = [key.removesuffix("_config") for key, value in config.items() if isinstance(value, Mapping)]
    modules = sorted(set(found)) or ["vision_encoder" if part == "vision" else part for part in parts] or ["none"]
    missing = [name for name in wanted.modules if name not in modules] or ["none"]
    classes = ", ".join(map(str, config.get("architectures") or ())) or "none"
    known = ", ".join(f"{name} ({', '.join(family.types)})" for name, family in ALL.items())
    return (
        f"of the architecture {config.get('model_type')!r} (architectures: {classes}), which samtune does not know. "
        f"Modules found: {', '.join(modules)}; missing of a {wanted.prefix}Model: {', '.join(missing)}. "
        f"Known: {known}; and timm's models, by timm's own names."
    )
