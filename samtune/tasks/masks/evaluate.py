"""From a model and a loader to a report: one row per image first, every other number derived from the rows.

`predict_batch` is the only way from logits to masks. `evaluate`, `predict` and the server run it in fp32, so their
masks of one image are identical.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader

from samtune.base.machine import pick_device
from samtune.data.formats.table import FormatName, Source
from samtune.data.pair_splits import check_pairs
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.files.description import Description
from samtune.files.merged import load_merged
from samtune.metrics.table import DEFINITIONS, METRICS, POOLED_METRICS, PROBABILITY_METRICS
from samtune.models.backbone import evaluation_mode
from samtune.tasks.evaluate import Evaluation, measure_file
from samtune.tasks.masks.dataset import mask_dataset
from samtune.tasks.masks.report import DEFAULT_METRICS, EMPTY_METRICS, ROW_METRICS, SIZES, Report, Row
from samtune.tasks.masks.splits import kind_of
from samtune.tasks.pixels import pairs_to_measure
from samtune.tasks.prompted import predict_batch
from samtune.types import Batch, MaskArray, Prediction, PromptMode

FROM_TRUTH = "The prompts come from the true masks: with those of a person the numbers would be lower."


class MaskDescription(Description):
    """What a merged file of segmentation says about itself.

    Attributes:
        prompt: prompt mode that it was tuned with, and is measured and asked with by default.
        prompts: all that it was tuned with, where they are several.
        data_format: as `data.format` was.
        categories: those of the data whose objects were the foreground; None for all.
        threshold: pixels of a higher probability are foreground; always 0.5 in this format.
    """

    task: ClassVar[str] = "segmentation"
    prompt: PromptMode
    prompts: tuple[PromptMode, ...] | None = None
    threshold: float = Field(0.5, ge=0.5, le=0.5)
    data_format: FormatName = "auto"
    categories: tuple[str, ...] | None = None


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    split: str = "test",
    autocast_dtype: torch.dtype | None = None,
    on_batch: Callable[[Batch, list[Prediction]], None] | None = None,
) -> Report:
    """Predicts every image of `loader` and measures it at its original size; rows are in the order of the loader.

    The model is set to evaluation mode and gets its modes back afterwards, also after an error.

    Args:
        model: maps a `Batch` to (B, 1, S/4, S/4) float logits.
        loader: batches that carry `truths`; any device.
        metrics: names beyond those of every row; `hd95` and `surface_dice` cost far more time than the rest.
        on_batch: called with each batch and its predictions, for a progress bar or pictures.

    Raises:
        ConfigError: a metric is unknown.
        DataError: the loader is empty or has no truths.
        NonFiniteError: the logits of an image are not finite.
    """
    known = {**METRICS, **PROBABILITY_METRICS, **POOLED_METRICS}
    if unknown := [name for name in metrics if name not in known]:
        raise ConfigError(" ".join(unknown_name("metric", name, known) for name in unknown))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows: list[Row] = []
    unit = "image"
    with evaluation_mode(model):
        for batch in loader:
            unit = "image" if batch.prompts is None else "object"
            if len(batch.truths) != len(batch):
                found = f"{len(batch.truths)} truths for {len(batch)} images"
                needed = "evaluation needs the mask of every image at its original size."
                raise DataError(f"the batch of {', '.join(batch.names)} has {found}; {needed}")
            sizes = [truth.shape for truth in batch.truths]
            predictions = predict_batch(model, batch.to(device), sizes_original=sizes, autocast_dtype=autocast_dtype)
            triples = zip(batch.names, predictions, batch.truths, strict=True)
            rows += [measure(*triple, metrics=metrics) for triple in triples]
            if on_batch is not None:
                on_batch(batch, predictions)
    if not rows:
        raise DataError(f"the {split} loader has no batch: nothing to evaluate. Check data.dir and data.split.")
    return Report(rows=tuple(rows), split=split, definition=_definition(metrics, unit))


def evaluate_file(request: Evaluation) -> Report:
    """Measures a merged file on a folder of pairs, or one with parts; raises what `Task.evaluate_file` says."""
    if request.name is not None:
        raise ConfigError(f"--name {request.name!r} is for classification; {request.checkpoint} segments.")
    model, info = load_merged(request.checkpoint, MaskDescription, device=pick_device(request.device))
    source = Source(info.data_format, info.categories).found_in(request.data)
    kind = replace(kind_of(request.data, source), pixels=info.pixels, tuned=True)
    pairs, part = pairs_to_measure(request.data, request.split, kind)
    check_pairs(pairs, kind)
    dataset = mask_dataset(info.tiling, info.image_size)(pairs, prompt=info.prompt, pixels=info.pixels)
    loader = DataLoader(dataset, batch_size=1, collate_fn=dataset.collate)
    measured = partial(evaluate, model, loader, metrics=(*DEFAULT_METRICS, *request.metrics), split=part)
    return measure_file(request, pairs, lambda step: measured(on_batch=step), part=part, batches=len(loader))


def measure(name: str, found: Prediction, truth: MaskArray, *, metrics: Sequence[str] = DEFAULT_METRICS) -> Row:
    """Measures one prediction; arguments as in `evaluate`. Pooled metrics are left to the report.

    Without an object in the truth, Dice, IoU, precision and recall are NaN: there is nothing to overlap.
    """
    extra = {"truth_share": float(truth.mean())}
    for metric in metrics:
        if metric in PROBABILITY_METRICS:
            extra[metric] = PROBABILITY_METRICS[metric](found.probability, truth)
        elif metric in METRICS and metric not in ROW_METRICS:
            extra[metric] = METRICS[metric](found.mask, truth)
    truth_px, pred_px = int(truth.sum()), int(found.mask.sum())
    values = {m: METRICS[m](found.mask, truth) if truth_px else math.nan for m in ROW_METRICS}
    return Row(name=name, truth_px=truth_px, pred_px=pred_px, extra=extra, **values)


def _definition(metrics: Sequence[str], unit: str) -> dict[str, str]:
    """Returns a sentence per number; with a prompt the unit is the object, and the bootstrap still draws images."""
    sizes = [f"{size}_{metric}" for size in SIZES for metric in ("images", "dice", "iou")]
    names = dict.fromkeys(["mDice", "mIoU", "ci95", *ROW_METRICS, *metrics, *sizes, *EMPTY_METRICS])
    definition = {name: re.sub(r"\bimage", unit, DEFINITIONS[name]) for name in names}
    if unit == "object":
        drawn = "1000 resamples of the images, each with all its objects"
        definition["ci95"] = definition["ci95"].replace("1000 resamples", drawn)
        definition |= {name: f"{definition[name]} {FROM_TRUTH}" for name in ("mDice", "mIoU")}
    return definition
