"""How do three maps tell the objects of a picture apart? What maps show, what they cost, the way back.

The direct way for crowded small objects, as in micro-sam (Archit et al. 2025) and other decoders of cells: one pass for
a picture, however many objects it has.

- **foreground**: 1 on an object, else 0.
- **boundary**: 1 beside the edge of an object, where it meets the ground or another object, else 0.
- **centre**: 1 at the deepest pixel of an object, falling with the distance from it to nearly 0 at the object's
  farthest pixel; 0 off objects.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from samtune.metrics.trivial import grey, otsu
from samtune.tasks.tiles.blend import Bands
from samtune.tasks.tiles.join import join_strips
from samtune.types import Batch, Instances, MaskArray, ObjectMap, PixelArray

MAPS = ("foreground", "boundary", "centre")
LEVEL = 0.5
"""Of foreground, above which a pixel belongs to an object."""
HEIGHT = 0.15
"""By how much a peak of centre - boundary stands out that is an object of its own."""
BAND = 512  # rows of a picture that are looked at together
DEPTH = 1.0  # pixels, as HEIGHT, of the distance to the edge of what Otsu's threshold finds
Floats = np.ndarray[Any, np.dtype[np.float32]]


def targets_of(batch: Batch) -> Tensor:
    """Returns (B, 3, S, S) float32, what the three maps of a batch of maps of objects should show; 0 in the padding.

    Where an object leaves the picture it has no boundary.
    """
    masks = batch.masks[:, 0].cpu().numpy()
    drawn = np.zeros((len(masks), len(MAPS), *masks.shape[1:]), dtype=np.float32)
    for target, labels, (height, width) in zip(drawn, masks, batch.sizes_input, strict=True):
        target[:, :height, :width] = _target(labels[:height, :width])
    return torch.from_numpy(drawn).to(batch.masks.device)


def maps_dice_bce(logits: Tensor, batch: Batch, *, dice_weight: float = 1.0, bce_weight: float = 1.0) -> Tensor:
    """Returns Dice + binary cross-entropy of (B, 3, S, S) logits in the input frame, in fp32; padding never counts.

    Both take the targets of `targets_of`, also the shares of the centre map. The Dice part is MONAI's, of each map over
    all items; the cross-entropy is a mean over the valid pixels of each item.
    """
    from monai.losses.dice import DiceLoss

    valid, target, logits = batch.valid(), targets_of(batch), logits.float()
    dice: Tensor = DiceLoss(smooth_nr=1.0, smooth_dr=1.0, batch=True)(logits.sigmoid() * valid, target)
    per_pixel = binary_cross_entropy_with_logits(logits, target, reduction="none") * valid
    bce = (per_pixel.sum(dim=(1, 2, 3)) / (logits.shape[1] * valid.sum(dim=(1, 2, 3)))).mean()
    return dice_weight * dice + bce_weight * bce


def separate(maps: Floats) -> Instances:
    """Tells objects apart by the watershed of scikit-image on (3, H, W) probabilities of the maps.

    On what is foreground, centre - boundary is a relief: each of its peaks is an object, and every pixel belongs to the
    peak that it is downhill from. The score of an object is the mean of its foreground times the highest value of its
    centre.
    """
    foreground, boundary, centre = maps
    labels, count = parted(centre - boundary, foreground > LEVEL, HEIGHT)
    numbers = np.arange(1, count + 1)
    sure, deep = ndimage.mean(foreground, labels, numbers), ndimage.maximum(centre, labels, numbers)
    scores: Any = (np.asarray(sure) * np.asarray(deep)).astype(np.float32).reshape(count)
    return Instances(labels, scores)


def parted(relief: Floats, inside: MaskArray, height: float) -> tuple[ObjectMap, int]:
    """Parts (H, W) `inside` by the peaks of a relief that stand out by `height`; returns the map, and their number."""
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    ground = relief.min() - 2 * height
    relief = np.where(inside, relief, ground).astype(np.float64)
    high = h_maxima(np.pad(relief, 1, constant_values=ground), height)[1:-1, 1:-1] > 0  # beside the frame too
    peaks, count = ndimage.label(high & inside, structure=np.ones((3, 3)))
    labels: Any = watershed(-relief, peaks, connectivity=2, mask=inside).astype(np.int32)  # neighbours as of the peaks
    return labels, count


def trivial_instances(image: PixelArray) -> dict[str, Instances]:
    """Returns what needs no model: Otsu's threshold, parted by the distance to its edge.

    Answers are by key of `samtune.metrics.trivial.TRIVIAL`, for an (H, W, C) picture; every score is 1.
    """
    bright, found = otsu(grey(image)), {}
    for key, mask in (("watershed_bright", bright), ("watershed_dark", ~bright)):
        depth: Any = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        found[key] = join_strips(_bands(depth), (len(mask), mask.shape[1]), _parted_by_depth)
    return found


def _bands(depth: Floats) -> Bands:
    """Yields the rows of an (H, W) depth, some at a time, as (1, h, W)."""
    for start in range(0, len(depth), BAND):
        yield slice(start, min(start + BAND, len(depth))), depth[None, start : start + BAND]


def _parted_by_depth(depth: Floats) -> Instances:
    labels, count = parted(depth[0], depth[0] > 0, DEPTH)
    return Instances(labels, np.ones(count, dtype=np.float32))


def crops(labels: ObjectMap) -> Iterator[tuple[int, tuple[slice, slice], MaskArray]]:
    """Yields the number of each object, the rows and columns that it spans, and its (h, w) bool mask there."""
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is not None:
            yield number, place, labels[place] == number


def _target(labels: ObjectMap) -> Floats:
    near = np.ones((3, 3), dtype=np.uint8)
    values = labels.astype(np.uint16)
    target = np.zeros((len(MAPS), *labels.shape), dtype=np.float32)
    target[0] = labels > 0
    target[1] = cv2.dilate(values, near) != cv2.erode(values, near)
    for _, place, mask in crops(labels):
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
        away = np.hypot(rows - row, columns - column)
        target[2][place][mask] = (1 - away / (away[mask].max() + 1))[mask]
    return target
