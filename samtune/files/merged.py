"""The merged file: an ordinary model with what is needed to predict with it, in one safetensors file.

Its tensors have exactly the keys and shapes of the stock model, in fp32; its metadata says which model that
is, how images are prepared, and which base it was tuned from. A model whose added modules can't be merged (adapters)
ends as a bundle: the same file with the added tensors, and the list of additions in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from samtune.base.tensors import read_metadata, save_tensors
from samtune.errors import CheckpointError, ConfigError
from samtune.models.backbone import Backbone
from samtune.models.sam.model import PIXEL_MEAN, PIXEL_STD
from samtune.models.table import build_model, names_that_give
from samtune.models.weights import RANDOM, load_weights
from samtune.selection.selection import Addition, Selection, additions_from_json, additions_to_json
from samtune.tuning import attach
from samtune.types import PromptMode

FORMAT = "samtune-merged-1"
BUNDLE_FORMAT = "samtune-bundle-1"
CLASSIFIER_FORMAT = "samtune-classifier-1"
CLASSIFIER_BUNDLE_FORMAT = "samtune-classifier-bundle-1"
THRESHOLD = 0.5
Task = Literal["segmentation", "classification"]
FORMATS: dict[str, Task] = {
    FORMAT: "segmentation",
    BUNDLE_FORMAT: "segmentation",
    CLASSIFIER_FORMAT: "classification",
    CLASSIFIER_BUNDLE_FORMAT: "classification",
}
REMEDY = "Give the merged.safetensors of a run folder; `samtune finetune` writes one."

Colour = tuple[float, float, float]


class Described:
    """What a merged file says about itself, as a frozen dataclass whose fields are its metadata."""

    formats: ClassVar[tuple[str, str]]
    """Of a merged file, and of a bundle."""
    additions: tuple[Addition, ...]

    @property
    def file_name(self) -> str:
        """What such a file is called in a run folder."""
        return "bundle.safetensors" if self.additions else "merged.safetensors"

    def to_metadata(self) -> dict[str, str]:
        """Returns the metadata of the file, all strings."""
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in vars(self).items() if k != "additions"}
        merged, bundle = self.formats
        if not self.additions:
            return {"format": merged, **values}
        return {"format": bundle, **values, "additions": additions_to_json(self.additions)}


@dataclass(frozen=True)
class MergedInfo(Described):
    """What a merged file says about itself.

    Attributes:
        model: name of the model, such as `sam_tiny`.
        image_size: side in pixels of the input frame it was tuned and measured at.
        prompt: prompt mode it was tuned with.
        base_hash: `state_hash` of the weights it was tuned from.
        pixel_mean: subtracted from RGB values of 0 to 255.
        pixel_std: what the difference is divided by.
        threshold: pixels of a higher probability are foreground; always 0.5 in this format.
        additions: modules of a bundle beside the stock model; empty for a merged model.
    """

    formats: ClassVar[tuple[str, str]] = (FORMAT, BUNDLE_FORMAT)
    model: str
    image_size: int
    prompt: PromptMode
    base_hash: str
    pixel_mean: Colour = PIXEL_MEAN
    pixel_std: Colour = PIXEL_STD
    threshold: float = THRESHOLD
    additions: tuple[Addition, ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> MergedInfo:
        """Reads what `to_metadata` wrote.

        Args:
            metadata: of the safetensors file.
            path: the file, for messages.

        Raises:
            CheckpointError: not a merged file, or one with missing or impossible values.
        """
        expect_task(metadata, path, "segmentation")
        try:
            info = cls(
                model=metadata["model"],
                image_size=int(metadata["image_size"]),
                prompt=metadata["prompt"],  # type: ignore[arg-type]  # checked below
                base_hash=metadata["base_hash"],
                pixel_mean=colour(metadata["pixel_mean"]),
                pixel_std=colour(metadata["pixel_std"]),
                threshold=float(metadata["threshold"]),
                additions=additions_from_json(metadata.get("additions", "[]")),
            )
        except KeyError as err:
            raise CheckpointError(f"{path} lacks {err} in its metadata. {REMEDY}") from err
        except (ValueError, TypeError) as err:
            raise CheckpointError(f"{path} has damaged metadata ({err}). {REMEDY}") from err
        wrong = info._wrong()
        if wrong:
            raise CheckpointError(f"{path} has impossible metadata: {', '.join(wrong)}. {REMEDY}")
        return info

    def _wrong(self) -> list[str]:
        known = names_that_give("masks")
        checks = {
            f"model {self.model!r} (known: {', '.join(known)})": self.model in known,
            f"prompt {self.prompt!r} (known: {', '.join(get_args(PromptMode))})": self.prompt in get_args(PromptMode),
            f"pixel_std {self.pixel_std} (above 0)": all(value > 0 for value in self.pixel_std),
            f"threshold {self.threshold} (always {THRESHOLD})": self.threshold == THRESHOLD,
        }
        return [text for text, good in checks.items() if not good]


def save_merged(path: Path, model: Backbone, info: Described) -> None:
    """Writes a merged file, atomically.

    Args:
        path: `.../merged.safetensors`; an older file is replaced.
        model: merged; it is written in fp32, with what could not be merged.
        info: goes into the metadata.
    """
    state = {name: tensor.float() for name, tensor in model.net.state_dict().items()}
    save_tensors(path, state, info.to_metadata())


def read_merged_info(path: Path) -> MergedInfo:
    """Reads what a merged file says about itself, without its weights; raises as `load_merged`."""
    return MergedInfo.from_metadata(merged_metadata(path), path)


def read_task(path: Path) -> Task:
    """Says what a merged file is for.

    Raises:
        CheckpointError: missing, damaged, or no merged file or bundle.
    """
    return task_of(merged_metadata(path), path)


def merged_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a file that should be a merged one."""
    try:
        return read_metadata(path)
    except CheckpointError as err:
        raise CheckpointError(f"{err} {REMEDY}") from err


