"""Prediction of classes: one merged file in, maps in the original frame out, by `predict_maps` as in `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from samtune.base.disk import write_bytes, write_text
from samtune.base.machine import pick_device
from samtune.data.channels.read import read_pixels, shown
from samtune.data.formats.annotations import Annotated
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.panels import save_panels
from samtune.tasks.pixels import batch_of_one
from samtune.tasks.predict import (
    STACK,
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
from samtune.tasks.prompted import predict_prompted, segment_files
from samtune.tasks.semantic.draw import map_row
from samtune.tasks.semantic.evaluate import MapDescription, MapPrediction, predict_maps
from samtune.tasks.semantic.outputs import annotated, geojson, palette_png
from samtune.types import PixelArray, Prediction

SUFFIXES = {"png": ".png", "geojson": ".geojson", STACK: ".tif"}
"""Format of answers to the ending of their files, beside the formats of annotations."""


class MapPredictor:
    """Predicts maps of classes with one model in eval mode, in fp32; every call stands alone."""

    def __init__(self, model: Backbone, info: MapDescription) -> None:
        self.model, self.info, self.table = model, info, info.table()

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto", tiles: tuple[int, int] | None = None) -> MapPredictor:
        """Loads the `merged.safetensors` or `bundle.safetensors` of a semantic run; `tiles` as of `Predictor`.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
            ConfigError: an unknown device, or one that this machine doesn't have, or tiles for a file that has some.
        """
        model, info = load_merged(Path(path), MapDescription, device=pick_device(device))
        return cls(model, info.by_tiles(tiles, Path(path)))

    def predict(self, image_hwc_uint8: PixelArray) -> MapPrediction:
        """Predicts the classes of one image, at its size: (H, W, 3) uint8 RGB, or as of `predict_prompted`.

        Raises:
            DataError: not such an image.
            NonFiniteError: the model returns NaN or infinity.
        """
        info = self.info
        batch = batch_of_one(image_hwc_uint8, self.model.image_size, torch.uint8, info.pixels, info.tiling)
        (found,) = predict_maps(self.model, batch.to(self.model.device), sizes_original=[batch.truths[0].shape])
        return found

    def segment(
        self, image_hwc_uint8: PixelArray, *, boxes_xyxy: ArrayLike | None = None, points_xy: ArrayLike | None = None
    ) -> Prediction:
        """Predicts the mask of a prompted object, by Segment Anything's own tokens; see `predict_prompted`."""
        prompt: Any = {"boxes_xyxy": boxes_xyxy, "points_xy": points_xy}
        how: Any = {"pixels": self.info.pixels, "tiles": self.info.tiling}
        return predict_prompted(self.model, image_hwc_uint8, **prompt, **how)


def predict_map_files(request: Request) -> str:
    """Writes the classes of each image, at its size, or with a prompt the mask of an object; says what was written.

    Raises:
        ConfigError: an unknown format, a format or overlay of a prompted mask, or an answer would replace an image.
        DataError: nothing to predict, two images of one stem, or images that can't be read; all are listed, after the
            answers of the others are written.
        DiskError: `out` can't be written.
    """
    check_stack(request)
    refuse_grid(request)
    form = checked_format(request, SUFFIXES)
    predictor = MapPredictor.from_file(request.checkpoint, device=request.device, tiles=request.tiles)
    images, written = find_images(request.paths), request.out
    if form in SUFFIXES:
        targets = targets_of(images, request.out, SUFFIXES[form])
    else:
        targets = targets_of_format(images, request.out, form)
    if request.stack:
        return _predict_stacks(predictor, request, targets)
    if request.boxes_xyxy or request.points_xy:
        return segment_files(predictor.model, request, targets, predictor.info.pixels, predictor.info.tiling)

    def answer(path: Path) -> Annotated | None:
        image = read_pixels(path, predictor.info.pixels)
        found = predictor.predict(image)
        if request.overlay:
            row = map_row(shown(image), None, found.places, predictor.table.names)
            save_panels(request.out / "overlays", [(path.stem, row)])
        if form not in SUFFIXES:
            return annotated(path, found, predictor.table)
        if form == "png":
            write_bytes(targets[path], palette_png(found.places, predictor.table))
        else:
            write_text(targets[path], json.dumps(geojson(found, predictor.table)))
        return None  # what is written need not stay in memory

    def finish(found: dict[Path, Annotated | None]) -> None:
        nonlocal written
        if form not in SUFFIXES:
            categories = dict(zip(predictor.table.values, predictor.table.names, strict=True))
            written = save_annotations(form, found, categories, request.out)

    found = predict_each(list(targets), answer, what="map", finish=finish)
    return f"{len(found)} maps of classes in {written}"


def _predict_stacks(predictor: MapPredictor, request: Request, targets: dict[Path, Path]) -> str:
    """Writes the maps of the slices of each TIFF as the pages of another, in the values of the data."""
    values = np.array(predictor.table.values, dtype=np.uint8)

    def answer(image: PixelArray) -> np.ndarray:
        return values[predictor.predict(image).places]

    count = predict_stacks(targets, answer, predictor.info.pixels, what="stack")
    return f"{count} stacks of maps in {request.out}"
