"""What does the file of a binary mask show, and which pixels of it are foreground?"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from samtune.data.cache import recall
from samtune.data.pictures import ORIENTATION, open_picture
from samtune.errors import DataError
from samtune.tasks.prompts import count_components
from samtune.types import MaskArray

NOISE = 4  # grey levels by which black may be off in a JPEG


class MaskFacts(NamedTuple):
    """What a file of a mask shows.

    Attributes:
        width: in pixels, EXIF orientation applied, as `height`.
        orientation: EXIF tag, 1 = upright.
        oddities: what a user may want to know, a line each.
        components: `count_components`; 0 for a mask without foreground.
    """

    width: int
    height: int
    orientation: int
    oddities: list[str]
    components: int


def read_mask(path: str | Path) -> MaskArray:
    """Decodes a binary mask by the rules of `to_mask`.

    Raises:
        DataError: the file can't be read, or isn't a binary mask.
    """
    with open_picture(path) as picture:
        return to_mask(picture)


def mask_facts(paths: Sequence[Path]) -> list[MaskFacts | DataError]:
    """Returns the facts of mask files, remembered per file; where one can't be read, the error that says why."""
    answers = recall("masks-2", paths, _look)
    return [answer if isinstance(answer, DataError) else MaskFacts(*answer) for answer in answers]


def to_mask(picture: Image.Image) -> MaskArray:
    """Converts a decoded picture to a binary mask: (H, W) bool, True = foreground, EXIF orientation applied.

    Rules: 0 and one other value: the other is foreground. Only a JPEG may have more: > 127, at most 1 % of the pixels
    between 16 and 239. Palette: by colour where the palette is grey, else by index. RGB and RGBA: the channels must be
    equal.

    Raises:
        DataError: labels of instances or classes, soft edges, or coloured channels.
    """
    lossy = picture.format in ("JPEG", "MPO")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "1":
        return np.array(picture, dtype=bool)
    grey = np.asarray(picture.convert("L")) if lossy else _grey_levels(picture)
    levels = np.unique(grey) if grey.dtype != np.uint8 else np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    between = float(np.mean((grey >= 16) & (grey <= 239)))
    if lossy and between <= 0.01 and not NOISE < levels[-1] <= 127:
        return cast(MaskArray, grey > 127)
    if not lossy and (len(levels) == 1 or (len(levels) == 2 and levels[0] == 0)):
        return cast(MaskArray, grey > 0)
    soft = levels[-1] > 127 if lossy else 240 <= levels[-1] <= 255 and len(levels) > 8
    raise DataError(_not_binary(levels, between, soft=bool(soft)))


def _not_binary(levels: np.ndarray, between: float, *, soft: bool) -> str:
    """Says what a mask of these levels, with this share of pixels between 16 and 239, looks like, and what it needs."""
    low, high = int(levels[0]), int(levels[-1])
    if soft:
        found = f"not a binary mask: {len(levels)} values, {between:.1%} of its pixels are between 16 and 239"
        return f"{found} (at most 1 % in a JPEG, only two values in others); save (mask > 127) * 255 as PNG"
    if len(levels) == 2:
        return f"mask with 2 classes, {low} and {high}, of which none is 0; a binary mask has 0 for background, and 255"
    labels = f"mask with {len(levels)} classes, looks like instance or class labels: values {low} to {high}"
    return f"{labels}; a binary mask has 0 and one other value: save (labels > 0) * 255, or one of the labels, as PNG"


def _grey_levels(picture: Image.Image) -> np.ndarray:
    """Returns (H, W) integer levels of a lossless mask."""
    if picture.mode in ("L", "LA") or picture.mode.startswith("I"):
        return np.asarray(picture.getchannel(0) if picture.mode == "LA" else picture)
    colours = np.asarray(picture.convert("RGB"))
    if (colours[..., :1] == colours).all():
        return colours[..., 0]
    if picture.mode == "P":
        return np.asarray(picture)
    raise DataError("coloured mask: its channels differ, as of labels; save it as one grey channel with 0 and 255")


def _look(path: Path) -> MaskFacts:
    with open_picture(path) as picture:
        mask = to_mask(picture)
        orientation = int(picture.getexif().get(ORIENTATION, 1))
        oddities = _oddities(picture, mask)
    return MaskFacts(mask.shape[1], mask.shape[0], orientation, oddities, count_components(mask))


def _oddities(picture: Image.Image, mask: MaskArray) -> list[str]:
    found = []
    if picture.format in ("JPEG", "MPO"):
        found.append("JPEG mask, foreground is > 127; PNG is exact")
    elif picture.mode in ("P", "RGB", "RGBA"):
        palette = picture.mode == "P"
        kind = "palette mask, read by grey colour or index" if palette else f"{picture.mode} mask of equal channels"
        found.append(f"{kind}; one grey channel is clearer")
    if mask.all() or not mask.any():
        found.append(f"mask is all {'foreground' if mask.all() else 'background'}")
    elif mask.mean() > 0.5 and np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean() > 0.9:
        found.append("mask looks inverted: foreground covers more than half the image and nearly all its border")
    return found
