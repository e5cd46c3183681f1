"""Which objects do boxes show, and a grid of clicks?"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import shown
from samtune.models.sam.model import SamModel
from samtune.tasks.evaluate import check_finite
from samtune.tasks.instances.objects import WHOLE, Part, cut_out, paint, renumbered
from samtune.tasks.pixels import batch_of_one, to_original
from samtune.tasks.probe.answers import AT_ONCE, asked
from samtune.tasks.prompts import checked_boxes, clip_boxes
from samtune.types import Instances, PixelArray

POINTS = 16  # of the grid, along a side
EXPECTED, STABILITY = 0.7, 0.85
"""Least IoU that the decoder expects of a mask, and least stability when the threshold changes: less than the 0.88 and
0.95 of the generator, which were chosen for ViT-H."""


@torch.no_grad()
def boxed_instances(
    model: SamModel, image_hwc: PixelArray, boxes_xyxy: ArrayLike, *, pixels: Pixels = RGB
) -> Instances:
    """Segments an object in each of (N, 4) boxes in pixels of an image, which is embedded once.

    A pixel of several objects is the smallest's, and an object without a pixel of its own is left out; the others are
    numbered in the order of their boxes. The score is the IoU that the decoder expects.

    Args:
        model: in evaluation mode.
        image_hwc, pixels: as of `batch_of_one`.

    Raises:
        DataError: not such an image.
        PromptError: a box of a wrong shape, or outside the image.
        NonFiniteError: the model returns NaN or infinity.
    """
    batch = batch_of_one(image_hwc, model.image_size, torch.int32, pixels).to(model.device)
    size, size_input = batch.truths[0].shape, batch.sizes_input[0]
    given = checked_boxes(boxes_xyxy)
    assert given is not None
    boxes = clip_boxes(given, size) * np.tile([size_input[1] / size[1], size_input[0] / size[0]], 2)
    prompts, embedding = torch.as_tensor(boxes, dtype=torch.float32, device=model.device), model.features(batch)
    masks, scores = list[Part](), list[float]()
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        low, expected = model.decode_all(embedding.expand(len(part), -1, -1, -1), asked(part, None))
        check_finite(low, ["the image"] * len(part))
        logits = (to_original(one, model.image_size, size_input, size) for one in low[:, 0].float())
        masks += [cut_out((one > 0).cpu().numpy()) for one in logits]
        scores += expected[:, 0].float().clamp(0, 1).tolist()
    order = sorted(range(len(masks)), key=lambda place: -int(masks[place][1].sum()))
    places = np.array([0, *(place + 1 for place in order)], dtype=np.int32)
    labels, numbers = renumbered(places[paint((masks[place] for place in order), size)])
    return Instances(labels, np.array(scores, dtype=np.float32)[numbers - 1])


class Stock:
    """What segment-anything's predictor asks of a `Sam`, answered by one of ours: of any size, with any encoder.

    Of the picture that the predictor is given, only the size counts: the (1, C, h, w) embedding is there already, of
    the channels and the depth that the model takes.
    """

    image_format, mask_threshold = "RGB", 0.0
    postprocess_masks = Sam.postprocess_masks

    def __init__(self, model: SamModel, embedding: Tensor) -> None:
        self.embedding, self.device, self.img_size = embedding, model.device, model.image_size
        self.prompt_encoder, self.mask_decoder, self.image_encoder = (
            model.net.prompt_encoder,
            model.net.mask_decoder,
            self,
        )

    def preprocess(self, values: Tensor) -> Tensor:
        """Returns the predictor's picture as it is."""
        return values

    def __call__(self, _: Tensor) -> Tensor:
        """Returns the embedding: the image encoder."""
        return self.embedding


@torch.no_grad()
def grid_instances(model: SamModel, image_hwc: PixelArray, *, points: int = POINTS, pixels: Pixels = RGB) -> Instances:
    """Finds objects by a click at each of points x points places of an image.

    Masks may overlap: a pixel of several is the smallest's. The score is the IoU that the decoder expects.

    Args:
        model: in evaluation mode.
        image_hwc, pixels: as of `batch_of_one`.

    Raises:
        DataError: not such an image.
    """
    batch = batch_of_one(image_hwc, model.image_size, torch.int32, pixels).to(model.device)
    stock: Any = Stock(model, model.features(batch))
    find = SamAutomaticMaskGenerator(
        stock, points_per_side=points, pred_iou_thresh=EXPECTED, stability_score_thresh=STABILITY,
        output_mode="uncompressed_rle",
    )  # fmt: skip
    records: list[dict[str, Any]] = find.generate(shown(image_hwc))
    records.sort(key=lambda record: -int(record["area"]))
    masks = ((WHOLE, rle_to_mask(record["segmentation"])) for record in records)
    labels, numbers = renumbered(paint(masks, batch.truths[0].shape))
    scores = np.array([record["predicted_iou"] for record in records], dtype=np.float32).clip(0, 1)
    return Instances(labels, scores[numbers - 1])
