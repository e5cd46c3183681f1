"""Data: from a folder with images and masks, or with classes, to loaders of batches.

`build_data`, and `build_class_data` for classes, are what a recipe calls; the other names are their parts.
"""

from __future__ import annotations

from samtune.data.class_verify import verify_data
from samtune.data.labelled import ClassSplits, LabelledImage, corruption_parts, evaluation_images, resolve_classes
from samtune.data.layouts import DATASETS, DataSet
from samtune.data.loaders import EpochSampler, Loaders, build_data
from samtune.data.pairs import Pair, find_pairs, read_image, read_mask
from samtune.data.segmentation import Collate, SegmentationDataset, resize_longest
from samtune.data.splits import Splits, resolve_split
from samtune.data.verify import VerifyReport, check_pairs, verify_folder, verify_pairs

__all__ = [
    "DATASETS",
    "ClassSplits",
    "Collate",
    "DataSet",
    "EpochSampler",
    "LabelledImage",
    "Loaders",
    "Pair",
    "SegmentationDataset",
    "Splits",
    "VerifyReport",
    "build_data",
    "check_pairs",
    "corruption_parts",
    "evaluation_images",
    "find_pairs",
    "read_image",
    "read_mask",
    "resize_longest",
    "resolve_classes",
    "resolve_split",
    "verify_data",
    "verify_folder",
    "verify_pairs",
]
