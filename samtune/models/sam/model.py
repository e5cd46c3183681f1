"""Segment Anything, trainable: any image size, batched through encoder and decoder, gradients everywhere.

Built from segment-anything's own modules (Kirillov et al., arXiv:2304.02643), with the state dict's keys and shapes
unchanged: a file saved from here loads strictly there. Three things differ from segment-anything: attention is
computed by `attention.FusedAttention`, the position table is resampled in the forward pass when the image size is
not the stock one, and the decoder takes a batch of images with one prompt set each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samtune.base.disk import cache_folder
from samtune.base.download import download
from samtune.errors import CheckpointError, ConfigError, unknown_name
from samtune.models.backbone import Backbone
from samtune.models.sam.attention import FusedAttention
from samtune.models.weights import RANDOM, load_weights
from samtune.types import Batch, Prompts, Role

PATCH = 16
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SamSpec:
    """The numbers that tell one SAM from another.

    Attributes:
        embed_dim, depth, heads: width, blocks and attention heads of the image encoder.
        global_blocks: blocks that attend over the whole image; the others use windows of `window` x `window` cells.
        image_size: side of the input frame that the position table is made for, in pixels.
        prompt_dim: width of prompts, image embeddings and mask decoder.
        decoder_mlp: hidden width of the mask decoder's transformer.
    """

    embed_dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    window: int = 14
    prompt_dim: int = 256
    decoder_mlp: int = 2048


SPECS: dict[str, SamSpec] = {
    "sam_vit_b": SamSpec(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": SamSpec(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": SamSpec(1280, 32, 16, (7, 15, 23, 31)),
    # 256 px are 16 x 16 cells, so every block is global: a window of 14 would pad 256 cells to 784
    "sam_tiny": SamSpec(224, 6, 4, tuple(range(6)), image_size=256, prompt_dim=128, decoder_mlp=512),
}


class Official(NamedTuple):
    """A published file: where it is and what its bytes hash to."""

    url: str
    sha256: str


OFFICIAL = {
    name: Official(f"https://dl.fbaipublicfiles.com/segment_anything/{file}.pth", digest)
    for name, file, digest in (
        ("sam_vit_b", "sam_vit_b_01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        ("sam_vit_l", "sam_vit_l_0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        ("sam_vit_h", "sam_vit_h_4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    )
}
"""The models that segment-anything's own registry builds."""
PACKAGED = ("sam_tiny",)


