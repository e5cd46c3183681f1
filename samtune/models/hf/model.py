"""Segment Anything of transformers behind the interface of all backbones: SAM, SAM 2, SAM 3's tracker, EdgeTAM.

Their parts are called one by one: the helpers of transformers that embed images run without gradients, and its mask
decoders take no further tokens. The logits are those of the model's own `forward(..., multimask_output=False)` in
training mode: mask token 0, and never another token where that one's mask is unstable.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from samtune.errors import CheckpointError, ConfigError
from samtune.models.classes import PREFIX
from samtune.models.hf.blocks import HfBackbone
from samtune.models.hf.families import FAMILIES
from samtune.models.hf.folder import save_folder
from samtune.models.hf.meta import META, meta_family, meta_weights
from samtune.models.segmenter import Embedded, Segmenter
from samtune.types import Batch, Prompts, Role

ENCODER = "vision_encoder."
_INNER = ("vision_encoder", "backbone", "timm_model")  # modules that only wrap others


class HfSam(HfBackbone, Segmenter):
    """SAM 1, and what all families share.

    Attributes:
        takes_classes: whether tokens of classes may take part in its decoder.
    """

    targets = MappingProxyType({**HfBackbone.targets, "proj_in": "fc1", "proj_out": "fc2"})
    takes_classes: bool = True

    def embed(self, batch: Batch) -> Embedded:
        """Encodes the pictures of a batch; each family has its own `encode`."""
        return self.encode(self.normalise(batch.images, batch.valid()))

    def encode(self, pixels: Tensor) -> Embedded:
        """Maps normalised (B, 3, S, S) pixels to (B, C, S/16, S/16) image embeddings."""
        return Embedded(self.net.vision_encoder(pixels).last_hidden_state)

    def hypernetwork_layers(self, mlp: Any) -> Iterable[nn.Module]:
        """Returns the layers of a feed-forward network of transformers."""
        return [mlp.proj_in, *mlp.layers, mlp.proj_out]

    def attend(
        self, embedded: Embedded, prompts: Prompts | None, masks: Tensor | None, *, further: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the decoder's transformer on one prompt set per picture; see `Segmenter.attend`."""
        batch, channels, height, width = embedded.image.shape
        sparse, dense, positions = self._embed_prompts(prompts, masks, batch)
        kind = embedded.image.dtype  # one from here on: under autocast, sums of fp32 and bf16 tensors are slow
        groups = [torch.cat(self.output_tokens()), *(() if further is None else (further,))]
        own, *more = (tokens.to(kind).expand(batch, 1, -1, -1) for tokens in groups)
        given = [] if sparse is None else [sparse.to(kind)]
        hidden, source = self.net.mask_decoder.transformer(
            point_embeddings=torch.cat([own, *given, *more], dim=2),  # (B, 1, T, C)
            image_embeddings=embedded.image + dense.to(kind),
            image_positional_embeddings=positions.to(kind),
            attention_similarity=None,
        )
        source = source.transpose(2, 3).reshape(batch, channels, height, width)
        return hidden[:, 0], self.enlarge(source, embedded.details)

    def output_tokens(self) -> list[Tensor]:
        """Returns the decoder's own tokens, (n, C) each, in order."""
        decoder = self.net.mask_decoder
        return [decoder.iou_token.weight, decoder.mask_tokens.weight]

    def enlarge(self, source: Tensor, details: tuple[Tensor, ...]) -> Tensor:
        """Maps what the transformer made of the embeddings, (B, C, h, w), to (B, C/8, 4h, 4w)."""
        decoder = self.net.mask_decoder
        half = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(source)))
        return decoder.activation(decoder.upscale_conv2(half))  # type: ignore[no-any-return]

    def empty_prompt(self, batch: int) -> dict[str, Tensor]:
        """Returns what stands for no prompt of a batch, as arguments of the prompt encoder."""
        return {}

    def _embed_prompts(
        self, prompts: Prompts | None, masks: Tensor | None, batch: int
    ) -> tuple[Tensor | None, Tensor, Tensor]:
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
            sparse, dense = self.net.prompt_encoder(**asked, input_masks=None if masks is None else masks.float())
            positions = self.net.get_image_wide_positional_embeddings()
        return sparse, dense, positions.expand(batch, -1, -1, -1)

    def own_role(self, name: str, owner: nn.Module) -> Role:
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
        return super().own_role(name, owner)

    def part(self, name: str) -> str:
        """Returns `patch_embed`, `neck`, ... for the encoder, else `prompt_encoder`, `mask_decoder`, ..."""
        return next(part for part in name.split(".") if part not in _INNER)

    def block_modules(self) -> list[str]:
        """Returns the blocks of the vision encoder."""
        return [f"vision_encoder.layers.{index}" for index in range(len(self.net.vision_encoder.layers))]

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says which layout a state dict that does not fit is of."""
        if any(name.startswith("image_encoder.") for name in state):
            return "It is in the layout of Meta's own code, not in that of transformers."
        return f"It is not of this {self.name}: another size, or another family."

    def stock_notes(self, file: Path) -> list[str]:
        """Returns how transformers loads the state dict.

        Raises:
            CheckpointError: transformers has no tokens of classes.
        """
        if self.classes is not None:
            raise CheckpointError(
                "transformers has no class tokens, so no .pth of them loads there. The merged .safetensors is what "
                "samtune evaluate, predict and serve take; --format transformers writes the model without them."
            )
        prefix = FAMILIES[self.name].prefix
        return [
            f"net = transformers.{prefix}Model(config); net.load_state_dict(torch.load({str(file)!r})) loads it; "
            "--format transformers writes a folder with the config"
        ]

    def save_stock(self, out: Path) -> None:
        """Writes config, weights and processor, as `from_pretrained` of transformers reads them.

        The tokens of classes have no place there and are left out; a README.md and the log say so.
        """
        save_folder(self.net, self.options["processor"], out, left_out=(PREFIX,))


class HfSam2(HfSam):
    """SAM 2 and 2.1 on single images: maps at strides 4 and 8 go past the decoder's attention."""

    iou_place = 1  # behind the token of the score of an object

    def encode(self, pixels: Tensor) -> Embedded:
        """Maps (B, 3, S, S) pixels to (B, C, S/16, S/16), and to (B, C/8, S/4, S/4) and (B, C/4, S/8, S/8)."""
        maps = list(self.net.vision_encoder(pixels, return_dict=True).fpn_hidden_states)
        maps[-1] = maps[-1] + self.net.no_memory_embedding.to(maps[-1].dtype).view(1, -1, 1, 1)
        fine, middle, image = maps[: len(self.net.backbone_feature_sizes)]
        decoder = self.net.mask_decoder
        return Embedded(image, (decoder.conv_s0(fine), decoder.conv_s1(middle)))

    def output_tokens(self) -> list[Tensor]:
        """Returns the decoder's own tokens, the score's first."""
        return [self.net.mask_decoder.obj_score_token.weight, *super().output_tokens()]

    def enlarge(self, source: Tensor, details: tuple[Tensor, ...]) -> Tensor:
        """Maps (B, C, h, w) to (B, C/8, 4h, 4w), with the maps of higher resolution added."""
        decoder, (fine, middle) = self.net.mask_decoder, details
        half = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(source) + middle))
        return decoder.activation(decoder.upscale_conv2(half) + fine)  # type: ignore[no-any-return]

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

    def own_role(self, name: str, owner: nn.Module) -> Role:
        """As of the family; what transformers computes and then leaves out is `fixed`: the coarsest map of the neck.

        It adds what stands for a memory to that map, so that has no part in the output either.
        """
        used = len(self.net.backbone_feature_sizes)
        levels = range(used, len(self.net.vision_encoder.neck.fpn_layers))
        if levels and name.startswith(("no_memory_embedding", *(f"{ENCODER}neck.fpn_layers.{i}." for i in levels))):
            return "fixed"
        return super().own_role(name, owner)

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
