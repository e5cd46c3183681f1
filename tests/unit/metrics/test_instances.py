"""AP, PQ, AJI and the count: by hand on small cases, and against pycocotools on random ones."""

from __future__ import annotations

import contextlib
import io
import math
import time
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtune.metrics.instances import average_precision, match, numbers, overlaps, resampled_precision
from samtune.types import Instances


def objects(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (12, 20)) -> np.ndarray:
    """Draws rectangles (top, left, bottom, right) as objects 1, 2, ..."""
    labels = np.zeros(size, dtype=np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        labels[top:bottom, left:right] = number
    return labels


def found(labels: np.ndarray, *scores: float) -> Instances:
    return Instances(labels, np.array(scores, dtype=np.float32))


TRUTH = objects((0, 0, 4, 4), (6, 0, 10, 4), (0, 10, 4, 14))


def test_common_pixels() -> None:
    truth = objects((0, 0, 2, 4), size=(4, 4))
    truth[truth == 1] = 7  # numbers may be left out
    shared = overlaps(objects((0, 0, 4, 1), (0, 2, 4, 4), size=(4, 4)), truth)
    assert (shared.found.tolist(), shared.truth.tolist()) == ([0, 1], [0, 0])
    assert shared.common.tolist() == [2, 4] and shared.iou.tolist() == [2 / 10, 4 / 12]
    assert (shared.found_px.tolist(), shared.truth_px.tolist()) == ([4, 8], [8])


def test_perfect_answers() -> None:
    assert numbers([match(found(TRUTH, 0.9, 0.8, 0.7), TRUTH)]) == pytest.approx(
        {"AP50": 1, "AP": 1, "PQ": 1, "AJI": 1, "count_error": 0}
    )


def test_numbers_by_hand() -> None:
    """A true object found whole, one of three quarters, one missed; and an object where there is none."""
    answer = objects((0, 0, 4, 4), (6, 0, 9, 4), (8, 14, 10, 18))
    result = numbers([match(found(answer, 0.9, 0.5, 0.8), TRUTH)])
    # ranked by score: right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3
    assert result["AP50"] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    # at IoU 0.8 and more only the first is right; its recall of 1/3 reaches 34 of 101 recalls; 0.75 has both
    assert result["AP"] == pytest.approx((6 * result["AP50"] + 4 * 34 / 101) / 10)
    assert result["PQ"] == pytest.approx((1 + 0.75) / (2 + 0.5 + 0.5))
    assert result["AJI"] == pytest.approx((16 + 12) / (16 + 16 + 16 + 8))
    assert result["count_error"] == 0


def test_counts_of_several_images() -> None:
    images = [match(found(TRUTH, 1, 1, 1), objects((0, 0, 4, 4))), match(found(objects()), TRUTH)]
    assert numbers(images)["count_error"] == pytest.approx((2 + 3) / 2)


def test_two_objects_taken_for_one() -> None:
    """One found object over two true ones: AJI joins it with both."""
    truth = objects((0, 0, 4, 4), (0, 4, 4, 8))
    result = numbers([match(found(objects((0, 0, 4, 8)), 0.5), truth)])
    assert result["PQ"] == 0  # an IoU of 0.5 is no pair
    assert result["AP50"] == pytest.approx(51 / 101)  # but a hit for COCO, of one of them
    assert result["AJI"] == pytest.approx((16 + 16) / (32 + 32))


def test_nothing_found_and_nothing_there() -> None:
    nothing, empty = found(objects()), objects()
    missed = numbers([match(nothing, TRUTH)])
    assert missed == pytest.approx({"AP50": 0, "AP": 0, "PQ": 0, "AJI": 0, "count_error": 3})
    invented = numbers([match(found(TRUTH, 1, 1, 1), empty)])
    assert all(math.isnan(invented[name]) for name in ("AP50", "AP"))
    assert (invented["PQ"], invented["AJI"], invented["count_error"]) == (0, 0, 3)
    both = numbers([match(nothing, empty)])
    assert all(math.isnan(both[name]) for name in ("AP50", "AP", "PQ", "AJI"))
    assert both["count_error"] == 0


def test_an_empty_picture_costs_precision_only_where_something_is_found() -> None:
    right = match(found(TRUTH, 0.9, 0.9, 0.9), TRUTH)
    assert numbers([right, match(found(objects()), objects())])["AP50"] == pytest.approx(1)
    noise = match(found(objects((0, 0, 4, 4)), 0.95), objects())
    assert numbers([right, noise])["AP50"] == pytest.approx(0.75)


def random_labels(rng: np.random.Generator, count: int) -> np.ndarray:
    labels = np.zeros((64, 64), dtype=np.int32)
    for number in range(1, count + 1):
        top, left = rng.integers(0, 56, 2)
        height, width = rng.integers(3, 12, 2)
        labels[top : top + height, left : left + width] = number
    _, numbered = np.unique(labels, return_inverse=True)
    return numbered.reshape(labels.shape).astype(np.int32)


def near(rng: np.random.Generator, truth: np.ndarray) -> Instances:
    moved = np.roll(truth, tuple(rng.integers(-1, 2, 2)), axis=(0, 1))
    moved[np.isin(moved, rng.integers(1, 30, 5))] = 0
    _, numbered = np.unique(np.concatenate([[0], moved.ravel()]), return_inverse=True)
    labels = numbered[1:].reshape(truth.shape).astype(np.int32)
    return Instances(labels, rng.integers(1, 8, labels.max()).astype(np.float32) / 8)  # with equal scores


def stock_precision(pairs: list[tuple[Instances, np.ndarray]]) -> np.ndarray:
    """What pycocotools itself says of masks, from end to end."""
    truths, answers = [], []
    for image, (answer, truth) in enumerate(pairs, start=1):
        for number in range(1, int(truth.max()) + 1):
            shape = rle.encode(np.asfortranarray(truth == number, dtype=np.uint8))
            about = {"image_id": image, "category_id": 1, "segmentation": shape, "area": float(rle.area(shape))}
            truths.append({"id": len(truths) + 1, "iscrowd": 0, **about})
        for number, score in enumerate(answer.scores.tolist(), start=1):
            shape = rle.encode(np.asfortranarray(answer.labels == number, dtype=np.uint8))
            answers.append({"image_id": image, "category_id": 1, "segmentation": shape, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": number + 1, "height": 64, "width": 64} for number in range(len(pairs))]
        coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "object"}]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(answers), "segm")
        evaluation.params.maxDets = [1, 10, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"][:, :, 0, 0, 2].mean(axis=1))


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_says_the_same_of_the_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = [random_labels(rng, 30) for _ in range(4)]
    pairs = [(near(rng, truth), truth) for truth in truths]
    images = [match(*pair) for pair in pairs]
    expected = stock_precision(pairs)
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_allclose(average_precision(images), expected, atol=1e-12)
    drawn = [images[place] for place in (0, 2, 2, 3, 1)]
    np.testing.assert_allclose(resampled_precision(drawn), average_precision(drawn), atol=1e-12)


def test_more_objects_than_count() -> None:
    """Of 1100 objects the 1000 with the highest scores are ranked; the others are missed."""
    labels = np.zeros((100, 100), dtype=np.int32)
    labels.ravel()[: 2 * 1100 : 2] = np.arange(1, 1101)
    scores = np.linspace(1, 0.5, 1100).astype(np.float32)
    one = match(Instances(labels, scores), labels)
    assert len(one.scores) == 1000 and one.found == one.truth == 1100
    assert numbers([one])["AP50"] == pytest.approx(91 / 101)


def grid(side: int, step: int) -> np.ndarray:
    """A picture full of small squares, parted by a pixel."""
    rows, columns = np.mgrid[:side, :side]
    labels = (rows // step) * -(-side // step) + columns // step + 1
    labels[(rows % step == 0) | (columns % step == 0)] = 0
    return labels.astype(np.int32)


def test_thousands_of_objects_need_little_memory_and_time() -> None:
    """A table of all pairs of 16,384 objects would have 268 million places, 2 GB each time."""
    labels = grid(1024, 8)
    count = int(labels.max())
    assert count == 16384
    scores = np.random.default_rng(0).uniform(0, 1, count).astype(np.float32)
    tracemalloc.start()
    started = time.process_time()
    one = match(Instances(labels, scores), np.roll(labels, 2, axis=1))
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (one.truth, one.found) == (count, count) and one.pairs > 16000
    assert peak < 200e6 and seconds < 20
