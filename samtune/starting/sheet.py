"""One picture of samples with what their masks or classes say, to see at a glance whether that is right."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels, shown
from samtune.starting.found import Sample
from samtune.tasks.panels import INK, PAPER, captioned
from samtune.types import ImageArray

CELL = (210, 280)  # height and width that a sample fits into
ACROSS = 4
NAME = 34  # letters of a name


def sample_sheet(
    samples: Sequence[Sample], legend: Callable[[int], ImageArray] | None = None, pixels: Pixels = RGB
) -> ImageArray:
    """Draws up to `ACROSS` samples in a row, each below its name, above a legend: (H, W, 3) uint8 RGB.

    Args:
        pixels: how the pictures are read; of several channels the first three are shown.
    """
    cells = [_cell(sample, pixels) for sample in samples]
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    rows = -(-len(cells) // ACROSS)
    across = min(ACROSS, len(cells))
    sheet = np.full((rows * (height + 6), across * (width + 6), 3), PAPER, dtype=np.uint8)
    for number, cell in enumerate(cells):
        y, x = (number // ACROSS) * (height + 6), (number % ACROSS) * (width + 6)
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet if legend is None else np.vstack([sheet, legend(sheet.shape[1])])


def _cell(sample: Sample, pixels: Pixels) -> ImageArray:
    image = shown(read_pixels(sample.image, pixels))
    scale = min(CELL[0] / image.shape[0], CELL[1] / image.shape[1])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    name = sample.name if len(sample.name) <= NAME else f"...{sample.name[3 - NAME :]}"
    return captioned(sample.paint(small), (name.encode("ascii", "replace").decode(), INK))  # type: ignore[arg-type]
