"""The numbers that tell one Segment Anything from another, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class SamSpec:
    """The numbers that tell one SAM from another.

    Attributes:
        embed_dim, depth, heads: width, blocks and attention heads of the image encoder.
        global_blocks: blocks that attend over the whole image; the others use windows of `window` x `window` cells.
        image_size: side of the input frame that the position table is made for, in pixels.
        prompt_dim: width of prompts, image embeddings and mask decoder.
        decoder_mlp: hidden width of the mask decoder's transformer.
        masks: whether its pre-training had earlier answers as prompts.
    """

    embed_dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    window: int = 14
    prompt_dim: int = 256
    decoder_mlp: int = 2048
    masks: bool = True


VITS: dict[str, SamSpec] = {
    "sam_vit_b": SamSpec(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": SamSpec(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": SamSpec(1280, 32, 16, (7, 15, 23, 31)),
    # 256 px are 16 x 16 cells, so every block is global: a window of 14 would pad 256 cells to 784
    "sam_tiny": SamSpec(224, 6, 4, tuple(range(6)), image_size=256, prompt_dim=128, decoder_mlp=512, masks=False),
}


class LiteSpec(NamedTuple):
    """The numbers of a light SAM.

    Attributes:
        trunk: name of the EfficientNet-Lite in timm.
        width: of prompts, image embeddings and mask decoder.
        decoder_mlp: hidden width of the mask decoder's transformer.
        image_size: side of the input frame in pixels, unless the user sets another.
    """

    trunk: str
    width: int = 128
    decoder_mlp: int = 1024
    image_size: int = 256


LITES = {"sam_lite": LiteSpec("tf_efficientnet_lite0")}


def name_by_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns which of these models has tensors of such shapes, by the encoder's position table or trunk."""
    if "image_encoder.trunk.conv_stem.weight" in shapes:  # SAM 2 has a trunk too
        return next(iter(LITES))
    width = (shapes.get("image_encoder.pos_embed") or (None,))[-1]
    return next((name for name, spec in VITS.items() if spec.embed_dim == width), None)
