"""Prediction: one merged file in, masks in the original frame out, by `predict_batch` as those of `evaluate`."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from samtune.base.disk import write_bytes
from samtune.base.machine import pick_device
from samtune.data.channels.read import read_pixels, shown
from samtune.data.formats.annotations import Annotated, Annotation
from samtune.data.formats.shapes import encode_rle
from samtune.errors import DataError
from samtune.files.description import model_named
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.masks.draw import Marks, save_overlays
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tasks.predict import (
    STACK,
    check_one_image,
    check_stack,
    checked_format,
    find_images,
    predict_each,
    predict_stacks,
    refuse_grid,
    save_annotations,
    targets_of,
    targets_of_format,
)
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.prompted import png_of, predict_prompted
from samtune.tasks.prompts import PromptError, checked_boxes, checked_points
from samtune.types import PixelArray, Prediction

logger = logging.getLogger(__name__)


class Predictor:
    """Predicts masks with one model in eval mode, in fp32; every call stands alone.

    Attributes:
        untuned: it is a model as it was published, which answers boxes and points alike.
    """

    def __init__(self, model: Backbone, info: MaskDescription, *, untuned: bool = False) -> None:
        self.model, self.info, self.untuned = model, info, untuned

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto", tiles: tuple[int, int] | None = None) -> Predictor:
        """Loads the `merged.safetensors` of a run; "auto" takes the first there is of cuda, mps and cpu.

        Args:
            tiles: by which it answers, side and overlap in pixels of a picture, where the file has none of its own.

        Raises:
            CheckpointError: the file is missing, damaged or no merged file.
            ConfigError: an unknown device, or one that this machine doesn't have, or tiles for a file that has some.
        """
        file = Path(path)
        model, info = load_merged(file, MaskDescription, device=pick_device(device))
        return cls(model, info.by_tiles(tiles, file), untuned=model_named(file) is not None)

    def predict(
        self,
        image_hwc_uint8: PixelArray,
        *,
        boxes_xyxy: ArrayLike | None = None,
        points_xy: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> Prediction:
        """Predicts the mask of one image, at its size; arguments and errors as of `predict_prompted`.

        A model with other channels than RGB, or a range, takes what `samtune.data.channels.read.read_pixels` returns.
        """
        return predict_prompted(
            self.model,
            image_hwc_uint8,
            boxes_xyxy=boxes_xyxy,
            points_xy=points_xy,
            labels=labels,
            pixels=self.info.pixels,
            tiles=self.info.tiling,
        )


def predict_files(request: Request) -> str:
    """Writes the mask of each image as `out/STEM.png`, 0 and 255, at its size, or as annotations; says what is written.

    Raises:
        DataError: nothing to predict, two images of one stem (before anything is predicted), or images that can't be
            read or that the prompt doesn't fit; all are listed, after the masks of the others are written.
        PromptError: a prompt of a wrong shape.
        ConfigError: an unknown format, a mask would replace an image or annotations, a prompt for more than one image.
        DiskError: `out` can't be written.
    """
    form = checked_format(request, ("png", STACK))
    check_stack(request)
    refuse_grid(request)
    predictor = Predictor.from_file(request.checkpoint, device=request.device, tiles=request.tiles)
    if request.stack:
        return _predict_stacks(predictor, request)
    boxes, points = request.boxes_xyxy or None, request.points_xy or None
    checked_boxes(boxes)
    checked_points(points, None)
    images = find_images(request.paths)
    targets = targets_of(images, request.out) if form == "png" else targets_of_format(images, request.out, form)
    if boxes or points:
        check_one_image(targets)
    if warning := other_prompt(predictor, box=boxes is not None, points=points is not None):
        logger.warning("%s", warning)

    chosen = predictor.info.categories or ()
    category = chosen[0] if len(chosen) == 1 else "object"
    written = request.out

    def answer(path: Path) -> Annotated | None:
        image = read_pixels(path, predictor.info.pixels)
        try:
            found = predictor.predict(image, boxes_xyxy=boxes, points_xy=points)
        except PromptError as err:
            raise DataError(f"{path}: {err}") from err
        if request.overlay:
            marks = Marks(boxes or (), points or ())
            save_overlays(request.out / "overlays", [(path.stem, shown(image), None, found.mask, marks)])
        if form != "png":
            return annotated(path, found, category)
        write_bytes(targets[path], png_of(found.mask))
        return None  # what is written need not stay in memory

    def finish(found: dict[Path, Annotated | None]) -> None:
        nonlocal written
        if form != "png":
            written = save_annotations(form, found, {1: category}, request.out)

    masks = predict_each(list(targets), answer, what="mask", finish=finish)
    return f"{len(masks)} masks in {written}"


def annotated(path: Path, found: Prediction, category: str) -> Annotated:
    """Returns the mask of an image as one annotation, which stands for all its objects; none where it is empty."""
    height, width = found.mask.shape
    rle, area, _ = encode_rle(found.mask)
    item = Annotation(category, rle, crowd=True, score=round(float(found.score), 6))
    return Annotated(path, path, width, height, [item] if area else [])


def _predict_stacks(predictor: Predictor, request: Request) -> str:
    """Writes the masks of the slices of each TIFF as `out/STEM.tif`, 0 and 255."""
    if warning := other_prompt(predictor, box=False, points=False):
        logger.warning("%s", warning)
    targets = targets_of(find_images(request.paths), request.out, ".tif")

    def answer(image: PixelArray) -> np.ndarray:
        return predictor.predict(image).mask.astype(np.uint8) * 255

    count = predict_stacks(targets, answer, predictor.info.pixels, what="stack")
    return f"{count} stacks of masks in {request.out}"


def other_prompt(predictor: Predictor, *, box: bool, points: bool) -> str | None:
    """Returns a warning when a model is asked in another way than it was tuned for, else None."""
    used = [kind for kind, given in (("box", box), ("point", points)) if given] or ["none"]
    info = predictor.info
    if predictor.untuned:
        alone = "an untuned model segments what a box or points show; without them its answer means little"
        return alone if used == ["none"] else None
    tuned = info.prompts or (info.prompt,)
    text = f"the model was tuned with prompt {' or '.join(tuned)!r}, this prediction uses {' and '.join(used)!r}"
    return None if set(tuned) & set(used) else f"{text}: it may be worse"
