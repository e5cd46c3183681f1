"""Prediction: one merged file in, masks in the original frame out, by `predict_batch` as those of `evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image

from samtune.base.disk import write_bytes
from samtune.base.machine import pick_device
from samtune.data.frames import Collate, resize_longest
from samtune.data.pictures import read_image
from samtune.data.verify import list_problems
from samtune.errors import ConfigError, DataError
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.masks.draw import save_overlays
from samtune.tasks.masks.evaluate import MaskDescription, predict_batch
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import checked_image, find_images, predict_each
from samtune.tasks.prompts import PromptError, check_inside, checked_boxes, checked_points, clip_boxes
from samtune.types import ImageArray, MaskArray, Prediction, Sample

logger = logging.getLogger(__name__)


class Predictor:
    """Predicts masks with one model in eval mode, in fp32; every call stands alone."""

    def __init__(self, model: Backbone, info: MaskDescription) -> None:
        self.model, self.info = model, info

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto") -> Predictor:
        """Loads the `merged.safetensors` of a run; "auto" takes the first there is of cuda, mps and cpu.

        Raises:
            CheckpointError: the file is missing, damaged or no merged file.
            ConfigError: an unknown device, or one that this machine doesn't have.
        """
        return cls(*load_merged(Path(path), MaskDescription, device=pick_device(device)))

    def predict(
        self,
        image_hwc_uint8: ImageArray,
        *,
        boxes_xyxy: ArrayLike | None = None,
        points_xy: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> Prediction:
        """Predicts the mask of one image, at its size.

        Several boxes make one mask: a pixel is foreground when it is for any of them, and its probability is the
        largest. Each box costs one pass through the network. Points are one prompt set, given with every box.

        Args:
            image_hwc_uint8: (H, W, 3) uint8 RGB.
            boxes_xyxy: (4,) or (N, 4) in pixels of the image; what sticks out of the image is cut off.
            points_xy: (P, 2) in pixels of the image.
            labels: (P,) 1 = on the object, 0 = off it; all 1 when left out.

        Raises:
            DataError: not such an image.
            PromptError: a prompt of a wrong shape, or outside the image.
            NonFiniteError: the model returns NaN or infinity.
        """
        image = checked_image(image_hwc_uint8)
        size = (image.shape[0], image.shape[1])
        given = checked_boxes(boxes_xyxy)
        boxes = [None] if given is None else list(clip_boxes(given, size))
        points, signs = checked_points(points_xy, labels)
        if points is not None:
            check_inside(points, size)
        side = self.model.image_size
        small = resize_longest(image, side)
        scale = np.array([small.shape[1] / size[1], small.shape[0] / size[0]])
        pixels = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))  # (3, h, w)
        mask, truth = torch.zeros(small.shape[:2], dtype=torch.bool), cast(MaskArray, np.zeros(size, dtype=np.bool_))
        points_input = None if points is None else torch.as_tensor(points * scale, dtype=torch.float32)
        on_object = None if signs is None else torch.from_numpy(signs)
        predictions = []
        for box in boxes:
            box_input = None if box is None else torch.as_tensor(box * np.tile(scale, 2), dtype=torch.float32)
            sample = Sample("the image", pixels, mask, truth, box_input, points_input, on_object)
            batch = Collate(side)([sample]).to(self.model.device)
            predictions += predict_batch(self.model, batch, sizes_original=[size])
        found = cast(MaskArray, np.logical_or.reduce([p.mask for p in predictions]))
        probability = np.maximum.reduce([p.probability for p in predictions])
        return Prediction(found, probability, float(probability[found].mean()) if found.any() else 0.0)


def predict_files(request: Request) -> str:
    """Writes the mask of each image as `out/STEM.png`, 0 and 255, at the size of the image; returns what was written.

    Raises:
        DataError: nothing to predict, two images of one stem (before anything is predicted), or images that can't be
            read or that the prompt doesn't fit; all are listed, after the masks of the others are written.
        PromptError: a prompt of a wrong shape.
        ConfigError: a mask would replace an image.
        DiskError: `out` can't be written.
    """
    predictor = Predictor.from_file(request.checkpoint, device=request.device)
    box, points = request.box_xyxy, request.points_xy or None
    checked_boxes(box)
    checked_points(points, None)
    targets = _targets(find_images(request.paths), request.out)
    if len(targets) > 1 and (box is not None or points):
        logger.warning("the same box and points are used for each of %d images, in pixels of each", len(targets))
    if warning := other_prompt(predictor.info, box=box is not None, points=points is not None):
        logger.warning("%s", warning)

    def write(path: Path) -> None:
        image = read_image(path)
        try:
            mask = predictor.predict(image, boxes_xyxy=box, points_xy=points).mask
        except PromptError as err:
            raise DataError(f"{path}: {err}") from err
        write_bytes(targets[path], png_of(mask))
        if request.overlay:
            save_overlays(request.out / "overlays", [(path.stem, image, None, mask)])

    masks = predict_each(list(targets), write, what="mask")
    return f"{len(masks)} masks in {request.out}"


def other_prompt(info: MaskDescription, *, box: bool, points: bool) -> str | None:
    """Returns a warning when a model is asked in another way than it was tuned for, else None."""
    used = [kind for kind, given in (("box", box), ("point", points)) if given] or ["none"]
    text = f"the model was tuned with prompt {info.prompt!r}, this prediction uses {' and '.join(used)!r}"
    return None if info.prompt in used else f"{text}: it may be worse"


def png_of(mask: MaskArray) -> bytes:
    """Returns a PNG of an (H, W) mask: 0 and 255."""
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()


def _targets(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Returns the mask file of each image, after making sure that no file would be lost."""
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_stem.setdefault(path.stem, []).append(path)
    if clashes := [f"{stem}.png: {', '.join(map(str, p))}" for stem, p in by_stem.items() if len(p) > 1]:
        title = "several images would write one mask; rename them or predict them apart"
        raise DataError(list_problems(title, clashes))
    targets = {path: out / f"{path.stem}.png" for path in images}
    if lost := {path.resolve() for path in images} & {target.resolve() for target in targets.values()}:
        raise ConfigError(
            f"--out {out} holds the images: {len(lost)} of them would be replaced. Choose another folder."
        )
    return targets
