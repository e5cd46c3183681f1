"""The models by name. It imports no library of models: a builder is imported when its name is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samtune.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from samtune.models.backbone import Backbone

Gives = Literal["masks", "classes"]
"""What a model's output is: logits of a mask, or of classes."""


@dataclass(frozen=True)
class ModelEntry:
    """A row of `MODELS`.

    Attributes:
        build: "module:function", which takes what `build_model` does and returns a `Backbone`.
        shaped: by what its tensors have their shapes: its name, or the checkpoint.
        for_maps: whether it gives a map of each class too, where a task of pixels asks for it: its builder takes
            `grid` then, and the `seed` that the head is drawn from.
    """

    build: str
    gives: Gives
    shaped: Literal["name", "checkpoint"] = "name"
    for_maps: bool = False


_SAM = ModelEntry("samtune.models.sam.vit:build_vit", "masks")
_HF = ModelEntry("samtune.models.hf.build:build_hf", "masks", shaped="checkpoint")
_DINO = ModelEntry("samtune.models.hf.build_dino:build_dino", "classes", shaped="checkpoint", for_maps=True)
OTHERS = ModelEntry("samtune.models.timm.model:build_classifier", "classes")
"""Of every other name: timm knows whether it has such a model."""
MODELS: dict[str, ModelEntry] = {
    "sam_lite": ModelEntry("samtune.models.sam.lite:build_lite", "masks"),
    **dict.fromkeys(("sam_tiny", "sam_vit_b", "sam_vit_l", "sam_vit_h"), _SAM),
    **dict.fromkeys(("sam2", "sam3", "sam_hq", "sam_hf", "edgetam"), _HF),
    **dict.fromkeys(("dinov2", "dinov3"), _DINO),
    **dict.fromkeys(("tf_efficientnet_lite0", "vit_mini", "vit_base_patch16_224.mocov3"), OTHERS),
}


def entry_of(name: str) -> ModelEntry:
    """Returns the row of a model, `OTHERS` for a name that the table does not have."""
    return MODELS.get(name, OTHERS)


def names_that_give(gives: Gives) -> list[str]:
    """Returns the names in the table of models with this output, in its order."""
    return [name for name, entry in MODELS.items() if entry.gives == gives]


def names_for_maps() -> list[str]:
    """Returns the names in the table of models that can give a map of each class, in its order."""
    return [name for name, entry in MODELS.items() if entry.gives == "masks" or entry.for_maps]


def build_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    pixel_seed: int | None = None,
    **options: Any,
) -> Backbone:
    """Builds a pretrained model in eval mode.

    Args:
        name: key of `MODELS`, a repository of the Hugging Face hub, OWNER/NAME, with a model of transformers of such a
            family, or a model of timm.
        checkpoint: a file; None for the model's own weights (inside the package, or downloaded once); "random" for
            the initialisation of its library.
        image_size: side of the square input in pixels; None for the model's own.
        pixel_seed: of a task of pixels: what gives classes else then gets a head of maps, drawn from it.
        **options: what else the builder takes; a classifier needs `classes`, the number of outputs, and what gives
            masks takes it too: then it gives one of each class. What gives masks also takes `channels`, those of the
            pictures: 3, or 2 and 4 to 12 with a stem that is extended. Of transformers' only 3.

    Raises:
        ConfigError: unknown name, or a size or option that the model does not have.
        CheckpointError: weights that can't be had, are damaged or belong to another model.
    """
    asked = name
    if is_repository(name):
        name, checkpoint = _of_hub(name, checkpoint)
    entry = entry_of(name)
    if entry.gives == "masks" and "head" in options:
        raise ConfigError(f"{asked} is a {name}, which gives masks, not classes. Set task: segmentation.")
    if pixel_seed is not None and entry.for_maps:
        options |= {"grid": True, "seed": pixel_seed}
    if entry.gives == "classes" and "classes" not in options:
        if name in MODELS:
            raise ConfigError(f"{name} is a classifier: give classes=N, the number of its outputs.")
        raise ConfigError(f"{unknown_name('model', name, MODELS)} A model of timm needs classes=N.")
    module, _, function = entry.build.partition(":")
    build: Callable[..., Backbone] = getattr(import_module(module), function)
    return build(name, checkpoint=checkpoint, image_size=image_size, **options)


def is_repository(name: str) -> bool:
    """Whether a model is named by its repository on the Hugging Face hub: OWNER/NAME."""
    return name not in MODELS and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _of_hub(repository: str, checkpoint: str | Path | None) -> tuple[str, str | Path]:
    """Returns the family of a repository, and its folder where no other checkpoint is given."""
    from samtune.models.hf.hub import family_in, repository_folder

    family = family_in(repository)
    return family, repository_folder(repository, family) if checkpoint is None else checkpoint


def build_shapes(name: str, *, checkpoint: str | Path | None, image_size: int | None, **options: Any) -> Backbone:
    """Builds a model without values, on the meta device: what its tensors are called, and their shapes.

    Of the checkpoint only the config is read, and that only where the shapes depend on it; raises as `build_model`.
    """
    import torch

    from samtune.models.weights import RANDOM

    read = is_repository(name) or entry_of(name).shaped == "checkpoint"
    with torch.device("meta"):
        return build_model(name, checkpoint=checkpoint if read else RANDOM, image_size=image_size, **options)
