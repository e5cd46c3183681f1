"""Prediction of objects: one merged file in, objects in the original frame out, by `predict_instances`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from samtune.base.disk import write_bytes, write_text
from samtune.base.machine import pick_device
from samtune.data.frames import Collate, resize_longest
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, unknown_name
from samtune.files.merged import load_merged
from samtune.models.sam.model import SamModel
from samtune.tasks.instances.draw import overlay
from samtune.tasks.instances.evaluate import InstanceDescription, predict_instances
from samtune.tasks.instances.grid import grid_instances
from samtune.tasks.instances.outputs import coco_json, counts_csv, geojson, index_png
from samtune.tasks.panels import save_panels
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import checked_image, find_images, predict_each, targets_of
from samtune.tasks.prompted import segment_files
from samtune.types import ImageArray, Instances, Sample

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
        image = checked_image(image_hwc_uint8)
        small = resize_longest(image, self.model.image_size)
        pixels = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))  # (3, h, w)
        target = torch.zeros(small.shape[:2], dtype=torch.int32)
        sample = Sample("the image", pixels, target, np.zeros(image.shape[:2], dtype=np.int32))
        batch = Collate(self.model.image_size)([sample]).to(self.model.device)
        (found,) = predict_instances(self.model, batch, sizes_original=[(image.shape[0], image.shape[1])])
        return found

    def predict_by_grid(self, image_hwc_uint8: ImageArray, points: int) -> Instances:
        """Finds the objects of one image by segment-anything's own generator; see `grid_instances`."""
        return grid_instances(self.model, checked_image(image_hwc_uint8), points=points)


def predict_instance_files(request: Request) -> str:
    """Writes the objects of each image, at its size, or with a prompt the mask of one; says what was written.

    Raises:
        ConfigError: an unknown format, a format or overlay of a prompted mask, or an answer would replace an image.
        DataError: nothing to predict, two images of one stem, or images that can't be read; all are listed, after the
            answers of the others are written.
        DiskError: `out` can't be written.
    """
    form = request.format or "png"
    if form not in SUFFIXES:
        raise ConfigError(f"--format: {unknown_name('format', form, SUFFIXES)}")
    predictor = InstancePredictor.from_file(request.checkpoint, device=request.device)
    targets = targets_of(find_images(request.paths), request.out, SUFFIXES[form])
    if request.box_xyxy is not None or request.points_xy:
        if request.grid is not None:
            raise ConfigError(f"--grid {request.grid} asks for all objects, --box and --point for one. Leave one out.")
        return segment_files(predictor.model, request, targets)
    counts, kept = dict[str, int](), dict[str, Instances]()

    def answer(path: Path) -> None:
        image = read_image(path)
        found = predictor.predict_by_grid(image, request.grid) if request.grid else predictor.predict(image)
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
