"""Which masks does segment-anything's own generator find with our models? Clicks on a grid, filtered by its rules."""

from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor

from samtune.models.sam.model import SamModel
from samtune.tasks.instances.objects import paint, renumbered
from samtune.types import ImageArray, Instances

POINTS = 16  # along a side
EXPECTED, STABILITY = 0.7, 0.85
"""Least IoU that the decoder expects of a mask, and how little it may change with the threshold: less than the 0.88 and
0.95 of the generator, which were chosen for ViT-H and leave a small model without an answer."""


class Stock:
    """What segment-anything's predictor asks of a `Sam`, answered by one of ours: of any size, with any encoder."""

    image_format, mask_threshold = "RGB", 0.0
    preprocess, postprocess_masks = Sam.preprocess, Sam.postprocess_masks

    def __init__(self, model: SamModel) -> None:
        self.model, self.device, self.img_size = model, model.device, model.image_size
        self.pixel_mean, self.pixel_std = model.pixel_mean, model.pixel_std
        self.prompt_encoder, self.mask_decoder, self.image_encoder = (
            model.net.prompt_encoder,
            model.net.mask_decoder,
            self,
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encodes (1, 3, S, S) pixels, normalised and padded: the image encoder."""
        return self.model.encode(pixels)


def grid_instances(model: SamModel, image: ImageArray, *, points: int = POINTS) -> Instances:
    """Finds objects by a click at each of points x points places of an (H, W, 3) uint8 RGB image.

    Masks may overlap: a pixel of several is the smallest's. The score is the IoU that the decoder expects.

    Args:
        model: in evaluation mode.
    """
    stock: Any = Stock(model)
    find = SamAutomaticMaskGenerator(
        stock, points_per_side=points, pred_iou_thresh=EXPECTED, stability_score_thresh=STABILITY,
        output_mode="uncompressed_rle",
    )  # fmt: skip
    with torch.no_grad():
        records: list[dict[str, Any]] = find.generate(image)
    records.sort(key=lambda record: -int(record["area"]))
    masks = (rle_to_mask(record["segmentation"]) for record in records)
    labels, numbers = renumbered(paint(masks, (image.shape[0], image.shape[1])))
    scores = np.array([record["predicted_iou"] for record in records], dtype=np.float32).clip(0, 1)
    return Instances(labels, scores[numbers - 1])
