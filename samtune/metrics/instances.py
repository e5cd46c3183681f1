"""How well are single objects found? AP, PQ, AJI and the error of the count, from maps of objects.

Pairs of objects are compared by their IoU in pixels. What of one image counts is in its `Matches`; numbers of a set
derive from those of its images. AP is pycocotools', with 1000 objects per image instead of its 100; its own summary is
wrong for another limit, so the numbers are read from `eval["precision"]`.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samtune.types import Instances, ObjectMap

LIMITS = [1, 10, 1000]
"""`maxDets`: of an image, so many of the objects with the highest scores count for AP."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
DEFINITIONS = {
    "AP50": "Average precision at an IoU of 0.5, by pycocotools (101 recalls), of the objects of all images in one "
    "ranking by score; of an image, the 1000 with the highest scores.",
    "AP": "As AP50, mean over the IoUs 0.5, 0.55, ..., 0.95.",
    "PQ": "Panoptic quality over the set: the IoUs of the pairs of found and true objects with IoU > 0.5, summed, "
    "divided by pairs + half of what was found and is in none + half of what is true and in none.",
    "AJI": "Aggregated Jaccard index over the set (Kumar et al. 2017): each true object is joined with the found one "
    "of the highest IoU; pixels in both, divided by pixels in either and in found objects that were never joined.",
    "count_error": "Mean over images of |objects found - true objects|.",
}

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Matches:
    """What was found in one image, against its truth.

    Attributes:
        truth: number of true objects; `found` of found ones.
        scores: (d,) of the found objects that count for AP, falling.
        hits: (10, d) bool, whether each is a true one at each of `THRESHOLDS`.
        pairs: pairs of IoU > 0.5, each object in one at most; `pair_iou` is the sum of their IoU.
        joined_px: AJI's pixels in both; `union_px` those in either.
    """

    truth: int
    found: int
    scores: Floats
    hits: Bools
    pairs: int
    pair_iou: float
    joined_px: int
    union_px: int


@dataclass(frozen=True)
class Overlaps:
    """Which found and true objects share pixels: k pairs, seldom more than the objects are.

    Attributes:
        found, truth: (k,) places of both, numbers less 1; pairs are in the order of `found`, then of `truth`.
        common: (k,) pixels in both.
        found_px, truth_px: (n,) and (m,) pixels of each object, whether it is in a pair or not.
    """

    found: Ints
    truth: Ints
    common: Ints
    found_px: Ints
    truth_px: Ints

    @property
    def iou(self) -> Floats:
        """(k,) pixels in both objects of each pair, divided by those in either."""
        either = self.found_px[self.found] + self.truth_px[self.truth] - self.common
        return np.asarray(self.common / either, dtype=np.float64)


def match(found: Instances, truth: ObjectMap) -> Matches:
    """Compares the objects of one image, both maps of its size."""
    shared = overlaps(found.labels, truth)
    paired = shared.iou > 0.5
    joined_px, union_px = _joined(shared)
    order = np.argsort(-found.scores, kind="stable")[: LIMITS[-1]]
    return Matches(
        truth=len(shared.truth_px),
        found=len(shared.found_px),
        scores=found.scores[order].astype(np.float64),
        hits=_hits(shared, order),
        pairs=int(paired.sum()),
        pair_iou=float(shared.iou[paired].sum()),
        joined_px=joined_px,
        union_px=union_px,
    )


def overlaps(found: ObjectMap, truth: ObjectMap) -> Overlaps:
    """Returns which objects of two maps share pixels. A table of all would not fit, with thousands of objects in both.

    Args:
        found: (H, W) map of objects whose numbers are 1 to n; every number is there.
        truth: likewise, but numbers may be left out: its objects are those that are there.
    """
    n = int(found.max(initial=0))
    numbers, places = np.unique(np.concatenate([[0], truth.ravel()]), return_inverse=True)
    m = len(numbers) - 1
    both = found.ravel().astype(np.int64) * (m + 1) + places[1:]
    starts = np.flatnonzero(np.diff(both, prepend=-1))  # of runs of one pair: far fewer than pixels
    lengths = np.diff(starts, append=len(both))
    pairs, which = np.unique(both[starts], return_inverse=True)
    common = np.bincount(which, weights=lengths, minlength=len(pairs)).astype(np.int64)
    ours, theirs = pairs // (m + 1), pairs % (m + 1)
    found_px, truth_px = (
        np.bincount(of, weights=common, minlength=count + 1)[1:].astype(np.int64)
        for of, count in ((ours, n), (theirs, m))
    )
    real = (ours > 0) & (theirs > 0)
    return Overlaps(ours[real] - 1, theirs[real] - 1, common[real], found_px, truth_px)


