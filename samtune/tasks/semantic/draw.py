"""How is a person shown maps of classes? Pictures beside their maps, with a legend, and the classes that go wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from samtune.base.figures import ACCENT, INK, new_axes
from samtune.data.channels.read import read_pixels, shown
from samtune.data.formats.index_pictures import distinct_colours
from samtune.data.maps import MapDataset
from samtune.models.backbone import Backbone
from samtune.report.confusion import draw_confusion, short_name
from samtune.report.page import Chart, Picture, Section, Table, percent
from samtune.tasks.panels import INK as LIGHT
from samtune.tasks.panels import PAPER, captioned, panel_scale, pick_cases, save_panels, scaled, side_by_side
from samtune.tasks.semantic.evaluate import predict_maps
from samtune.tasks.semantic.report import MapReport
from samtune.types import IGNORE, ClassMap, ImageArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAYS_NOTE = (
    "Best, median and worst images by their own mean IoU. The last panel shows the errors: pixels whose class is wrong "
    "are in the colour of the class that was answered, pixels that do not count are black."
)
_WRONG = (213, 94, 0)
_BARS = 40  # classes that one picture of bars holds
_SWATCH, _LINE = 12, 20  # pixels of the legend


def gallery_sections(
    folder: Path, model: Backbone, dataset: MapDataset, report: MapReport, *, each: int
) -> Sequence[Section]:
    """Draws one PNG per chosen image of a report, and returns the section that shows them; none without an image.

    Args:
        model: what the report is of, in eval mode.
        dataset: the images that were evaluated.
        each: number of best, of median and of worst images; 0 draws nothing.
    """
    ious = {row.name: row.iou for row in report.rows}
    cases = pick_cases(ious, each=each) if each else []
    files = save_panels(folder, _rows(model, dataset, report.classes, [name for _, name in cases]))
    captions = [f"{label}: {name}, mean IoU {ious[name]:.3f}" for label, name in cases]
    pictures = [Picture(caption, file) for caption, file in zip(captions, files, strict=True)]
    return [Section("Pictures", OVERLAYS_NOTE, pictures=pictures)] if pictures else []


def classes_section(report: MapReport, file: Path) -> Section:
    """Draws the confusion matrix as the PNG `file`; returns its section, with the IoU of each class and a table."""
    order = _worst(report)
    title = f"mean IoU {100 * report.choice:.1f} % of {report.n_images:,} {report.split} images"
    draw_confusion(file, report.confusion(), report.classes, order=order, title=title, what="pixels")
    caption = "Confusion matrix: a row holds the pixels of one class, a column the answers."
    columns = {"Class": "name", "IoU": "number", "Dice": "number", "Pixels": "number", "Most often taken for": "words"}
    table = Table(columns, _table(report, order))  # type: ignore[arg-type]
    charts = [Chart("IoU of each class, %", bars(report, order[:_BARS]), f"IoU of {len(order)} classes", wide=True)]
    note = "The worst class first; numbers in percent, from one confusion matrix over all counted pixels."
    return Section("Classes", note, charts=charts if order else (), tables=[table], pictures=[Picture(caption, file)])


def bars(report: MapReport, order: Sequence[int]) -> Figure:
    """Draws the IoU of classes in percent, from left to right."""
    ious = [100 * float(report.per_class()["iou"][index]) for index in order]
    figure, axes = new_axes(10, 2.6)
    axes.bar(range(len(order)), ious, color=ACCENT, width=0.7)
    axes.set_ylim(0, 100)
    axes.set_xticks(range(len(order)), [short_name(report.classes[index]) for index in order])
    axes.tick_params(axis="x", rotation=45 if len(order) > 6 else 0)
    for place, value in enumerate(ious if len(order) <= 20 else ()):
        axes.annotate(f"{value:.0f}", (place, value), xytext=(0, 2), textcoords="offset points", ha="center", color=INK)
    return figure


def map_row(image: ImageArray, truth: ClassMap | None, found: ClassMap, classes: Sequence[str]) -> ImageArray:
    """Draws image | truth | answer | errors, without a truth the image and the answer, above a legend of what is shown.

    The image is (H, W, 3) uint8 RGB, maps are (H, W) of its size; each picture fits into 256 x 384.
    """
    scale = panel_scale(image)
    picture = scaled(image, scale)
    answer = _small(found, picture)
    panels = [captioned(picture, ("image", LIGHT)), captioned(_tinted(picture, answer, classes), ("answer", LIGHT))]
    shown = set(np.unique(answer).tolist())
    if truth is not None:
        wanted = _small(truth, picture)
        panels.insert(1, captioned(_tinted(picture, wanted, classes), ("truth", LIGHT)))
        panels.append(captioned(_errors(picture, answer, wanted, classes), ("errors, by the class answered", _WRONG)))
        shown |= set(np.unique(wanted).tolist())
    row = side_by_side(panels)
    return np.vstack([row, legend(sorted(shown - {IGNORE}), classes, row.shape[1])])


def _rows(
    model: Backbone, dataset: MapDataset, classes: Sequence[str], names: Sequence[str]
) -> Iterator[tuple[str, ImageArray]]:
    """Yields the rows of images by name, by the one prediction path."""
    numbers = {pair.name: number for number, pair in enumerate(dataset.pairs)}
    for name in names:
        sample = dataset[numbers[name]]
        batch = dataset.collate([sample]).to(model.device)
        (found,) = predict_maps(model, batch, sizes_original=[sample.truth.shape])
        image = shown(read_pixels(dataset.pairs[numbers[name]].image, dataset.pixels))
        yield name, map_row(image, sample.truth, found.places, classes)


def _worst(report: MapReport) -> list[int]:
    """Returns the classes in the truth by rising IoU, then in order."""
    ious, there = report.per_class()["iou"], report.confusion().sum(axis=1) > 0
    return [int(index) for index in np.argsort(ious, kind="stable") if there[index]]


def _table(report: MapReport, order: Sequence[int]) -> list[tuple[str, ...]]:
    matrix, found = report.confusion(), report.per_class()
    rows = []
    for index in order:
        others = matrix[index].copy()
        total, others[index] = int(others.sum()), 0
        share = others.max() / total
        other = f"{report.classes[int(others.argmax())]} ({100 * share:.1f} %)" if share else "none"
        numbers = (percent(float(found[name][index])) for name in ("iou", "dice"))
        rows.append((report.classes[index], *numbers, f"{total:,}", other))
    return rows


def _small(places: ClassMap, picture: ImageArray) -> ClassMap:
    """Scales a map to the size of a picture, by the nearest pixel."""
    return cv2.resize(places, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)  # type: ignore[return-value]


def _palette(classes: Sequence[str]) -> np.ndarray:
    """Returns a colour for each place, (256, 3); black for what does not count."""
    table = np.zeros((IGNORE + 1, 3), dtype=np.uint8)
    table[: len(classes)] = distinct_colours(len(classes))
    return table


def _tinted(picture: ImageArray, places: ClassMap, classes: Sequence[str]) -> ImageArray:
    """Lays the colours of classes over a grey picture."""
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 0.4, _palette(classes)[places], 0.6, 0)  # type: ignore[return-value]


def _errors(picture: ImageArray, found: ClassMap, truth: ClassMap, classes: Sequence[str]) -> ImageArray:
    """Shows the answers that are wrong in their colours, the right ones in grey, what does not count in black."""
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) // 2 + 90
    wrong, counted = found != truth, truth != IGNORE
    grey[wrong] = _palette(classes)[found][wrong]
    grey[~counted] = 0
    return grey  # type: ignore[return-value]


def legend(shown: Sequence[int], classes: Sequence[str], width: int) -> ImageArray:
    """Draws the names of classes beside their colours, in as many columns as fit."""
    colours, names = distinct_colours(len(classes)), [short_name(classes[place]) for place in shown]
    column = 2 * _SWATCH + 10 + max((_wide(name) for name in names), default=0)
    across = max(1, width // column)
    area = np.full((_LINE * math.ceil(len(shown) / across) + 6, width, 3), PAPER, dtype=np.uint8)
    for number, (place, name) in enumerate(zip(shown, names, strict=True)):
        x, y = column * (number % across) + 4, _LINE * (number // across) + 4
        cv2.rectangle(area, (x, y), (x + _SWATCH, y + _SWATCH), colours[place], -1)
        cv2.putText(area, name, (x + _SWATCH + 6, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.42, LIGHT, 1, cv2.LINE_AA)
    return area


def _wide(name: str) -> int:
    return int(cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0])
