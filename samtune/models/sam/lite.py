"""`sam_lite`: Segment Anything with a small convolutional image encoder, for laptops and quick starts.

SAM's own prompt encoder and mask decoder behind timm's EfficientNet-Lite (Tan and Le, arXiv:1905.11946; the Lite
variants have no squeeze-and-excitation and clip at 6), as other light SAMs do with other small encoders. Its maps at
strides 8, 16 and 32 are joined into the one at stride 16 that the decoder expects.

Batch statistics never move, whatever is tuned: they are buffers, in the file and in its hash.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from samtune.errors import CheckpointError, ConfigError, unknown_name
from samtune.models.sam.folding import fold_blocks
from samtune.models.sam.model import SamModel, checked_size, network
from samtune.models.sam.specs import LITES, LiteSpec
from samtune.models.sam.weights import load_sam

STEP = 32
"""The encoder's largest stride: every side of an input frame is a multiple."""
PIXEL_MEAN = (127.0, 127.0, 127.0)
PIXEL_STD = (128.0, 128.0, 128.0)
_MAPS = (2, 3, 4)  # what timm numbers the maps at strides 8, 16 and 32


class Neck(nn.Module):
    """Joins three maps into one of the middle stride, and smooths it as SAM's neck does.

    Args:
        channels: of the maps at strides 8, 16 and 32.
        width: channels of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.fine = nn.Conv2d(fine, width, 3, stride=2, padding=1, bias=False)
        self.middle = nn.Conv2d(middle, width, 1, bias=False)
        self.coarse = nn.Conv2d(coarse, width, 1, bias=False)
        self.join_norm = LayerNorm2d(width)
        self.smooth = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.smooth_norm = LayerNorm2d(width)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Maps (B, C, 2h, 2w), (B, C', h, w) and (B, C'', h/2, w/2) to (B, width, h, w)."""
        wide = F.interpolate(self.coarse(coarse), scale_factor=2.0, mode="bilinear", align_corners=False)
        joined = self.join_norm(self.fine(fine) + self.middle(middle) + wide)
        return self.smooth_norm(joined + self.smooth(F.gelu(joined)))  # type: ignore[no-any-return]


class LiteEncoder(nn.Module):
    """An EfficientNet-Lite without its classifier, and a neck.

    Attributes:
        trunk: timm's network with timm's names, so that weights of that network load into it.
        img_size: side of the input frame in pixels, where segment-anything's own code looks for it.
    """

    def __init__(self, trunk: str, width: int, size: int) -> None:
        super().__init__()
        trunk_net: Any = timm.create_model(trunk, features_only=True, out_indices=_MAPS)
        fold_blocks(trunk_net)
        self.trunk: nn.Module = trunk_net
        self.neck = Neck(trunk_net.feature_info.channels(), width)
        self.img_size = size

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps normalised (B, 3, S, S) pixels, S a multiple of 32, to (B, width, S/16, S/16) image embeddings."""
        # of a convolution in this layout, a product of its pixels' channels is a view: no copies of the maps
        return self.neck(*self.trunk(pixels.contiguous(memory_format=torch.channels_last)))  # type: ignore[no-any-return]


class LiteSam(SamModel):
    """A light SAM.

    Args:
        image_size: side S of the input frame in pixels, a multiple of 32; None for the model's own.

    Raises:
        ConfigError: a size that is no multiple of 32.
    """

    pointwise = ("conv_pw", "conv_pwl")
    stem = "image_encoder.trunk.conv_stem"

    def __init__(self, name: str, spec: LiteSpec, image_size: int | None = None) -> None:
        size = checked_size(spec.image_size if image_size is None else image_size, STEP, name)
        encoder = LiteEncoder(spec.trunk, spec.width, size)
        net = network(encoder, size, width=spec.width, decoder_mlp=spec.decoder_mlp, mean=PIXEL_MEAN, std=PIXEL_STD)
        super().__init__(net, name=name, image_size=size, mean=PIXEL_MEAN, std=PIXEL_STD)

    def encode(self, pixels: Tensor) -> Tensor:
        """Maps normalised (B, 3, S, S) pixels, S a multiple of 32, to (B, C, S/16, S/16) image embeddings."""
        return self.net.image_encoder(pixels)  # type: ignore[no-any-return]

    def recompute_blocks(self, on: bool) -> None:
        """Tells timm's network, which recomputes by stage."""
        self.net.image_encoder.trunk.set_grad_checkpointing(on)

    def block_modules(self) -> list[str]:
        """Returns the blocks of the trunk: one depthwise separable, then inverted residuals."""
        stages = enumerate(self.net.image_encoder.trunk.blocks)
        return [
            f"image_encoder.trunk.blocks.{stage}.{index}" for stage, blocks in stages for index in range(len(blocks))
        ]

    def part(self, name: str) -> str:
        """Returns `stem` or `neck` for the encoder, else `prompt_encoder` or `mask_decoder`."""
        return "stem" if name.startswith("image_encoder.trunk.") else super().part(name)

    def stock_notes(self, file: Path) -> list[str]:
        """Raises CheckpointError: neither segment-anything nor transformers has such an encoder."""
        raise CheckpointError(
            f"neither segment-anything nor transformers has {self.name}, so no export of it loads there. The merged "
            ".safetensors is what samtune evaluate, predict and serve take, and samtune.predict.Predictor; the `net` "
            "of samtune.build_model is a segment_anything Sam, which its SamPredictor takes."
        )


def build_lite(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int = 3,
) -> LiteSam:
    """Builds a pretrained light SAM in eval mode; arguments and errors are those of `build_model` and `LiteSam`."""
    if name not in LITES:
        raise ConfigError(unknown_name("model", name, LITES))
    model = LiteSam(name, LITES[name], image_size).eval()
    load_sam(model, checkpoint, classes=classes, channels=channels)
    return model
