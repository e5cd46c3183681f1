"""Which objects do boxes show, and a grid of clicks? How well does a model segment an object that it is shown?

Measured, the prompts come from the true objects, and a further click is set where a person would: in the middle of the
largest error.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage  # type: ignore[import-untyped]
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import shown
from samtune.data.frames import Collate, resize
from samtune.metrics.overlap import dice
from samtune.models.sam.model import SamModel
from samtune.tasks.evaluate import check_finite
from samtune.tasks.instances.objects import paint, renumbered
from samtune.tasks.instances.practice import asked
from samtune.tasks.pixels import batch_of_one, to_original
from samtune.tasks.predict import checked_image
from samtune.tasks.prompts import box_of, checked_boxes, clip_boxes, point_in
from samtune.tasks.tiles.blend import tile_frame
from samtune.tasks.tiles.grid import Place, into_part, place_of, size_of, starts
from samtune.tasks.tiles.join import collect
from samtune.types import Batch, Instances, MaskArray, PixelArray, Size, Tiles

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
    model: SamModel, image_hwc: PixelArray, boxes_xyxy: ArrayLike, *, pixels: Pixels = RGB, tiles: Tiles | None = None
) -> Instances:
    """Segments an object in each of (N, 4) boxes in pixels of an image, which is embedded once.

    With tiles, the part of the image that shows a box best is embedded for each, see `place_of`.

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
    image, given = checked_image(image_hwc, pixels), checked_boxes(boxes_xyxy)
    assert given is not None
    size = (image.shape[0], image.shape[1])
    boxes = clip_boxes(given, size)
    everything = (slice(0, size[0]), slice(0, size[1]))
    places = [place_of(box, size, tiles) if tiles else everything for box in boxes.tolist()]
    whole = None if tiles else _embedded(model, image, [everything], 0)
    masks, scores = list[tuple[Place, MaskArray]](), list[float]()
    for start in range(0, len(boxes), _AT_ONCE):
        chosen = places[start : start + _AT_ONCE]
        embeddings, sizes = whole or _embedded(model, image, chosen, tiles.size if tiles else 0)
        asked_for = zip(boxes[start : start + _AT_ONCE], chosen, sizes * (len(chosen) // len(sizes)), strict=True)
        framed = [into_part(box, place, size_input) for box, place, size_input in asked_for]
        prompts = torch.as_tensor(np.array(framed), dtype=torch.float32, device=model.device)
        low, expected = model.decode_all(embeddings.expand(len(chosen), -1, -1, -1), asked(prompts, None))
        check_finite(low, ["the image"] * len(chosen))
        answers = zip(low[:, 0].float(), chosen, sizes * (len(chosen) // len(sizes)), strict=True)
        masks += [(place, _mask(one, model.image_size, inner, size_of(place))) for one, place, inner in answers]
        scores += expected[:, 0].float().clamp(0, 1).tolist()
    labels = np.zeros(size, dtype=np.int32)
    for number in sorted(range(len(masks)), key=lambda number: -int(masks[number][1].sum())):
        place, mask = masks[number]
        labels[place][mask] = number + 1
    labels, numbers = renumbered(labels)
    return Instances(labels, np.array(scores, dtype=np.float32)[numbers - 1])


def _embedded(model: SamModel, image: PixelArray, places: Sequence[Place], least: int) -> tuple[Tensor, list[Size]]:
    """Returns (M, C, h, w) embeddings of parts of an image, and their sizes in the input frame.

    Args:
        least: pixels of a tile's side, see `resize_longest`.
    """
    samples = [tile_frame("the image", image[place], model.image_size, least=least) for place in places]
    frames = Collate(model.image_size)(samples).to(model.device)
    return model.features(frames), list(frames.sizes_input)


def _mask(low: Tensor, side: int, size_input: Size, size: Size) -> MaskArray:
    mask: MaskArray = (to_original(low, side, size_input, size) > 0).cpu().numpy()
    return mask


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
    masks = (rle_to_mask(record["segmentation"]) for record in records)
    labels, numbers = renumbered(paint(masks, batch.truths[0].shape))
    scores = np.array([record["predicted_iou"] for record in records], dtype=np.float32).clip(0, 1)
    return Instances(labels, scores[numbers - 1])


def grid_of_tiles(
    model: SamModel, image_hwc: PixelArray, tiles: Tiles, *, points: int = POINTS, pixels: Pixels = RGB
) -> Instances:
    """Finds objects by a grid of clicks on each tile of an image; see `grid_instances` and `collect`."""
    image = checked_image(image_hwc, pixels)
    size = (image.shape[0], image.shape[1])
    rows, columns = (
        [slice(start, start + min(tiles.size, length)) for start in starts(length, tiles)] for length in size
    )
    parts = (
        (place, grid_instances(model, np.ascontiguousarray(image[place]), points=points, pixels=pixels))
        for place in product(rows, columns)
    )
    return collect(parts, size, tiles)


@torch.no_grad()
def prompted_dice(model: SamModel, batch: Batch) -> list[tuple[int, Dice]]:
    """Returns for each item of a batch with truths how many of its objects were asked for, and their mean Dice.

    At most 32 objects of an image are asked for; those of which no pixel is left in the input frame are not.

    Args:
        model: in evaluation mode; the batch is on its device.
    """
    if batch.tiles is not None:
        return [_of_parts(model, batch, batch.tiles)]
    embeddings = model.features(batch)
    return [_of_image(model, embeddings[item : item + 1], batch, item) for item in range(len(batch))]


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """Returns at most so many of the numbers, spread over them."""
    return [
        numbers[place]
        for place in np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int))
    ]


def _of_image(model: SamModel, embedding: Tensor, batch: Batch, item: int) -> tuple[int, Dice]:
    height, width = batch.sizes_input[item]
    small, truth = batch.masks[item, 0, :height, :width].cpu().numpy(), batch.truths[item]
    numbers = spread([number for number in np.unique(small).tolist() if number], MOST)
    if not numbers:
        return 0, {}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        objects = [(small == number, truth == number, (height, width)) for number in part]
        _measure(model, embedding.expand(len(part), -1, -1, -1), objects, found)
    return len(numbers), {kind: float(np.mean(values)) for kind, values in found.items()}


def _of_parts(model: SamModel, batch: Batch, tiles: Tiles) -> tuple[int, Dice]:
    """Asks for each object of a large picture in the part that shows it best, see `place_of`."""
    image, truth = batch.images[0].permute(1, 2, 0).cpu().numpy(), batch.truths[0]
    spans = ndimage.find_objects(truth)
    numbers = spread([number for number, span in enumerate(spans, start=1) if span is not None], MOST)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        corners = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in (spans[number - 1] for number in part)]
        places = [place_of(box, (truth.shape[0], truth.shape[1]), tiles) for box in corners]
        embeddings, sizes = _embedded(model, image, places, tiles.size)
        truths = [truth[place] == number for place, number in zip(places, part, strict=True)]
        objects = [(resize(true, inner), true, inner) for true, inner in zip(truths, sizes, strict=True)]
        kept = [place for place, (small, *_) in enumerate(objects) if small.any()]
        if kept:
            _measure(model, embeddings[kept], [objects[place] for place in kept], found)
    if not found["box"]:
        return 0, {}
    return len(found["box"]), {kind: float(np.mean(values)) for kind, values in found.items()}


def _measure(
    model: SamModel,
    embeddings: Tensor,
    objects: Sequence[tuple[MaskArray, MaskArray, Size]],
    found: dict[str, list[float]],
) -> None:
    """Puts the Dice of each object by each kind of prompt into `found`.

    Args:
        embeddings: (M, C, h, w) of what shows each object.
        objects: of each the mask in the input frame, the true one, and the size of the picture in the input frame.
    """
    for kind, low in _answers(model, embeddings, [small for small, *_ in objects]).items():
        for one, (_, true, inner) in zip(low[:, 0], objects, strict=True):
            found[kind].append(dice(_mask(one, model.image_size, inner, (true.shape[0], true.shape[1])), true))


def _answers(model: SamModel, embeddings: Tensor, masks: Sequence[MaskArray]) -> dict[str, Tensor]:
    """Returns kind of prompt -> (M, 1, h, w) float32 logits for M objects, (h, w) bool masks in the input frame."""
    device, step = model.device, model.image_size // (4 * embeddings.shape[-1])
    boxes, points = (
        torch.from_numpy(np.stack([draw(mask) for mask in masks])).to(device) for draw in (box_of, point_in)
    )
    clicks, signs = points[:, None], torch.ones(len(masks), 1, dtype=torch.int64, device=device)
    found = {
        "box": model.decode(embeddings, asked(boxes, None)),
        "point": model.decode(embeddings, asked(None, clicks)),
    }
    low = found["point"]
    for _ in range(2):
        further = [_largest_error(one[0].cpu().numpy() > 0, mask, step) for one, mask in zip(low, masks, strict=True)]
        clicks = torch.cat([clicks, torch.tensor([[place] for place, _ in further], device=device)], dim=1)
        signs = torch.cat([signs, torch.tensor([[sign] for _, sign in further], device=device)], dim=1)
        low = model.decode(embeddings, asked(None, clicks, signs), low)
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
