"""From a classifier and images to a report: one row per image first, every other number derived from the rows.

`class_logits` is the only way from images to logits, so `evaluate` and `predict` answer the same for one image, up to
rounding: the last bits of a probability may differ between a batch of 32 and one of 1.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from samtune.base.machine import pick_device
from samtune.data.splits import PARTS
from samtune.errors import ConfigError, DataError
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone, evaluation_mode
from samtune.tasks.classes.dataset import ClassDataset, collate_classes
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.report import CLASS_DEFINITIONS, TOP_K, ClassReport, ClassRow
from samtune.tasks.classes.splits import LabelledImage, evaluation_images
from samtune.tasks.evaluate import Evaluation, check_finite, measure_file
from samtune.types import LabelledBatch

BATCH = 32  # images per forward pass of a file's evaluation


def evaluate_classifier(request: Evaluation) -> ClassReport:
    """Measures a merged classifier on a folder; warns when its run trained on some of the images.

    The folder is read by `evaluation_images`; split "auto" is test. Of ImageNet-A and ImageNet-R, 200 of ImageNet's
    classes, only these may be answered.

    Raises:
        ConfigError: another split.
        CheckpointError: the file is missing, damaged or no classifier.
        DataError: an unusable folder, or classes that the model does not have.
    """
    part = "test" if request.split == "auto" else request.split
    if part not in PARTS:
        raise ConfigError(f"--split {request.split!r} is not for classes. Known: auto, {', '.join(PARTS)}.")
    model, info = load_merged(request.checkpoint, ClassDescription, device=pick_device(request.device))
    images = evaluation_images(request.data, info.classes, name=request.name, split=part)
    subset = request.name in ("imagenet-a", "imagenet-r")
    allowed = sorted({item.label for item in images}) if subset else None
    loader = image_loader(info, images)

    def measure(step: Callable[[], None]) -> ClassReport:
        return evaluate_classes(model, loader, classes=info.classes, split=part, allowed=allowed, advance=step)

    return measure_file(request, images, measure, part=part, batches=len(loader))


def image_loader(info: ClassDescription, images: Sequence[LabelledImage]) -> DataLoader[Any]:
    """Returns batches of images in order, as the model of a file takes them."""
    return DataLoader(ClassDataset(images, info.view()), batch_size=BATCH, collate_fn=collate_classes)


def evaluate_classes(
    model: nn.Module,
    loader: Iterable[LabelledBatch],
    *,
    classes: Sequence[str],
    split: str = "test",
    autocast_dtype: torch.dtype | None = None,
    allowed: Sequence[int] | None = None,
    advance: Callable[[], None] | None = None,
) -> ClassReport:
    """Classifies every image of `loader`, in its order.

    The model is set to evaluation mode and gets its modes back afterwards, also after an error.

    Args:
        model: maps a `LabelledBatch` to (B, classes) logits.
        classes: names of the model's classes, in the order of its logits.
        allowed: indices of the classes that may be answered, such as the 200 of ImageNet-A, or None for all. The
            report is then of these classes only, in this order.

    Raises:
        ConfigError: the model has not one logit per class, or `allowed` is no subset of the classes.
        DataError: the loader is empty, or a label is not allowed.
        NonFiniteError: the logits of an image are not finite.
    """
    kept = _kept(allowed, len(classes))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows: list[ClassRow] = []
    with evaluation_mode(model):
        for batch in loader:
            logits = class_logits(model, batch.to(device), autocast_dtype=autocast_dtype)
            if logits.shape[1] != len(classes):
                raise ConfigError(
                    f"the model has {logits.shape[1]} outputs for {len(classes)} classes; "
                    "build it for the classes of the data."
                )
            rows += class_rows(batch.names, logits[:, kept], _positions(batch, kept))
            if advance is not None:
                advance()
    if not rows:
        raise DataError(f"the {split} loader has no batch: nothing to evaluate. Check data.dir and data.{split}.")
    names = tuple(classes[index] for index in kept)
    return ClassReport(tuple(rows), split, names, _definition(len(names), len(classes)))


def class_logits(model: nn.Module, batch: LabelledBatch, *, autocast_dtype: torch.dtype | None = None) -> Tensor:
    """Returns the (B, classes) logits of a batch, fp32 on the CPU: the single prediction path.

    Args:
        model: maps a `LabelledBatch` to (B, classes) logits; the caller has set evaluation mode.
        batch: on the device of the model; its labels are not looked at.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of an image are not finite; the message names it.
    """
    with torch.no_grad(), torch.autocast(batch.images.device.type, autocast_dtype, enabled=autocast_dtype is not None):
        logits: Tensor = model(batch)
    logits = logits.detach().float().cpu()
    check_finite(logits, batch.names)
    return logits


def class_rows(names: Sequence[str], logits: Tensor, labels: Tensor) -> list[ClassRow]:
    """Measures (B, C) fp32 logits against (B,) labels. Ties count against the model: see `ClassRow.rank`."""
    rivals = logits.scatter(1, labels[:, None], -torch.inf)
    ranks = (rivals >= logits.gather(1, labels[:, None])).sum(dim=1)
    predicted = torch.where(ranks == 0, labels, rivals.argmax(dim=1))
    probabilities = logits.softmax(dim=1)
    own, best = (probabilities.gather(1, wanted[:, None])[:, 0] for wanted in (labels, predicted))
    columns = [values.tolist() for values in (labels, predicted, ranks, own, best)]
    return [ClassRow(*values) for values in zip(names, *columns, strict=True)]


@contextmanager
def head_inputs(model: Backbone, *, every: int) -> Iterator[Callable[[], Tensor]]:
    """Collects the features that reach the head while the block runs: yields what returns them, (n, C) fp16 on the CPU.

    Args:
        model: a classifier that knows its head.
        every: of the images in the order of the forward passes, each so-manieth is kept, from the first; 0: none.

    Raises:
        ConfigError: the model has no head.
    """
    head = model.head_module()
    if head is None:
        raise ConfigError(f"{model.name} has no head, so there are no features before it. Use a classifier.")
    parts: list[Tensor] = []
    seen = 0

    def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        if every:
            parts.append(inputs[0][-seen % every :: every].detach().to("cpu", torch.float16))
        seen += len(inputs[0])

    handle = model.net.get_submodule(head).register_forward_pre_hook(collect)
    try:
        yield lambda: torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float16)
    finally:
        handle.remove()


def _kept(allowed: Sequence[int] | None, count: int) -> list[int]:
    """Returns the indices of the classes that may be answered."""
    if allowed is None:
        return list(range(count))
    wrong = sorted({index for index in allowed if not 0 <= index < count})
    if wrong or not allowed or len(set(allowed)) != len(allowed):
        about = f"{wrong} are not classes" if wrong else "there are none" if not allowed else "some occur twice"
        raise ConfigError(f"allowed classes must be different indices from 0 to {count - 1}, but {about}.")
    return list(allowed)


def _positions(batch: LabelledBatch, kept: list[int]) -> Tensor:
    """Returns the labels of a batch as positions in `kept`."""
    places = {label: place for place, label in enumerate(kept)}
    for name, label in zip(batch.names, batch.labels.tolist(), strict=True):
        if label not in places:
            raise DataError(f"{name} has class {label}, which is not among the {len(kept)} classes of this evaluation.")
    return torch.tensor([places[label] for label in batch.labels.tolist()])


def _definition(kept: int, count: int) -> dict[str, str]:
    """Returns a sentence per number; a restricted choice of classes is said with each accuracy."""
    only = f" Only {kept} of the model's {count} classes may be answered." if kept < count else ""
    said = CLASS_DEFINITIONS | {n: CLASS_DEFINITIONS[n] + only for n in ("top1", "top5", "mean_per_class")}
    return {name: text for name, text in said.items() if name != "top5" or kept > TOP_K}
