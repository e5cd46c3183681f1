"""Classification backbones by timm: plain ViT, Swin, ConvNeXt and EfficientNet.

The network is timm's own, with timm's parameter names, so a merged file loads strictly there. It gets two things on
top: it takes a batch of uint8 images (the normalisation is the checkpoint's), and it knows its parameters' roles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.models.timm.families import OWN, family_of, timm_name
from samtune.models.timm.weights import Head, load_classifier_weights, load_published, looks_like
from samtune.models.weights import RANDOM
from samtune.types import LabelledBatch, Role

# Options that are timm's, but not the user's: the key to give instead. (A config refuses our own arguments.)
_TAKEN = {
    "img_size": "model.image_size", "num_classes": "the classes by the data", "drop_path_rate": "train.drop_path",
    "pretrained": "model.checkpoint", "checkpoint_path": "model.checkpoint",
    "in_chans": "images, which are read as RGB,",
}  # fmt: skip


class Classifier(Backbone):
    """A network of timm of a class that samtune knows; arguments and errors as of `Backbone` and `family_of`."""

    net: Any  # of timm, whose classes share methods, but no base class that declares them

    def __init__(self, net: nn.Module, *, name: str, **facts: Any) -> None:
        super().__init__(net, name=name, **facts)
        self.family = family_of(net, name)

    def forward(self, batch: LabelledBatch) -> Tensor:
        """Returns (B, classes) logits."""
        return self.net(self.normalise(batch.images))  # type: ignore[no-any-return]

    def features(self, batch: LabelledBatch) -> Tensor:
        """Returns the (B, C) features before the head."""
        cells = self.net.forward_features(self.normalise(batch.images))
        return self.net.forward_head(cells, pre_logits=True)  # type: ignore[no-any-return]

    def stock_notes(self, file: Path) -> list[str]:
        """Returns how timm loads a file of this model."""
        name, options = timm_name(self.name, self.image_size)
        given = {"checkpoint_path": str(file), **options, **self.options, "num_classes": self.net.num_classes}
        return [f"timm.create_model({name!r}, {', '.join(f'{k}={v!r}' for k, v in given.items())}) loads it"]

    def normalise(self, images: Tensor) -> Tensor:
        """Applies the checkpoint's normalisation to (B, 3, H, W) uint8 RGB; for convolutions, channels last."""
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return pixels.contiguous(memory_format=torch.channels_last) if self.family.pointwise else pixels

    @property
    def pointwise(self) -> tuple[str, ...]:  # type: ignore[override]
        """What timm calls the 1 x 1 convolutions of a block that are linear maps, if the family has any."""
        return self.family.pointwise

    def recompute_blocks(self, on: bool) -> None:
        """Tells timm's network."""
        self.net.set_grad_checkpointing(on)

    def block_modules(self) -> list[str]:
        """Returns the modules of the family's block class."""
        return [name for name, module in self.net.named_modules() if isinstance(module, self.family.block)]

    def token_blocks(self) -> list[str]:
        """Returns all blocks where the family is that of a plain ViT."""
        return self.block_modules() if self.family.plain_tokens else []

    def head_module(self) -> str | None:
        """Returns the name of what timm calls the classifier."""
        head = self.net.get_classifier()
        return next((name for name, module in self.net.named_modules() if module is head), None)

    def role(self, name: str, owner: nn.Module) -> Role:
        """Says what a parameter is; layer scales count as `bias`: GPS trains ConvNeXt's with the biases."""
        if owner is self.net.get_classifier():
            return "head"
        return "bias" if name.endswith(".gamma") else super().role(name, owner)

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says which classifier a state dict looks like."""
        return looks_like(state, self)


def build_classifier(
    name: str,
    *,
    classes: int,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    head: Head = "new",
    drop_path: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Classifier:
    """Builds a timm model in eval mode.

    Args:
        name: a ViT, Swin, ConvNeXt or EfficientNet of timm, such as `vit_base_patch16_224.mae`, or a key of `OWN`.
        head: "new" starts a head from `seed`, whatever the weights are; "checkpoint" takes theirs.
        drop_path: largest probability that a block is skipped (stochastic depth), in train mode only.
        seed: of the new head, and of random weights.
        **options: of timm's builder, such as `depth`, `embed_dim`, `global_pool`.

    Raises:
        ConfigError: a name, size or option that timm does not have, a model of another family, or one that does not
            turn an image of that size into one logit per class.
        CheckpointError: weights that can't be had or do not fit.
    """
    for key in _TAKEN.keys() & options.keys():
        raise ConfigError(f"model.options has {key}: give {_TAKEN[key]} instead.")
    if head == "checkpoint" and checkpoint == RANDOM:
        raise ConfigError("model.head=checkpoint needs weights, but model.checkpoint is random: use model.head=new.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(name, image_size, options, num_classes=classes, drop_path_rate=drop_path)
        torch.manual_seed(seed)  # again: the head depends on nothing but its shape
        last = model.net.get_classifier()
        nn.init.trunc_normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
    model.head_seed = seed if head == "new" else None
    _check_output(model.eval(), classes)
    if checkpoint is None:
        load_published(model, head=head)
    elif checkpoint != RANDOM:
        load_classifier_weights(model, Path(checkpoint), head=head)
    return model


def _create(name: str, image_size: int | None, options: dict[str, Any], **ours: Any) -> Classifier:
    """Builds timm's network with timm's initialisation; `ours` are options of timm that the user does not give."""
    import timm

    stock, own_options = timm_name(name, image_size)
    own = OWN.get(name)
    overlay = {"mean": own.mean, "std": own.std, "input_size": (3, own.image_size, own.image_size)} if own else None
    given = own_options | options | ours
    try:
        net: Any = timm.create_model(stock, pretrained_cfg_overlay=overlay, **given)
    except Exception as err:  # timm asserts, divides and indexes with what it is given
        raise ConfigError(f"timm can't build {name} of {given} ({err!r}). Check model.options and image_size.") from err
    config = net.pretrained_cfg
    mean, std = ((255 * torch.tensor(config[key], device="cpu")).tolist() for key in ("mean", "std"))
    size = config["input_size"][-1] if image_size is None else image_size
    facts = {"mean": mean, "std": std, "interpolation": config["interpolation"], "options": options}
    model = Classifier(net, name=name, image_size=size, **facts)
    _check(model)
    return model


def _check(model: Classifier) -> None:
    """Refuses a model without blocks or a head that samtune knows, and sizes that cut patches."""
    head = model.head_module()
    if head is None or not isinstance(model.net.get_submodule(head), nn.Linear) or not model.block_modules():
        known = "no blocks or no single linear head that samtune knows"
        raise ConfigError(f"{model.name} has {known}. Check model.options, or use another model.")
    side: int = getattr(getattr(model.net, "patch_embed", None), "patch_size", (1,))[0]
    if model.image_size < side or model.image_size % side:
        nearest = max(round(model.image_size / side), 1) * side
        wrong = f"model.image_size is {model.image_size}, but {model.name} needs a multiple of {side}"
        raise ConfigError(f"{wrong}; the nearest is {nearest}.")


def _check_output(model: Classifier, classes: int) -> None:
    """Refuses what only shows when the model runs: options that change its output, or an input that is too small."""
    side = model.image_size
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    batch = LabelledBatch(image, torch.zeros(1, dtype=torch.int64), ("an empty image",)).to(model.device)
    advice = f"Check model.options ({model.options or 'none'}) and model.image_size ({side})."
    try:
        with torch.no_grad():
            found = tuple(model(batch).shape)
    except Exception as err:  # timm's layers fail in their own ways
        raise ConfigError(f"{model.name} can't run on an image of {side} x {side} pixels ({err}). {advice}") from err
    if found != (1, classes):
        raise ConfigError(f"{model.name} returns {found} for one image, not {(1, classes)}. {advice}")
