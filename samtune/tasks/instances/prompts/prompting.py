"""Which objects do boxes show, and a grid of clicks?"""

from collections.abc import Sequence
from itertools import product
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
from samtune.data.frames import Collate
from samtune.models.segmenter import Embedded, Segmenter
from samtune.tasks.evaluate import check_finite
from samtune.tasks.instances.objects import WHOLE, Part, cut_out, paint, renumbered
from samtune.tasks.pixels import batch_of_one, to_original
from samtune.tasks.predict import checked_image
from samtune.tasks.probe.answers import AT_ONCE, asked
from samtune.tasks.prompts import checked_boxes, clip_boxes
from samtune.tasks.tiles.blend import tile_frame
from samtune.tasks.tiles.grid import Place, into_part, place_of, size_of, starts
from samtune.tasks.tiles.join import collect
from samtune.types import Instances, PixelArray, Prompts, Size, Tiles

POINTS = 16  # of the grid, along a side
EXPECTED, STABILITY = 0.7, 0.85
"""Least IoU that the decoder expects of a mask, and least stability when the threshold changes: less than the 0.88 and
0.95 of the generator, which were chosen for ViT-H."""


@torch.no_grad()
def boxed_instances(
    model: Segmenter, image_hwc: PixelArray, boxes_xyxy: ArrayLike, *, pixels: Pixels = RGB, tiles: Tiles | None = None
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
    masks, scores = list[Part](), list[float]()
    for start in range(0, len(boxes), AT_ONCE):
        chosen = places[start : start + AT_ONCE]
        embedded, sizes = whole or _embedded(model, image, chosen, tiles.size if tiles else 0)
        sizes = sizes * (len(chosen) // len(sizes))
        shown_at = list(zip(chosen, sizes, strict=True))
        framed = [into_part(box, *at) for box, at in zip(boxes[start : start + AT_ONCE], shown_at, strict=True)]
        prompts = torch.as_tensor(np.array(framed), dtype=torch.float32, device=model.device)
        low, expected = model.decode_all(
            embedded if len(embedded) == len(chosen) else embedded.repeated(len(chosen)), asked(prompts, None)
        )
        check_finite(low, ["the image"] * len(chosen))
        for one, (place, inner) in zip(low[:, 0].float(), shown_at, strict=True):
            mask = to_original(one, model.image_size, inner, size_of(place)) > 0
            masks.append(cut_out(mask.cpu().numpy(), corner=(place[0].start, place[1].start)))
        scores += expected[:, 0].float().clamp(0, 1).tolist()
    order = sorted(range(len(masks)), key=lambda number: -int(masks[number][1].sum()))
    numbers = np.array([0, *(number + 1 for number in order)], dtype=np.int32)
    labels, numbers = renumbered(numbers[paint((masks[number] for number in order), size)])
    return Instances(labels, np.array(scores, dtype=np.float32)[numbers - 1])


def _embedded(model: Segmenter, image: PixelArray, places: Sequence[Place], least: int) -> tuple[Embedded, list[Size]]:
    """Returns M parts of an image, encoded, and their sizes in the input frame.

    Args:
        least: pixels of a tile's side, see `resize_longest`.
    """
    samples = [tile_frame("the image", image[place], model.image_size, least=least) for place in places]
    frames = Collate(model.image_size)(samples).to(model.device)
    return model.embed(frames), list(frames.sizes_input)


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
    masks = ((WHOLE, rle_to_mask(record["segmentation"])) for record in records)
    labels, numbers = renumbered(paint(masks, batch.truths[0].shape))
    scores = np.array([record["predicted_iou"] for record in records], dtype=np.float32).clip(0, 1)
    return Instances(labels, scores[numbers - 1])


def grid_of_tiles(
    model: Segmenter, image_hwc: PixelArray, tiles: Tiles, *, points: int = POINTS, pixels: Pixels = RGB
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
