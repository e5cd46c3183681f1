"""From a model and a loader to a report of classes: one row of counts per image first, every number derived from them.

`predict_maps` is the only way from logits to maps. `evaluate`, `predict` and the server run it in fp32, so their maps
of one image are identical.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from samtune.base.machine import pick_device
from samtune.data.formats.table import FormatName, Source
from samtune.data.maps import map_dataset
from samtune.data.pair_splits import check_pairs
from samtune.errors import ConfigError, DataError
from samtune.files.description import Description
from samtune.files.merged import load_merged
from samtune.models.backbone import evaluation_mode
from samtune.tasks.evaluate import Evaluation, measure_file
from samtune.tasks.pixels import low_logits, pairs_to_measure, to_original
from samtune.tasks.semantic.maps import ClassTable
from samtune.tasks.semantic.report import MAP_DEFINITIONS, MapReport, MapRow
from samtune.tasks.semantic.splits import kind_of
from samtune.tasks.tiles.blend import Bands, blended
from samtune.types import IGNORE, Batch, ClassMap, Size

Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]


class MapDescription(Description):
    """What a merged file of several classes says about itself.

    Attributes:
        values: what stands for each class in the files of maps.
        ignore_index: what stands for pixels that do not count.
        data_format: as `data.format` was.
        categories: those of the data that were classes, the rest background; None for all.
    """

    task: ClassVar[str] = "semantic"
    classes: tuple[str, ...] = Field(min_length=2, max_length=254)
    values: tuple[int, ...]
    ignore_index: int = Field(ge=0, le=255)
    data_format: FormatName = "auto"
    categories: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_value_each(self) -> "MapDescription":
        known = {value for value in self.values if 0 <= value <= 255 and value != self.ignore_index}
        if not len(known) == len(self.values) == len(self.classes):
            raise ValueError("values that do not fit the classes")
        return self

    def table(self) -> ClassTable:
        """Returns the classes with their values."""
        return ClassTable(self.classes, self.values, self.ignore_index)


@dataclass(frozen=True)
class MapPrediction:
    """The classes of one image, at its original size.

    Attributes:
        places: (H, W) uint8, of each pixel the place of the most likely class in the list; of equals the first.
        confidence: (H, W) float32, the probability of that class by softmax; not calibrated.
    """

    places: ClassMap
    confidence: Floats


def predict_maps(
    model: nn.Module, batch: Batch, *, sizes_original: Sequence[Size], autocast_dtype: torch.dtype | None = None
) -> list[MapPrediction]:
    """Predicts the maps of one batch at the original sizes, on the CPU: the single prediction path.

    Args:
        model: maps a `Batch` to (B, n, S/4, S/4) logits; the caller has set evaluation mode.
        batch: on the device of the model.
        sizes_original: (H, W) of each item.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of an image are not finite; the message names it.
    """
    if batch.tiles is not None:
        return [_by_tiles(blended(model, batch, autocast_dtype), sizes_original[0])]
    side = batch.images.shape[-1]
    items = zip(low_logits(model, batch, autocast_dtype), batch.sizes_input, sizes_original, strict=True)
    return [_map_of(low, side, size_input, size) for low, size_input, size in items]


def _by_tiles(bands: Bands, size: Size) -> MapPrediction:
    """Goes band by band, so that the logits of a large picture are never there at once."""
    places, confidence = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.float32)
    for rows, logits in bands:
        places[rows] = logits.argmax(axis=0)
        confidence[rows] = np.exp(logits.max(axis=0) - np.logaddexp.reduce(logits, axis=0))
    return MapPrediction(places, confidence)


def _map_of(low: Tensor, side: int, size_input: Size, size: Size) -> MapPrediction:
    """Goes class by class: all at the original size at once would be gigabytes for a large picture."""
    best = total = to_original(low[0], side, size_input, size)
    places = torch.zeros(size, dtype=torch.uint8, device=low.device)
    for place in range(1, len(low)):
        logits = to_original(low[place], side, size_input, size)
        places[logits > best] = place
        best, total = torch.maximum(best, logits), torch.logaddexp(total, logits)
    return MapPrediction(places.cpu().numpy(), (best - total).exp().cpu().numpy())


def evaluate_maps(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    classes: Sequence[str],
    split: str = "test",
    autocast_dtype: torch.dtype | None = None,
    advance: Callable[[], None] | None = None,
) -> MapReport:
    """Predicts every image of `loader` and counts its pixels at its original size, in the order of the loader.

    The model is set to evaluation mode and gets its modes back afterwards, also after an error.

    Args:
        model: maps a `Batch` to (B, n, S/4, S/4) logits.
        loader: batches that carry `truths`.
        classes: names of the model's classes, in the order of its logits.

    Raises:
        DataError: the loader is empty.
        NonFiniteError: the logits of an image are not finite.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows: list[MapRow] = []
    with evaluation_mode(model):
        for batch in loader:
            sizes = [truth.shape for truth in batch.truths]
            found = predict_maps(model, batch.to(device), sizes_original=sizes, autocast_dtype=autocast_dtype)
            triples: Any = zip(batch.names, found, batch.truths, strict=True)
            rows += [MapRow.of(name, prediction.places, truth) for name, prediction, truth in triples]
            if advance is not None:
                advance()
    if not rows:
        raise DataError(f"the {split} loader has no batch: nothing to evaluate. Check data.dir and data.split.")
    return MapReport(tuple(rows), split, tuple(classes), dict(MAP_DEFINITIONS))


def evaluate_map_file(request: Evaluation) -> MapReport:
    """Measures a merged file on a folder of pairs, or one with parts; raises what `Task.evaluate_file` says."""
    if request.name is not None:
        raise ConfigError(f"--name {request.name!r} is for classification; {request.checkpoint} tells pixels apart.")
    if request.metrics:
        raise ConfigError(f"--metrics {request.metrics[0]!r} is of one mask; all metrics of classes are shown anyway.")
    model, info = load_merged(request.checkpoint, MapDescription, device=pick_device(request.device))
    table = info.table()
    names = dict(zip(table.values, table.names, strict=True))
    source = Source(info.data_format, info.categories).found_in(request.data)
    kind = kind_of(request.data, names, table.ignore, trains=False, source=source, pixels=info.pixels)
    pairs, part = pairs_to_measure(request.data, request.split, kind)
    check_pairs(pairs, kind)
    dataset = map_dataset(info.tiling, info.image_size)(pairs, table.places, outside=IGNORE, pixels=info.pixels)
    loader = DataLoader(dataset, batch_size=1, collate_fn=dataset.collate)
    measured = partial(evaluate_maps, model, loader, classes=info.classes, split=part)
    return measure_file(request, pairs, lambda step: measured(advance=step), part=part, batches=len(loader))
