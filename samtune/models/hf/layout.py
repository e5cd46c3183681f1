"""The names of SAM 1's tensors in the two layouts: of Meta's own code (segment-anything), and of transformers.

Every tensor has the same shape and values in both, so what is said of entries of one holds for those of the other.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Literal, TypeVar

Layout = Literal["Meta", "transformers"]
Value = TypeVar("Value")

SHARED = "prompt_encoder.shared_embedding.positional_embedding"
"""Of transformers: the random features of positions a second time."""
_FEATURES = "shared_image_embedding.positional_embedding"
# The starts of names, "{}" for a number; the first pair that fits counts, other names are the same.
_PAIRS = (
    ("image_encoder.blocks.{}.norm{}.", "vision_encoder.layers.{}.layer_norm{}."),
    ("image_encoder.blocks.{}.", "vision_encoder.layers.{}."),
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
    ("image_encoder.", "vision_encoder."),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", _FEATURES),
    ("prompt_encoder.point_embeddings.{}.", "prompt_encoder.point_embed.{}."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.transformer.layers.{}.norm{}.", "mask_decoder.transformer.layers.{}.layer_norm{}."),
    ("mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    *(
        (f"mask_decoder.{head}.layers.{place}.", f"mask_decoder.{head}.{name}.")
        for head in ("output_hypernetworks_mlps.{}", "iou_prediction_head")
        for place, name in enumerate(("proj_in", "layers.0", "proj_out"))
    ),
)


def _compiled(start: str, other: str) -> tuple[re.Pattern[str], str]:
    return re.compile(re.escape(start).replace(r"\{\}", r"(\d+)")), other


_TO: dict[Layout, list[tuple[re.Pattern[str], str]]] = {
    "transformers": [_compiled(meta, theirs) for meta, theirs in _PAIRS],
    "Meta": [_compiled(theirs, meta) for meta, theirs in _PAIRS],
}


def layout_of(names: Mapping[str, object]) -> Layout | None:
    """Returns the layout of a SAM 1 with tensors of these names; None where they are of neither."""
    if any(name.startswith("image_encoder.blocks.") for name in names):
        return "Meta"
    return "transformers" if any(name.startswith("vision_encoder.layers.") for name in names) else None


def renamed(values: Mapping[str, Value], layout: Layout) -> dict[str, Value]:
    """Returns values by the names of tensors in `layout`, of values by their names in the other one."""
    found = {_name(name, layout): value for name, value in values.items() if name != SHARED}
    if layout == "transformers" and _FEATURES in found:
        found[SHARED] = deepcopy(found[_FEATURES])  # files hold no tensors that share memory
    return found


def module_renamed(module: str, layout: Layout) -> str:
    """Returns the name of a module in `layout`, of its name in the other one."""
    return _name(f"{module}.", layout).removesuffix(".")


def _name(name: str, layout: Layout) -> str:
    for start, other in _TO[layout]:
        if match := start.match(name):
            return other.format(*match.groups()) + name[match.end() :]
    return name
