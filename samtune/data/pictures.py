"""Decodes picture files, all with Pillow, which refuses a truncated file where OpenCV returns a half-grey array."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from samtune.errors import DataError
from samtune.types import ImageArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 40_000_000
ORIENTATION = 0x0112  # EXIF tag; 1 = upright

# What Pillow raises for damaged, foreign, oversized or unreadable files.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_image(path: str | Path) -> ImageArray:
    """Decodes a PNG, JPEG, TIFF, BMP or WebP file with at most 40 million pixels.

    Returns:
        (H, W, 3) uint8 RGB, EXIF orientation applied; see `to_rgb` for other modes.

    Raises:
        DataError: the file can't be read as one picture.
    """
    with open_picture(path) as picture:
        return to_rgb(picture)


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Opens and decodes one picture; what fails in the block becomes a `DataError` with the file's name."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}; scale the picture down")
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                raise DataError("more than one frame; save one picture per file")
            picture.load()
            yield picture
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: {_reason(Path(path), error)}") from error


def to_rgb(picture: Image.Image) -> ImageArray:
    """Converts a decoded picture to RGB.

    16-bit grey is scaled by value / 257, so that 65535 becomes 255; Pillow itself reduces 16-bit colour to 8
    bits. Grey is repeated, alpha is dropped.

    Returns:
        (H, W, 3) uint8, EXIF orientation applied.

    Raises:
        DataError: floating-point pixels, or integers beyond 16 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DataError(f"pixels of mode {picture.mode!r} outside 16 bits; save it with 8 or 16 bits per channel")
        grey = np.rint(values / 257.0).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def _reason(path: Path, error: BaseException) -> str:
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return str(error.strerror).lower()
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"header claims more than {MAX_PIXELS:,} pixels; scale the picture down"
    if path.stat().st_size == 0:
        return "empty file (zero bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(FORMATS)} file, whatever its name says"
    return f"damaged file ({error}); export or copy it again"
