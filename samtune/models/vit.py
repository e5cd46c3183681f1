"""Classification backbones by timm: plain ViT, Swin and ConvNeXt.

The model is timm's own, with timm's parameter names, so a merged file loads strictly there. It gets two things on
top: it takes a batch of uint8 images (the normalisation is the checkpoint's), and it knows its parameters' roles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.tunable import TunableModel
from samtune.models.weights import load_weights
from samtune.types import LabelledBatch, Role


class Classifier(TunableModel):
    """What a timm model gains; mixed in before its class by `build_classifier`."""

    pixel_mean: Tensor
    pixel_std: Tensor
    block_class: type[nn.Module]
    plain_tokens: bool

    def forward(self, batch: LabelledBatch) -> Tensor:
        """Returns (B, classes) logits."""
        timm_forward: Any = super().forward
        return timm_forward(self.normalise(batch.images))  # type: ignore[no-any-return]

    def features(self, batch: LabelledBatch) -> Tensor:
        """Returns the (B, C) features before the head."""
        net: Any = self
        return net.forward_head(net.forward_features(self.normalise(batch.images)), pre_logits=True)  # type: ignore[no-any-return]

    def normalise(self, images: Tensor) -> Tensor:
        """Applies the checkpoint's normalisation to (B, 3, H, W) uint8 RGB."""
        return (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def block_modules(self) -> list[str]:
        return [name for name, module in self.named_modules() if isinstance(module, self.block_class)]

    def token_blocks(self) -> list[str]:
        return self.block_modules() if self.plain_tokens else []

    def head_module(self) -> str | None:
        head = self.get_classifier()  # type: ignore[operator]
        return next((name for name, module in self.named_modules() if module is head), None)

    def roles(self) -> dict[str, Role]:
        """Says what each parameter is.

        Layer scales count as `bias`: GPS trains ConvNeXt's with the biases. Class token, position embeddings and
        Swin's tables of relative positions are `position`.
        """
        head = self.head_module()
        roles: dict[str, Role] = {}
        for owner_name, owner in self.named_modules():
            for short, _ in owner.named_parameters(recurse=False):
                name = f"{owner_name}.{short}" if owner_name else short
                roles[name] = "head" if owner_name == head else _role(owner, short)
        return roles


def build_classifier(
    name: str,
    *,
    classes: int,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Classifier:
    """Builds a timm model in eval mode, with random weights or those of a file.

    Args:
        name: a ViT, Swin or ConvNeXt of timm, such as `vit_base_patch16_224.augreg_in21k`.
        classes: outputs of the head.
        checkpoint: weights of the whole model; None for timm's own initialisation.
        seed: of that initialisation.
        **options: of timm's builder, such as `img_size`, `depth`, `embed_dim`.

    Raises:
        ConfigError: a name that timm does not have, or a model of another family.
        CheckpointError: a file that does not fit.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"{name[:4]}*")[:5]
        raise ConfigError(f"timm has no model {name!r}. Similar names: {', '.join(near) or 'none'}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Any = timm.create_model(name, pretrained=False, num_classes=classes, **options)
    family = next((family for family in _families() if isinstance(net, family)), None)
    if family is None:
        known = ", ".join(family.__name__ for family in _families())
        raise ConfigError(f"{name} is a {type(net).__name__}, whose parameters samtune does not know. Known: {known}.")
    net.__class__ = type(f"Tunable{type(net).__name__}", (Classifier, type(net)), {})
    net.name = name
    net.block_class, net.plain_tokens = _families()[family]
    for key, values in (("pixel_mean", net.pretrained_cfg["mean"]), ("pixel_std", net.pretrained_cfg["std"])):
        net.register_buffer(key, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
    if checkpoint is not None:
        load_weights(net, Path(checkpoint))
    model: Classifier = net.eval()
    return model


def _families() -> dict[type, tuple[type[nn.Module], bool]]:
    """Returns family -> (class of its blocks, whether the blocks see plain tokens)."""
    from timm.models import convnext, swin_transformer, vision_transformer

    return {
        vision_transformer.VisionTransformer: (vision_transformer.Block, True),
        swin_transformer.SwinTransformer: (swin_transformer.SwinTransformerBlock, False),
        convnext.ConvNeXt: (convnext.ConvNeXtBlock, False),
    }


def _role(owner: nn.Module, short: str) -> Role:
    if isinstance(owner, nn.Linear | nn.Conv2d):
        kind: Role = "linear" if isinstance(owner, nn.Linear) else "conv"
        return "bias" if short == "bias" else kind
    if short == "gamma":
        return "bias"
    if isinstance(owner, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):  # timm's LayerNorm2d is an nn.LayerNorm
        return "norm"
    return "position"
