"""From the name of a family and a checkpoint to a backbone: what config, which size, whose weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from samtune.errors import ConfigError, unknown_name
from samtune.models.classes import has_classes
from samtune.models.hf.families import FAMILIES, Family
from samtune.models.hf.folder import (
    colours_of,
    library,
    load_folder,
    on_meta,
    quiet,
    read_folder,
    tell_loaded,
    values_of,
)
from samtune.models.hf.hq import HfSamHQ
from samtune.models.hf.hub import checkpoint_folder
from samtune.models.hf.meta_sizes import config_of_meta
from samtune.models.hf.model import HfEdgeTam, HfSam, HfSam2, HfSam3
from samtune.models.weights import RANDOM, load_state, read_state

BACKBONES: dict[str, type[HfSam]] = {
    "sam_hf": HfSam, "sam_hq": HfSamHQ, "sam2": HfSam2, "sam3": HfSam3, "edgetam": HfEdgeTam,
}  # fmt: skip
_OWN = "sam_lite, sam_tiny or a sam_vit"
_INSTEAD = {
    "sam_hf": ", or set model.name to sam_vit_b, sam_vit_l or sam_vit_h for Meta's file",
    "sam2": ", or give Meta's own file of a published SAM 2 or 2.1, sam2.1_hiera_tiny.pt",
    "sam3": ", or give Meta's own sam3.pt",
}  # how else a checkpoint may be given

Settings = dict[str, Any]


def build_hf(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    classes: int | None = None,
    channels: int = 3,
) -> HfSam:
    """Builds a Segment Anything of transformers in eval mode.

    Args:
        name: key of `FAMILIES`.
        checkpoint: a folder of transformers; Meta's own file of a published SAM 2 or 3; a file of such a model's
            weights beside `config`; "random"; None for the published weights, from the cache of the Hugging Face hub or
            the hub itself.
        image_size: side of the square input in pixels; None for the checkpoint's own.
        config, processor: as transformers keeps them in JSON; None for those of the folder, or of the family.
        classes: number of class tokens, which a file of weights may have already; None for a model that only segments.

    Raises:
        ConfigError: an unknown name, transformers not installed, a size that the model can't have, other `channels`
            than 3, or `classes` of SAM-HQ.
        CheckpointError: weights that can't be had, are damaged, or belong to another model.
    """
    if name not in FAMILIES:
        raise ConfigError(unknown_name("model", name, FAMILIES))
    _check_asked(name, classes, channels)
    library()  # before anything is downloaded for it
    family = FAMILIES[name]
    config = config or config_of_meta(name, checkpoint)
    instead = _INSTEAD.get(name, "")
    folder = checkpoint_folder(name, family, checkpoint, configured=config is not None, instead=instead)
    if folder is not None or config is None or processor is None:  # a folder says of which architecture it is
        found = _defaults(family) if folder is None else read_folder(family, folder)
        config, processor = config or found[0], processor or found[1]
    settings = _sized(name, family, _config(family, config, name), image_size)
    net, more = _network(name, family, settings, folder)
    model = _wrapped(name, family, net, settings, processor)
    if folder is not None and not on_meta():
        tell_loaded(net.state_dict(), more, folder)
    elif checkpoint not in (None, RANDOM) and folder is None and not on_meta():
        path = Path(str(checkpoint))
        state = read_state(path)
        if classes is not None and has_classes(state):
            model.add_classes(classes)
        load_state(model, state, path)
    if classes is not None and model.classes is None:
        model.add_classes(classes)
    return model.eval()


def _check_asked(name: str, classes: int | None, channels: int) -> None:
    """Raises a `ConfigError` for what other families have."""
    if classes is not None and not BACKBONES[name].takes_classes:
        tasks = "which task: semantic and task: instances need"
        others = ", ".join(other for other, kind in BACKBONES.items() if kind.takes_classes)
        raise ConfigError(
            f"{name} gives one mask and has no class tokens, {tasks}. Set model.name to one of {others}, or to {_OWN}."
        )
    if channels != 3:
        raise ConfigError(
            f"model.channels is {channels}, but {name} takes 3 only, RGB and grey. Set model.name to {_OWN}."
        )


def _defaults(family: Family) -> tuple[Settings, Settings]:
    """Returns the config of transformers for a family, and a processor for it: what random weights start from."""
    mean, std = family.colours
    images = {"image_mean": list(mean), "image_std": list(std), "image_processor_type": family.image_processor}
    with quiet():
        config = getattr(library(), f"{family.prefix}Config").from_dict(dict(family.config)).to_dict()
    return config, {"image_processor": images, "processor_class": family.processor}


def _config(family: Family, given: Mapping[str, Any], name: str) -> Any:
    """Returns the config object of a JSON config, with the one setting that samtune needs otherwise."""
    library_ = library()
    if not hasattr(library_, f"{family.prefix}Model"):
        raise ConfigError(
            f"{name} needs a transformers that has {family.prefix}Model; {library_.__version__} has none."
        )
    with values_of(name):
        config = getattr(library_, f"{family.prefix}Config").from_dict(dict(given))
        trunk = str(getattr(getattr(config.vision_config, "backbone_config", None), "architecture", ""))
        if ":" in trunk:  # timm would ask the hub for it
            raise ValueError(f"its trunk {trunk!r} is no model of timm's own")
    config._attn_implementation = None  # the library's own choice, in every part: a file may name code of the hub
    if hasattr(config.mask_decoder_config, "dynamic_multimask_via_stability"):
        config.mask_decoder_config.dynamic_multimask_via_stability = False  # token 0 is what is tuned and measured
    return config


def _sized(name: str, family: Family, config: Any, size: int | None) -> Any:
    """Sets the side of the input frame, in pixels, in every place of a config that has it.

    Raises:
        ConfigError: a size that the family can't have.
    """
    prompts, vision = config.prompt_encoder_config, config.vision_config
    own = prompts.image_size if isinstance(prompts.image_size, int) else int(prompts.image_size[0])
    if size is None or size == own:
        return config
    if name in ("sam_hf", "sam_hq"):
        said = "sam_vit_b, sam_vit_l and sam_vit_h take any multiple of 16." if name == "sam_hf" else "Leave it empty."
        raise ConfigError(f"model.image_size is {size}, but {name} runs at the {own} px of its checkpoint only. {said}")
    step = _step(config)
    if size < step or size % step:
        nearest = max(round(size / step), 1) * step
        raise ConfigError(
            f"model.image_size is {size}, but {name} needs a multiple of {step}; the nearest is {nearest}."
        )
    finest = size // prompts.patch_size * 4
    prompts.image_size = size
    vision.backbone_feature_sizes = [[finest // part] * 2 for part in (1, 2, 4)]
    backbone = vision.backbone_config
    if hasattr(backbone, "image_size"):
        backbone.image_size = size if isinstance(backbone.image_size, int) else [size, size]
    return config


def _step(config: Any) -> int:
    """Returns what a side of the input frame is a multiple of, in pixels."""
    backbone = config.vision_config.backbone_config
    if hasattr(backbone, "window_size_per_stage"):  # the windowed table of positions is tiled over the finest map
        stride = int(backbone.patch_stride[0])
        return math.lcm(stride * int(backbone.window_size_per_stage[0]), stride * 8)
    return int(config.prompt_encoder_config.patch_size) * (1 if hasattr(backbone, "patch_size") else 2)


def _network(name: str, family: Family, config: Any, folder: Path | None) -> tuple[nn.Module, int]:
    """Returns the network with the weights of a folder, or as it is drawn, and the tensors that were left out."""
    net_class = getattr(library(), f"{family.prefix}Model")
    if folder is not None and not on_meta():
        net, more = load_folder(net_class, config, folder)
    else:
        with values_of(name):
            net, more = net_class(config), 0
    _untie(net)
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # the outputs of tuned layers are views
    return net, more


def _untie(net: Any) -> None:
    """Gives SAM 1's two modules that share the random features of positions a copy each, as their files may have."""
    here, there = net.shared_image_embedding, net.prompt_encoder.shared_embedding
    if here.positional_embedding is there.positional_embedding:
        there.positional_embedding = nn.Parameter(here.positional_embedding.detach().clone())


