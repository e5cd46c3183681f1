"""Segment Anything, trainable: any image size, batched through encoder and decoder, gradients everywhere.

What samtune's own families share, built from segment-anything's own modules (Kirillov et al., arXiv:2304.02643) with
the state dict's keys and shapes unchanged. Image encoders are in modules of their own: `vit` has the official ones,
`lite` a small convolutional one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.sam.channels import RGB, check_channels, extended_colours, extended_filters, kept
from samtune.models.sam.specs import name_by_shapes
from samtune.models.segmenter import Embedded, Segmenter
from samtune.models.weights import looks_elsewhere
from samtune.types import Batch, Prompts, Role

CELL = 16
"""Side of a cell of the image embedding, in pixels of the input frame."""


class SamModel(Segmenter):
    """A Segment Anything: an image encoder before segment-anything's prompt encoder and mask decoder.

    A family implements `encode` and `block_modules`, and says what its parameters are where that differs.

    Attributes:
        stem: name of the convolution that sees the pixels.
    """

    net: Sam
    stem: str

    def add_channels(self, count: int) -> None:
        """Makes the stem take `count` channels, see `extended_filters`."""
        check_channels(count)
        stem, device = self.net.get_submodule(self.stem), self.device
        stem.weight = nn.Parameter(extended_filters(stem.weight.detach(), count))
        stem.in_channels = count
        mean, std = (extended_colours(values, count) for values in self.colours)
        self.set_colours(mean, std)
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):  # of segment-anything's own `preprocess`
            self.net.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.to(device)

    def new_entries(self) -> dict[str, Tensor]:
        """Returns the filters of the channels that RGB does not have; of two channels all."""
        if self.channels == RGB:
            return {}
        name = f"{self.stem}.weight"
        shape = self.net.get_parameter(name).shape
        places = torch.arange(shape.numel(), device="cpu").view(shape)
        return {name: places[:, kept(self.channels) :].flatten()}

    def embed(self, batch: Batch) -> Embedded:
        """Encodes the pictures of a batch: nothing goes past the image embeddings, of (B, C, S/16, S/16)."""
        return Embedded(self.encode(self.normalise(batch.images, batch.valid())))

    def encode(self, pixels: Tensor) -> Tensor:
        """Maps normalised (B, 3, S, S) pixels, S any multiple that the family allows, to (B, C, S/16, S/16)."""
        raise NotImplementedError

    def hypernetwork_layers(self, mlp: Any) -> Iterable[nn.Module]:
        """Returns the layers of segment-anything's MLP."""
        layers: nn.ModuleList = mlp.layers
        return layers

    def attend(
        self, embedded: Embedded, prompts: Prompts | None, masks: Tensor | None, *, further: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs segment-anything's transformer; see `Segmenter.attend`."""
        embeddings = embedded.image
        decoder = self.net.mask_decoder
        batch, channels, height, width = embeddings.shape
        # one dtype from here on: under autocast, sums of fp32 and bf16 tensors are slow and no more exact
        given = self._embed_prompts(prompts, masks, batch)
        sparse, dense, positions = (t.to(embeddings.dtype) for t in given)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).to(embeddings.dtype)
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)  # (B, 5 + prompts, C)
        if further is not None:
            tokens = torch.cat([tokens, further.to(tokens.dtype).expand(batch, -1, -1)], dim=1)
        hidden, source = decoder.transformer(embeddings + dense, positions.expand(batch, -1, -1, -1), tokens)
        source = source.transpose(1, 2).reshape(batch, channels, height, width)
        return hidden, decoder.output_upscaling(source)

    def _embed_prompts(
        self, prompts: Prompts | None, masks: Tensor | None, batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sparse (B, T, C), dense (B, C, h, w) and the positions (1, C, h, w) of the cells, all float32."""
        given = prompts or Prompts()
        points = None if given.points_input is None else (given.points_input, given.labels)
        masks = None if masks is None else masks.float()
        # Random Fourier features multiply coordinates by 2 pi f: in bf16 that costs whole pixels of place at 1024 px.
        with torch.autocast(self.device.type, enabled=False):
            sparse, dense = self.net.prompt_encoder(points=points, boxes=given.boxes_input, masks=masks)
            positions = self.net.prompt_encoder.get_dense_pe()
        return sparse.expand(batch, -1, -1), dense.expand(batch, -1, -1, -1), positions

    def own_role(self, name: str, owner: nn.Module) -> Role:
        """Says what a parameter is, for selectors and counts.

        The shifts of the neck's LayerNorm2d count as `bias`: GPS's released code trains them with the biases (a
        named exception). `decoder` is the mask decoder and the no-mask embedding; the rest of the prompt encoder is
        `fixed`.
        """
        if name.startswith(("mask_decoder.", "prompt_encoder.no_mask_embed.")):
            return "decoder"
        if name.startswith("prompt_encoder."):
            return "fixed"
        if isinstance(owner, LayerNorm2d):  # segment-anything's own class
            return "bias" if name.endswith(".bias") else "norm"
        return super().own_role(name, owner)

    def part(self, name: str) -> str:
        """Returns `patch_embed`, `neck`, ... for the encoder, else `prompt_encoder` or `mask_decoder`."""
        parts = name.split(".")
        return parts[1] if parts[0] == "image_encoder" else parts[0]

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says which Segment Anything a state dict looks like, by the encoder's position table or trunk."""
        found = name_by_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
        if found is None:
            return looks_elsewhere(state) or "It does not look like a Segment Anything checkpoint."
        stem = state.get(f"{self.stem}.weight")
        if found == self.name and stem is not None and stem.dim() == 4 and stem.shape[1] not in (RGB, self.channels):
            return f"It is of a {found} for {stem.shape[1]} channels: set model.channels to that."
        if found == self.name:
            return f"It looks like a damaged {found}, or one of another version."
        return f"It looks like {found}: set model.name to that."


def checked_size(size: int, step: int, name: str) -> int:
    """Returns the side of an input frame in pixels.

    Raises:
        ConfigError: it is no multiple of `step`.
    """
    if size < step or size % step:
        nearest = max(round(size / step), 1) * step
        raise ConfigError(
            f"model.image_size is {size}, but {name} needs a multiple of {step}; the nearest is {nearest}."
        )
    return size


def network(
    encoder: nn.Module, size: int, *, width: int, decoder_mlp: int, mean: Sequence[float], std: Sequence[float]
) -> Sam:
    """Puts segment-anything's prompt encoder and mask decoder behind an image encoder.

    Args:
        size: side of the input frame in pixels.
        width: of prompts, image embeddings and mask decoder.
        decoder_mlp: hidden width of the decoder's transformer.
        mean, std: of the pixels, for segment-anything's own `preprocess`.
    """
    cells = size // CELL
    prompts = PromptEncoder(width, (cells, cells), (size, size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=decoder_mlp, num_heads=8)
    decoder = MaskDecoder(
        transformer_dim=width, transformer=transformer, num_multimask_outputs=3, iou_head_depth=3,
        iou_head_hidden_dim=width,
    )  # fmt: skip
    return Sam(encoder, prompts, decoder, list(mean), list(std))


def upsample_logits(logits: Tensor, size: int) -> Tensor:
    """Scales low-res (B, 1, h, w) logits to the input frame: (B, 1, size, size) float32, bilinear as in SAM's code."""
    return F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False)
