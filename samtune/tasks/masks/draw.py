"""How is a person shown masks? The image, both outlines, and a map of the errors, side by side."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from samtune.data.frames import Collate
from samtune.data.pairs import Pair
from samtune.data.pictures import read_image
from samtune.models.backbone import Backbone
from samtune.report.page import Picture, Section
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.report import Report
from samtune.tasks.panels import INK, PAPER, captioned, panel_scale, pick_cases, save_panels, scaled, side_by_side
from samtune.tasks.prompted import predict_batch
from samtune.types import ImageArray, MaskArray

# Colours of Okabe and Ito, which colour-blind readers can tell apart too.
TRUE_POSITIVE = (0, 158, 115)  # green
FALSE_POSITIVE = (213, 94, 0)  # red
FALSE_NEGATIVE = (86, 180, 233)  # blue
TRUTH = (240, 228, 66)  # yellow
PREDICTION = (86, 180, 233)

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
    dice = {row.name: row.dice for row in report.rows}
    cases = pick_cases(dice, each=each) if each else []
    files = save_overlays(folder, _cases(model, dataset, pairs, [name for _, name in cases]))
    captions = [f"{label}: {name}, Dice {dice[name]:.3f}" for label, name in cases]
    pictures = [Picture(caption, file) for caption, file in zip(captions, files, strict=True)]
    return [Section("Pictures", OVERLAYS_NOTE, pictures=pictures)] if pictures else []


def save_overlays(folder: Path, cases: Iterable[Case]) -> list[Path]:
    """Writes one PNG per case and returns the files, in order; a lazy iterable keeps one image in memory at a time.

    Characters that a file name can't hold become "_".
    """
    return save_panels(folder, ((name, overlay_row(image, truth, found)) for name, image, truth, found in cases))


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
    scale = panel_scale(image)
    picture, found = scaled(image, scale), scaled(prediction, scale)
    answer = captioned(_outlined(picture, found, PREDICTION), ("prediction", PREDICTION))
    panels = [captioned(picture, ("image", INK)), answer]
    if truth is not None:
        wanted = scaled(truth, scale)
        legend = (("right", TRUE_POSITIVE), ("extra", FALSE_POSITIVE), ("missed", FALSE_NEGATIVE))
        panels.insert(1, captioned(_outlined(picture, wanted, TRUTH), ("truth", TRUTH)))
        panels.append(captioned(_error_map(picture, wanted, found), *legend))
    return side_by_side(panels)


def _outlined(picture: ImageArray, mask: MaskArray, colour: tuple[int, int, int]) -> ImageArray:
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
