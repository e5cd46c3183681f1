"""Which object does a prompt mean? One mask from a Segment Anything, whatever else it was tuned for."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from scipy.special import expit  # type: ignore[import-untyped]
from torch import Tensor, nn

from samtune.base.disk import write_bytes
from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels
from samtune.data.frames import Collate, resize_longest
from samtune.errors import ConfigError, DataError
from samtune.models.backbone import Backbone
from samtune.tasks.pixels import batch_of_one, low_logits, to_original
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import check_one_image, checked_image, predict_each
from samtune.tasks.prompts import Floats, PromptError, check_inside, checked_boxes, checked_points, clip_boxes
from samtune.tasks.tiles.blend import Bands, blended
from samtune.tasks.tiles.grid import place_of, size_of
from samtune.types import Batch, MaskArray, PixelArray, Prediction, Sample, Size, Tiles


def predict_prompted(
    model: Backbone,
    image_hwc: PixelArray,
    *,
    boxes_xyxy: ArrayLike | None = None,
    points_xy: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    pixels: Pixels = RGB,
    tiles: Tiles | None = None,
) -> Prediction:
    """Predicts the mask of one image, at its size.

    Several boxes make one mask: a pixel is foreground when it is for any of them, and its probability is the
    largest. Each box costs one pass through the network. Points are one prompt set, given with every box.

    With tiles, a prompt is answered in the part of the image that shows it best, see `place_of`, and is background
    elsewhere; without a prompt all tiles are.

    Args:
        image_hwc: (H, W, 3) uint8 RGB; with other `pixels` as `samtune.data.channels.read.read_pixels` returns it.
        boxes_xyxy: (4,) or (N, 4) in pixels of the image; what sticks out of the image is cut off.
        points_xy: (P, 2) in pixels of the image.
        labels: (P,) 1 = on the object, 0 = off it; all 1 when left out.
        pixels: what the model takes.
        tiles: how it sees images; None for as a whole.

    Raises:
        DataError: not such an image.
        PromptError: a prompt of a wrong shape, or outside the image; or a model that answers none.
        NonFiniteError: the model returns NaN or infinity.
    """
    if not model.answers_prompts:
        field = "points" if boxes_xyxy is None else "box"
        raise PromptError(field, f"{model.name} gives a map of classes, and answers no boxes or points: give none.")
    image = checked_image(image_hwc, pixels)
    size = (image.shape[0], image.shape[1])
    given = checked_boxes(boxes_xyxy)
    boxes = [None] if given is None else list(clip_boxes(given, size))
    points, signs = checked_points(points_xy, labels)
    if points is not None:
        check_inside(points, size)
    if tiles is not None and given is None and points is None:
        whole = batch_of_one(image, model.image_size, torch.bool, pixels, tiles).to(model.device)
        return predict_batch(model, whole, sizes_original=[size])[0]
    found, probability = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.float32)
    for box in boxes:
        place = (slice(0, size[0]), slice(0, size[1])) if tiles is None else place_of(_around(box, points), size, tiles)
        corner = np.array([place[1].start, place[0].start])
        there = None if box is None else box - np.tile(corner, 2), None if points is None else points - corner
        batch = _one_prompt(image[place], *there, signs, model.image_size, 0 if tiles is None else tiles.size)
        (one,) = predict_batch(model, batch.to(model.device), sizes_original=[size_of(place)])
        found[place] |= one.mask
        probability[place] = np.maximum(probability[place], one.probability)
    return Prediction(cast(MaskArray, found), probability, float(probability[found].mean()) if found.any() else 0.0)


def _around(box: Floats | None, points: Floats | None) -> list[float]:
    """Returns the XYXY box of a prompt's box and points."""
    corners = [part.reshape(-1, 2) for part in (box, points) if part is not None]
    every = np.concatenate(corners)
    return [*every.min(axis=0).tolist(), *every.max(axis=0).tolist()]


