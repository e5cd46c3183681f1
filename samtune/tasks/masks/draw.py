"""How is a person shown masks? The image, both outlines, and a map of the errors, side by side."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from samtune.data.channels.read import read_pixels, shown
from samtune.data.pairs import Pair
from samtune.models.backbone import Backbone
from samtune.report.page import Picture, Section
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.report import Report
from samtune.tasks.panels import INK, PAPER, captioned, panel_scale, pick_cases, save_panels, scaled, side_by_side
from samtune.tasks.prompted import predict_batch
from samtune.types import ImageArray, MaskArray, Sample

# Colours of Okabe and Ito, which colour-blind readers can tell apart too.
TRUE_POSITIVE = (0, 158, 115)  # green
FALSE_POSITIVE = (213, 94, 0)  # red
FALSE_NEGATIVE = (86, 180, 233)  # blue
TRUTH = (240, 228, 66)  # yellow
PREDICTION = (86, 180, 233)
PROMPT = (204, 121, 167)  # purple


class Marks(NamedTuple):
    """What a model was told of an object, in pixels of the picture: XYXY boxes, XY points on it."""

    boxes: Sequence[Sequence[float]] = ()
    points: Sequence[Sequence[float]] = ()


NO_MARKS = Marks()

Case = tuple[str, ImageArray, MaskArray | None, MaskArray, Marks]
"""(name, (H, W, 3) uint8 RGB image, truth or None, prediction, prompt); masks are (H, W) bool at the image's size."""

OVERLAYS_NOTE = (
    "Best, median and worst images by Dice. The last panel shows the errors: green is right, red is too much, blue "
    "was missed."
)
FROM_TRUTH = " The {prompt} in the first panel was drawn from the true mask; the model was told of it."


def gallery_sections(
    folder: Path, model: Backbone, dataset: SegmentationDataset, pairs: Sequence[Pair], report: Report, *, each: int
) -> Sequence[Section]:
    """Draws one PNG per chosen case of a report, and returns the sections that show them; none without a case.

    Images without an object have a section of their own, with the largest false masks.

    Args:
        model: what the report is of, in eval mode.
        dataset: the items that were evaluated; `pairs` has their images.
        each: number of best, of median and of worst cases; 0 draws nothing.
    """
    dice = {row.name: row.dice for row in report.rows}
    cases = pick_cases(dice, each=each) if each else []

    def saved(names: list[str]) -> list[Path]:
        return save_overlays(folder, _cases(model, dataset, pairs, names))

    files = saved([name for _, name in cases])
    (prompt,) = dataset.shares
    note = OVERLAYS_NOTE + ("" if prompt == "none" else FROM_TRUTH.format(prompt=prompt))
    captions = [f"{label}: {name}, Dice {dice[name]:.3f}" for label, name in cases]
    pictures = [Picture(caption, file) for caption, file in zip(captions, files, strict=True)]
    shown = [Section("Pictures", note, pictures=pictures)] if pictures else []
    if lines := report.apart():
        false = {row.name: row.pred_px for row in report.rows if not row.truth_px and row.pred_px}
        largest = sorted(false, key=lambda name: (-false[name], name))[:each]
        wrong = zip(largest, saved(largest), strict=True)
        pictures = [Picture(f"largest false mask: {name}, {false[name]:,} px", file) for name, file in wrong]
        shown.append(Section("Without an object", lines=lines, pictures=pictures))
    return shown


def save_overlays(folder: Path, cases: Iterable[Case]) -> list[Path]:
    """Writes one PNG per case and returns the files, in order; a lazy iterable keeps one image in memory at a time.

    Their names are the `safe_name` of the cases.
    """
    rows = ((name, overlay_row(image, truth, found, marks)) for name, image, truth, found, marks in cases)
    return save_panels(folder, rows)


