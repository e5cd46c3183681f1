"""DINOv2 and DINOv3 of transformers with a head of samtune's: one answer per image, or a map of every class."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, cat, nn

from samtune.base.tensors import in_fp32, save_tensors
from samtune.models.hf.blocks import HfBackbone
from samtune.models.hf.families import DINOS
from samtune.models.hf.folder import save_folder
from samtune.types import Batch, LabelledBatch, Role

logger = logging.getLogger(__name__)

HEAD_FILE = "head.safetensors"
"""What a folder of transformers has beside the network: the head, by the names of `DinoNet`."""
WIDTH = 256
"""Most channels of the head of maps between its layers."""


class DinoNet(nn.Module):
    """A stock network of transformers and a head on its tokens after the last norm.

    Args:
        encoder: of C channels.
        classes: K.
        grid: whether each class gets a map; else each image gets K logits.

    Attributes:
        head: of images, a linear map of the class token and the mean of the patches, as in DINOv2's own evaluation
            (arXiv:2304.07193, section 7.1), 2C to K; of maps, two transposed convolutions, each to twice the size, and
            a linear map of each pixel.
    """

    def __init__(self, encoder: Any, classes: int, *, grid: bool) -> None:
        super().__init__()
        width, self.encoder = int(encoder.config.hidden_size), encoder
        self.head: Any = map_head(width, classes) if grid else nn.Linear(2 * width, classes)


def map_head(width: int, classes: int) -> nn.Sequential:
    """Returns a head from (B, C, h, w) cells to (B, K, 4h, 4w) logits."""
    inner = min(width, WIDTH)
    return nn.Sequential(
        nn.ConvTranspose2d(width, inner, 2, stride=2),
        nn.GELU(),
        nn.ConvTranspose2d(inner, inner, 2, stride=2),
        nn.GELU(),
        nn.Conv2d(inner, classes, 1),
    )


class Dino(HfBackbone):
    """What samtune knows of both, with a head for images."""

    targets = MappingProxyType(
        {
            **HfBackbone.targets,
            **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"),
            **dict.fromkeys(("up_proj", "gate_proj"), "fc1"),
            **{"o_proj": "proj", "down_proj": "fc2"},
        }
    )
    attention = "attention"

    def forward(self, batch: LabelledBatch) -> Tensor:
        """Returns (B, K) logits."""
        return self.net.head(self.features(batch))  # type: ignore[no-any-return]

    def features(self, batch: LabelledBatch) -> Tensor:
        """Returns the (B, 2C) class token and mean of the patches."""
        tokens = self.tokens((batch.images.float() - self.pixel_mean) / self.pixel_std)
        return cat((tokens[:, 0], tokens[:, self.prefix :].mean(dim=1)), dim=1)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: the class token and the registers."""
        return 1 + int(getattr(self.net.encoder.config, "num_register_tokens", 0))

    def tokens(self, pixels: Tensor) -> Tensor:
        """Maps normalised (B, 3, S, S) pixels to (B, N, C) tokens after the last norm."""
        return self.net.encoder(pixels).last_hidden_state  # type: ignore[no-any-return]

    def fused(self) -> dict[str, int]:
        """Returns nothing: queries, keys and values have weights of their own."""
        return {}

    def role(self, name: str, owner: nn.Module) -> Role:
        """Says what a parameter is; layer scales count as `bias`, and what hides patches in pretraining is `fixed`."""
        if name.startswith("head."):
            return "head"
        if name.endswith(".mask_token"):
            return "fixed"
        return "bias" if name.endswith(".lambda1") else super().role(name, owner)

    def part(self, name: str) -> str:
        """Returns `embeddings`, the last norm, or `head`."""
        return next(part for part in name.split(".") if part != "encoder")

    def block_modules(self) -> list[str]:
        """Returns the layers of the ViT."""
        inner = "encoder.encoder" if self.name == "dinov2" else "encoder.model"
        return [f"{inner}.layer.{index}" for index in range(len(self.net.get_submodule(inner).layer))]

    def token_blocks(self) -> list[str]:
        """Returns all layers of DINOv2; DINOv3 turns tokens by their place, which prompts have none of."""
        return self.block_modules() if self.name == "dinov2" else []

    def head_module(self) -> str | None:
        """Returns the head's name."""
        return "head"

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says which layout a state dict that does not fit is of."""
        if any(name.startswith("blocks.") for name in state):
            return (
                "It is in the layout of Meta's own code or of timm. Give the folder of transformers, or take timm's "
                "model, such as model.name=vit_base_patch14_dinov2.lvd142m."
            )
        return f"It is not of this {self.name}: another size, or another family."

    def stock_notes(self, file: Path) -> list[str]:
        """Returns how transformers loads the network in the state dict; the head is samtune's."""
        prefix = DINOS[self.name].prefix
        return [
            f"transformers.{prefix}Model(config) takes what is called encoder.* in torch.load({str(file)!r}), without "
            "that word; head.* is samtune's. --format transformers writes a folder with the config"
        ]

    def save_stock(self, out: Path) -> None:
        """Writes config, weights and processor, as `from_pretrained` reads them, and beside them the head."""
        save_folder(self.net.encoder, self.options["processor"], out)
        state = {name: tensor for name, tensor in self.net.state_dict().items() if name.startswith("head.")}
        save_tensors(out / HEAD_FILE, in_fp32(state), {})
        logger.info("%s has the head, which transformers does not know", out / HEAD_FILE)


class DinoMaps(Dino):
    """With a head for maps: the patches' tokens as a grid."""

    answers_prompts = False

    def forward(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """Returns (B, K, 4h, 4w) logits of h x w patches."""
        return self.net.head(self.features(batch))  # type: ignore[no-any-return]

    def features(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """Returns the (B, C, h, w) tokens of the patches; the padding is 0 before the network."""
        pixels = (batch.images.float() - self.pixel_mean) / self.pixel_std * batch.valid()
        cells = self.tokens(pixels)[:, self.prefix :].transpose(1, 2)
        side = int(cells.shape[-1] ** 0.5)
        return cells.reshape(*cells.shape[:2], side, side)

    def head_module(self) -> str | None:
        """Returns None: the head is several layers."""
        return None
