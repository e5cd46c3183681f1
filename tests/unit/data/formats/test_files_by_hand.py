"""Files as other programs write them, by hand: each shape covers the pixels that it says."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtune.data.formats.annotations import Annotations
from samtune.data.formats.label_studio.brush import pack_brush, unpack_brush
from samtune.data.formats.shapes import bridged, draw, ellipse, outlines, polygon
from samtune.data.formats.table import FORMATS

HEIGHT, WIDTH = 10, 20


def covered(found: Annotations, number: int = 0) -> np.ndarray:
    """Pixels of an object of the only picture."""
    (image,) = found.images.values()
    return image.mask(image.objects[number])


def block(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    return tmp_path


def test_polygons_cover_the_pixels_whose_centres_they_hold() -> None:
    square = polygon([2, 3, 7, 3, 7, 8, 2, 8])
    np.testing.assert_array_equal(draw((square,), HEIGHT, WIDTH), block(2, 3, 7, 8))
    two = draw((square, polygon([[6, 3], [12, 3], [12, 8], [6, 8]])), HEIGHT, WIDTH)
    np.testing.assert_array_equal(two, block(2, 3, 12, 8))  # of one object: united, not a hole where both are
    beyond = draw((polygon([[15, 5], [99, 5], [99, 99], [15, 99]]),), HEIGHT, WIDTH)
    np.testing.assert_array_equal(beyond, block(15, 5, 20, 10))
    round_one = draw((ellipse(10, 5, 4, 4),), HEIGHT, WIDTH)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (round_one ^ ((columns - 10) ** 2 + (rows - 5) ** 2 < 16)).sum() <= 4


def test_an_outline_runs_to_its_hole_and_back() -> None:
    mask = block(2, 1, 18, 9) & ~block(5, 3, 8, 6) & ~block(11, 4, 15, 7)
    ((outline, *holes),) = outlines(mask)
    assert len(holes) == 2
    np.testing.assert_array_equal(draw((bridged([outline, *holes]),), HEIGHT, WIDTH), mask)
    np.testing.assert_array_equal(draw((outline[:-1],), HEIGHT, WIDTH), block(2, 1, 18, 9))


def test_coco(place: Path) -> None:
    rle = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 3, HEIGHT * 2, HEIGHT * 15]}  # by columns: 3 and 4
    found = [
        {"id": 7, "image_id": 1, "category_id": 18, "segmentation": [[2, 3, 7, 3, 7, 8, 2, 8]], "iscrowd": 0},
        {"id": 9, "image_id": 1, "category_id": 44, "segmentation": rle, "iscrowd": 1, "score": 0.5},
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}]
    images = [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    (place / "x.json").write_text(json.dumps({"images": images, "annotations": found, "categories": categories}))
    read = FORMATS["coco"].read(place)
    assert read.problems == () and read.categories == {18: "dog", 44: "bottle"}
    np.testing.assert_array_equal(covered(read), block(2, 3, 7, 8))
    np.testing.assert_array_equal(covered(read, 1), block(3, 0, 5, 10))
    facts = [(item.category, item.crowd, item.score, item.label) for item in read.images["a"].objects]
    assert facts == [("dog", False, None, "annotation 7"), ("bottle", True, 0.5, "annotation 9")]


def test_yolo(place: Path) -> None:
    (place / "images").mkdir()
    (place / "a.png").rename(place / "images" / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(place / "images" / "b.png")
    (place / "labels").mkdir()
    (place / "labels" / "a.txt").write_text("1 0.1 0.3 0.35 0.3 0.35 0.8 0.1 0.8\n\n0 0.5 0.5 0.2 0.4\n")
    (place / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    read = FORMATS["yolo"].read(place)
    image = read.images["a"]
    np.testing.assert_array_equal(image.mask(image.objects[0]), block(2, 3, 7, 8))
    np.testing.assert_array_equal(image.mask(image.objects[1]), block(8, 3, 12, 7))  # a box: centre and size
    assert [item.category for item in image.objects] == ["dog", "cat"] and read.images["b"].objects == []
    assert [note.split(": ", 1)[1] for note in read.notes] == [
        "1 picture(s) without a text file, which show nothing",
        "1 object(s) are boxes, which are read as filled rectangles",
    ]


def test_labelme(place: Path) -> None:
    file = BytesIO()
    Image.fromarray(np.array([[1, 0, 1]], dtype=np.uint8)).save(file, format="PNG")
    mask = {"points": [[4, 6], [6, 6]], "mask": base64.b64encode(file.getvalue()).decode()}
    shapes = [
        {"label": "car", "shape_type": "polygon", "points": [[2, 3], [7, 3], [7, 8], [2, 8]], "group_id": None},
        {"label": "bus", "shape_type": "rectangle", "points": [[12, 8], [8, 3]]},
        {"label": "bus", "shape_type": "circle", "points": [[10, 5], [10, 9]]},
        {"label": "bus", "shape_type": "mask", **mask},
    ]
    content = {"version": "5.5.0", "shapes": shapes, "imagePath": "..\\pictures\\a.png", "imageData": None}
    (place / "a.json").write_text(json.dumps(content))
    read = FORMATS["labelme"].read(place)
    assert read.problems == () and read.categories == {1: "bus", 2: "car"}
    np.testing.assert_array_equal(covered(read), block(2, 3, 7, 8))
    np.testing.assert_array_equal(covered(read, 1), block(8, 3, 12, 8))
    assert 45 <= covered(read, 2).sum() <= 54  # 16 pi is 50.3
    np.testing.assert_array_equal(covered(read, 3), block(4, 6, 7, 7) & ~block(5, 6, 6, 7))


def test_cvat(place: Path) -> None:
    (place / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><job><labels>'
        "<label><name>road</name></label><label><name>car</name></label></labels></job></meta>"
        f'<image id="0" name="shots/a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<tag label="night"/>'
        '<mask label="car" z_order="2" rle="0, 2, 3, 1" left="5" top="4" width="3" height="2"></mask>'
        '<polygon label="road" z_order="0" points="2.00,3.00;7.00,3.00;7.00,8.00;2.00,8.00"/>'
        '<box label="car" z_order="1" xtl="8" ytl="3" xbr="12" ybr="7"/>'
        "</image></annotations>"
    )
    read = FORMATS["cvat"].read(place)
    assert read.problems == () and read.categories == {1: "road", 2: "car"}
    np.testing.assert_array_equal(covered(read), block(2, 3, 7, 8))  # by z_order
    np.testing.assert_array_equal(covered(read, 1), block(8, 3, 12, 7))
    np.testing.assert_array_equal(covered(read, 2), block(5, 4, 7, 5) | block(7, 5, 8, 6))


def bits(*parts: tuple[int, int]) -> list[int]:
    """Bytes of numbers, each with its count of bits."""
    text = "".join(f"{value:0{count}b}" for value, count in parts)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def test_a_brush_of_runs_and_of_values_in_turn() -> None:
    head = [(2 * 2 * 4, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    run = [(1, 1), (1, 2), (10, 4), (0, 8)]  # eleven values of 0: two pixels, and three bytes of the third
    turn = [(0, 1), (0, 2), (0, 3), (255, 8)]  # one value: the alpha of the third
    rest = [(1, 1), (0, 2), (3, 3), (255, 8)]  # four values of 255
    mask = unpack_brush(bits(*head, *run, *turn, *rest), 2, 2)
    np.testing.assert_array_equal(mask, [[False, False], [True, True]])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_a_brush_comes_back(share: float) -> None:
    mask = np.random.default_rng(0).random((200, 180)) < share  # runs beyond 2 ** 16 bytes where it is all one
    np.testing.assert_array_equal(unpack_brush(pack_brush(mask), 200, 180), mask)


def result(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": "r1", "type": kind, "value": value, "from_name": "x", "to_name": "y", **size, **more}


def test_label_studio(place: Path) -> None:
    car = {"rectanglelabels": ["car"]}
    square = [[10, 30], [35, 30], [35, 80], [10, 80]]
    results = [
        result("polygonlabels", {"points": square, "closed": True, "polygonlabels": ["road"]}),
        result("brushlabels", {"format": "rle", "rle": pack_brush(block(1, 1, 4, 4)), "brushlabels": ["car"]}),
        result("rectanglelabels", {"x": 40, "y": 30, "width": 20, "height": 40, "rotation": 0, **car}),
        result("rectanglelabels", {"x": 50, "y": 0, "width": 20, "height": 20, "rotation": 90, **car}),
        result("choices", {"choices": ["night"]}),
    ]  # fmt: skip
    cancelled = {"was_cancelled": True, "result": [result("polygonlabels", {"points": [], "polygonlabels": ["no"]})]}
    tasks = [
        {"id": 4, "data": {"image": "/data/upload/1/0123abcd-a.png"}, "annotations": [cancelled, {"result": results}]},
        {"id": 5, "data": {"image": "b.png"}, "annotations": [], "predictions": [{"result": results}]},
    ]
    (place / "export.json").write_text(json.dumps(tasks))
    read = FORMATS["label-studio"].read(place)
    assert read.problems == () and read.categories == {1: "car", 2: "road"}
    np.testing.assert_array_equal(covered(read), block(2, 3, 7, 8))
    np.testing.assert_array_equal(covered(read, 1), block(1, 1, 4, 4))
    np.testing.assert_array_equal(covered(read, 2), block(8, 3, 12, 7))
    np.testing.assert_array_equal(covered(read, 3), block(8, 0, 10, 4))  # turned around its corner at (10, 0)
    assert "1 task(s) are not annotated, and not used" in " ".join(read.notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "sky\nroad\n"),
        ("labels.txt", "0 sky\n1: road\n"),
        ("classes.json", '["sky", "road"]'),
        ("labels.json", '{"1": "road", "0": "sky"}'),
    ],
)
def test_index(place: Path, name: str, content: str) -> None:
    for sub in ("images", "masks"):
        (place / sub).mkdir()
    (place / "a.png").rename(place / "images" / "a.png")
    values = np.where(block(2, 3, 7, 8), 1, np.where(block(15, 0, 20, 10), 255, 0)).astype(np.uint8)
    Image.fromarray(values).save(place / "masks" / "a.png")
    (place / name).write_text(content)
    read = FORMATS["index"].read(place)
    assert read.problems == () and read.categories == {0: "sky", 1: "road"}
    np.testing.assert_array_equal(covered(read, 0), values == 0)
    np.testing.assert_array_equal(covered(read, 1), block(2, 3, 7, 8))
