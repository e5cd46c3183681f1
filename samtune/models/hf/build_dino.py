"""From a name and a checkpoint to a DINOv2 or DINOv3 with a head: what config, which size, whose weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from samtune.errors import ConfigError
from samtune.models.hf.dino import HEAD_FILE, Dino, DinoMaps, DinoNet
from samtune.models.hf.families import DINOS, Family
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
from samtune.models.hf.hub import checkpoint_folder
from samtune.models.weights import RANDOM, check_state, log_loaded, read_state
from samtune.types import Interpolation

Head = Literal["new", "checkpoint"]
Settings = Mapping[str, Any]
_INSTEAD = (
    ", or give model.options={config: ...} beside a file. Meta's own files fit timm's models, such as "
    "model.name=vit_base_patch14_dinov2.lvd142m"
)
_BILINEAR, _BICUBIC = 2, 3
"""What processors call them, by Pillow's numbers; others are taken for bilinear."""
_BIT = "BitImageProcessor"
"""Scales by the shorter side and cuts out the middle, bicubic; that of DINOv3 squashes, bilinear."""
_STILL = dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"))
"""DINOv3 moves its positions by chance while it trains, which pretraining needed: here they stay."""


@dataclass(frozen=True)
class Options:
    """What else a DINO is built of.

    Attributes:
        config, processor: as transformers keeps them in JSON; None for those of the folder, or of the family.
        grid: whether the head gives a map of each class; else logits of each image.
        channels: of the pictures.
    """

    config: Settings | None = None
    processor: Settings | None = None
    grid: bool = False
    channels: int = 3


