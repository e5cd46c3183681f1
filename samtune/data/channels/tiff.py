"""What is in a TIFF: one picture, whose pages are its channels if it has several, or a stack of slices?

tifffile reads what Pillow can't: more than four channels, colours of 16 bits, floating-point ones. It reads no LZW and
no JPEG without a further package; where Pillow has the same pixels, it is asked.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffFileError, TiffPage

from samtune.config.pixels import MOST_CHANNELS
from samtune.data.pictures import MAX_PIXELS, ORIENTATION, TIFFS, header_size, too_large
from samtune.errors import DataError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of damage, which is an error here

ALPHA = (1, 2)  # kinds of extra samples
_DAMAGED = (OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, EOFError, struct.error)


class Compressed(DataError):
    """A TIFF whose compression tifffile does not know."""


class Layout(NamedTuple):
    """What the header says.

    Attributes:
        width: of a page in pixels, as `height`.
        pages: number of pages.
        samples: values per pixel of a page.
        alpha: whether the last of them is transparency.
        dtype: of the values.
        simple: whether Pillow reads a page as it is: 8 bits, grey, RGB, a palette or CMYK.
    """

    width: int
    height: int
    pages: int
    samples: int
    alpha: bool
    dtype: np.dtype[Any]
    simple: bool


def is_tiff(path: Path) -> bool:
    """Tells by its first bytes whether a file is a TIFF."""
    try:
        with path.open("rb") as file:
            return file.read(4) in TIFFS
    except OSError:
        return False


def layout_of(path: Path) -> Layout | None:
    """Returns what the header of a TIFF says; None of one that tifffile can't read."""
    try:
        with TiffFile(path) as file:
            page = _first(file)
            samples, kinds = int(page.samplesperpixel), [int(kind) for kind in page.extrasamples]
            alpha = bool(kinds) and kinds[-1] in ALPHA
            dtype = np.dtype(page.dtype) if page.dtype is not None else np.dtype(np.void)
            colours = samples - len(kinds)
            known = colours in (1, 3) or (colours == 4 and page.photometric == PHOTOMETRIC.SEPARATED)
            simple = dtype.kind in "bu" and dtype.itemsize == 1 and len(kinds) <= alpha and known
            return Layout(page.imagewidth, page.imagelength, len(file.pages), samples, alpha, dtype, simple)
    except (TiffFileError, *_DAMAGED):
        return None


def picture_size(path: str | Path) -> tuple[int, int]:
    """Returns width and height of a picture by its header, EXIF orientation applied; a `DataError` if it has none."""
    layout = layout_of(Path(path)) if is_tiff(Path(path)) else None
    if layout is None or (layout.pages == 1 and layout.simple):
        return header_size(path)
    return layout.width, layout.height


def read_pages(path: Path, most: int = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Reads the one picture of a TIFF, of at most so many pixels: (H, W, C), in its own dtype.

    Several grey pages are channels.

    Raises:
        DataError: pages that are no channels, too many channels, or a page as of `read_slice`; without the file's name.
    """
    with _opened(path) as file:
        count = len(file.pages)
        if count == 1:
            return _values(_first(file), most)
        if count > MOST_CHANNELS:
            raise DataError(
                f"{count} pages, and at most {MOST_CHANNELS} can be channels; save one picture per file, or predict a "
                "stack of slices with samtune predict --format stack"
            )
        pages = [_values(page, most) for page in _each(file)]
        if len({(page.shape, page.dtype) for page in pages}) > 1 or pages[0].shape[2] != 1:
            raise DataError("several pages that are no channels: they must be grey, of one size and depth")
        return np.concatenate(pages, axis=2)


def read_slices(path: Path) -> Iterator[np.ndarray[Any, Any]]:
    """Yields the pages of a TIFF one by one: (H, W, C), in its own dtype; errors as of `read_pages`."""
    with _opened(path) as file:
        for number, page in enumerate(_each(file), start=1):
            try:
                yield _values(page, MAX_PIXELS)
            except DataError as error:
                raise DataError(f"page {number}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[TiffFile]:
    try:
        with TiffFile(path) as file:
            yield file
    except DataError:
        raise
    except (TiffFileError, *_DAMAGED) as error:
        raise DataError(f"damaged file ({error}); export or copy it again") from error


def _first(file: TiffFile) -> TiffPage:
    page = file.pages[0]
    assert isinstance(page, TiffPage)
    return page


def _each(file: TiffFile) -> Iterator[TiffPage]:
    for page in file.pages:
        whole = page if isinstance(page, TiffPage) else page.aspage()
        assert isinstance(whole, TiffPage)
        yield whole


def _values(page: TiffPage, most: int) -> np.ndarray[Any, Any]:
    """Decodes a page: (H, W, C)."""
    axes = page.axes
    if axes not in ("YX", "YXS", "SYX"):
        raise DataError(f"a page with axes {axes}; each must be (H, W), (H, W, C) or (C, H, W)")
    if problem := too_large(page.imagewidth, page.imagelength, most):
        raise DataError(problem)
    tag = page.tags.get(ORIENTATION)
    if tag is not None and tag.value != 1:
        raise DataError(f"orientation {tag.value}, which is read of 8 bits only; save it upright, without the tag")
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        kind = str(error).partition(" requires")[0].strip("<>").partition(".")[2].partition(":")[0]
        raise Compressed(f"compressed by {kind}; save it without compression, or by deflate (zlib)") from error
    return values[:, :, None] if axes == "YX" else np.moveaxis(values, 0, 2) if axes == "SYX" else values
