"""What the evaluations of all tasks share: the request, the measuring of a file, and the check of logits."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from samtune import console
from samtune.base.disk import disk_errors
from samtune.data.splits import Item, trained_on
from samtune.errors import NonFiniteError
from samtune.metrics.report import AnyReport

logger = logging.getLogger(__name__)

ReportT = TypeVar("ReportT", bound=AnyReport)
Step = Callable[..., None]


@dataclass(frozen=True)
class Evaluation:
    """What `samtune evaluate` asks for.

    Attributes:
        checkpoint: a merged file or bundle.
        data: folder of images with their truth.
        out: folder for the report's files; None writes none.
        split: part to measure: auto, all, train, val or test.
        metrics: names of further metrics.
        name: of a known data set, or None.
    """

    checkpoint: Path
    data: Path
    out: Path | None = None
    device: str = "auto"
    split: str = "auto"
    metrics: tuple[str, ...] = ()
    name: str | None = None


def measure_file(
    request: Evaluation, items: Sequence[Item], measure: Callable[[Step], ReportT], *, part: str, batches: int
) -> ReportT:
    """Measures a file with progress, warns when its run trained on some of the images, and saves the report.

    `measure` makes the report; its argument is to be called after each batch, with anything.
    """
    if seen := trained_on(request.checkpoint, items):
        logger.warning(
            "%d of %d evaluated images were trained on; the numbers say nothing about new images", seen, len(items)
        )
    with console.progress(f"evaluate {part}", batches) as advance:
        report = measure(lambda *_: advance())
    if request.out is not None:
        with disk_errors(request.out):
            report.save(request.out)
    return report


def check_finite(logits: Tensor, names: Sequence[str]) -> None:
    """Raises a `NonFiniteError` that names the images with NaN or infinity in (B, ...) logits, one image per row."""
    finite = logits.isfinite().flatten(1).all(dim=1).tolist()
    if bad := [name for name, good in zip(names, finite, strict=True) if not good]:
        raise NonFiniteError(
            f"the logits of {', '.join(bad)} are not finite. "
            "The weights are damaged or the training diverged; lower the learning rate, or run in fp32."
        )
