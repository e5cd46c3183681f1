"""Prediction of objects: one merged file in, objects in the original frame out, by `predict_instances`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from samtune.base.disk import write_bytes, write_text
from samtune.base.machine import pick_device
from samtune.data.channels.read import read_pixels, shown
from samtune.data.formats.annotations import Annotated
from samtune.data.formats.table import SEPARATE, WRITERS
from samtune.errors import ConfigError, DataError
from samtune.files.merged import load_merged
from samtune.models.segmenter import Segmenter
from samtune.tasks.instances.draw import overlay
from samtune.tasks.instances.evaluate import InstanceDescription, predict_instances
from samtune.tasks.instances.outputs import annotated, counts_csv, geojson, index_png, index_values
from samtune.tasks.instances.prompts.prompting import boxed_instances, grid_instances, grid_of_tiles
from samtune.tasks.panels import save_panels
from samtune.tasks.pixels import batch_of_one
from samtune.tasks.predict import (
    STACK,
    check_one_image,
    check_stack,
    checked_format,
    find_images,
    predict_each,
    predict_stacks,
    save_annotations,
    targets_of,
    targets_of_format,
)
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.prompted import segment_files
from samtune.tasks.prompts import Floats, PromptError, checked_boxes
from samtune.types import Instances, PixelArray

SUFFIXES = {"png": ".png", "geojson": ".geojson", STACK: ".tif"}
"""Format of answers to the ending of their files, beside the formats of annotations."""
COUNTS_FILE = "counts.csv"


class InstancePredictor:
    """Finds the objects of pictures with one model in eval mode, in fp32; every call stands alone."""

    def __init__(self, model: Segmenter, info: InstanceDescription) -> None:
        self.model, self.info = model, info

    @classmethod
    def from_file(
        cls, path: str | Path, *, device: str = "auto", tiles: tuple[int, int] | None = None
    ) -> InstancePredictor:
        """Loads the `merged.safetensors` or `bundle.safetensors` of a run on instances; `tiles` as of `Predictor`.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
            ConfigError: an unknown device, or one that this machine doesn't have, or tiles for a file that has some.
        """
        model, info = load_merged(Path(path), InstanceDescription, device=pick_device(device))
        assert isinstance(model, Segmenter)
        return cls(model, info.by_tiles(tiles, Path(path)))

    def predict(self, image_hwc: PixelArray) -> Instances:
        """Finds the objects of one (H, W, 3) uint8 RGB image, at its size, by the maps.

        A model with other channels than RGB, or a range, takes what `samtune.data.channels.read.read_pixels` returns.

        Raises:
            DataError: not such an image.
            NonFiniteError: the model returns NaN or infinity.
        """
        batch = batch_of_one(image_hwc, self.model.image_size, torch.int32, self.info.pixels, self.info.tiling)
        sizes = [batch.truths[0].shape]
        (found,) = predict_instances(self.model, batch.to(self.model.device), sizes_original=sizes)
        return found

    def predict_in_boxes(self, image_hwc: PixelArray, boxes_xyxy: ArrayLike) -> Instances:
        """Segments an object in each of (N, 4) boxes in pixels of one image; see `boxed_instances`."""
        return boxed_instances(self.model, image_hwc, boxes_xyxy, pixels=self.info.pixels, tiles=self.info.tiling)

    def predict_by_grid(self, image_hwc: PixelArray, points: int) -> Instances:
        """Finds the objects of one image by segment-anything's own generator; see `grid_instances`."""
        if (tiles := self.info.tiling) is not None:
            return grid_of_tiles(self.model, image_hwc, tiles, points=points, pixels=self.info.pixels)
        return grid_instances(self.model, image_hwc, points=points, pixels=self.info.pixels)


def predict_instance_files(request: Request) -> str:
    """Writes the objects of each image, at its size, or with points the mask of one; says what was written.

    Raises:
        ConfigError: an unknown format, a format or overlay of the mask of points, a prompt for several images, or an
            answer would replace an image.
        DataError: nothing to predict, two images of one stem, or images that can't be read; all are listed, after the
            answers of the others are written.
        DiskError: `out` can't be written.
    """
    check_stack(request)
    form = checked_format(request, SUFFIXES, [name for name in WRITERS if name in SEPARATE])
    if request.grid is not None and (request.boxes_xyxy or request.points_xy):
        raise ConfigError(f"--point {request.grid}x{request.grid} asks for all objects, --box for some. Leave one out.")
    predictor = InstancePredictor.from_file(request.checkpoint, device=request.device, tiles=request.tiles)
    images = find_images(request.paths)
    if form in SUFFIXES:
        targets = targets_of(images, request.out, SUFFIXES[form])
    else:
        targets = targets_of_format(images, request.out, form)
    if request.stack:
        return _predict_stacks(predictor, request, targets)
    if request.points_xy:
        return segment_files(predictor.model, request, targets, predictor.info.pixels, predictor.info.tiling)
    return _predict_pictures(predictor, request, form, targets)


def _predict_pictures(predictor: InstancePredictor, request: Request, form: str, targets: dict[Path, Path]) -> str:
    if request.boxes_xyxy:
        check_one_image(targets)
    ask = partial(_ask, predictor, checked_boxes(request.boxes_xyxy or None), request.grid)
    chosen, pixels = predictor.info.categories or (), predictor.info.pixels
    category = chosen[0] if len(chosen) == 1 else "object"
    counts, written = dict[str, int](), request.out

    def answer(path: Path) -> Annotated | None:
        image = read_pixels(path, pixels)
        try:
            found = ask(image)
        except PromptError as err:
            raise DataError(f"{path}: {err}") from err
        counts[path.name] = len(found)
        if request.overlay:
            save_panels(request.out / "overlays", [(path.stem, overlay(shown(image), found.labels))])
        if form not in SUFFIXES:
            return annotated(path, found, category)
        if form == "png":
            write_bytes(targets[path], index_png(found.labels))
        else:
            write_text(targets[path], json.dumps(geojson(found)))
        return None  # what is written need not stay in memory

    def finish(found: dict[Path, Annotated | None]) -> None:
        nonlocal written
        write_text(request.out / COUNTS_FILE, counts_csv(counts))
        if form not in SUFFIXES:
            written = save_annotations(form, found, {1: category}, request.out)

    predict_each(list(targets), answer, what="map of objects", finish=finish)
    return f"{sum(counts.values()):,} objects in {len(counts)} images, in {written}; counts in {COUNTS_FILE}"


def _predict_stacks(predictor: InstancePredictor, request: Request, targets: dict[Path, Path]) -> str:
    """Writes the maps of the slices of each TIFF as the pages of another; each has its own numbers."""

    def answer(image: PixelArray) -> np.ndarray:
        return index_values(predictor.predict(image).labels)

    count = predict_stacks(targets, answer, predictor.info.pixels, what="stack")
    return f"{count} stacks of maps of objects in {request.out}"


def _ask(predictor: InstancePredictor, boxes: Floats | None, grid: int | None, image: PixelArray) -> Instances:
    """Finds the objects of an image in the way that was asked for."""
    if boxes is not None:
        return predictor.predict_in_boxes(image, boxes)
    return predictor.predict(image) if grid is None else predictor.predict_by_grid(image, grid)
