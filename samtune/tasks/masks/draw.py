"""How is a person shown masks? The image, both outlines, and a map of the errors, side by side."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from samtune.base.disk import write_bytes
from samtune.data.frames import Collate
from samtune.data.pairs import Pair
from samtune.data.pictures import read_image
from samtune.models.backbone import Backbone
from samtune.report.page import Picture, Section
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.evaluate import predict_batch
from samtune.tasks.masks.report import Report
from samtune.types import ImageArray, MaskArray

# Colours of Okabe and Ito, which colour-blind readers can tell apart too.
TRUE_POSITIVE = (0, 158, 115)  # green
FALSE_POSITIVE = (213, 94, 0)  # red
FALSE_NEGATIVE = (86, 180, 233)  # blue
TRUTH = (240, 228, 66)  # yellow
PREDICTION = (86, 180, 233)

PANEL = (256, 384)
"""Each picture is scaled to fit into this (height, width)."""

_INK, _PAPER = (235, 235, 240), (24, 24, 27)
_CAPTION_HEIGHT, _MIN_WIDTH, _GAP = 26, 150, 4

Case = tuple[str, ImageArray, MaskArray | None, MaskArray]
"""(name, (H, W, 3) uint8 RGB image, truth or None, prediction); masks are (H, W) bool at the image's size."""

OVERLAYS_NOTE = (
    "Best, median and worst images by Dice. The last panel shows the errors: green is right, red is too much, blue "
    "was missed."
)


def gallery_sections(
    folder: Path, model: Backbone, dataset: SegmentationDataset, pairs: Sequence[Pair], report: Report, *, each: int
) -> Sequence[Section]:
    """Draws one PNG per chosen case of a report, and returns the section that shows them; none without a case.

    Args:
        model: what the report is of, in eval mode.
        dataset: the items that were evaluated; `pairs` has their images.
        each: number of best, of median and of worst cases; 0 draws nothing.
    """
    cases = pick_cases(report, each=each) if each else []
    files = save_overlays(folder, _cases(model, dataset, pairs, [name for _, name in cases]))
    dice = {row.name: row.dice for row in report.rows}
    captions = [f"{label}: {name}, Dice {dice[name]:.3f}" for label, name in cases]
    pictures = [Picture(caption, file) for caption, file in zip(captions, files, strict=True)]
    return [Section("Pictures", OVERLAYS_NOTE, pictures=pictures)] if pictures else []


