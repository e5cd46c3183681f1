"""Evaluate a classifier's merged file on a folder, by the same prediction path and precision as a run's own report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from samtune import console
from samtune.base.disk import disk_errors, write_json
from samtune.base.machine import pick_device
from samtune.console import Table
from samtune.data.splitfile import trained_on
from samtune.data.splits import PARTS
from samtune.errors import ConfigError, DataError
from samtune.files.merged import load_merged
from samtune.metrics.corruption import ALEXNET_ERRORS, SEVERITIES, mean_corruption_error
from samtune.models.backbone import Backbone
from samtune.tasks.classes.dataset import ClassDataset, collate_classes
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.evaluate import evaluate_classes
from samtune.tasks.classes.images import LabelledImage
from samtune.tasks.classes.report import ClassReport
from samtune.tasks.classes.splits import corruption_parts, evaluation_images

logger = logging.getLogger(__name__)

BATCH = 32
Parts = dict[tuple[str, int], list[LabelledImage]]
"""(corruption, severity) to its images."""


@dataclass(frozen=True)
class CorruptionTable:
    """The errors on ImageNet-C.

    Attributes:
        errors: corruption -> top-1 error in [0, 1] at severities 1 to 5.
        corruption_errors: corruption -> its error in percent of AlexNet's.
        mean_corruption_error: mCE, the mean of these.
    """

    errors: dict[str, list[float]]
    corruption_errors: dict[str, float]
    mean_corruption_error: float

    def to_table(self) -> Table:
        """Returns the errors for the terminal."""
        rows = [(kind, *errors, self.corruption_errors[kind]) for kind, errors in self.errors.items()]
        columns = ("corruption", *(f"error {severity}" for severity in range(1, SEVERITIES + 1)), "CE")
        return Table(columns, rows, f"mCE {self.mean_corruption_error:.2f} % (AlexNet = 100 %)")


def evaluate_classifier(
    checkpoint: Path,
    data_dir: Path,
    *,
    name: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    split: str = "auto",
) -> ClassReport:
    """Measures a merged classifier; warns when its run trained on some of the images.

    Args:
        checkpoint: `merged.safetensors` or `bundle.safetensors`.
        data_dir: class folders, or a data set that `name` says; classes are matched by name.
        name: a key of `samtune.tasks.classes.layouts.known.DATASETS`, or None. ImageNet-A and -R have 200 of ImageNet's
            classes, and only these may be answered.
        out: folder for `metrics.json` and `per_image.csv`, or None.
        device: auto, cpu, cuda or mps.
        split: train, val or test; auto is test. A folder without parts is taken whole.

    Raises:
        ConfigError: another split.
        CheckpointError: the file is missing, damaged or no classifier.
        DataError: an unusable folder, or classes that the model does not have.
    """
    part = "test" if split == "auto" else split
    if part not in PARTS:
        raise ConfigError(f"--split {split!r} is not for classes. Known: auto, {', '.join(PARTS)}.")
    model, info = load_merged(checkpoint, ClassDescription, device=pick_device(device))
    images = evaluation_images(data_dir, info.classes, name=name, split=part)
    if seen := trained_on(checkpoint, images):
        logger.warning(
            "%d of %d evaluated images were trained on; the numbers say nothing about new images", seen, len(images)
        )
    report = _report(model, info, images, split=part, allowed=_allowed(name, images))
    if out is not None:
        with disk_errors(out):
            report.save(out)
    return report


def evaluate_corruptions(
    checkpoint: Path, data_dir: Path, *, out: Path | None = None, device: str = "auto"
) -> CorruptionTable:
    """Measures a merged classifier on ImageNet-C (Hendrycks and Dietterich, ICLR 2019).

    Args:
        checkpoint: as of `evaluate_classifier`; its classes are ImageNet's.
        data_dir: holds CORRUPTION/SEVERITY/CLASS/ for the 15 corruptions at severities 1 to 5; others, as the four
            extra ones, are left out.
        out: folder for `corruptions.json`, or None. The file grows with every severity; one without
            `mean_corruption_error` is of a run that ended early.
        device: auto, cpu, cuda or mps.

    Raises:
        CheckpointError: the file is missing, damaged or no classifier.
        DataError: a corruption or severity is missing, or a class that the model does not have; all before the first
            image is evaluated.
        DiskError: `out` can't be written.
    """
    model, info = load_merged(checkpoint, ClassDescription, device=pick_device(device))
    parts = _all_corruptions(corruption_parts(data_dir, info.classes), data_dir)
    errors: dict[str, list[float]] = {}
    _save_corruptions({"errors": errors}, out)  # a folder that can't be written fails now, not after hours
    for (kind, _), images in parts.items():
        report = _report(model, info, images, split="test", allowed=None)
        errors.setdefault(kind, []).append(1 - report.choice)
        _save_corruptions({"errors": errors}, out)
    mean, relative = mean_corruption_error(errors)
    table = CorruptionTable(errors, relative, mean)
    _save_corruptions(asdict(table), out)
    return table


def _all_corruptions(found: Parts, folder: Path) -> Parts:
    """Returns the parts that the mean corruption error needs, in its order; all must be there."""
    wanted = list(product(ALEXNET_ERRORS, range(1, SEVERITIES + 1)))
    if missing := [f"{kind}/{severity}" for kind, severity in wanted if (kind, severity) not in found]:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} parts of ImageNet-C: {', '.join(missing[:10])}"
            f"{', ...' if len(missing) > 10 else ''}. Needed: severities 1 to {SEVERITIES} of each of "
            f"{', '.join(ALEXNET_ERRORS)}."
        )
    if others := sorted(f"{kind}/{severity}" for kind, severity in found.keys() - set(wanted)):
        logger.warning("not of the mean corruption error, left out: %s", ", ".join(others))
    return {part: found[part] for part in wanted}


def _save_corruptions(content: Mapping[str, Any], out: Path | None) -> None:
    if out is not None:
        write_json(out / "corruptions.json", content)


def _report(
    model: Backbone,
    info: ClassDescription,
    images: Sequence[LabelledImage],
    *,
    split: str,
    allowed: Sequence[int] | None,
) -> ClassReport:
    dataset = ClassDataset(
        images, image_size=info.image_size, resize=info.resize, interpolation=info.interpolation, augment="none"
    )
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=BATCH, collate_fn=collate_classes)
    with console.progress(f"evaluate {split}", len(loader)) as advance:
        return evaluate_classes(
            model, loader, classes=info.classes, split=split, allowed=allowed, on_batch=lambda *_: advance()
        )


def _allowed(name: str | None, images: Sequence[LabelledImage]) -> list[int] | None:
    return sorted({item.label for item in images}) if name in ("imagenet-a", "imagenet-r") else None