def _one_prompt(
    image: PixelArray, box: Floats | None, points: Floats | None, signs: Any, side: int, least: int
) -> Batch:
    """Returns an image in the input frame with a prompt set in its pixels; `least` as of `resize_longest`."""
    small = resize_longest(image, side, least=least)
    scale = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
    values = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))  # (C, h, w)
    mask, truth = torch.zeros(small.shape[:2], dtype=torch.bool), np.zeros(image.shape[:2], dtype=np.bool_)
    points_input = None if points is None else torch.as_tensor(points * scale, dtype=torch.float32)
    box_input = None if box is None else torch.as_tensor(box * np.tile(scale, 2), dtype=torch.float32)
    on_object = None if signs is None else torch.from_numpy(signs)
    return Collate(side)([Sample("the image", values, mask, truth, box_input, points_input, on_object)])


def segment_files(
    model: Backbone, request: Request, targets: Mapping[Path, Path], pixels: Pixels, tiles: Tiles | None
) -> str:
    """Writes the mask of the prompted object of an image, 0 and 255, where the model answers otherwise without prompt.

    Args:
        targets: of each image the file of its answer.
        pixels, tiles: what the model takes, and how it sees images.

    Raises:
        ConfigError: a format or overlay of the other answers, or a prompt for more than one image.
        DataError: an image that can't be read, or that the prompt does not fit.
    """
    if request.format not in (None, "png") or request.overlay:
        raise ConfigError("--format and --overlay are of maps and objects: leave them out beside --box and --point.")
    check_one_image(targets)
    boxes, points = request.boxes_xyxy or None, request.points_xy or None
    checked_boxes(boxes)
    checked_points(points, None)

    def write(path: Path) -> None:
        try:
            image = read_pixels(path, pixels)
            how: Any = {"boxes_xyxy": boxes, "points_xy": points, "pixels": pixels, "tiles": tiles}
            found = predict_prompted(model, image, **how)
        except PromptError as err:
            raise DataError(f"{path}: {err}") from err
        write_bytes(targets[path], png_of(found.mask))

    masks = predict_each(list(targets), write, what="mask")
    return f"{len(masks)} masks in {request.out}"


def predict_batch(
    model: nn.Module, batch: Batch, *, sizes_original: Sequence[Size], autocast_dtype: torch.dtype | None = None
) -> list[Prediction]:
    """Predicts the masks of one batch at the original sizes, on the CPU: the single prediction path.

    Low-res logits are enlarged to the input frame, cropped to the picture and resized to the original, both bilinear
    and in fp32; the mask is logit > 0. The score of a prediction is the mean probability inside its mask. A picture
    with tiles is answered tile by tile.

    Args:
        model: maps a `Batch` to (B, 1, S/4, S/4) logits; the caller has set evaluation mode.
        batch: on the device of the model.
        sizes_original: (H, W) of each item.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of an image are not finite; the message names it.
    """
    if batch.tiles is not None:
        return [_by_tiles(blended(model, batch, autocast_dtype), sizes_original[0])]
    side = batch.images.shape[-1]
    items = zip(low_logits(model, batch, autocast_dtype)[:, 0], batch.sizes_input, sizes_original, strict=True)
    return [_prediction(to_original(low, side, size_input, size)) for low, size_input, size in items]


def _by_tiles(bands: Bands, size: Size) -> Prediction:
    mask, probability = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.float32)
    for rows, logits in bands:
        mask[rows], probability[rows] = logits[0] > 0, expit(logits[0])
    return Prediction(cast(MaskArray, mask), probability, float(probability[mask].mean()) if mask.any() else 0.0)


def _prediction(logits: Tensor) -> Prediction:
    mask, probability = (logits > 0).cpu().numpy(), logits.sigmoid().cpu().numpy()
    return Prediction(mask, probability, float(probability[mask].mean()) if mask.any() else 0.0)


def png_of(mask: MaskArray) -> bytes:
    """Returns a PNG of an (H, W) mask: 0 and 255."""
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()
