"""From a model and a loader to a report of instances: one row per image first, every number derived from the rows.

`predict_instances` is the only way from maps to objects. `evaluate`, `predict` and the server run it in fp32, so their
objects of one image are identical.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import field_validator
from scipy.special import expit  # type: ignore[import-untyped]
from torch import nn
from torch.utils.data import DataLoader

from samtune.base.machine import pick_device
from samtune.config.pixels import Pixels
from samtune.data.formats.table import FormatName, Source
from samtune.data.frames import resize
from samtune.data.maps import map_dataset
from samtune.data.pair_splits import check_pairs
from samtune.errors import ConfigError, DataError
from samtune.files.description import Description
from samtune.files.merged import load_merged
from samtune.metrics.instances import match
from samtune.models.backbone import evaluation_mode
from samtune.models.segmenter import Segmenter
from samtune.tasks.evaluate import Evaluation, measure_file
from samtune.tasks.instances.layouts.splits import kind_of
from samtune.tasks.instances.objects import read_objects, renumbered
from samtune.tasks.instances.prompts.prompting import grid_instances, grid_of_tiles
from samtune.tasks.instances.report import INSTANCE_DEFINITIONS, InstanceReport, InstanceRow
from samtune.tasks.instances.separate import MAPS, separate
from samtune.tasks.pixels import low_logits, pairs_to_measure, to_original
from samtune.tasks.probe.answers import prompted_dice
from samtune.tasks.tiles.blend import blended
from samtune.tasks.tiles.join import join_strips
from samtune.types import Batch, Instances, Size


class InstanceDescription(Description):
    """What a merged file of instances says about itself; its classes are the three maps.

    Attributes:
        data_format: as `data.format` was.
        categories: those of the data that were objects; None for all.
    """

    task: ClassVar[str] = "instances"
    data_format: FormatName = "auto"
    categories: tuple[str, ...] | None = None

    @field_validator("classes")
    @classmethod
    def _the_maps(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes != MAPS:
            raise ValueError(f"other maps than {', '.join(MAPS)}")
        return classes


def predict_instances(
    model: nn.Module, batch: Batch, *, sizes_original: Sequence[Size], autocast_dtype: torch.dtype | None = None
) -> list[Instances]:
    """Finds the objects of one batch at the original sizes, on the CPU: the single prediction path.

    A picture with tiles is answered tile by tile, and its objects are found strip by strip, see `join_strips`.

    Args:
        model: maps a `Batch` to (B, 3, S/4, S/4) logits of the maps; the caller has set evaluation mode.
        batch: on the device of the model.
        sizes_original: (H, W) of each item.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of an image are not finite; the message names it.
    """
    if batch.tiles is not None:
        bands = ((rows, expit(logits)) for rows, logits in blended(model, batch, autocast_dtype))
        return [join_strips(bands, sizes_original[0], separate)]
    side, found = batch.images.shape[-1], []
    for low, size_input, size in zip(
        low_logits(model, batch, autocast_dtype), batch.sizes_input, sizes_original, strict=True
    ):
        maps = [to_original(one, side, size_input, size).sigmoid().cpu().numpy() for one in low]
        found.append(separate(np.stack(maps)))
    return found


def evaluate_instances(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    split: str = "test",
    prompts: bool = True,
    autocast_dtype: torch.dtype | None = None,
    advance: Callable[[], None] | None = None,
) -> InstanceReport:
    """Finds the objects of every image of `loader` and measures them at its original size, in the loader's order.

    An untuned model, whose maps mean nothing yet, answers a grid of clicks instead. The model is set to evaluation mode
    and gets its modes back afterwards, also after an error.

    Args:
        model: a Segment Anything with maps.
        loader: batches that carry `truths`.
        prompts: also ask for true objects by box and clicks.

    Raises:
        DataError: the loader is empty.
        NonFiniteError: the logits of an image are not finite.
    """
    sam = cast(Segmenter, model)
    rows: list[InstanceRow] = []
    with evaluation_mode(model):
        for batch in loader:
            batch = batch.to(sam.device)
            if sam.classes is not None and sam.classes.fresh:
                found = [_by_grid(sam, batch, item) for item in range(len(batch))]
            else:
                sizes = [truth.shape for truth in batch.truths]
                found = predict_instances(model, batch, sizes_original=sizes, autocast_dtype=autocast_dtype)
            asked: list[Any] = prompted_dice(sam, batch) if prompts else [(0, {})] * len(batch)
            for name, one, truth, by_prompt in zip(batch.names, found, batch.truths, asked, strict=True):
                rows.append(InstanceRow(name, match(one, renumbered(truth)[0]), *by_prompt))
            if advance is not None:
                advance()
    if not rows:
        raise DataError(f"the {split} loader has no batch: nothing to evaluate. Check data.dir and data.split.")
    return InstanceReport(tuple(rows), split, dict(INSTANCE_DEFINITIONS))


def evaluate_instance_file(request: Evaluation) -> InstanceReport:
    """Measures a merged file on a folder of pairs, or one with parts; raises what `Task.evaluate_file` says."""
    if request.name is not None:
        raise ConfigError(f"--name {request.name!r} is for classification; {request.checkpoint} finds objects.")
    if request.metrics:
        raise ConfigError(f"--metrics {request.metrics[0]!r} is of one mask; all metrics of objects are shown anyway.")
    model, info = load_merged(request.checkpoint, InstanceDescription, device=pick_device(request.device))
    source = Source(info.data_format, info.categories).found_in(request.data)
    kind = replace(kind_of(request.data, source), pixels=info.pixels, tuned=True)
    pairs, part = pairs_to_measure(request.data, request.split, kind)
    check_pairs(pairs, kind)
    dataset = map_dataset(info.tiling, info.image_size)(pairs, read_objects, outside=0, pixels=info.pixels)
    loader = DataLoader(dataset, batch_size=1, collate_fn=dataset.collate)
    measured = partial(evaluate_instances, model, loader, split=part)
    return measure_file(request, pairs, lambda step: measured(advance=step), part=part, batches=len(loader))


def _by_grid(model: Segmenter, batch: Batch, item: int) -> Instances:
    """Answers a grid of clicks on the picture in the input frame, or on each of its tiles, at the original size."""
    height, width = batch.sizes_input[item]
    picture: Any = batch.images[item, :, :height, :width].permute(1, 2, 0).cpu().numpy()
    pixels = Pixels(len(batch.images[item]), None if picture.dtype == np.uint8 else (0, 255))
    if batch.tiles is not None:
        return grid_of_tiles(model, picture, batch.tiles, pixels=pixels)
    found = grid_instances(model, np.ascontiguousarray(picture), pixels=pixels)
    labels, numbers = renumbered(resize(found.labels, batch.truths[item].shape))
    return Instances(labels, found.scores[numbers - 1])
