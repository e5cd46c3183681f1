"""Evaluate a merged file on a folder: the same prediction path and precision as a run's own report."""

from __future__ import annotations

import logging
from pathlib import Path

from torch.utils.data import DataLoader

from samtune import console
from samtune.base.disk import disk_errors
from samtune.base.machine import pick_device
from samtune.data.splitfile import trained_on
from samtune.errors import ConfigError
from samtune.files.merged import load_merged
from samtune.tasks.masks.dataset import Collate, SegmentationDataset
from samtune.tasks.masks.description import MaskDescription
from samtune.tasks.masks.evaluate import DEFAULT_METRICS, evaluate
from samtune.tasks.masks.pairs import Pair, find_pairs
from samtune.tasks.masks.report import Report
from samtune.tasks.masks.splits import resolve_split
from samtune.tasks.masks.verify import check_pairs

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    checkpoint: Path,
    data_dir: Path,
    *,
    out: Path | None = None,
    device: str = "auto",
    split: str = "auto",
    metrics: tuple[str, ...] = (),
) -> Report:
    """Measures a merged file on a folder of images and masks; warns when its run trained on some of the images.

    Args:
        checkpoint: `merged.safetensors`.
        data_dir: folder with `images/` and `masks/`, or with parts.
        out: folder for `metrics.json` and `per_image.csv`, or None.
        device: auto, cpu, cuda or mps.
        split: train, val or test; all; auto: the test part if the folder has parts, else all.
        metrics: names beside the default ones.
    """
    model, info = load_merged(checkpoint, MaskDescription, device=pick_device(device))
    pairs, name = _pairs_of(data_dir, split)
    check_pairs(pairs)
    if seen := trained_on(checkpoint, pairs):
        logger.warning(
            "%d of %d evaluated images were trained on; the numbers say nothing about new images", seen, len(pairs)
        )
    dataset = SegmentationDataset(pairs, image_size=info.image_size, prompt=info.prompt)
    loader = DataLoader(dataset, batch_size=1, collate_fn=Collate(info.image_size))
    with console.progress(f"evaluate {name}", len(loader)) as advance:
        report = evaluate(
            model, loader, metrics=(*DEFAULT_METRICS, *metrics), split=name, on_batch=lambda *_: advance()
        )
    if out is not None:
        with disk_errors(out):
            report.save(out)
    return report


def _pairs_of(data_dir: Path, split: str) -> tuple[list[Pair], str]:
    """Returns the pairs of a part of a folder and the part's name."""
    has_parts = any((data_dir / part).is_dir() for part in ("train", "val", "test"))
    if split == "auto":
        split = "test" if (data_dir / "test").is_dir() or (data_dir / "splits" / "test.txt").is_file() else "all"
        if has_parts and split == "all":
            raise ConfigError(f"{data_dir} has parts but no test/. Choose one: --split val, or --data {data_dir}/val.")
    if split == "all":
        return find_pairs(data_dir), "all"
    if has_parts:
        return find_pairs(data_dir / split), split
    return getattr(resolve_split(data_dir), split), split