def pick_cases(report: Report, *, each: int = 3) -> list[tuple[str, str]]:
    """Returns (label, name) of the "best", "median" and "worst" images, by falling Dice in each kind.

    Rows without a Dice are left out. Where the report is short, a kind has fewer than `each`; no image comes twice.
    """
    rows = [row for row in report.rows if not math.isnan(row.dice)]
    names = [row.name for row in sorted(rows, key=lambda row: (-row.dice, row.name))]
    each = min(each, max(1, len(names) // 3))
    best, worst = names[:each], names[each:][-each:]
    between = names[each : max(each, len(names) - each)]
    start = (len(between) - each + 1) // 2 if len(between) > each else 0
    kinds = {"best": best, "median": between[start : start + each], "worst": worst}
    return [(label, name) for label, chosen in kinds.items() for name in chosen]


def save_overlays(folder: Path, cases: Iterable[Case]) -> list[Path]:
    """Writes one PNG per case and returns the files, in order; a lazy iterable keeps one image in memory at a time.

    Characters that a file name can't hold become "_".
    """
    paths = []
    for name, image, truth, prediction in cases:
        paths.append(folder / (re.sub(r"[^\w.#-]", "_", name) + ".png"))
        panel = overlay_row(image, truth, prediction)
        write_bytes(paths[-1], cv2.imencode(".png", panel[..., ::-1])[1].tobytes())
    return paths


def _cases(model: Backbone, dataset: SegmentationDataset, pairs: Sequence[Pair], names: list[str]) -> Iterator[Case]:
    """Yields the cases of items by name, by the one prediction path."""
    numbers = {name: number for number, name in enumerate(dataset.names)}
    images = {pair.name: pair.image for pair in pairs}
    for name in names:
        sample = dataset[numbers[name]]
        batch = Collate(model.image_size)([sample]).to(model.device)
        (prediction,) = predict_batch(model, batch, sizes_original=[sample.truth.shape])
        image = read_image(images[name if name in images else name.rpartition("#")[0]])
        yield name, image, sample.truth, prediction.mask


def overlay_row(image: ImageArray, truth: MaskArray | None, prediction: MaskArray) -> ImageArray:
    """Draws one row: image | truth outline | prediction outline | error map; without a truth the first and third.

    The image is (H, W, 3) uint8 RGB, masks are (H, W) bool; each picture of the row, below its line of captions, fits
    into 256 x 384.

    Raises:
        ValueError: a mask has another size than the image.
    """
    for label, mask in (("truth", truth), ("prediction", prediction)):
        if mask is not None and mask.shape != image.shape[:2]:
            raise ValueError(f"the {label} has {mask.shape} pixels and the image has {image.shape[:2]}.")
    scale = min(PANEL[0] / image.shape[0], PANEL[1] / image.shape[1])
    picture, found = _scaled(image, scale), _scaled(prediction, scale)
    answer = _captioned(_outlined(picture, found, PREDICTION), ("prediction", PREDICTION))
    panels = [_captioned(picture, ("image", _INK)), answer]
    if truth is not None:
        wanted = _scaled(truth, scale)
        legend = (("right", TRUE_POSITIVE), ("extra", FALSE_POSITIVE), ("missed", FALSE_NEGATIVE))
        panels.insert(1, _captioned(_outlined(picture, wanted, TRUTH), ("truth", TRUTH)))
        panels.append(_captioned(_error_map(picture, wanted, found), *legend))
    gap = np.full((panels[0].shape[0], _GAP, 3), _PAPER, dtype=np.uint8)
    return np.hstack([part for panel in panels for part in (gap, panel)][1:])


def _scaled(picture: np.ndarray, scale: float) -> np.ndarray:
    """Resizes an image by area, a mask by majority."""
    width, height = (max(1, round(side * scale)) for side in picture.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    if picture.dtype != np.bool_:
        return cv2.resize(picture, (width, height), interpolation=method)
    return cv2.resize(picture.astype(np.float32), (width, height), interpolation=method) > 0.5


def _outlined(picture: ImageArray, mask: MaskArray, colour: tuple[int, int, int]) -> ImageArray:
    drawn = picture.copy()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # A dark line below keeps the outline visible on a background of its own colour.
    cv2.drawContours(drawn, outlines, -1, _PAPER, 4, cv2.LINE_AA)
    cv2.drawContours(drawn, outlines, -1, colour, 2, cv2.LINE_AA)
    return drawn


def _error_map(picture: ImageArray, truth: MaskArray, prediction: MaskArray) -> ImageArray:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    canvas = np.repeat(grey[..., None], 3, axis=2).astype(np.float32) * 0.6
    areas = (truth & prediction, prediction & ~truth, truth & ~prediction)
    for area, colour in zip(areas, (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE), strict=True):
        canvas[area] = 0.35 * canvas[area] + 0.65 * np.array(colour, dtype=np.float32)
    return canvas.astype(np.uint8)


def _captioned(picture: ImageArray, *words: tuple[str, tuple[int, int, int]]) -> ImageArray:
    """Puts a line of coloured words on top of a picture, which is centred if it is narrower than the line."""
    height, width = picture.shape[:2]
    panel = np.full((height + _CAPTION_HEIGHT, max(width, _MIN_WIDTH), 3), _PAPER, dtype=np.uint8)
    left = (panel.shape[1] - width) // 2
    panel[_CAPTION_HEIGHT:, left : left + width] = picture
    x = 4
    for word, colour in words:
        cv2.putText(panel, word, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] + 10
    return panel
