"""Which prompts does a model still answer after it was tuned? Measured on pictures of val and on generated scenes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from samtune.data.frames import Collate
from samtune.errors import DataError
from samtune.metrics.overlap import dice
from samtune.metrics.report import AnyReport, Kept
from samtune.models.backbone import Backbone, evaluation_mode
from samtune.report.page import Section, Table, percent
from samtune.tasks.pixels import to_original
from samtune.tasks.probe.answers import KINDS, dice_by_prompt
from samtune.tasks.probe.parts import boxes_of, part_around
from samtune.tasks.probe.scenes import SCENES, scene_batches
from samtune.tasks.prompts import numbered_components
from samtune.types import Batch, Sample, Tiles

ReportT = TypeVar("ReportT", bound=AnyReport)
NONE = "none"
WORDS = {NONE: "no prompt", **KINDS}
PLACES = {"val": "Val", "scenes": "Scenes"}
OBJECTS = 8  # of a picture, at most
FALL, KNOWN = 0.1, 0.5
"""By so much the mean Dice by a prompt must fall to be lost, and so much it must have been to have been there."""
DEFINITION = (
    f"Mean Dice before and after tuning, in the input frame: over objects, at most {OBJECTS} of a picture, by box, one "
    "click, and that click with two in the largest errors; over pictures of the whole foreground without a prompt. Of "
    f"pictures of val, spread over it, and of at most {SCENES} generated scenes, eval.prompts of each at most; with "
    "data.tiles a picture of val is a part of one, as large as a tile, around one of its objects. The "
    "prompts come from the true objects: with those of a person the numbers would be lower."
)


def measure_kept(model: Backbone, val: Iterable[Batch], *, pictures: int, unprompted: bool) -> Kept:
    """Returns place -> kind of prompt -> mean Dice; a place without an object is left out.

    Args:
        val: pictures of one each, whose masks and truths are maps of objects in the input frame.
        pictures: of the scenes, at most.
        unprompted: whether the model also answers without a prompt.
    """
    scenes = scene_batches(pictures, model.image_size, model.channels)
    with evaluation_mode(model):
        measured = {place: _mean(model, of, unprompted) for place, of in (("val", val), ("scenes", scenes))}
    return {place: found for place, found in measured.items() if found}


def object_batches(dataset: Dataset[Sample], side: int, tiles: Tiles | None = None) -> Iterator[Batch]:
    """Yields the pictures of a dataset of masks or maps of objects for `measure_kept`, in the frame of S = `side`.

    The objects of a mask are its `components`.

    Args:
        tiles: how the model sees pictures, which are whole in the dataset: in place of each, the part around the object
            in the middle of its numbers is given; none of a picture without an object.
    """
    for index in range(len(dataset)):  # type: ignore[arg-type]
        sample = dataset[index]
        mask = sample.mask.numpy()
        labels = numbered_components(mask) if mask.dtype == np.bool_ else mask
        if tiles is not None:
            if not (boxes := list(boxes_of(labels).values())):
                continue
            image = sample.image.permute(1, 2, 0).numpy()
            sample = part_around(sample.name, image, labels, boxes[len(boxes) // 2], tiles)
            labels = sample.mask.numpy()
        yield Collate(side)([replace(sample, mask=torch.from_numpy(labels), truth=labels)])


def measured_before(load: Callable[[Path], ReportT], run: Path) -> ReportT | None:
    """Returns the report of the untuned model of a run folder; None where it was not measured."""
    try:
        return load(run / "before")
    except DataError:
        return None


def lost(now: Kept, before: Kept, remedy: str) -> list[str]:
    """Returns a sentence on the kinds of prompt that a model answers clearly worse than before it was tuned."""
    falls = [
        f"by {WORDS[kind]} from {old:.3f} to {now[place][kind]:.3f} on {place}"
        for place, kinds in before.items()
        for kind, old in kinds.items()
        if old >= KNOWN and old - now.get(place, {}).get(kind, old) > FALL
    ]
    return [f"prompts were lost in tuning: mDice fell {'; '.join(falls)}. {remedy}"] if falls else []


def kept_sections(now: Kept, before: Kept) -> list[Section]:
    """Returns the table of the Dice by prompt, before and after; none where it was not measured.

    Args:
        now: place -> kind of prompt -> mean Dice; a place of `PLACES`, or the name of another with its own pictures.
        before: the same of the untuned model, as far as it is known.
    """
    kinds = [kind for kind in WORDS if any(kind in found for found in now.values())]
    if not kinds:
        return []
    columns: dict[str, Any] = {"Prompt": "words"}
    rows = [[WORDS[kind]] for kind in kinds]
    for place, found in now.items():
        named = PLACES.get(place, place)
        columns |= {f"{named}, before": "number", f"{named}, after": "number"}
        for row, kind in zip(rows, kinds, strict=True):
            row += [percent(before.get(place, {}).get(kind)), percent(found.get(kind))]
    return [Section("Prompts", f"In percent. {DEFINITION}", tables=[Table(columns, rows)])]


@torch.no_grad()
def _mean(model: Backbone, batches: Iterable[Batch], unprompted: bool) -> Mapping[str, float]:
    sums: dict[str, float] = {}
    objects = pictures = 0
    for batch in batches:
        batch = batch.to(model.device)
        answer = model.answering(batch)
        count, by_kind = dice_by_prompt(answer, batch, OBJECTS)
        if not count:
            continue
        objects, pictures = objects + count, pictures + 1
        for kind, value in by_kind.items():
            sums[kind] = sums.get(kind, 0.0) + count * value
        if unprompted:
            sums[NONE] = sums.get(NONE, 0.0) + _foreground_dice(answer(None, None), batch)
    return {kind: total / (pictures if kind == NONE else objects) for kind, total in sums.items()}


def _foreground_dice(low: Tensor, batch: Batch) -> float:
    """Returns the Dice of the whole foreground of a batch of one, by the first of its maps of logits."""
    side, truth = batch.images.shape[-1], batch.truths[0]
    found = to_original(low[0, 0], side, batch.sizes_input[0], truth.shape) > 0
    return dice(found.cpu().numpy(), truth > 0)