def average_precision(images: Sequence[Matches]) -> Floats:
    """Returns (10,) average precisions at `THRESHOLDS`, by pycocotools; NaN where no image has a true object."""
    from pycocotools.cocoeval import COCOeval

    coco: Any = COCOeval(iouType="segm")
    coco.params.maxDets, coco.params.catIds, coco.params.imgIds = LIMITS, [1], list(range(len(images)))
    coco.params.areaRng, coco.params.areaRngLbl = [[0, 1e10]], ["all"]
    coco.evalImgs = [_image(one) for one in images]
    coco._paramsEval = coco.params
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it does
        coco.accumulate()
    precision = coco.eval["precision"][:, :, 0, 0, -1]  # (IoUs, recalls); -1 without a true object
    return np.where((precision < 0).any(axis=1), math.nan, precision.mean(axis=1))


def resampled_precision(images: Sequence[Matches]) -> Floats:
    """Returns what `average_precision` does, ten times as fast, which a bootstrap needs."""
    truth = sum(one.truth for one in images)
    if not truth:
        return np.full(len(THRESHOLDS), math.nan)
    scores, hits = np.concatenate([one.scores for one in images]), np.hstack([one.hits for one in images])
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[:, order], axis=1, dtype=np.float64)
    recall, precision = right / truth, right / np.arange(1, len(order) + 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a higher one
    best = np.hstack([best, np.zeros((len(best), 1))])
    wanted = np.linspace(0, 1, 101)
    return np.array([best[i, np.searchsorted(recall[i], wanted)].mean() for i in range(len(best))])


def panoptic_quality(images: Sequence[Matches]) -> float:
    """Returns PQ over images; NaN where none has an object, found or true."""
    pairs, objects = sum(one.pairs for one in images), sum(one.truth + one.found for one in images)
    # pairs + half of the others: half of all objects, as a pair has two
    return sum(one.pair_iou for one in images) / (objects / 2) if objects or pairs else math.nan


def aggregated_jaccard(images: Sequence[Matches]) -> float:
    """Returns AJI over images; NaN where none has an object, found or true."""
    union = sum(one.union_px for one in images)
    return sum(one.joined_px for one in images) / union if union else math.nan


def count_error(images: Sequence[Matches]) -> float:
    """Returns the mean error of the count of objects; NaN of no image."""
    return float(np.mean([abs(one.found - one.truth) for one in images])) if images else math.nan


def numbers(images: Sequence[Matches]) -> dict[str, float]:
    """Returns all numbers of `DEFINITIONS`."""
    precision = average_precision(images)
    return {
        "AP50": float(precision[0]),
        "AP": float(precision.mean()),
        "PQ": panoptic_quality(images),
        "AJI": aggregated_jaccard(images),
        "count_error": count_error(images),
    }


def _joined(shared: Overlaps) -> tuple[int, int]:
    """Returns AJI's pixels in both and in either; a true object that none overlaps is in either alone."""
    order = np.lexsort((shared.found, -shared.iou, shared.truth))
    _, first = np.unique(shared.truth[order], return_index=True)
    best = order[first]  # of each true object that any overlaps, its pair of the highest IoU
    both = shared.common[best].sum()
    either = shared.truth_px.sum() + shared.found_px[shared.found[best]].sum() - both
    alone = shared.found_px.sum() - shared.found_px[np.unique(shared.found[best])].sum()
    return int(both), int(either + alone)


def _hits(shared: Overlaps, order: Ints) -> Bools:
    """Returns (10, d) bool: which found objects, in an `order` by falling score, COCO takes for true ones.

    As pycocotools matches, without its walk through all pairs: each in turn takes the true object of the highest IoU
    that is left, the last of equals.
    """
    near: dict[int, list[tuple[float, int]]] = {}  # seldom more than one
    for one, true, iou in zip(shared.found.tolist(), shared.truth.tolist(), shared.iou.tolist(), strict=True):
        if iou >= THRESHOLDS[0]:
            near.setdefault(one, []).append((iou, true))
    hits = np.zeros((len(THRESHOLDS), len(order)), dtype=np.bool_)
    for place, threshold in enumerate(np.minimum(THRESHOLDS, 1 - 1e-10)):
        taken: set[int] = set()
        for rank, one in enumerate(order.tolist()):
            left = [(iou, true) for iou, true in near.get(one, ()) if true not in taken and iou >= threshold]
            if left:
                taken.add(max(left)[1])
                hits[place, rank] = True
    return hits


def _image(one: Matches) -> dict[str, Any]:
    """Returns an entry of `evalImgs`."""
    return {
        "dtScores": one.scores.tolist(),
        "dtMatches": one.hits,
        "dtIgnore": np.zeros_like(one.hits),
        "gtIgnore": np.zeros(one.truth),
    }
