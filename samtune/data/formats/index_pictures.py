"""What are the values of a picture of class numbers, and how is one written, in colours that differ?"""

import colorsys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from samtune.data.pictures import open_picture
from samtune.errors import DataError

VALUES = 256
Colour = tuple[int, int, int]
Values = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
_GOLDEN = 0.618034  # of a circle of hues: colours that follow each other differ
_INSTEAD = "save the number of each pixel's class, in a palette or one grey channel of 8 bits, as PNG"


def read_values(path: Path) -> Values:
    """Decodes the (H, W) uint8 values of a map, EXIF orientation applied; see `values_of`."""
    with open_picture(path) as picture:
        return values_of(picture)


def values_of(picture: Image.Image) -> Values:
    """Returns the values of a picture: indices of a palette, or grey levels.

    Raises:
        DataError: colours, more than 8 bits, or a JPEG, whose values are not exact.
    """
    if picture.format in ("JPEG", "MPO"):
        raise DataError(f"a JPEG, whose values are not exact: no map of classes; {_INSTEAD}")
    if picture.mode not in ("P", "L", "1"):
        raise DataError(f"pixels of mode {picture.mode!r} are no map of classes; {_INSTEAD}")
    return np.array(ImageOps.exif_transpose(picture)).astype(np.uint8)


def distinct_colours(count: int) -> list[Colour]:
    """Returns so many colours; those of two neighbours in the list are far apart."""
    found = []
    for place in range(count):
        strong, light = (0.75, 0.55, 0.9)[place % 3], (0.95, 0.8, 0.6)[place // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.58 + place * _GOLDEN) % 1, strong, light)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def index_png(values: Values, classes: Sequence[int]) -> bytes:
    """Returns a PNG of (H, W) uint8 values, in which those of the classes are shown in `distinct_colours`."""
    palette = np.zeros((VALUES, 3), dtype=np.uint8)
    palette[list(classes)] = distinct_colours(len(classes))
    picture = Image.fromarray(values)
    picture.putpalette(palette.ravel().tolist())
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
