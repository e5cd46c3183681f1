"""Data: from a folder with images and masks to loaders of batches.

`build_data` is what a recipe calls; the other names are its parts.
"""

from __future__ import annotations

from samtune.data.loaders import EpochSampler, Loaders, build_data
from samtune.data.pairs import Pair, find_pairs, read_image, read_mask
from samtune.data.segmentation import Collate, SegmentationDataset, resize_longest
from samtune.data.splits import Splits, resolve_split
from samtune.data.verify import VerifyReport, check_pairs, verify_folder, verify_pairs

__all__ = [
    "Collate",
    "EpochSampler",
    "Loaders",
    "Pair",
    "SegmentationDataset",
    "Splits",
    "VerifyReport",
    "build_data",
    "check_pairs",
    "find_pairs",
    "read_image",
    "read_mask",
    "resize_longest",
    "resolve_split",
    "verify_folder",
    "verify_pairs",
]