def _cases(model: Backbone, dataset: SegmentationDataset, pairs: Sequence[Pair], names: list[str]) -> Iterator[Case]:
    """Yields the cases of items by name, by the one prediction path."""
    numbers = {name: number for number, name in enumerate(dataset.names)}
    images = {pair.name: pair.image for pair in pairs}
    for name in names:
        sample = dataset[numbers[name]]
        batch = dataset.collate([sample]).to(model.device)
        (prediction,) = predict_batch(model, batch, sizes_original=[sample.truth.shape])
        file = images[name if name in images else name.rpartition("#")[0]]
        image = shown(read_pixels(file, dataset.pixels))
        yield name, image, sample.truth, prediction.mask, _marks(sample)


def _marks(sample: Sample) -> Marks:
    """Returns the prompt of a sample in the frame of its file."""
    (height, width), (high, wide) = sample.mask.shape, sample.truth.shape
    scale = torch.tensor([wide / width, high / height])
    boxes = [] if sample.box_input is None else [(sample.box_input * scale.repeat(2)).tolist()]
    return Marks(boxes, [] if sample.points_input is None else (sample.points_input * scale).tolist())


def overlay_row(
    image: ImageArray, truth: MaskArray | None, prediction: MaskArray, marks: Marks = NO_MARKS
) -> ImageArray:
    """Draws one row: image | truth outline | prediction outline | error map; without a truth the first and third.

    The prompt, if there was one, is drawn into the first.

    The image is (H, W, 3) uint8 RGB, masks are (H, W) bool; each picture of the row, below its line of captions, fits
    into 256 x 384.

    Raises:
        ValueError: a mask has another size than the image.
    """
    for label, mask in (("truth", truth), ("prediction", prediction)):
        if mask is not None and mask.shape != image.shape[:2]:
            raise ValueError(f"the {label} has {mask.shape} pixels and the image has {image.shape[:2]}.")
    scale = panel_scale(image)
    picture, found = scaled(image, scale), scaled(prediction, scale)
    answer = captioned(outlined(picture, found, PREDICTION), ("prediction", PREDICTION))
    words = [("image", INK), *([("prompt", PROMPT)] if marks.boxes or marks.points else [])]
    panels = [captioned(_marked(picture, marks, scale), *words), answer]
    if truth is not None:
        wanted = scaled(truth, scale)
        legend = (("right", TRUE_POSITIVE), ("extra", FALSE_POSITIVE), ("missed", FALSE_NEGATIVE))
        panels.insert(1, captioned(outlined(picture, wanted, TRUTH), ("truth", TRUTH)))
        panels.append(captioned(_error_map(picture, wanted, found), *legend))
    return side_by_side(panels)


def _marked(picture: ImageArray, marks: Marks, scale: float) -> ImageArray:
    drawn = picture.copy()
    for colour, more in ((PAPER, 2), (PROMPT, 0)):  # a dark line below, as of the outlines
        for box in marks.boxes:
            x0, y0, x1, y1 = (round(value * scale) for value in box)
            cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, 2 + more, cv2.LINE_AA)
        for x, y in marks.points:
            cv2.circle(drawn, (round(x * scale), round(y * scale)), 4 + more, colour, cv2.FILLED, cv2.LINE_AA)
    return drawn


def outlined(picture: ImageArray, mask: MaskArray, colour: tuple[int, int, int]) -> ImageArray:
    """Draws the outlines of an (H, W) bool mask on a picture of its size."""
    drawn = picture.copy()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # A dark line below keeps the outline visible on a background of its own colour.
    cv2.drawContours(drawn, outlines, -1, PAPER, 4, cv2.LINE_AA)
    cv2.drawContours(drawn, outlines, -1, colour, 2, cv2.LINE_AA)
    return drawn


def _error_map(picture: ImageArray, truth: MaskArray, prediction: MaskArray) -> ImageArray:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    canvas = np.repeat(grey[..., None], 3, axis=2).astype(np.float32) * 0.6
    areas = (truth & prediction, prediction & ~truth, truth & ~prediction)
    for area, colour in zip(areas, (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE), strict=True):
        canvas[area] = 0.35 * canvas[area] + 0.65 * np.array(colour, dtype=np.float32)
    return canvas.astype(np.uint8)