def build_dino(
    name: str,
    *,
    classes: int,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    head: Head = "new",
    drop_path: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Dino:
    """Builds a DINO of transformers in eval mode.

    Args:
        name: key of `DINOS`.
        checkpoint: a folder of transformers; a file of such a model's weights beside `config`; "random"; None for the
            published weights, from the cache of the Hugging Face hub or the hub itself.
        image_size: side of the square input in pixels, a multiple of the patch; None for that of the processor.
        head: "new" draws one from `seed`, whatever the weights are; "checkpoint" takes that of a file.
        drop_path: probability that a block is skipped (stochastic depth), in train mode only.
        seed: of the new head, and of random weights.
        **options: those of `Options`.

    Raises:
        ConfigError: transformers not installed, a size or option that the model does not have.
        CheckpointError: weights that can't be had, are damaged, or belong to another model.
    """
    family, own = DINOS[name], _options(name, options)
    _check_head(head, checkpoint)
    library()  # before anything is downloaded for it
    folder = checkpoint_folder(name, family, checkpoint, configured=own.config is not None, instead=_INSTEAD)
    config, processor = own.config, own.processor
    if folder is not None or config is None or processor is None:  # a folder says of which architecture it is
        found = _defaults(family) if folder is None else read_folder(family, folder)
        config, processor = config or found[0], processor or found[1]
    settings = _config(family, config, name, drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _encoder(family, settings, folder, name)
        torch.manual_seed(seed)  # again: the head depends on nothing but its shape
        net = DinoNet(encoder, classes, grid=own.grid)
        last = net.head[-1] if own.grid else net.head
        nn.init.trunc_normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
    model = _wrapped(name, net, settings, processor, image_size, grid=own.grid)
    model.head_seed = seed if head == "new" else None
    if folder is not None and not on_meta():
        tell_loaded(encoder.state_dict(), 0, folder)
        if head == "checkpoint":
            _load_head(model, folder / HEAD_FILE)
    elif checkpoint not in (None, RANDOM) and folder is None and not on_meta():
        _load_file(model, Path(str(checkpoint)), head=head)
    return model.eval()


def _options(name: str, given: Settings) -> Options:
    """Returns what else is asked for, or raises a `ConfigError`."""
    if unknown := given.keys() - {field.name for field in fields(Options)}:
        known = "config and processor, as transformers keeps them in JSON"
        raise ConfigError(f"model.options has {min(unknown)}, which {name} does not have: it takes {known}.")
    own = Options(**given)
    if own.channels != 3:
        raise ConfigError(f"model.channels is {own.channels}, but {name} takes 3 only, RGB and grey.")
    return own


def _check_head(head: Head, checkpoint: str | Path | None) -> None:
    """Refuses a head of a checkpoint that has none."""
    place = Path(str(checkpoint))
    headless = checkpoint in (None, RANDOM) or (place.is_dir() and not (place / HEAD_FILE).is_file())
    if head == "checkpoint" and headless:
        found = checkpoint or "the published model"
        raise ConfigError(f"model.head=checkpoint needs a head, but {found} has none: use model.head=new.")


def _defaults(family: Family) -> tuple[Settings, Settings]:
    """Returns the config of transformers for the published model, and a processor for it."""
    mean, std = family.colours
    images: dict[str, Any] = {"image_mean": list(mean), "image_std": list(std)}
    images["image_processor_type"] = family.image_processor
    cuts, side = family.image_processor == _BIT, {"height": 224, "width": 224}
    images |= {"resample": _BICUBIC, "crop_size": side} if cuts else {"resample": _BILINEAR, "size": side}
    with quiet():
        config = getattr(library(), f"{family.prefix}Config").from_dict(dict(family.config)).to_dict()
    return config, {"image_processor": images, "processor_class": family.processor}


def _config(family: Family, given: Settings, name: str, drop_path: float) -> Any:
    """Returns the config object of a JSON config."""
    library_ = library()
    if not hasattr(library_, f"{family.prefix}Model"):
        raise ConfigError(
            f"{name} needs a transformers that has {family.prefix}Model; {library_.__version__} has none."
        )
    with values_of(name):
        config = getattr(library_, f"{family.prefix}Config").from_dict({**given, "drop_path_rate": drop_path})
        for key in _STILL.keys() & vars(config).keys():
            setattr(config, key, None)
    config._attn_implementation = None  # the library's own choice: a file may name code of the hub
    return config


def _encoder(family: Family, config: Any, folder: Path | None, name: str) -> nn.Module:
    """Returns the network with the weights of a folder, or as it is drawn."""
    net_class = getattr(library(), f"{family.prefix}Model")
    if folder is not None and not on_meta():
        return load_folder(net_class, config, folder)[0]
    with values_of(name):
        network: nn.Module = net_class(config)
        return network


def _wrapped(name: str, net: DinoNet, config: Any, processor: Settings, image_size: int | None, *, grid: bool) -> Dino:
    """Returns the backbone around a network; its options rebuild it without the folder."""
    mean, std = colours_of(name, processor)
    images, patch = processor["image_processor"], int(config.patch_size)
    size = _own_size(images, config) if image_size is None else image_size
    if size < patch or size % patch:
        nearest = max(round(size / patch), 1) * patch
        wrong = f"model.image_size is {size}, but {name} needs a multiple of its patch, {patch}"
        raise ConfigError(f"{wrong}; the nearest is {nearest}.")
    kernel: Interpolation = "bicubic" if images.get("resample") == _BICUBIC else "bilinear"
    side = {"height": size, "width": size}
    cut = {"size": {"shortest_edge": size}, "crop_size": side}
    resized = {**images, **(cut if images.get("image_processor_type") == _BIT else {"size": side})}
    options: Settings = {
        "config": {**config.to_dict(), "drop_path_rate": 0.0},
        "processor": {**processor, "image_processor": resized},
    }
    options = {**options, "grid": True} if grid else options
    kind = DinoMaps if grid else Dino
    return kind(net, name=name, image_size=size, mean=mean, std=std, interpolation=kernel, options=options)


def _own_size(images: Settings, config: Any) -> int:
    """Returns the side that a processor makes of pictures: what it crops, or scales them to; else the config's."""
    for key in ("crop_size", "size"):
        found = images.get(key)
        if isinstance(found, Mapping) and isinstance(found.get("height"), int):
            return int(found["height"])
    size = config.image_size
    return int(size if isinstance(size, int) else size[0])


def _load_file(model: Dino, path: Path, *, head: Head) -> None:
    """Loads a file by the model's own names: strictly, but for a head that is not asked for."""
    state, expected = read_state(path), dict(model.net.state_dict())
    own = {name: tensor for name, tensor in expected.items() if name.startswith("head.") and head == "new"}
    found = {name: tensor for name, tensor in state.items() if head == "checkpoint" or not name.startswith("head.")}
    check_state({n: t for n, t in expected.items() if n not in own}, found, path, model.looks_like)
    model.net.load_state_dict({**own, **found})
    log_loaded(len(found), path, f", head: {head}")


def _load_head(model: Dino, path: Path) -> None:
    """Loads the head that lies beside a network in its folder, strictly."""
    state, expected = read_state(path), dict(model.net.state_dict())
    check_state({n: t for n, t in expected.items() if n.startswith("head.")}, state, path, model.looks_like)
    model.net.load_state_dict({**expected, **state})
    log_loaded(len(state), path)