def _wrapped(name: str, family: Family, net: nn.Module, config: Any, processor: Mapping[str, Any]) -> HfSam:
    """Returns the backbone around a network; its options rebuild it without the folder."""
    mean, std = colours_of(name, processor)
    size = config.prompt_encoder_config.image_size
    side = size if isinstance(size, int) else int(size[0])
    return BACKBONES[name](
        net,
        name=name,
        image_size=side,
        mean=mean,
        std=std,
        options={
            "config": config.to_dict(),
            "processor": _resized(family, processor, config.prompt_encoder_config, side),
        },
    )


def _resized(family: Family, processor: Mapping[str, Any], prompts: Any, side: int) -> Settings:
    """Returns the processor's settings with the side of the input frame, and that of the maps of logits."""
    low = side // prompts.patch_size * 4
    squares = {"size": side, "mask_size": low}
    if family.image_processor == "SamImageProcessor":  # scales by the longer side, then pads
        sizes: Settings = {key: {"longest_edge": value} for key, value in squares.items()}
        squares = {"pad_size": side, "mask_pad_size": low}
    else:
        sizes = {}
    sizes |= {key: {"height": value, "width": value} for key, value in squares.items()}
    more = {"target_size": side} if "target_size" in processor else {}
    return {**processor, "image_processor": {**processor["image_processor"], **sizes}, **more}
