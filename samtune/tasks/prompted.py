"""Which object does a prompt mean? One mask from a Segment Anything, whatever else it was tuned for."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from samtune.base.disk import write_bytes
from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels
from samtune.data.frames import Collate, resize_longest
from samtune.errors import ConfigError, DataError
from samtune.models.backbone import Backbone
from samtune.tasks.pixels import low_logits, to_original
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import check_one_image, checked_image, predict_each
from samtune.tasks.prompts import PromptError, check_inside, checked_boxes, checked_points, clip_boxes
from samtune.types import Batch, MaskArray, PixelArray, Prediction, Sample, Size


def predict_prompted(
    model: Backbone,
    image_hwc: PixelArray,
    *,
    boxes_xyxy: ArrayLike | None = None,
    points_xy: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    pixels: Pixels = RGB,
) -> Prediction:
    """Predicts the mask of one image, at its size.

    Several boxes make one mask: a pixel is foreground when it is for any of them, and its probability is the
    largest. Each box costs one pass through the network. Points are one prompt set, given with every box.

    Args:
        image_hwc: (H, W, 3) uint8 RGB; with other `pixels` as `samtune.data.channels.read.read_pixels` returns it.
        boxes_xyxy: (4,) or (N, 4) in pixels of the image; what sticks out of the image is cut off.
        points_xy: (P, 2) in pixels of the image.
        labels: (P,) 1 = on the object, 0 = off it; all 1 when left out.
        pixels: what the model takes.

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
    side = model.image_size
    small = resize_longest(image, side)
    scale = np.array([small.shape[1] / size[1], small.shape[0] / size[0]])
    values = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))  # (C, h, w)
    mask, truth = torch.zeros(small.shape[:2], dtype=torch.bool), cast(MaskArray, np.zeros(size, dtype=np.bool_))
    points_input = None if points is None else torch.as_tensor(points * scale, dtype=torch.float32)
    on_object = None if signs is None else torch.from_numpy(signs)
    predictions = []
    for box in boxes:
        box_input = None if box is None else torch.as_tensor(box * np.tile(scale, 2), dtype=torch.float32)
        sample = Sample("the image", values, mask, truth, box_input, points_input, on_object)
        batch = Collate(side)([sample]).to(model.device)
        predictions += predict_batch(model, batch, sizes_original=[size])
    found = cast(MaskArray, np.logical_or.reduce([p.mask for p in predictions]))
    probability = np.maximum.reduce([p.probability for p in predictions])
    return Prediction(found, probability, float(probability[found].mean()) if found.any() else 0.0)


def segment_files(model: Backbone, request: Request, targets: Mapping[Path, Path], pixels: Pixels) -> str:
    """Writes the mask of the prompted object of an image, 0 and 255, where the model answers otherwise without prompt.

    Args:
        targets: of each image the file of its answer.
        pixels: what the model takes.

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
            found = predict_prompted(model, image, boxes_xyxy=boxes, points_xy=points, pixels=pixels)
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
    and in fp32; the mask is logit > 0. The score of a prediction is the mean probability inside its mask.

    Args:
        model: maps a `Batch` to (B, 1, S/4, S/4) logits; the caller has set evaluation mode.
        batch: on the device of the model.
        sizes_original: (H, W) of each item.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of an image are not finite; the message names it.
    """
    side = batch.images.shape[-1]
    items = zip(low_logits(model, batch, autocast_dtype)[:, 0], batch.sizes_input, sizes_original, strict=True)
    return [_prediction(to_original(low, side, size_input, size)) for low, size_input, size in items]


def _prediction(logits: Tensor) -> Prediction:
    mask, probability = (logits > 0).cpu().numpy(), logits.sigmoid().cpu().numpy()
    return Prediction(mask, probability, float(probability[mask].mean()) if mask.any() else 0.0)


def png_of(mask: MaskArray) -> bytes:
    """Returns a PNG of an (H, W) mask: 0 and 255."""
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()
