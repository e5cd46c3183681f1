"""The merged file of a classifier: timm's own keys and shapes, and in the metadata what it takes to predict with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from samtune.base.tensors import read_metadata
from samtune.errors import CheckpointError, ConfigError
from samtune.files.merged import (
    CLASSIFIER_BUNDLE_FORMAT,
    CLASSIFIER_FORMAT,
    FORMATS,
    REMEDY,
    Colour,
    Described,
    colour,
    expect_task,
    merged_metadata,
)
from samtune.models.timm.model import Classifier, build_classifier
from samtune.models.weights import RANDOM, load_weights
from samtune.selection.selection import Addition, Selection, additions_from_json
from samtune.tuning import attach
from samtune.types import Interpolation, Resize


@dataclass(frozen=True)
class ClassifierInfo(Described):
    """What a classifier's merged file says about itself.

    Attributes:
        model: name of the model, as `build_classifier` takes it.
        options: of timm's builder, such as `depth`.
        classes: names of the outputs, in order.
        image_size: side in pixels of the input it was tuned and measured at.
        resize: how an image becomes that square: "squash" scales each side, "crop" cuts the middle.
        interpolation: of that scaling.
        pixel_mean: subtracted from RGB values of 0 to 255.
        pixel_std: what the difference is divided by.
        base_hash: `state_hash` of the weights it was tuned from.
        head_seed: what the head's initial values were drawn from; None where they came with the weights.
        additions: modules of a bundle beside the stock model; empty for a merged model.
    """

    formats: ClassVar[tuple[str, str]] = (CLASSIFIER_FORMAT, CLASSIFIER_BUNDLE_FORMAT)
    model: str
    classes: tuple[str, ...]
    image_size: int
    resize: Resize
    interpolation: Interpolation
    pixel_mean: Colour
    pixel_std: Colour
    base_hash: str
    head_seed: int | None
    options: dict[str, Any] = field(default_factory=dict)
    additions: tuple[Addition, ...] = ()

    @classmethod
    def of(
        cls,
        model: Classifier,
        *,
        classes: Sequence[str],
        resize: Resize,
        base_hash: str,
        additions: tuple[Addition, ...] = (),
    ) -> ClassifierInfo:
        """Describes a model that was tuned; the arguments are what it does not know of itself."""
        return cls(
            model=model.name,
            classes=tuple(classes),
            image_size=model.image_size,
            resize=resize,
            interpolation=model.interpolation,
            pixel_mean=_three(model.pixel_mean),
            pixel_std=_three(model.pixel_std),
            base_hash=base_hash,
            head_seed=model.head_seed,
            options=model.options,
            additions=additions,
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> ClassifierInfo:
        """Reads what `to_metadata` wrote.

        Args:
            metadata: of the safetensors file.
            path: the file, for messages.

        Raises:
            CheckpointError: not a classifier's merged file, or one with missing or impossible values.
        """
        expect_task(metadata, path, "classification")
        try:
            seed = json.loads(metadata["head_seed"])
            info = cls(
                model=metadata["model"],
                classes=tuple(map(str, json.loads(metadata["classes"]))),
                image_size=int(metadata["image_size"]),
                resize=metadata["resize"],  # type: ignore[arg-type]  # checked below
                interpolation=metadata["interpolation"],  # type: ignore[arg-type]  # checked below
                pixel_mean=colour(metadata["pixel_mean"]),
                pixel_std=colour(metadata["pixel_std"]),
                base_hash=metadata["base_hash"],
                head_seed=None if seed is None else int(seed),
                options=dict(json.loads(metadata["options"])),
                additions=additions_from_json(metadata.get("additions", "[]")),
            )
        except KeyError as err:
            raise CheckpointError(f"{path} lacks {err} in its metadata. {REMEDY}") from err
        except (ValueError, TypeError) as err:
            raise CheckpointError(f"{path} has damaged metadata ({err}). {REMEDY}") from err
        if wrong := info._wrong():
            raise CheckpointError(f"{path} has impossible metadata: {', '.join(wrong)}. {REMEDY}")
        return info

    def _wrong(self) -> list[str]:
        checks = {
            "no classes": bool(self.classes),
            "a class twice": len(set(self.classes)) == len(self.classes),
            f"image_size {self.image_size} (above 0)": self.image_size > 0,
            f"resize {self.resize!r} (known: {', '.join(get_args(Resize))})": self.resize in get_args(Resize),
            f"interpolation {self.interpolation!r} (known: {', '.join(get_args(Interpolation))})": self.interpolation
            in get_args(Interpolation),
            f"pixel_std {self.pixel_std} (above 0)": all(value > 0 for value in self.pixel_std),
        }
        return [text for text, good in checks.items() if not good]


def read_classifier_info(path: Path) -> ClassifierInfo:
    """Reads what a classifier's merged file says about itself, without its weights; raises as `load_classifier`."""
    return ClassifierInfo.from_metadata(merged_metadata(path), path)


def load_classifier(path: Path, *, device: torch.device | str = "cpu") -> tuple[Classifier, ClassifierInfo]:
    """Loads a classifier's merged file strictly.

    Args:
        path: a file of `save_merged`.
        device: where the model goes.

    Returns:
        The model in eval mode, in fp32, and what the file says.

    Raises:
        CheckpointError: missing, damaged, not a classifier's merged file or bundle, or weights that don't fit the
            model it names.
    """
    info = read_classifier_info(path)
    try:
        model = build_classifier(
            info.model, classes=len(info.classes), checkpoint=RANDOM, image_size=info.image_size, **info.options
        )
    except (ConfigError, TypeError) as err:
        raise CheckpointError(f"{path} has impossible metadata: {err} {REMEDY}") from err
    if info.additions:
        attach(model, Selection({}, additions=info.additions))
        model.requires_grad_(False)
    load_weights(model, path)
    model.interpolation, model.head_seed = info.interpolation, info.head_seed
    model.pixel_mean = torch.tensor(info.pixel_mean).view(3, 1, 1)
    model.pixel_std = torch.tensor(info.pixel_std).view(3, 1, 1)
    return model.to(device).eval(), info


def check_classes(path: Path, classes: Sequence[str]) -> None:
    """Refuses the head of a merged classifier whose classes are others, or in another order.

    Args:
        path: a checkpoint file; any other than a classifier's merged file says nothing of its classes and passes.
        classes: names of the outputs that are wanted, in order.

    Raises:
        CheckpointError: the names or their order differ; a missing, or a damaged safetensors file.
    """
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    if FORMATS.get(metadata.get("format", "")) != "classification":
        return
    own = ClassifierInfo.from_metadata(metadata, path).classes
    for place, (found, wanted) in enumerate(zip_longest(own, classes)):
        if found != wanted:
            raise CheckpointError(
                f"the head of {path} is for {len(own)} other classes: output {place} is {_quoted(found)}, "
                f"where the data has {_quoted(wanted)}. Use model.head=new, or the classes of that run."
            )


def _quoted(name: str | None) -> str:
    return "none" if name is None else repr(name)


def _three(values: Tensor) -> Colour:
    red, green, blue = values.flatten().tolist()
    return red, green, blue
