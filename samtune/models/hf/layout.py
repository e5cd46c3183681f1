"""The names of SAM 1's tensors in the two layouts: of Meta's own code (segment-anything), and of transformers.

Every tensor has the same shape and values in both, so what is said of entries of one holds for those of the other.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

from samtune.models.hf.names import Layout, Names, decoder_pairs, prompt_pairs

Value = TypeVar("Value")

SHARED = "prompt_encoder.shared_embedding.positional_embedding"
"""Of transformers: the random features of positions a second time."""
FEATURES = "shared_image_embedding.positional_embedding"
_NAMES = Names(
    (
        ("image_encoder.blocks.{}.norm{}.", "vision_encoder.layers.{}.layer_norm{}."),
        ("image_encoder.blocks.{}.", "vision_encoder.layers.{}."),
        ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
        ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
        ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
        ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
        ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
        ("image_encoder.", "vision_encoder."),
        *prompt_pairs("prompt_encoder."),
        *decoder_pairs("mask_decoder.", ("output_hypernetworks_mlps.{}", "iou_prediction_head")),
    )
)


def layout_of(names: Mapping[str, object]) -> Layout | None:
    """Returns the layout of a SAM 1 with tensors of these names; None where they are of neither."""
    if any(name.startswith("image_encoder.blocks.") for name in names):
        return "Meta"
    return "transformers" if any(name.startswith("vision_encoder.layers.") for name in names) else None


def renamed(values: Mapping[str, Value], layout: Layout) -> dict[str, Value]:
    """Returns values by the names of tensors in `layout`, of values by their names in the other one."""
    found = {_name(name, layout): value for name, value in values.items() if name != SHARED}
    if layout == "transformers" and FEATURES in found:
        found[SHARED] = deepcopy(found[FEATURES])  # files hold no tensors that share memory
    return found


def module_renamed(module: str, layout: Layout) -> str:
    """Returns the name of a module in `layout`, of its name in the other one."""
    return _name(f"{module}.", layout).removesuffix(".")


def _name(name: str, layout: Layout) -> str:
    return _NAMES.renamed(name, layout) or name
