"""What supervision reads beside us: the numbers of docs/formats.md, by which our readers stay, and the way there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated import FAR, HEIGHT, RING, WIDTH, annotations, masks_of, write_format
from PIL import Image

from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.shapes import encode_rle, outlines
from samtune.data.formats.table import FORMATS, WRITERS

sv: Any = pytest.importorskip("supervision")  # an extra
SIDE = 256
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
BOX = {"bbox": [2, 2, 6, 6], "area": 36, "iscrowd": 0}


def pieces(sigma: float) -> Iterator[np.ndarray]:
    """Yields the pieces without holes of smooth noise, (256, 256) bool each."""
    rough = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), sigma)
    count, labels = cv2.connectedComponents((smooth > np.quantile(smooth, 0.7)).astype(np.uint8))
    for number in range(1, count):
        mask = labels == number
        if mask.sum() >= 9 and [len(rings) for rings in outlines(mask)] == [1]:
            yield mask


@pytest.mark.parametrize(("sigma", "median", "dice"), [(2, 35, 0.865), (6, 236.5, 0.955), (20, 2185, 0.985)])
def test_it_draws_outlines_too_large(tmp_path: Path, sigma: float, median: float, dice: float) -> None:
    masks = list(pieces(sigma))
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(path)
    items = [Annotation("cat", (outlines(mask)[0][0][:-1],)) for mask in masks]
    given = Annotations({"a": Annotated(path, path, SIDE, SIDE, items)}, {1: "cat"})
    truth = np.any(masks, axis=0)
    for name in ("coco", "yolo"):
        WRITERS[name](given, tmp_path)
        image = FORMATS[name].read(tmp_path).images["a"]
        np.testing.assert_array_equal(np.any([image.mask(item) for item in image.objects], axis=0), truth)
        ((_, _, found),) = load(name, tmp_path)
        theirs = found.mask.any(axis=0)
        assert 2 * (theirs & truth).sum() / (theirs.sum() + truth.sum()) == pytest.approx(dice, abs=0.001)
    assert np.median([mask.sum() for mask in masks]) == median


def load(name: str, folder: Path) -> Any:
    """Reads a folder by supervision."""
    if name == "coco":
        return sv.DetectionDataset.from_coco(str(folder / "images"), str(folder / "annotations.json"), force_masks=True)
    places = [str(folder / part) for part in ("images", "labels", "data.yaml")]
    return sv.DetectionDataset.from_yolo(*places, force_masks=True)


def test_a_hole_in_an_outline_shrinks(tmp_path: Path) -> None:
    write_format("yolo", tmp_path)
    first = next(iter(load("yolo", tmp_path)))[2]
    cat = first.mask[first.class_id == 0].any(axis=0)
    assert RING.sum() == 170 and (cat ^ RING).sum() == 44


def test_masks_written_as_coco_are_the_same_there(tmp_path: Path) -> None:
    """As predictions are: run lengths, with scores, of all objects of a class."""
    given = annotations(tmp_path, names=("a", "b"))
    images = {
        stem: image._replace(objects=[Annotation("cat", encode_rle(RING)[0], crowd=True, score=0.5),
                                      Annotation("dog", encode_rle(FAR)[0], crowd=True, score=0.9)])
        for stem, image in given.images.items()
    }  # fmt: skip
    WRITERS["coco"](Annotations(images, given.categories), tmp_path)
    found = load("coco", tmp_path)
    assert found.classes == ["cat", "dog"] and len(found) == 2
    for _, _, seen in found:
        np.testing.assert_array_equal(seen.mask, [RING, FAR])
        assert seen.data["iscrowd"].tolist() == [1, 1] and seen.class_id.tolist() == [0, 1]


def test_masks_of_labelme_are_left_out_there(tmp_path: Path) -> None:
    write_format("labelme", tmp_path)
    with pytest.warns(UserWarning, match="Skipped unsupported LabelMe shape type"):
        found = sv.DetectionDataset.from_labelme(str(tmp_path / "images"), str(tmp_path))
    assert found.classes == ["dog"]  # the only polygon
    assert masks_of(FORMATS["labelme"].read(tmp_path))["a", "cat"].any()


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [40, 10, 550]}}, "run lengths of size"),
        ({"segmentation": [[2, 2, 8, 8]]}, "a polygon of 2 point"),
        ({"segmentation": []}, "a box without a segmentation"),
        ({"segmentation": [SQUARE], "image_id": 9}, "image_id 9 is of no picture"),
    ],
)
def test_what_it_takes_without_a_word_is_told_here(tmp_path: Path, given: dict[str, Any], ours: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    item = {"id": 1, "image_id": 1, "category_id": 1, **BOX, **given}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [item]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert len(load("coco", tmp_path)) == 1
    (problem,) = FORMATS["coco"].read(tmp_path).problems
    assert "annotations.json: " in problem and "annotation 1: " in problem and ours in problem


def test_its_pascal_voc_does_not_hold_every_mask() -> None:
    from xml.etree import ElementTree

    from supervision.dataset.formats.pascal_voc import detections_from_xml_obj, detections_to_pascal_voc

    rng, same, refused = np.random.default_rng(0), 0, 0
    for _ in range(20):
        rough = rng.random((64, 80)).astype(np.float32)
        mask = cv2.GaussianBlur(rough, (0, 0), rng.choice([0.6, 1, 2, 4])) > 0.5
        said = sv.Detections(sv.mask_to_xyxy(mask[None]).astype(float), mask=mask[None], class_id=np.array([0]))
        try:
            text = detections_to_pascal_voc(said, ["cat"], "a.png", (64, 80, 3), approximation_percentage=0.0)
        except ValueError:
            refused += 1
            continue
        found, _ = detections_from_xml_obj(ElementTree.fromstring(text), [], (80, 64), True)
        same += bool((found.mask.any(axis=0) == mask).all())
    assert (20 - same, refused) == (11, 2)
