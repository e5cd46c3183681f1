"""From the values of a picture's file, of any depth and number of channels, to what a model sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import ImageOps

from samtune.config.pixels import MOST_CHANNELS, RGB, Pixels
from samtune.data.channels.tiff import Compressed, is_tiff, layout_of, read_pages, read_slices
from samtune.data.pictures import LARGEST_PIXELS, MAX_PIXELS, ORIENTATION, open_picture, read_image, to_rgb
from samtune.errors import DataError

if TYPE_CHECKING:  # it brings torch
    from samtune.types import ImageArray, PixelArray


class Stored(NamedTuple):
    """A picture as it is in its file.

    Attributes:
        values: (H, W, C), uint8, or what the file has beyond 8 bits.
        alpha: whether the last channel is transparency.
        orientation: EXIF tag, applied; 1 = upright.
        pages: number of pages in the file, each a channel where there are several.
    """

    values: np.ndarray[Any, Any]
    alpha: bool = False
    orientation: int = 1
    pages: int = 1

    @property
    def deep(self) -> bool:
        """Whether it has more than 8 bits, so that only a range says what is black and white."""
        return bool(self.values.dtype != np.uint8)


def read_pixels(path: str | Path, pixels: Pixels = RGB) -> PixelArray:
    """Decodes a picture for a model.

    Returns:
        (H, W, channels): uint8 where the file has 8 bits and no range is set, else float32 of 0 to 255.

    Raises:
        DataError: the file can't be read, has other channels, more than 8 bits and there is no range, or more than
            `MAX_PIXELS` where `pixels` are not of large pictures.
    """
    most = LARGEST_PIXELS if pixels.large else MAX_PIXELS
    if pixels.plain and not is_tiff(Path(path)):
        return read_image(path, most=most)
    stored = read_stored(path, most=most)
    whole = stored.values.dtype.kind in "iu" and stored.pages == 1 and stored.values.shape[2] - stored.alpha in (1, 3)
    if pixels.plain and stored.deep and whole:
        return read_image(path, most=most)  # the picture itself says what is white, by `grey_depth`
    return fitted(stored, pixels, str(path))


def read_stack(path: Path, pixels: Pixels) -> Iterator[PixelArray]:
    """Yields the pages of a TIFF, each as `read_pixels` returns a picture, one at a time.

    Raises:
        DataError: no TIFF, a damaged one, or a page that does not fit.
    """
    layout = layout_of(path) if is_tiff(path) else None
    if layout is None:
        raise DataError(f"{path}: no TIFF, so no stack of pages; leave --format stack out for single pictures")
    try:
        for number, values in enumerate(read_slices(path), start=1):
            try:
                stored = _checked(values, layout.alpha)
            except DataError as error:
                raise DataError(f"page {number}: {error}") from error
            yield fitted(stored, pixels, f"{path}, page {number}")
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path}: {error}") from error


def count_pages(path: Path) -> int:
    """Returns the number of pages of a TIFF; 1 for any other file."""
    layout = layout_of(path) if is_tiff(path) else None
    return 1 if layout is None else layout.pages


def fitted(stored: Stored, pixels: Pixels, name: str) -> PixelArray:
    """Maps stored values to those of a model, see `read_pixels`; `name` is for messages."""
    values, count = stored.values, stored.values.shape[2]
    if problem := misfit(count, pixels.channels, alpha=stored.alpha, pages=stored.pages):
        raise DataError(f"{name}: {problem}")
    if count - stored.alpha in (1, pixels.channels) and count != pixels.channels:
        values = values[:, :, : count - stored.alpha]
    if values.shape[2] < pixels.channels:
        values = np.repeat(values, pixels.channels, axis=2)
    if pixels.range is not None:
        low, high = pixels.range
        scaled: PixelArray = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
        return scaled.astype(np.float32)
    if stored.deep:
        raise DataError(
            f"{name}: more than 8 bits ({values.dtype}, {values.min():g} to {values.max():g}), and the model has no "
            "range that says what is black and white; tune with data.range, or save it with 8 bits"
        )
    return np.ascontiguousarray(values)


def misfit(count: int, wanted: int, *, alpha: bool, pages: int) -> str | None:
    """Says why a picture of `count` channels does not go into a model of `wanted`; None where it does.

    Transparency is dropped where the others are as many as wanted. Grey becomes three equal channels. Three pages are
    no RGB: more likely they are slices.
    """
    if pages > 1 and wanted == RGB.channels:
        channels = f"set model.channels: {pages}" if pages != RGB.channels else "save them as one page of RGB"
        return (
            f"{pages} pages; if they are channels, {channels}; of slices, save one picture per file, "
            "or predict them with samtune predict --format stack"
        )
    colours = count - alpha
    if count == wanted or colours == wanted or (wanted == RGB.channels and colours == 1):
        return None
    found = f"{count} channel{'s' * (count > 1)}{', one of them transparency' if alpha else ''}"
    remedy = f"save it with {wanted}, or tune a model with model.channels: {RGB.channels if colours == 1 else colours}"
    return f"{found}, but the model takes {wanted}; {remedy}"


def shown(image: PixelArray) -> ImageArray:
    """Returns (H, W, 3) uint8 for people: of three or more channels the first three, of two their mean."""
    if image.shape[2] == 2:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3] if image.dtype == np.uint8 else np.rint(image[:, :, :3])).astype(
        np.uint8
    )


def read_stored(path: str | Path, *, most: int = MAX_PIXELS) -> Stored:
    """Decodes a picture of at most so many pixels as it is: grey has one channel, palettes and other colours are RGB.

    Raises:
        DataError: it can't be read as one picture, has more than `MOST_CHANNELS` channels, or NaN in it.
    """
    path = Path(path)
    layout = layout_of(path) if is_tiff(path) else None
    if layout is None or (layout.pages == 1 and layout.simple):
        return _by_pillow(path, most)
    try:
        return _checked(read_pages(path, most), layout.alpha)._replace(pages=layout.pages)
    except Compressed as error:
        if layout.pages == 1 and layout.samples in (1, 3, 4):
            return _by_pillow(path, most, deep=layout.dtype.itemsize > 1)
        raise DataError(f"{path}: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _by_pillow(path: Path, most: int, *, deep: bool = False) -> Stored:
    """Reads one picture with Pillow, `deep` colours with OpenCV once Pillow has found the file whole."""
    with open_picture(path, most=most) as picture:
        orientation = int(picture.getexif().get(ORIENTATION, 1))
        if picture.mode.startswith(("I", "F")):
            return _checked(np.asarray(ImageOps.exif_transpose(picture))[:, :, None], alpha=False, turned=orientation)
        if picture.mode.startswith("RGB") and (deep or (picture.format == "PNG" and bits_of_png(path) == 16)):
            return _deep_colours(path, orientation)
        if picture.mode in ("L", "LA", "RGBA"):
            values = np.atleast_3d(np.array(ImageOps.exif_transpose(picture)))
            return Stored(values, picture.mode != "L", orientation)
        return Stored(to_rgb(picture), orientation=orientation)


def bits_of_png(path: Path) -> int:
    """Returns the bits per channel that the header of a PNG states."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _deep_colours(path: Path, orientation: int) -> Stored:
    """Reads colours of more than 8 bits, of which Pillow keeps the upper 8."""
    if orientation != 1:
        raise DataError(f"EXIF orientation {orientation}, which is read of 8 bits only; save it upright")
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError("damaged file; export or copy it again")
    order = [2, 1, 0, 3][: values.shape[2]]  # OpenCV has blue first
    return _checked(values[:, :, order], len(order) == 4)


def _checked(values: np.ndarray[Any, Any], alpha: bool, turned: int = 1) -> Stored:
    count = values.shape[2]
    if count > MOST_CHANNELS:
        raise DataError(f"{count} channels; at most {MOST_CHANNELS} are possible: leave some out")
    if values.dtype.kind not in "uif":
        raise DataError(f"values of {values.dtype}; save it as whole or floating-point numbers")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        bad = int((~finite).sum())
        raise DataError(f"NaN or infinity in {bad:,} of {values.size:,} values; replace them, or take the picture out")
    return Stored(values, alpha, turned)
