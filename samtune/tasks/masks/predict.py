"""Prediction: one merged file in, masks in the original frame out, by `predict_batch` as those of `evaluate`."""

from __future__ import annotations

import logging
from pathlib import Path

from numpy.typing import ArrayLike

from samtune.base.disk import write_bytes
from samtune.base.machine import pick_device
from samtune.data.pictures import read_image
from samtune.errors import DataError
from samtune.files.description import model_named
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.masks.draw import Marks, save_overlays
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tasks.predict import Prediction as Request
from samtune.tasks.predict import check_one_image, find_images, predict_each, refuse_format, targets_of
from samtune.tasks.prompted import png_of, predict_prompted
from samtune.tasks.prompts import PromptError, checked_boxes, checked_points
from samtune.types import ImageArray, Prediction

logger = logging.getLogger(__name__)


class Predictor:
    """Predicts masks with one model in eval mode, in fp32; every call stands alone.

    Attributes:
        untuned: it is a model as it was published, which answers boxes and points alike.
    """

    def __init__(self, model: Backbone, info: MaskDescription, *, untuned: bool = False) -> None:
        self.model, self.info, self.untuned = model, info, untuned

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto") -> Predictor:
        """Loads the `merged.safetensors` of a run; "auto" takes the first there is of cuda, mps and cpu.

        Raises:
            CheckpointError: the file is missing, damaged or no merged file.
            ConfigError: an unknown device, or one that this machine doesn't have.
        """
        file = Path(path)
        model, info = load_merged(file, MaskDescription, device=pick_device(device))
        return cls(model, info, untuned=model_named(file) is not None)

    def predict(
        self,
        image_hwc_uint8: ImageArray,
        *,
        boxes_xyxy: ArrayLike | None = None,
        points_xy: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> Prediction:
        """Predicts the mask of one image, at its size; arguments and errors as of `predict_prompted`."""
        return predict_prompted(self.model, image_hwc_uint8, boxes_xyxy=boxes_xyxy, points_xy=points_xy, labels=labels)


def predict_files(request: Request) -> str:
    """Writes the mask of each image as `out/STEM.png`, 0 and 255, at the size of the image; returns what was written.

    Raises:
        DataError: nothing to predict, two images of one stem (before anything is predicted), or images that can't be
            read or that the prompt doesn't fit; all are listed, after the masks of the others are written.
        PromptError: a prompt of a wrong shape.
        ConfigError: a mask would replace an image, or a prompt for more than one image.
        DiskError: `out` can't be written.
    """
    refuse_format(request)
    predictor = Predictor.from_file(request.checkpoint, device=request.device)
    boxes, points = request.boxes_xyxy or None, request.points_xy or None
    checked_boxes(boxes)
    checked_points(points, None)
    targets = targets_of(find_images(request.paths), request.out)
    if boxes or points:
        check_one_image(targets)
    if warning := other_prompt(predictor, box=boxes is not None, points=points is not None):
        logger.warning("%s", warning)

    def write(path: Path) -> None:
        image = read_image(path)
        try:
            mask = predictor.predict(image, boxes_xyxy=boxes, points_xy=points).mask
        except PromptError as err:
            raise DataError(f"{path}: {err}") from err
        write_bytes(targets[path], png_of(mask))
        if request.overlay:
            save_overlays(request.out / "overlays", [(path.stem, image, None, mask, Marks(boxes or (), points or ()))])

    masks = predict_each(list(targets), write, what="mask")
    return f"{len(masks)} masks in {request.out}"


def other_prompt(predictor: Predictor, *, box: bool, points: bool) -> str | None:
    """Returns a warning when a model is asked in another way than it was tuned for, else None."""
    used = [kind for kind, given in (("box", box), ("point", points)) if given] or ["none"]
    info = predictor.info
    if predictor.untuned:
        alone = "an untuned model segments what a box or points show; without them its answer means little"
        return alone if used == ["none"] else None
    text = f"the model was tuned with prompt {info.prompt!r}, this prediction uses {' and '.join(used)!r}"
    return None if info.prompt in used else f"{text}: it may be worse"
