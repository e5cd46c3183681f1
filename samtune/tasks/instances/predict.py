"""Prediction of objects: one merged file in, objects in the original frame out, by `predict_instances`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from numpy.typing import ArrayLike

from samtune.base.disk import write_bytes, write_text
from samtune.base.machine import pick_device
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.files.merged import load_merged
from samtune.models.sam.model import SamModel
from samtune.tasks.instances.draw import overlay
from samtune.tasks.instances.evaluate import InstanceDescription, predict_instances
from samtune.tasks.instances.outputs import coco_json, counts_csv, geojson, index_png
from samtune.tasks.instances.prompting import boxed_instances, grid_instances
from samtune.tasks.panels import save_panels
from samtune.tasks.pixels import batch_of_one
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import check_one_image, checked_image, find_images, predict_each, targets_of
from samtune.tasks.prompted import segment_files
from samtune.tasks.prompts import Floats, PromptError, checked_boxes
from samtune.types import ImageArray, Instances

SUFFIXES = {"png": ".png", "coco": ".json", "geojson": ".geojson"}
"""Format of answers to the ending of their files; COCO's are one file."""
COCO_FILE, COUNTS_FILE = "predictions.json", "counts.csv"


class InstancePredictor:
    """Finds the objects of pictures with one model in eval mode, in fp32; every call stands alone."""

    def __init__(self, model: SamModel, info: InstanceDescription) -> None:
        self.model, self.info = model, info

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto") -> InstancePredictor:
        """Loads the `merged.safetensors` or `bundle.safetensors` of a run on instances.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
            ConfigError: an unknown device, or one that this machine doesn't have.
        """
        model, info = load_merged(Path(path), InstanceDescription, device=pick_device(device))
        assert isinstance(model, SamModel)
        return cls(model, info)

    def predict(self, image_hwc_uint8: ImageArray) -> Instances:
        """Finds the objects of one (H, W, 3) uint8 RGB image, at its size, by the maps.

        Raises:
            DataError: not such an image.
            NonFiniteError: the model returns NaN or infinity.
        """
        batch = batch_of_one(image_hwc_uint8, self.model.image_size, torch.int32).to(self.model.device)
        (found,) = predict_instances(self.model, batch, sizes_original=[batch.truths[0].shape])
        return found

    def predict_in_boxes(self, image_hwc_uint8: ImageArray, boxes_xyxy: ArrayLike) -> Instances:
        """Segments an object in each of (N, 4) boxes in pixels of one image; see `boxed_instances`."""
        return boxed_instances(self.model, image_hwc_uint8, boxes_xyxy)

    def predict_by_grid(self, image_hwc_uint8: ImageArray, points: int) -> Instances:
        """Finds the objects of one image by segment-anything's own generator; see `grid_instances`."""
        return grid_instances(self.model, checked_image(image_hwc_uint8), points=points)


def predict_instance_files(request: Request) -> str:
    """Writes the objects of each image, at its size, or with points the mask of one; says what was written.

    Raises:
        ConfigError: an unknown format, a format or overlay of the mask of points, a prompt for several images, or an
            answer would replace an image.
        DataError: nothing to predict, two images of one stem, or images that can't be read; all are listed, after the
            answers of the others are written.
        DiskError: `out` can't be written.
    """
    form = request.format or "png"
    if form not in SUFFIXES:
        raise ConfigError(f"--format: {unknown_name('format', form, SUFFIXES)}")
    predictor = InstancePredictor.from_file(request.checkpoint, device=request.device)
    targets = targets_of(find_images(request.paths), request.out, SUFFIXES[form])
    if request.grid is not None and (request.boxes_xyxy or request.points_xy):
        raise ConfigError(f"--point {request.grid}x{request.grid} asks for all objects, --box for some. Leave one out.")
    if request.points_xy:
        return segment_files(predictor.model, request, targets)
    if request.boxes_xyxy:
        check_one_image(targets)
    ask = partial(_ask, predictor, checked_boxes(request.boxes_xyxy or None), request.grid)
    counts, kept = dict[str, int](), dict[str, Instances]()

    def answer(path: Path) -> None:
        image = read_image(path)
        try:
            found = ask(image)
        except PromptError as err:
            raise DataError(f"{path}: {err}") from err
        counts[path.name] = len(found)
        if request.overlay:
            save_panels(request.out / "overlays", [(path.stem, overlay(image, found.labels))])
        if form == "coco":
            kept[path.name] = found
        elif form == "png":
            write_bytes(targets[path], index_png(found.labels))
        else:
            write_text(targets[path], json.dumps(geojson(found)))

    def finish(_: object) -> None:
        write_text(request.out / COUNTS_FILE, counts_csv(counts))
        if form == "coco":
            write_text(request.out / COCO_FILE, json.dumps(coco_json(kept)))

    predict_each(list(targets), answer, what="map of objects", finish=finish)
    where = request.out / COCO_FILE if form == "coco" else request.out
    return f"{sum(counts.values()):,} objects in {len(counts)} images, in {where}; counts in {COUNTS_FILE}"


def _ask(predictor: InstancePredictor, boxes: Floats | None, grid: int | None, image: ImageArray) -> Instances:
    """Finds the objects of an image in the way that was asked for."""
    if boxes is not None:
        return predictor.predict_in_boxes(image, boxes)
    return predictor.predict(image) if grid is None else predictor.predict_by_grid(image, grid)
