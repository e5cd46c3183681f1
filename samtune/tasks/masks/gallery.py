"""The pictures and the page of a run: best, median and worst test cases, and `report.html`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from samtune.data.pictures import read_image
from samtune.models.backbone import Backbone
from samtune.tasks.masks.dataset import Collate, SegmentationDataset
from samtune.tasks.masks.draw import Case, pick_cases, save_overlays
from samtune.tasks.masks.evaluate import predict_batch
from samtune.tasks.masks.pairs import Pair
from samtune.tasks.masks.report import Report


def save_gallery(
    folder: Path, model: Backbone, dataset: SegmentationDataset, pairs: Sequence[Pair], report: Report, *, each: int
) -> list[tuple[str, Path]]:
    """Draws the cases of a report that a person should see.

    Args:
        folder: gets one PNG per case.
        model: what the report is of, in eval mode.
        dataset: the items that were evaluated.
        pairs: where their images are.
        report: chooses the cases.
        each: number of best, of median and of worst cases; 0 draws nothing.

    Returns:
        (caption, file) of each case.
    """
    cases = pick_cases(report, each=each) if each else []
    files = save_overlays(folder, _cases(model, dataset, pairs, [name for _, name in cases]))
    dice = {row.name: row.dice for row in report.rows}
    return [(f"{label}: {name}, Dice {dice[name]:.3f}", f) for (label, name), f in zip(cases, files, strict=True)]


def _cases(model: Backbone, dataset: SegmentationDataset, pairs: Sequence[Pair], names: list[str]) -> Iterator[Case]:
    """Yields (name, image, truth, prediction) of items by name, by the one prediction path."""
    numbers = {name: number for number, name in enumerate(dataset.names)}
    images = {pair.name: pair.image for pair in pairs}
    for name in names:
        sample = dataset[numbers[name]]
        batch = Collate(model.image_size)([sample]).to(model.device)
        (prediction,) = predict_batch(model, batch, sizes_original=[sample.truth.shape])
        image = read_image(images[name if name in images else name.rpartition("#")[0]])
        yield name, image, sample.truth, prediction.mask
