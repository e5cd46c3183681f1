"""Pictures of a classification: the confusion matrix, the most confident mistakes, and the classes that go wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samtune.base.figures import INK, new_figure, save_figure
from samtune.data.pictures import read_image
from samtune.report.confusion import draw_confusion, short_name
from samtune.report.page import Picture, Section, Table, percent
from samtune.tasks.classes.report import ClassReport, ClassRow

if TYPE_CHECKING:
    pass

_ACROSS = 4  # examples in a row


def mistakes_section(report: ClassReport, images: Mapping[str, Path], file: Path) -> list[Section]:
    """Draws the images that the model is wrong and sure about; returns their section, or nothing without any.

    Args:
        images: name of an image -> its file.
        file: the PNG file that is written.
    """
    rows = confident_mistakes(report)
    if not rows:
        return []
    down = math.ceil(len(rows) / _ACROSS)
    figure = new_figure(2.35 * _ACROSS, 3 * down)
    for axes, row in zip(figure.subplots(down, _ACROSS, squeeze=False).flat, rows, strict=False):
        image = read_image(images[row.name])
        axes.imshow(image, interpolation="lanczos" if max(image.shape) > 100 else "nearest")
        texts = (report.classes[row.label], report.classes[row.predicted], Path(row.name).name)
        true, said, name = (short_name(text) for text in texts)
        words = f"{name}\nis {true}\nsaid {said} ({100 * row.confidence:.0f} %)"
        axes.set_title(words, fontsize=8.5, color=INK, loc="left")
    for axes in figure.axes:
        axes.set_axis_off()
    save_figure(file, figure)
    note = "The images on which the model is wrong and most sure of itself, the surest first."
    return [Section("Pictures", note, pictures=[Picture(f"{len(rows)} most confident mistakes", file)])]


def wrong_classes_section(report: ClassReport, file: Path) -> Section:
    """Draws the confusion matrix as the PNG `file`; returns its section, with a table of the worst classes."""
    save_confusion(file, report)
    rows = worst_classes(report)
    table = Table({"Class": "name", "Images": "number", "Accuracy": "number", "Most often taken for": "words"}, rows)
    caption = "Confusion matrix: a row holds the images of one class, a column the answers."
    return Section(
        "Classes that go wrong",
        "The classes with the lowest top-1 accuracy, in percent." if rows else "No class goes wrong.",
        tables=[table] if rows else (),
        pictures=[Picture(caption, file)],
    )


def save_confusion(path: Path, report: ClassReport, *, most: int = 40) -> None:
    """Draws the confusion matrix as PNG: each row is the share of the images of one class by answer.

    With more than `most` classes it shows those with the lowest accuracy, the worst first, and the answers outside of
    them in one column. Cells hold percentages where there is room; a class without images has a grey row.
    """
    title = f"top-1 accuracy {100 * report.choice:.1f} % of {report.n_images:,} {report.split} images"
    counts, order = report.confusion(), _worst(report)
    draw_confusion(path, counts, report.classes, order=order, title=title, what="images", most=most)


def confident_mistakes(report: ClassReport, n: int = 12) -> list[ClassRow]:
    """Returns the rows of the n mistakes of highest confidence, the most confident first."""
    return sorted((row for row in report.rows if row.rank), key=lambda row: (-row.confidence, row.name))[:n]


def worst_classes(report: ClassReport, n: int = 10) -> list[tuple[str, str, str, str]]:
    """Returns the n classes of lowest top-1 accuracy, the worst first; of equal ones those with more images.

    Each with its number of images, accuracy in percent, and what it is most often taken for: of equal ones, the first.
    A class without a mistake or without an image is never among them.
    """
    counts, accuracies = report.confusion(), report.per_class()
    table = []
    for index in [index for index in _worst(report) if accuracies[index] < 1][:n]:
        mistakes = counts[index].copy()
        mistakes[index] = 0
        taken_for = f"{report.classes[int(mistakes.argmax())]} ({mistakes.max():,})"
        table.append((report.classes[index], f"{counts[index].sum():,}", percent(float(accuracies[index])), taken_for))
    return table


def _worst(report: ClassReport) -> list[int]:
    """Returns the classes with images by rising accuracy, then by falling number of images, then in order."""
    accuracies, images = report.per_class(), report.confusion().sum(axis=1)
    order = np.lexsort((np.arange(len(images)), -images, accuracies))  # the last key counts first; NaN sorts last
    return [index for index in order.tolist() if images[index]]
