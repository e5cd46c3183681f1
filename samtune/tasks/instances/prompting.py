"""Which objects do boxes show, and a grid of clicks? How well does a model segment an object that it is shown?

Measured, the prompts come from the true objects, and a further click is set where a person would: in the middle of the
largest error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import shown
from samtune.metrics.overlap import dice
from samtune.models.segmenter import Embedded, Segmenter
from samtune.tasks.evaluate import check_finite
from samtune.tasks.instances.objects import paint, renumbered
from samtune.tasks.instances.practice import asked
from samtune.tasks.pixels import batch_of_one, to_original
from samtune.tasks.prompts import box_of, checked_boxes, clip_boxes, point_in
from samtune.types import Batch, Instances, MaskArray, PixelArray, Prompts

POINTS = 16  # of the grid, along a side
EXPECTED, STABILITY = 0.7, 0.85
"""Least IoU that the decoder expects of a mask, and least stability when the threshold changes: less than the 0.88 and
0.95 of the generator, which were chosen for ViT-H."""
KINDS = {"box": "its box", "point": "a click in its middle", "points3": "that click and two in the largest errors"}
MOST = 32  # objects of an image, spread over its numbers
_AT_ONCE = 16  # objects in one pass of the decoder

Dice = Mapping[str, float]
"""Kind of prompt -> mean Dice of the objects of an image; empty where it has none."""


@torch.no_grad()
def boxed_instances(
    model: Segmenter, image_hwc: PixelArray, boxes_xyxy: ArrayLike, *, pixels: Pixels = RGB
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
    prompts, embedded = torch.as_tensor(boxes, dtype=torch.float32, device=model.device), model.embed(batch)
    masks, scores = list[MaskArray](), list[float]()
    for start in range(0, len(prompts), _AT_ONCE):
        part = prompts[start : start + _AT_ONCE]
        low, expected = model.decode_all(embedded.repeated(len(part)), asked(part, None))
        check_finite(low, ["the image"] * len(part))
        logits = (to_original(one, model.image_size, size_input, size) for one in low[:, 0].float())
        masks += [(one > 0).cpu().numpy() for one in logits]
        scores += expected[:, 0].float().clamp(0, 1).tolist()
    order = sorted(range(len(masks)), key=lambda place: -int(masks[place].sum()))
    places = np.array([0, *(place + 1 for place in order)], dtype=np.int32)
    labels, numbers = renumbered(places[paint((masks[place] for place in order), size)])
    return Instances(labels, np.array(scores, dtype=np.float32)[numbers - 1])


class Stock:
    """What segment-anything's predictor asks of a `Sam`, answered by any of ours: the network and its three parts.

    Of the picture that the predictor is given, only the size counts: it is encoded already, of the channels and the
    depth that the model takes.
    """

    image_format, mask_threshold = "RGB", 0.0
    postprocess_masks = Sam.postprocess_masks

    def __init__(self, model: Segmenter, embedded: Embedded) -> None:
        self.model, self.embedded, self.device, self.img_size = model, embedded, model.device, model.image_size
        self.image_encoder = self
        self.prompt_encoder, self.mask_decoder = _StockPrompts(), self.masks

    def preprocess(self, values: Tensor) -> Tensor:
        """Returns the predictor's picture as it is."""
        return values

    def __call__(self, _: Tensor) -> Tensor:
        """Returns the image embeddings: the image encoder."""
        return self.embedded.image

    def masks(
        self,
        *,
        sparse_prompt_embeddings: Prompts,
        dense_prompt_embeddings: Tensor | None,
        multimask_output: bool,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns (N, 3 or 1, h, w) logits of N prompts, and the IoU expected of each: the mask decoder."""
        prompts = sparse_prompt_embeddings
        count = next(len(given) for given in vars(prompts).values() if given is not None)
        low, expected = self.model.decode_all(self.embedded.repeated(count), prompts, dense_prompt_embeddings)
        wanted = slice(1, None) if multimask_output else slice(1)
        return low[:, wanted], expected[:, wanted]


class _StockPrompts:
    """The prompt encoder, which hands prompts on as they are: points and boxes, and masks."""

    def __call__(
        self, *, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Prompts, Tensor | None]:
        places, labels = (None, None) if points is None else (points[0].float(), points[1].long())
        return Prompts(None if boxes is None else boxes.float(), places, labels), masks

    def get_dense_pe(self) -> None:
        """Returns nothing: the model knows where its cells are."""


@torch.no_grad()
def grid_instances(model: Segmenter, image_hwc: PixelArray, *, points: int = POINTS, pixels: Pixels = RGB) -> Instances:
    """Finds objects by a click at each of points x points places of an image.

    Masks may overlap: a pixel of several is the smallest's. The score is the IoU that the decoder expects.

    Args:
        model: in evaluation mode.
        image_hwc, pixels: as of `batch_of_one`.

    Raises:
        DataError: not such an image.
    """
    batch = batch_of_one(image_hwc, model.image_size, torch.int32, pixels).to(model.device)
    stock: Any = Stock(model, model.embed(batch))
    find = SamAutomaticMaskGenerator(
        stock, points_per_side=points, pred_iou_thresh=EXPECTED, stability_score_thresh=STABILITY,
        output_mode="uncompressed_rle",
    )  # fmt: skip
    records: list[dict[str, Any]] = find.generate(shown(image_hwc))
    records.sort(key=lambda record: -int(record["area"]))
    masks = (rle_to_mask(record["segmentation"]) for record in records)
    labels, numbers = renumbered(paint(masks, batch.truths[0].shape))
    scores = np.array([record["predicted_iou"] for record in records], dtype=np.float32).clip(0, 1)
    return Instances(labels, scores[numbers - 1])


@torch.no_grad()
def prompted_dice(model: Segmenter, batch: Batch) -> list[tuple[int, Dice]]:
    """Returns for each item of a batch with truths how many of its objects were asked for, and their mean Dice.

    At most 32 objects of an image are asked for; those of which no pixel is left in the input frame are not.

    Args:
        model: in evaluation mode; the batch is on its device.
    """
    embedded = model.embed(batch)
    return [_of_image(model, embedded[item : item + 1], batch, item) for item in range(len(batch))]


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """Returns at most so many of the numbers, spread over them."""
    return [
        numbers[place]
        for place in np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int))
    ]


def _of_image(model: Segmenter, embedded: Embedded, batch: Batch, item: int) -> tuple[int, Dice]:
    height, width = batch.sizes_input[item]
    small, truth = batch.masks[item, 0, :height, :width].cpu().numpy(), batch.truths[item]
    numbers = spread([number for number in np.unique(small).tolist() if number], MOST)
    if not numbers:
        return 0, {}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        masks = [small == number for number in part]
        for kind, low in _answers(model, embedded.repeated(len(part)), masks).items():
            logits = (to_original(one, batch.images.shape[-1], (height, width), truth.shape) for one in low[:, 0])
            truths = (truth == number for number in part)
            found[kind] += [dice((one > 0).cpu().numpy(), true) for one, true in zip(logits, truths, strict=True)]
    return len(numbers), {kind: float(np.mean(values)) for kind, values in found.items()}


def _answers(model: Segmenter, embedded: Embedded, masks: Sequence[MaskArray]) -> dict[str, Tensor]:
    """Returns kind of prompt -> (M, 1, h, w) float32 logits for M objects, (h, w) bool masks in the input frame."""
    device, step = model.device, model.image_size // (4 * embedded.image.shape[-1])
    boxes, points = (
        torch.from_numpy(np.stack([draw(mask) for mask in masks])).to(device) for draw in (box_of, point_in)
    )
    clicks, signs = points[:, None], torch.ones(len(masks), 1, dtype=torch.int64, device=device)
    found = {"box": model.decode(embedded, asked(boxes, None)), "point": model.decode(embedded, asked(None, clicks))}
    low = found["point"]
    for _ in range(2):
        further = [_largest_error(one[0].cpu().numpy() > 0, mask, step) for one, mask in zip(low, masks, strict=True)]
        clicks = torch.cat([clicks, torch.tensor([[place] for place, _ in further], device=device)], dim=1)
        signs = torch.cat([signs, torch.tensor([[sign] for _, sign in further], device=device)], dim=1)
        low = model.decode(embedded, asked(None, clicks, signs), low)
    return {kind: value.float() for kind, value in (found | {"points3": low}).items()}


def _largest_error(found: MaskArray, mask: MaskArray, step: int) -> tuple[tuple[float, float], int]:
    """Returns the XY place in the picture that is deepest in what is wrong, and 1 where it was missed, else 0.

    Where nothing is wrong, that is in the middle of the object.
    """
    height, width = mask.shape
    large = np.repeat(np.repeat(found, step, axis=0), step, axis=1)[:height, :width]  # without the padding
    missed = mask & ~large if (large != mask).any() else mask
    depths = [
        cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for wrong in (large & ~mask, missed)
    ]
    sign = int(depths[1].max() >= depths[0].max())
    row, column = np.unravel_index(int(depths[sign].argmax()), mask.shape)
    return (float(column), float(row)), sign
