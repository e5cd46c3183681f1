"""ImageNet-C: which images it has, and the errors of a classifier on them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samtune import console
from samtune.base.disk import write_json
from samtune.base.machine import pick_device
from samtune.console import Table
from samtune.data.verify import list_problems
from samtune.errors import DataError
from samtune.files.merged import load_merged
from samtune.metrics.corruption import ALEXNET_ERRORS, SEVERITIES, mean_corruption_error
from samtune.models.backbone import Backbone
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.evaluate import evaluate_classes, image_loader
from samtune.tasks.classes.layouts.known import read_layout
from samtune.tasks.classes.report import ClassReport
from samtune.tasks.classes.splits import LabelledImage, label_images, refuse_unknown
from samtune.tasks.evaluate import Evaluation

logger = logging.getLogger(__name__)

Parts = dict[str, list[LabelledImage]]
"""CORRUPTION/SEVERITY to its images."""


@dataclass(frozen=True)
class CorruptionTable:
    """The top-1 errors in [0, 1] of each corruption at severities 1 to 5, in percent of AlexNet's, and their mean."""

    errors: dict[str, list[float]]
    corruption_errors: dict[str, float]
    mean_corruption_error: float

    def to_table(self) -> Table:
        """Returns the errors for the terminal."""
        rows = [(kind, *errors, self.corruption_errors[kind]) for kind, errors in self.errors.items()]
        columns = ("corruption", *(f"error {severity}" for severity in range(1, SEVERITIES + 1)), "CE")
        return Table(columns, rows, f"mCE {self.mean_corruption_error:.2f} % (AlexNet = 100 %)")


def evaluate_corruptions(request: Evaluation) -> CorruptionTable:
    """Measures a merged classifier of ImageNet's classes on ImageNet-C (Hendrycks and Dietterich, ICLR 2019).

    The folder holds CORRUPTION/SEVERITY/CLASS/ for the 15 corruptions at severities 1 to 5; others, as the four extra
    ones, are left out. `corruptions.json` grows with every severity; one without `mean_corruption_error` is of a run
    that ended early.

    Raises:
        CheckpointError: the file is missing, damaged or no classifier.
        DataError: a part is missing, or a class that the model does not have; before the first image is evaluated.
        DiskError: `out` can't be written.
    """
    model, info = load_merged(request.checkpoint, ClassDescription, device=pick_device(request.device))
    parts = _all_corruptions(corruption_parts(request.data, info.classes), request.data)
    errors: dict[str, list[float]] = {}
    _save_corruptions({"errors": errors}, request.out)  # a folder that can't be written fails now, not after hours
    for part, images in parts.items():
        errors.setdefault(part.split("/")[0], []).append(1 - _report(model, info, images).choice)
        _save_corruptions({"errors": errors}, request.out)
    mean, relative = mean_corruption_error(errors)
    table = CorruptionTable(errors, relative, mean)
    _save_corruptions(asdict(table), request.out)
    return table


def corruption_parts(folder: str | Path, classes: Sequence[str]) -> Parts:
    """Lists the images of ImageNet-C with the labels of a model, each part sorted; they are too many to be decoded now.

    Args:
        folder: holds CORRUPTION/SEVERITY/WNID/*.JPEG, or a folder `imagenet-c` with these.
        classes: names of the model's classes.

    Raises:
        DataError: another layout, or a class that the model doesn't know.
    """
    layout = read_layout(folder, "imagenet-c")
    if layout.problems:
        raise DataError(list_problems(f"{layout.root} can't be used", layout.problems))
    refuse_unknown(layout, [named for part in layout.parts.values() for named in part], classes)
    return {part: label_images(images, classes, layout.root) for part, images in layout.parts.items()}


def _all_corruptions(found: Parts, folder: Path) -> Parts:
    """Returns the parts that the mean corruption error needs, in its order; all must be there."""
    wanted = [f"{kind}/{severity}" for kind in ALEXNET_ERRORS for severity in range(1, SEVERITIES + 1)]
    if missing := [part for part in wanted if part not in found]:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} parts of ImageNet-C: {', '.join(missing[:10])}"
            f"{', ...' if len(missing) > 10 else ''}. Needed: severities 1 to {SEVERITIES} of each of "
            f"{', '.join(ALEXNET_ERRORS)}."
        )
    if others := sorted(found.keys() - set(wanted)):
        logger.warning("not of the mean corruption error, left out: %s", ", ".join(others))
    return {part: found[part] for part in wanted}


def _report(model: Backbone, info: ClassDescription, images: Sequence[LabelledImage]) -> ClassReport:
    loader = image_loader(info, images)
    with console.progress("evaluate test", len(loader)) as advance:
        return evaluate_classes(model, loader, classes=info.classes, advance=advance)


def _save_corruptions(content: Mapping[str, Any], out: Path | None) -> None:
    if out is not None:
        write_json(out / "corruptions.json", content)
