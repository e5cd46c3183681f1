"""Prediction of classes: one merged file in, maps in the original frame out, by `predict_maps` as in `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from numpy.typing import ArrayLike

from samtune.base.disk import write_bytes, write_text
from samtune.base.machine import pick_device
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, unknown_name
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.panels import save_panels
from samtune.tasks.pixels import batch_of_one
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import find_images, predict_each, refuse_grid, targets_of
from samtune.tasks.prompted import predict_prompted, segment_files
from samtune.tasks.semantic.draw import map_row
from samtune.tasks.semantic.evaluate import MapDescription, MapPrediction, predict_maps
from samtune.tasks.semantic.outputs import coco_json, geojson, palette_png
from samtune.types import ImageArray, Prediction

SUFFIXES = {"png": ".png", "coco": ".json", "geojson": ".geojson"}
"""Format of answers to the ending of their files; COCO's are one file."""
COCO_FILE = "predictions.json"


class MapPredictor:
    """Predicts maps of classes with one model in eval mode, in fp32; every call stands alone."""

    def __init__(self, model: Backbone, info: MapDescription) -> None:
        self.model, self.info, self.table = model, info, info.table()

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto") -> MapPredictor:
        """Loads the `merged.safetensors` or `bundle.safetensors` of a semantic run.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
            ConfigError: an unknown device, or one that this machine doesn't have.
        """
        return cls(*load_merged(Path(path), MapDescription, device=pick_device(device)))

    def predict(self, image_hwc_uint8: ImageArray) -> MapPrediction:
        """Predicts the classes of one (H, W, 3) uint8 RGB image, at its size.

        Raises:
            DataError: not such an image.
            NonFiniteError: the model returns NaN or infinity.
        """
        batch = batch_of_one(image_hwc_uint8, self.model.image_size, torch.uint8).to(self.model.device)
        (found,) = predict_maps(self.model, batch, sizes_original=[batch.truths[0].shape])
        return found

    def segment(
        self, image_hwc_uint8: ImageArray, *, boxes_xyxy: ArrayLike | None = None, points_xy: ArrayLike | None = None
    ) -> Prediction:
        """Predicts the mask of a prompted object, by Segment Anything's own tokens; see `predict_prompted`."""
        return predict_prompted(self.model, image_hwc_uint8, boxes_xyxy=boxes_xyxy, points_xy=points_xy)


def predict_map_files(request: Request) -> str:
    """Writes the classes of each image, at its size, or with a prompt the mask of an object; says what was written.

    Raises:
        ConfigError: an unknown format, a format or overlay of a prompted mask, or an answer would replace an image.
        DataError: nothing to predict, two images of one stem, or images that can't be read; all are listed, after the
            answers of the others are written.
        DiskError: `out` can't be written.
    """
    form = request.format or "png"
    if form not in SUFFIXES:
        raise ConfigError(f"--format: {unknown_name('format', form, SUFFIXES)}")
    refuse_grid(request)
    predictor = MapPredictor.from_file(request.checkpoint, device=request.device)
    targets = targets_of(find_images(request.paths), request.out, SUFFIXES[form])
    if request.boxes_xyxy or request.points_xy:
        return segment_files(predictor.model, request, targets)

    def answer(path: Path) -> MapPrediction | None:
        image = read_image(path)
        found = predictor.predict(image)
        if request.overlay:
            row = map_row(image, None, found.places, predictor.table.names)
            save_panels(request.out / "overlays", [(path.stem, row)])
        if form == "coco":
            return found
        if form == "png":
            write_bytes(targets[path], palette_png(found.places, predictor.table))
        else:
            write_text(targets[path], json.dumps(geojson(found, predictor.table)))
        return None  # what is written need not stay in memory

    def finish(found: dict[Path, MapPrediction | None]) -> None:
        kept = {path.name: answer for path, answer in found.items() if answer is not None}
        if form == "coco":
            write_text(request.out / COCO_FILE, json.dumps(coco_json(kept, predictor.table)))

    found = predict_each(list(targets), answer, what="map", finish=finish)
    return f"{len(found)} maps of classes in {request.out / COCO_FILE if form == 'coco' else request.out}"