def task_of(metadata: Mapping[str, str], path: Path) -> Task:
    """Says what a merged file is for, by its metadata; refuses what is no merged file."""
    found = metadata.get("format", "none")
    if found not in FORMATS:
        raise CheckpointError(f"{path} is no merged model (its format: {found}, not {FORMAT}). {REMEDY}")
    return FORMATS[found]


def expect_task(metadata: Mapping[str, str], path: Path, task: Task) -> None:
    """Refuses the metadata of a merged file for another task, or of no merged file."""
    found = task_of(metadata, path)
    if found != task:
        raise CheckpointError(f"{path} is a {found} model, but a {task} model is needed. {REMEDY}")


def load_merged(path: Path, *, device: torch.device | str = "cpu") -> tuple[Backbone, MergedInfo]:
    """Loads a merged file strictly.

    Args:
        path: a file of `save_merged`.
        device: where the model goes.

    Returns:
        The model in eval mode, in fp32, and what the file says.

    Raises:
        CheckpointError: missing, damaged, not a merged file or bundle, or weights that don't fit the model it names.
    """
    info = read_merged_info(path)
    try:
        model = build_model(info.model, checkpoint=RANDOM, image_size=info.image_size)
    except ConfigError as err:
        raise CheckpointError(f"{path} has impossible metadata: {err} {REMEDY}") from err
    if info.additions:
        attach(model, Selection({}, additions=info.additions))
        model.requires_grad_(False)
    load_weights(model, path)
    model.pixel_mean = torch.tensor(info.pixel_mean).view(3, 1, 1)
    model.pixel_std = torch.tensor(info.pixel_std).view(3, 1, 1)
    return model.to(device).eval(), info


def colour_of(values: Tensor) -> Colour:
    """Returns the numbers of a (3, 1, 1) fp32 tensor, each as the shortest one that rounds to it."""
    red, green, blue = (float(str(value)) for value in values.flatten().cpu().numpy())
    return red, green, blue


def colour(text: str) -> Colour:
    """Reads three numbers of the metadata; ValueError or TypeError where they are not."""
    red, green, blue = json.loads(text)
    return float(red), float(green), float(blue)