class SamModel(Backbone):
    """A SAM: segment-anything's own network.

    Args:
        image_size: side S of the input frame in pixels, a multiple of 16; None for the stock size.

    Raises:
        ConfigError: a size that is no multiple of 16.
    """

    net: Sam

    def __init__(self, name: str, spec: SamSpec, image_size: int | None = None) -> None:
        size = spec.image_size if image_size is None else image_size
        if size < PATCH or size % PATCH:
            nearest = max(round(size / PATCH), 1) * PATCH
            raise ConfigError(
                f"model.image_size is {size}, but SAM needs a multiple of {PATCH}; the nearest is {nearest}."
            )
        super().__init__(_network(spec, size), name=name, image_size=size, mean=PIXEL_MEAN, std=PIXEL_STD)

    def forward(self, batch: Batch) -> Tensor:
        """Predicts (B, 1, S/4, S/4) logits, foreground where > 0: mask token 0, SAM's `multimask_output=False`."""
        return self.decode(self.features(batch), batch.prompts)

    def features(self, batch: Batch) -> Tensor:
        """Returns the (B, C, S/16, S/16) image embeddings, after the neck."""
        return self.encode(self.normalise(batch.images, batch.valid()))

    def normalise(self, images: Tensor, valid: Tensor) -> Tensor:
        """Normalises (B, 3, S, S) uint8 RGB to float32, 0 where `valid`, (B, 1, S, S) bool, is False: the padding."""
        return (images.float() - self.pixel_mean) / self.pixel_std * valid

    def encode(self, pixels: Tensor) -> Tensor:
        """Maps normalised (B, 3, S, S) pixels, S any multiple of 16, to (B, C, S/16, S/16) image embeddings."""
        encoder = self.net.image_encoder
        x = encoder.patch_embed(pixels)  # (B, h, w, D)
        x = x + _resample_positions(encoder.pos_embed, x.shape[1], x.shape[2])
        for block in encoder.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return encoder.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    def decode(self, embeddings: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Decodes (B, C, h, w) embeddings, with one prompt set per item or no prompt, to (B, 1, 4h, 4w) logits."""
        decoder = self.net.mask_decoder
        batch, channels, height, width = embeddings.shape
        # one dtype from here on: under autocast, sums of fp32 and bf16 tensors are slow and no more exact
        sparse, dense, positions = (t.to(embeddings.dtype) for t in self._embed_prompts(prompts, batch))
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).to(embeddings.dtype)
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)  # (B, 5 + prompts, C)
        hidden, source = decoder.transformer(embeddings + dense, positions.expand(batch, -1, -1, -1), tokens)
        source = source.transpose(1, 2).reshape(batch, channels, height, width)
        upscaled = decoder.output_upscaling(source)  # (B, C/8, 4h, 4w)
        weights = decoder.output_hypernetworks_mlps[0](hidden[:, 1])  # token 0 is the IoU token; (B, C/8)
        return torch.einsum("bc,bchw->bhw", weights, upscaled)[:, None]

    def _embed_prompts(self, prompts: Prompts | None, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sparse (B, T, C), dense (B, C, h, w) and the positions (1, C, h, w) of the cells, all float32."""
        given = prompts or Prompts()
        points = None if given.points_input is None else (given.points_input, given.labels)
        # Random Fourier features multiply coordinates by 2 pi f: in bf16 that costs whole pixels of place at 1024 px.
        with torch.autocast(self.device.type, enabled=False):
            sparse, dense = self.net.prompt_encoder(points=points, boxes=given.boxes_input, masks=None)
            positions = self.net.prompt_encoder.get_dense_pe()
        return sparse.expand(batch, -1, -1), dense.expand(batch, -1, -1, -1), positions

    def role(self, name: str, owner: nn.Module) -> Role:
        """Says what a parameter is, for selectors and counts.

        The shifts of the neck's two LayerNorm2d count as `bias`: GPS's released code trains them with the biases (a
        named exception). `decoder` is the mask decoder and the no-mask embedding; the rest of the prompt encoder is
        `fixed`.
        """
        if name.startswith(("mask_decoder.", "prompt_encoder.no_mask_embed.")):
            return "decoder"
        if name.startswith("prompt_encoder."):
            return "fixed"
        if isinstance(owner, LayerNorm2d):  # segment-anything's own class
            return "bias" if name.endswith(".bias") else "norm"
        return super().role(name, owner)

    def block_modules(self) -> list[str]:
        """Returns the blocks of the image encoder."""
        return [f"image_encoder.blocks.{index}" for index in range(len(self.net.image_encoder.blocks))]

    def part(self, name: str) -> str:
        """Returns `patch_embed`, `pos_embed`, `neck` for the encoder, else `prompt_encoder` or `mask_decoder`."""
        parts = name.split(".")
        return parts[1] if parts[0] == "image_encoder" else parts[0]

    def idle(self) -> list[str]:
        """Returns what mask token 0 does not depend on: the IoU head and the other tokens' hypernetworks."""
        others = (f"output_hypernetworks_mlps.{token}." for token in range(1, self.net.mask_decoder.num_mask_tokens))
        prefixes = tuple(f"mask_decoder.{part}" for part in ("iou_prediction_head.", *others))
        return [name for name, _ in self.net.named_parameters() if name.startswith(prefixes)]

    def stock_notes(self, file: Path) -> list[str]:
        """Returns at which size segment-anything runs, and whether its registry has the model."""
        notes = [f"segment-anything runs at 1024 px; this model was tuned at {self.image_size} px"]
        if self.name not in OFFICIAL:
            notes += [f"segment-anything's registry has no {self.name}: it needs a model of that shape to load it"]
        return notes

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says which SAM a state dict looks like, by the width of its position table."""
        table = state.get("image_encoder.pos_embed")
        names = {spec.embed_dim: name for name, spec in SPECS.items()}
        if table is None or table.shape[-1] not in names:
            return "It does not look like a Segment Anything checkpoint."
        return f"It looks like {names[table.shape[-1]]}: set model.name to that."


def build_sam(name: str, *, checkpoint: str | Path | None = None, image_size: int | None = None) -> SamModel:
    """Builds a pretrained SAM in eval mode; arguments and errors are those of `build_model` and `SamModel`."""
    if name not in SPECS:
        raise ConfigError(unknown_name("model", name, SPECS))
    model = SamModel(name, SPECS[name], image_size).eval()
    if checkpoint is None:
        load_published(model)
    elif checkpoint != RANDOM:
        load_weights(model, Path(checkpoint))
    return model


def load_published(model: Backbone) -> None:
    """Loads a model's own weights: from the package, or the official file; raises as `official_checkpoint`."""
    if model.name in PACKAGED:  # fp16 on disk, the model's dtype in memory
        with as_file(files("samtune.models.sam") / f"{model.name}.safetensors") as path:
            load_weights(model, path)
    else:
        load_weights(model, official_checkpoint(model.name))


def official_checkpoint(name: str) -> Path:
    """Returns the official file of a model from the cache, downloading it when absent; its hash is checked always.

    Raises:
        CheckpointError: no network (the message says which file to put where), or a wrong SHA-256.
    """
    official = OFFICIAL[name]
    path = cache_folder() / official.url.rsplit("/", 1)[1]
    return download(official.url, path, sha256=official.sha256, error=CheckpointError)


def upsample_logits(logits: Tensor, size: int) -> Tensor:
    """Scales low-res (B, 1, h, w) logits to the input frame: (B, 1, size, size) float32, bilinear as in SAM's code."""
    return F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False)


def _network(spec: SamSpec, size: int) -> Sam:
    """Returns segment-anything's network for an input frame of `size` pixels."""
    # in the order of the parameters, in which random values are drawn
    encoder = ImageEncoderViT(
        depth=spec.depth, embed_dim=spec.embed_dim, num_heads=spec.heads, mlp_ratio=4, out_chans=spec.prompt_dim,
        img_size=spec.image_size, patch_size=PATCH, window_size=spec.window, global_attn_indexes=spec.global_blocks,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), qkv_bias=True, use_rel_pos=True,
    )  # fmt: skip
    for block in encoder.blocks:
        block.attn = FusedAttention(block.attn)
    dim, cells = spec.prompt_dim, size // PATCH
    prompts = PromptEncoder(dim, (cells, cells), (size, size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=spec.decoder_mlp, num_heads=8)
    decoder = MaskDecoder(
        transformer_dim=dim, transformer=transformer, num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=dim
    )
    return Sam(encoder, prompts, decoder)


def _resample_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Returns the (1, h, w, D) position table at another grid, bicubic; unchanged at the stock grid."""
    if table.shape[1:3] == (height, width):
        return table
    resampled = F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1)
