"""Segment Anything of transformers behind the interface of all backbones: SAM, SAM-HQ, SAM 2, SAM 3's tracker, EdgeTAM.

Their parts are called one by one, because the helpers of transformers that embed images run without gradients. The
logits are those of the model's own `forward(..., multimask_output=False)` in training mode: mask token 0, and never
another token where that one's mask is unstable.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.hf.blocks import HfBackbone
from samtune.models.hf.families import FAMILIES
from samtune.models.hf.folder import save_folder
from samtune.models.hf.meta import META, meta_family, meta_weights
from samtune.types import Batch, Prompts, Role

ENCODER = "vision_encoder."
_INNER = ("vision_encoder", "backbone", "timm_model")  # modules that only wrap others
_IDLE = ("iou_prediction_head.", "pred_obj_score_head.")


class HfSam(HfBackbone):
    """SAM 1, and what all families share."""

    net: Any
    targets = MappingProxyType({**HfBackbone.targets, "proj_in": "fc1", "proj_out": "fc2"})

    def __init__(self, net: nn.Module, **about: Any) -> None:
        super().__init__(net, **about)
        for mlp in self.net.mask_decoder.output_hypernetworks_mlps[1:]:
            mlp.register_forward_hook(_detached)  # no gradient at all: with one of zeros, weight decay would move them

    def forward(self, batch: Batch) -> Tensor:
        """Predicts (B, 1, h, w) logits, foreground where > 0; h is four times that of the image embeddings."""
        return self.decode(self.encode(self.normalise(batch.images, batch.valid())), batch.prompts)

    def features(self, batch: Batch) -> Tensor:
        """Returns the (B, C, h, w) image embeddings that the decoder attends to."""
        return self.encode(self.normalise(batch.images, batch.valid()))[-1]

    def normalise(self, images: Tensor, valid: Tensor) -> Tensor:
        """Normalises (B, 3, S, S) uint8 RGB to float32, 0 where `valid`, (B, 1, S, S) bool, is False: the padding."""
        return (images.float() - self.pixel_mean) / self.pixel_std * valid

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Maps normalised (B, 3, S, S) pixels to what the decoder reads, the (B, C, h, w) image embeddings last."""
        return [self.net.vision_encoder(pixels).last_hidden_state]

    def decode(self, maps: list[Tensor], prompts: Prompts | None = None) -> Tensor:
        """Decodes what `encode` returned, with one prompt set per item or no prompt, to (B, 1, 4h, 4w) logits."""
        embeddings = maps[-1]
        sparse, dense, positions = self._embed_prompts(prompts, len(embeddings))
        masks = self.net.mask_decoder(
            image_embeddings=embeddings,
            # one dtype from here on: under autocast, sums of fp32 and bf16 tensors are slow and no more exact
            image_positional_embeddings=positions.to(embeddings.dtype),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense.to(embeddings.dtype),
            multimask_output=False,
            **self.details(maps[:-1]),
        )[0]
        return masks[:, 0]  # type: ignore[no-any-return]  # of one prompt set: (B, 1, 4h, 4w)

    def details(self, maps: list[Tensor]) -> dict[str, Any]:
        """Returns what else the family's mask decoder takes: `maps` are those of `encode` before the embeddings."""
        return {}

    def empty_prompt(self, batch: int) -> dict[str, Tensor]:
        """Returns what stands for no prompt of a batch, as arguments of the prompt encoder."""
        return {}

    def _embed_prompts(self, prompts: Prompts | None, batch: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Returns sparse (B, 1, T, C) or None, dense (1 or B, C, h, w), and the cells' positions (B, C, h, w), fp32."""
        given = prompts or Prompts()
        boxes = None if given.boxes_input is None else given.boxes_input[:, None]  # (B, 1, 4)
        points = None if given.points_input is None else given.points_input[:, None]  # (B, 1, P, 2)
        labels = None if given.labels is None else given.labels[:, None]  # (B, 1, P)
        asked: dict[str, Tensor | None] = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
        if boxes is None and points is None:
            asked |= self.empty_prompt(batch)
        # Random Fourier features multiply coordinates by 2 pi f: in bf16 that costs whole pixels of place at 1024 px.
        with torch.autocast(self.device.type, enabled=False):
            sparse, dense = self.net.prompt_encoder(**asked, input_masks=None)
            positions = self.net.get_image_wide_positional_embeddings()
        return sparse, dense, positions.expand(batch, -1, -1, -1)

    def role(self, name: str, owner: nn.Module) -> Role:
        """Says what a parameter is; the same parameters have the same roles as in segment-anything's layout.

        `decoder` is the mask decoder with the no-mask embedding, and what SAM 2 and 3 add to the image embeddings in
        place of a memory; what only embeds prompts is `fixed`. Weights of transposed convolutions in an encoder are
        `fixed` too: their rows are no neurons.
        """
        if name.startswith(("mask_decoder.", "prompt_encoder.no_mask_embed.", "no_memory_embedding")):
            return "decoder"
        if not name.startswith(ENCODER):
            return "fixed"
        if isinstance(owner, nn.ConvTranspose2d):
            return "bias" if name.endswith(".bias") else "fixed"
        if ".neck." in name and isinstance(owner, nn.LayerNorm):
            return "bias" if name.endswith(".bias") else "norm"
        return super().role(name, owner)

    def part(self, name: str) -> str:
        """Returns `patch_embed`, `neck`, ... for the encoder, else `prompt_encoder`, `mask_decoder`, ..."""
        return next(part for part in name.split(".") if part not in _INNER)

    def block_modules(self) -> list[str]:
        """Returns the blocks of the vision encoder."""
        return [f"vision_encoder.layers.{index}" for index in range(len(self.net.vision_encoder.layers))]

    def idle(self) -> list[str]:
        """Returns what mask token 0 does not depend on: scores of masks, and the other tokens' hypernetworks."""
        decoder = self.net.mask_decoder
        others = (f"output_hypernetworks_mlps.{token}." for token in range(1, len(decoder.output_hypernetworks_mlps)))
        prefixes = tuple(f"mask_decoder.{part}" for part in (*_IDLE, *others))
        return [name for name, _ in self.net.named_parameters() if name.startswith(prefixes)]

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says which layout a state dict that does not fit is of."""
        if any(name.startswith("image_encoder.") for name in state):
            return "It is in the layout of Meta's own code, not in that of transformers."
        return f"It is not of this {self.name}: another size, or another family."

    def stock_notes(self, file: Path) -> list[str]:
        """Returns how transformers loads the state dict."""
        prefix = FAMILIES[self.name].prefix
        return [
            f"net = transformers.{prefix}Model(config); net.load_state_dict(torch.load({str(file)!r})) loads it; "
            "--format transformers writes a folder with the config"
        ]

    def save_stock(self, out: Path) -> None:
        """Writes config, weights and processor, as `from_pretrained` of transformers reads them."""
        save_folder(self.net, self.options["processor"], out)


def _detached(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.detach()


class HfSamHQ(HfSam):
    """SAM-HQ: its decoder also reads the first global block, and adds the mask of a token of its own."""

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Maps (B, 3, S, S) pixels to the (B, h, w, D) output of the first global block, and image embeddings."""
        found = self.net.vision_encoder(pixels)
        return [found.intermediate_embeddings[0], found.last_hidden_state]

    def details(self, maps: list[Tensor]) -> dict[str, Any]:
        """Returns that block's output, and that both masks count, as in SAM-HQ's own default."""
        return {"hq_token_only": False, "intermediate_embeddings": maps}


class HfSam2(HfSam):
    """SAM 2 and 2.1 on single images: maps at strides 4 and 8 go past the decoder's attention."""

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Maps (B, 3, S, S) pixels to (B, C/8, S/4, S/4), (B, C/4, S/8, S/8) and (B, C, S/16, S/16)."""
        maps = list(self.net.vision_encoder(pixels, return_dict=True).fpn_hidden_states)
        decoder = self.net.mask_decoder
        maps[0], maps[1] = decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1])
        maps[-1] = maps[-1] + self.net.no_memory_embedding.to(maps[-1].dtype).view(1, -1, 1, 1)
        return maps[: len(self.net.backbone_feature_sizes)]

    def details(self, maps: list[Tensor]) -> dict[str, Any]:
        """Returns the two maps of higher resolution."""
        return {"high_resolution_features": maps}

    def empty_prompt(self, batch: int) -> dict[str, Tensor]:
        """Returns a point that is none, as SAM 2 was trained."""
        point = torch.zeros(batch, 1, 1, 2, device=self.device)
        return {"input_points": point, "input_labels": -torch.ones(batch, 1, 1, dtype=torch.int64, device=self.device)}

    def stock_notes(self, file: Path) -> list[str]:
        """As of all families, and how the tuned model gets into a file of Meta's."""
        more = "for Meta's own code: samtune apply META.pt --delta DELTA --out FILE.pt, META.pt being Meta's file"
        return [*super().stock_notes(file), *([more] if self.name in META else [])]

    def in_own_layout(self, state: Mapping[str, Tensor], source: Path) -> Mapping[str, Tensor]:
        """Takes a file of Meta's too; raises as `meta_weights`."""
        return state if meta_family(state) is None else meta_weights(self.name, state, source)

    def block_modules(self) -> list[str]:
        """Returns the blocks of all stages."""
        return [
            f"vision_encoder.backbone.blocks.{index}" for index in range(len(self.net.vision_encoder.backbone.blocks))
        ]


class HfSam3(HfSam2):
    """SAM 3's tracker on single images: a plain ViT with rotary positions, whose q, k and v are three layers."""

    targets = MappingProxyType(
        {**HfSam2.targets, **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"), "o_proj": "proj"}
    )
    attention = "attention"

    def fused(self) -> dict[str, int]:
        """Returns nothing: queries, keys and values have weights of their own."""
        return {}

    def role(self, name: str, owner: nn.Module) -> Role:
        """As of the family; what transformers computes and then leaves out is `fixed`: the coarsest map of the neck.

        It adds what stands for a memory to that map, so that has no part in the output either.
        """
        used = len(self.net.backbone_feature_sizes)
        levels = range(used, len(self.net.vision_encoder.neck.fpn_layers))
        if levels and name.startswith(("no_memory_embedding", *(f"{ENCODER}neck.fpn_layers.{i}." for i in levels))):
            return "fixed"
        return super().role(name, owner)

    def block_modules(self) -> list[str]:
        """Returns the layers of the ViT."""
        return [
            f"vision_encoder.backbone.layers.{index}" for index in range(len(self.net.vision_encoder.backbone.layers))
        ]


class HfEdgeTam(HfSam2):
    """EdgeTAM: SAM 2's decoder behind a convolutional network of timm, RepViT, whose convolutions are called `c`."""

    pointwise = ("c",)
    targets = MappingProxyType({"c": "pointwise"})

    def block_modules(self) -> list[str]:
        """Returns the modules of each list that timm calls `blocks`, from the first stage to the last."""
        names = [name for name, _ in self.net.vision_encoder.backbone.named_modules(prefix="vision_encoder.backbone")]
        found = [name for name in names if name.rpartition(".")[0].endswith(".blocks")]
        if not found:
            raise ConfigError(f"{self.name} has a trunk without lists of blocks, which samtune does not know.")
        return found


BACKBONES: dict[str, type[HfSam]] = {
    "sam_hf": HfSam, "sam_hq": HfSamHQ, "sam2": HfSam2, "sam3": HfSam3, "edgetam": HfEdgeTam,
}  # fmt: skip
