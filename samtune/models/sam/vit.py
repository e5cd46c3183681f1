"""The official Segment Anything models and `sam_tiny`: a ViT as the image encoder.

A file saved from here loads strictly in segment-anything. Two things differ from its code: attention is computed by
`attention.FusedAttention`, and the position table is resampled in the forward pass when the image size is not the
stock one.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samtune.errors import CheckpointError, ConfigError, unknown_name
from samtune.models.sam.attention import FusedAttention
from samtune.models.sam.channels import RGB
from samtune.models.sam.model import CELL, SamModel, checked_size, network
from samtune.models.sam.specs import VITS, SamSpec
from samtune.models.sam.weights import OFFICIAL, load_sam

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class VitSam(SamModel):
    """A SAM with a ViT: segment-anything's own network.

    Args:
        image_size: side S of the input frame in pixels, a multiple of 16; None for the stock size.

    Raises:
        ConfigError: a size that is no multiple of 16.
    """

    stem = "image_encoder.patch_embed.proj"

    def __init__(self, name: str, spec: SamSpec, image_size: int | None = None) -> None:
        size = checked_size(spec.image_size if image_size is None else image_size, CELL, "SAM")
        net = network(
            _encoder(spec), size, width=spec.prompt_dim, decoder_mlp=spec.decoder_mlp, mean=PIXEL_MEAN, std=PIXEL_STD
        )
        super().__init__(net, name=name, image_size=size, mean=PIXEL_MEAN, std=PIXEL_STD)
        self.takes_masks = spec.masks

    def encode(self, pixels: Tensor) -> Tensor:
        """Maps normalised (B, 3, S, S) pixels, S any multiple of 16, to (B, C, S/16, S/16) image embeddings."""
        encoder = self.net.image_encoder
        x = encoder.patch_embed(pixels)  # (B, h, w, D)
        x = x + _resample_positions(encoder.pos_embed, x.shape[1], x.shape[2])
        for block in encoder.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return encoder.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    def block_modules(self) -> list[str]:
        """Returns the blocks of the image encoder."""
        return [f"image_encoder.blocks.{index}" for index in range(len(self.net.image_encoder.blocks))]

    def stock_notes(self, file: Path) -> list[str]:
        """Returns at which size segment-anything runs, and whether its registry has the model.

        Raises:
            CheckpointError: segment-anything has no tokens of classes, and takes RGB only.
        """
        if self.channels != RGB:
            raise CheckpointError(
                f"segment-anything takes RGB, and this model {self.channels} channels, so no .pth of it loads there. "
                "The merged .safetensors is what samtune evaluate and predict take."
            )
        if self.classes is not None:
            raise CheckpointError(
                "segment-anything has no class tokens, so no .pth of them loads there. The merged .safetensors is "
                "what samtune evaluate, predict and serve take."
            )
        notes = [f"segment-anything runs at 1024 px; this model was tuned at {self.image_size} px"]
        if self.name not in OFFICIAL:
            notes += [f"segment-anything's registry has no {self.name}: it needs a model of that shape to load it"]
        return notes


def build_vit(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int = 3,
) -> VitSam:
    """Builds a pretrained SAM in eval mode; arguments and errors are those of `build_model` and `VitSam`."""
    if name not in VITS:
        raise ConfigError(unknown_name("model", name, VITS))
    model = VitSam(name, VITS[name], image_size).eval()
    load_sam(model, checkpoint, classes=classes, channels=channels)
    return model


def _encoder(spec: SamSpec) -> ImageEncoderViT:
    """Returns segment-anything's image encoder, its position table at the stock size."""
    # in the order of the parameters, in which random values are drawn
    encoder = ImageEncoderViT(
        depth=spec.depth, embed_dim=spec.embed_dim, num_heads=spec.heads, mlp_ratio=4, out_chans=spec.prompt_dim,
        img_size=spec.image_size, patch_size=CELL, window_size=spec.window, global_attn_indexes=spec.global_blocks,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), qkv_bias=True, use_rel_pos=True,
    )  # fmt: skip
    for block in encoder.blocks:
        block.attn = FusedAttention(block.attn)
    return encoder


def _resample_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Returns the (1, h, w, D) position table at another grid, bicubic; unchanged at the stock grid."""
    if table.shape[1:3] == (height, width):
        return table
    resampled = F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1)
