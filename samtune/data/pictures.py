"""Decodes picture files, all with Pillow, which refuses a truncated file where OpenCV returns a half-grey array."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from samtune.errors import DataError

if TYPE_CHECKING:  # it brings torch, which a process that only decodes has no use for
    from samtune.types import ImageArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How such a file begins."""
MAX_PIXELS = 40_000_000
"""Of a picture that a model sees as a whole."""
LARGEST_PIXELS = 1_000_000_000
"""Of a picture that a model sees tile by tile, and of any mask."""
MIN_SIDE = 8  # pixels; nothing smaller shows anything
ORIENTATION = 0x0112  # EXIF tag; 1 = upright
DEPTHS = (8, 10, 12, 14, 16)
"""Bits of the sensors whose values are stored in 16: most microscopes and cameras have 12 or 14."""

# What Pillow raises for damaged, foreign or unreadable files.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError)
_OPENING = Lock()  # Pillow's limit belongs to the process


def read_image(path: str | Path, *, most: int = MAX_PIXELS) -> ImageArray:
    """Decodes a PNG, JPEG, TIFF, BMP or WebP file with at most so many pixels.

    Returns:
        (H, W, 3) uint8 RGB, EXIF orientation applied; see `to_rgb` for other modes.

    Raises:
        DataError: the file can't be read as one picture.
    """
    with open_picture(path, most=most) as picture:
        return to_rgb(picture)


def header_size(path: str | Path) -> tuple[int, int]:
    """Returns width and height by a header that Pillow reads, EXIF orientation applied; a `DataError` if it has none.

    `samtune.data.channels.tiff.picture_size` knows those of all pictures.
    """
    try:
        with _open(path) as picture:
            turned = picture.format != "TIFF" and _on_its_side(picture)  # of a TIFF, Pillow has done it
            return (picture.height, picture.width) if turned else picture.size
    except _UNREADABLE as error:
        raise DataError(f"{path}: {_reason(Path(path), error)}") from error


def is_picture(path: Path) -> bool:
    """Tells by its name alone whether a file is a picture; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def too_small(width: int, height: int) -> str | None:
    """Says what is wrong with a picture of so few pixels; None where nothing is."""
    if min(width, height) >= MIN_SIDE:
        return None
    return f"{width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed"


def too_large(width: int, height: int, most: int) -> str | None:
    """Says what is wrong with a picture of more than so many pixels; None where nothing is."""
    if width * height <= most:
        return None
    tiles = ", or let the model see tiles (data.tiles)" if width * height <= LARGEST_PIXELS else ""
    return f"{width} x {height} pixels, more than {most:,}; scale the picture down{tiles}"


@contextmanager
def open_picture(path: str | Path, *, most: int = LARGEST_PIXELS) -> Iterator[Image.Image]:
    """Opens and decodes one picture; what fails in the block becomes a `DataError` with the file's name."""
    try:
        with _open(path) as picture:
            if problem := too_large(*picture.size, most):
                raise DataError(problem)
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise DataError("more than one frame; save one picture per file")
            if isinstance(picture, TiffImageFile) and _on_its_side(picture):
                picture.filename = ""  # Pillow 13 maps such a file, without compression, with its sides exchanged
            picture.load()
            yield picture
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: {_reason(Path(path), error)}") from error


def to_rgb(picture: Image.Image) -> ImageArray:
    """Converts a decoded picture to RGB.

    16-bit grey is scaled so that the largest value of its `grey_depth` becomes 255; Pillow itself takes the upper 8
    bits of 16-bit colour. Grey is repeated, alpha is dropped.

    Returns:
        (H, W, 3) uint8, EXIF orientation applied.

    Raises:
        DataError: floating-point pixels, or integers beyond 16 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    depth = grey_depth(picture)
    if depth is None:
        return np.array(picture.convert("RGB"))
    grey = np.rint(np.asarray(picture) * (255.0 / (2**depth - 1))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def grey_depth(picture: Image.Image) -> int | None:
    """Returns as a picture of how many bits 16-bit grey is read; None for pictures of 8 bits.

    It is the first of `DEPTHS` that holds the largest value: a 12-bit camera that writes 16-bit files is read as what
    it is, and 0 to 65535 as 16 bits. The picture itself decides, so that training, prediction and server agree.

    Raises:
        DataError: floating-point pixels, or integers beyond 16 bits.
    """
    if not picture.mode.startswith(("I", "F")):
        return None
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(f"pixels of mode {picture.mode!r} outside 16 bits; save it with 8 or 16 bits per channel")
    return depth_of(float(values.max()))


def depth_of(largest: float) -> int:
    """Returns the first of `DEPTHS` that holds a value of 16 bits."""
    return next(depth for depth in DEPTHS if largest < 2**depth)


def _on_its_side(picture: Image.Image) -> bool:
    return bool(picture.getexif().get(ORIENTATION, 1) > 4)


def _open(path: str | Path) -> Image.Image:
    """Reads the header, without Pillow's own limit of a picture's pixels: `open_picture` has another."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reason(path: Path, error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "permission denied; make it readable (chmod u+r)"
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"dangling link to {os.readlink(path)}; put the file there, or delete the link"
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return str(error.strerror).lower()
    if path.stat().st_size == 0:
        return "empty file (zero bytes)"
    if isinstance(error, UnidentifiedImageError) and _magic(path) in TIFFS:
        return "a TIFF that is neither grey nor RGB, or a damaged one; other channels are for model.channels"
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(FORMATS)} file, whatever its name says"
    return f"damaged file ({error}); export or copy it again"


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
