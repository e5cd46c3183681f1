"""Pictures of a classification: the confusion matrix, the most confident mistakes, and the classes that go wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samtune.base.figures import GRID, INK, new_figure, save_figure
from samtune.data.pictures import read_image
from samtune.report.page import Picture, Section, Table, percent
from samtune.tasks.classes.report import ClassReport, ClassRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBERED = 12  # classes up to which the cells hold numbers
_LONGEST = 22  # characters of a class name in a picture
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
        true, said, name = (_short(text) for text in texts)
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
    counts, total = report.confusion(), len(report.classes)
    shown = list(range(total)) if total <= most else _worst(report)[:most]
    cells = counts[np.ix_(shown, shown)].astype(np.float64)
    columns = [report.classes[index] for index in shown]
    if len(shown) < total:
        outside = counts[shown].sum(axis=1) - cells.sum(axis=1)
        cells = np.concatenate([cells, outside[:, None]], axis=1)
        columns.append("any other class")
    images = counts[shown].sum(axis=1)
    shares = np.divide(cells, images[:, None], out=np.full(cells.shape, math.nan), where=images[:, None] > 0)
    rows = [f"{_short(report.classes[i])} ({count:,})" for i, count in zip(shown, images.tolist(), strict=True)]
    title = f"top-1 accuracy {100 * report.choice:.1f} % of {report.n_images:,} {report.split} images"
    if len(shown) < total:
        title = f"The {len(shown)} worst of {total:,} classes, the worst first; {title} (all classes)"
    save_figure(path, _matrix(shares, rows, [_short(name) for name in columns], title[0].upper() + title[1:]))


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


def _matrix(shares: np.ndarray[Any, Any], rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    from matplotlib.colors import PowerNorm

    numbered = len(rows) <= _NUMBERED
    cell = 0.52 if numbered else 0.19  # inches
    figure = new_figure(3.6 + cell * len(columns), 2.1 + cell * len(rows))
    axes = figure.subplots()
    axes.set_facecolor(GRID)
    # the square root of the share: a mistake of 5 % must be seen beside an accuracy of 95 %
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    size = 9 if numbered else 7.5
    axes.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 3 else 0, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_color(GRID)
    axes.set_xlabel("answer", color=INK, fontsize=9.5)
    axes.set_ylabel("true class (images)", color=INK, fontsize=9.5)
    figure.suptitle(title, color=INK, fontsize=10, wrap=True)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04, aspect=30, ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"], fontsize=8, color=INK)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    for (y, x), share in np.ndenumerate(shares):
        if numbered and share > 0:
            ink = "#ffffff" if share > 0.35 else "#000000"
            axes.text(
                x, y, f"{100 * share:.0f}" if share >= 0.01 else "<1", ha="center", va="center", fontsize=9, color=ink
            )
    return figure


def _short(name: str) -> str:
    cut = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return cut.replace("$", r"\$")  # a "$" would start a formula
