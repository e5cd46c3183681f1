"""What model files of the tests say about themselves, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtune.files.description import model_metadata
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.models.sam.vit import PIXEL_MEAN, PIXEL_STD
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.masks.evaluate import MaskDescription


def mask_description(model: str = "sam_tiny", image_size: int = 64, **values: Any) -> MaskDescription:
    """Describes a Segment Anything that was tuned without a prompt, but for `values`."""
    given = {"prompt": "none", "base_hash": "0", "pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD} | values
    return MaskDescription(model=model, image_size=image_size, **given)


def class_description(model: Backbone, classes: Sequence[str], **values: Any) -> ClassDescription:
    """Describes a classifier whose images are scaled straight to the square, but for `values`."""
    given = {"resize": "squash", "base_hash": "0", "interpolation": model.interpolation, "additions": ()} | values
    return ClassDescription.of(model, classes=tuple(classes), **given)


def load_masks(path: Path) -> tuple[Backbone, MaskDescription]:
    """Loads a merged file of segmentation."""
    return load_merged(path, MaskDescription)


def load_classes(path: Path) -> tuple[Backbone, ClassDescription]:
    """Loads a merged file of classification."""
    return load_merged(path, ClassDescription)


def read_masks(path: Path) -> MaskDescription:
    """Reads what a merged file of segmentation says."""
    return MaskDescription.from_metadata(model_metadata(path), path)


def read_classes(path: Path) -> ClassDescription:
    """Reads what a merged file of classification says."""
    return ClassDescription.from_metadata(model_metadata(path), path)
