"""What can't be used of annotations is told all at once, with file and object, and what mends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated import HEIGHT, WIDTH, annotations, write_format
from PIL import Image

from samtune.data.formats.label_studio.brush import pack_brush
from samtune.data.formats.table import FORMATS
from samtune.data.importing import import_data
from samtune.errors import ConfigError, DataError
from samtune.tasks.masks.splits import resolve_split
from samtune.tasks.semantic.splits import resolve_maps

SQUARE = [[2, 2, 9, 2, 9, 9, 2, 9]]
WRONG_SIZE = {"size": [9, 9], "counts": [81]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def told(name: str, folder: Path, out: Path) -> list[str]:
    """The problems that an import, and both tasks in place, list."""
    with pytest.raises(DataError) as caught:
        import_data(name, folder, out)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(f"{len(lines) - 1} problem(s)") and not any(out.glob("*/*"))
    with pytest.raises(DataError) as in_place:
        resolve_split(folder)
    assert all(line in str(in_place.value) for line in lines[1:])
    with pytest.raises(DataError) as as_maps:
        resolve_maps(folder, names=None, ignore=255)
    assert all(line in str(as_maps.value) for line in lines[1:])
    return [line.removeprefix("  - ").replace(f"{folder}/", "").replace(str(folder), "DIR") for line in lines[1:]]


def coco(folder: Path, changes: list[dict[str, Any]], **content: Any) -> Path:
    annotations(folder)
    images = [{"id": n, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for n, name in enumerate("abc")]
    good = {"image_id": 0, "category_id": 1, "segmentation": SQUARE}
    found = [{"id": 10 + number, **good, **change} for number, change in enumerate(changes)]
    known = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    every = {"images": images, "annotations": found, "categories": known, **content}
    (folder / "a.json").write_text(json.dumps(every))
    return folder


def test_coco(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": WRONG_SIZE, "image_id": 1},
        {"image_id": 77},
        {"category_id": 9},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}},
        {"segmentation": [[1, 2, 3, 4, 5, None]]},
        {},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "`<l1PPP4"}, "image_id": 2},
    ]
    twins = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    folder = coco(tmp_path / "data", changes, categories=twins)
    (folder / "images" / "b.png").unlink()
    lines = told("coco", folder, tmp_path / "out")
    for wanted in (
        "a.json: a.png, annotation 10: a polygon of 2 point(s), which has no area; 3 or more are needed; mend it,",
        "a.json: names b.png, which is not in DIR; put the picture there, or take its annotations out",
        "a.json: annotation 12: image_id 77 is of no picture in its images; take it out",
        "a.json: a.png, annotation 13: category_id 9 is not among its categories (1, 2); mend the file",
        "a.json: a.png, annotation 14: run lengths of 3 pixels, but the picture has 600; mend it, or take it out",
        "a.json: a.png, annotation 15: a polygon with a coordinate that is no number",
        "a.json: c.png, annotation 17: run lengths of 131532 pixels, but the picture has 600; mend it, or take",
        "a.json: categories 1 and 2 are both named 'cat'; rename one of them, or make them one",
    ):
        assert any(line.startswith(wanted) for line in lines), (wanted, lines)
    assert len(lines) == 8  # that of the absent picture is one line, whatever its annotations are


def test_numbers_that_no_machine_could_draw(tmp_path: Path) -> None:
    far: list[dict[str, Any]] = [
        {"segmentation": [[0, 0, 1e12, 0, 0, 9]]},
        {"segmentation": [[0, 0, 10**400, 0, 0, 9]]},
    ]
    lines = told("coco", coco(tmp_path / "data", far), tmp_path / "out")
    assert "annotation 10: a polygon with a coordinate of 1e+12 pixels; 100,000 is the most" in lines[0]
    assert "annotation 11: " in lines[1] and len(lines) == 2
    images = [{"id": 0, "file_name": "a.png", "width": 10**6, "height": 10**6}]
    (line,) = told("coco", coco(tmp_path / "large", [{}], images=images), tmp_path / "out")
    assert "a.png of 1000000 x 1000000 pixels, 1 to 1,000,000,000 are possible; export it again" in line


def test_run_lengths_of_another_size(tmp_path: Path) -> None:
    (line,) = told("coco", coco(tmp_path / "data", [{"segmentation": WRONG_SIZE}]), tmp_path / "out")
    assert line.startswith(
        f"a.json: a.png, annotation 10: run lengths of size [9, 9], but the picture has [{HEIGHT}, {WIDTH}] (height, "
    )


def test_yolo(tmp_path: Path) -> None:
    write_format("yolo", tmp_path / "data")
    lines = [
        "0 0.1 0.1 0.2 0.2 0.3",
        "7 0.1 0.1 0.2 0.2 0.3 0.3",
        "x 1 2 3 4",
        "0 10 10 20 20 30 30",
        "0 a b c d e f",
        "1 0.1 0.1",
    ]
    (tmp_path / "data" / "labels" / "a.txt").write_text("\n".join(lines))
    (tmp_path / "data" / "labels" / "gone.txt").write_text("")
    file = tmp_path / "data" / "data.yaml"
    file.write_text(file.read_text().replace('"dog"', '"cat"'))
    found = told("yolo", tmp_path / "data", tmp_path / "out")
    for wanted in (
        "labels/a.txt: a.png, line 1: a polygon of 5 numbers; x and y in turn are needed",
        "labels/a.txt: line 2: class '7' is not among the names of data.yaml (0 to 1); mend it",
        "labels/a.txt: line 3: class 'x' is not among",
        "labels/a.txt: a.png, line 4: coordinates that are not shares of width and height, from 0 to 1",
        "labels/a.txt: a.png, line 5: coordinates that are no numbers",
        "labels/a.txt: a.png, line 6: a polygon of 1 point(s)",
        "labels/gone.txt: no picture of this stem in",
        "data.yaml: categories 0 and 1 are both named 'cat'",
    ):
        assert any(line.startswith(wanted) for line in found), (wanted, found)


def test_labelme(tmp_path: Path) -> None:
    write_format("labelme", tmp_path / "data")
    shapes = [
        {"label": "cat", "shape_type": "polygon", "points": [[1, 2], [3, 4]]},
        {"label": "cat", "shape_type": "line", "points": [[1, 2], [3, 4]]},
        {"shape_type": "polygon", "points": [[1, 2], [3, 4], [5, 9]]},
        {"label": "cat", "shape_type": "mask", "points": [[1, 2], [3, 4]], "mask": "no"},
        {"label": "cat", "shape_type": "rectangle"},
    ]
    content = {"shapes": shapes, "imagePath": "a.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    (tmp_path / "data" / "a.json").write_text(json.dumps(content))
    (tmp_path / "data" / "b.json").write_text(json.dumps(content | {"shapes": [], "imagePath": "/etc/passwd.png"}))
    (tmp_path / "data" / "c.json").write_text("{")
    found = told("labelme", tmp_path / "data", tmp_path / "out")
    for wanted in (
        "a.json: a.png, shape 1 (cat): a polygon of 2 point(s)",
        "a.json: a.png, shape 2 (cat): a shape of kind 'line', which covers no pixels; polygon, rectangle, circle and",
        "a.json: shape 3: no label; name it",
        "a.json: a.png, shape 4 (cat): a mask that is no PNG in base64",
        "a.json: a.png, shape 5 (cat): no 'points'; mend it",
        "b.json: names /etc/passwd.png, which is not in DIR",
        "c.json: not a file of LabelMe (JSONDecodeError",
    ):
        assert any(line.startswith(wanted) for line in found), (wanted, found)


def test_cvat(tmp_path: Path) -> None:
    annotations(tmp_path / "data")
    (tmp_path / "data" / "annotations.xml").write_text(
        "<annotations><meta><task><labels><label><name>cat</name></label><label><name>cat</name></label></labels></task>"
        f'</meta><image name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="cat" points="1,2;3,4"/><polyline label="cat" points="1,2;3,4;5,6"/>'
        '<polygon label="dog" points="1,2;3,4;9,9"/><box label="cat" xtl="1"/>'
        '<mask label="cat" rle="1, 2" left="0" top="0" width="2" height="2"/>'
        f'<mask label="cat" rle="1, 3" left="{WIDTH}" top="0" width="2" height="2"/></image>'
        '<image name="gone.png" width="9" height="9"/></annotations>'
    )
    found = told("cvat", tmp_path / "data", tmp_path / "out")
    for wanted in (
        "annotations.xml: a.png, polygon 1 (cat): a polygon of 2 point(s)",
        "annotations.xml: a.png, polyline 2 (cat): a polyline, which covers no pixels; polygon, box, ellipse, mask do",
        "annotations.xml: a.png, polygon 3 (dog): label 'dog' is not among its labels (cat); mend the file",
        "annotations.xml: a.png, box 4 (cat): box without ytl; mend it",
        "annotations.xml: a.png, mask 5 (cat): run lengths of 3 pixels, but its box has 2 x 2",
        f"annotations.xml: a.png, mask 6 (cat): a mask of 2 x 2 pixels at ({WIDTH}, 0), which is beyond the picture of",
        "annotations.xml: names gone.png, which is not in DIR",
        "annotations.xml: labels: two of one name, or one without; mend them",
    ):
        assert any(line.startswith(wanted) for line in found), (wanted, found)


def test_label_studio(tmp_path: Path) -> None:
    annotations(tmp_path / "data")
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}

    def made(kind: str, **value: Any) -> dict[str, Any]:
        return {"id": "r", "type": kind, "value": {kind: ["cat"], **value}, **size}

    results = [
        made("polygonlabels", points=[[1, 2], [3, 4]]),
        made("brushlabels", rle=pack_brush(np.ones((5, 5), bool))),
        made("brushlabels", rle=[0, 0]),
        made("keypointlabels", x=1, y=1, width=1),
        {**made("polygonlabels", points=[[1, 2], [3, 4], [9, 9]]), "image_rotation": 90},
        {
            **made("polygonlabels", points=[[1, 2], [3, 4], [9, 9]]),
            "value": {"points": [[1, 2], [3, 4], [9, 9]]},
            "id": "s",
        },
    ]
    tasks = [
        {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": results}]},
        {"id": 2, "data": {"image": "gone.png"}, "annotations": [{"result": []}]},
        {"id": 3, "data": {"text": "words"}, "annotations": [{"result": []}]},
    ]
    (tmp_path / "data" / "tasks.json").write_text(json.dumps(tasks))
    found = told("label-studio", tmp_path / "data", tmp_path / "out")
    for wanted in (
        "tasks.json: a.png, task 1, result r: a polygon of 2 point(s)",
        "tasks.json: a.png, task 1, result r: a brush of 25 pixels, but the picture has 600",
        "tasks.json: a.png, task 1, result r: a brush whose bytes end too early",
        "tasks.json: a.png, task 1, result r: a keypoint, which is not read; polygon, brush, bitmask, ",
        "tasks.json: a.png, task 1, result r: drawn on a picture that Label Studio turned",
        "tasks.json: a.png, task 1, result s: no label; label it",
        "tasks.json: names gone.png, which is not in DIR",
        "tasks.json: task 3: no picture in its data",
    ):
        assert any(line.startswith(wanted) for line in found), (wanted, found)


def test_index_pictures(tmp_path: Path) -> None:
    write_format("index", tmp_path / "data")
    masks = tmp_path / "data" / "masks"
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(masks / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(masks / "b.png")
    with pytest.raises(DataError) as caught:
        import_data("index", tmp_path / "data", tmp_path / "out")
    text = str(caught.value)
    assert "a.png: value 7: of no class in labels.txt; name it, or mend the mask" in text
    assert "b.png: pixels of mode 'RGB' are no map of classes" in text
    with pytest.raises(DataError, match=r"a\.png: size|value 7"):
        resolve_maps(tmp_path / "data", names={0: "ground", 1: "cat", 2: "dog"}, ignore=255)


@pytest.mark.parametrize("content", ["0 sky\n0 road\n", "", "300 sky\n"])
def test_a_list_of_classes_that_is_none(tmp_path: Path, content: str) -> None:
    write_format("index", tmp_path / "data")
    (tmp_path / "data" / "labels.txt").write_text(content)
    with pytest.raises(DataError, match=r"labels.txt: expected names with different numbers from 0 to 255, got"):
        import_data("index", tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize("name", FORMATS)
def test_another_folder_is_no_such_format(name: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data|classes|annotations"):
        import_data(name, tmp_path / "data", tmp_path / "out")


def test_choices_that_do_not_fit(tmp_path: Path) -> None:
    write_format("coco", tmp_path / "data")
    with pytest.raises(ConfigError, match=r"unknown import 'pascal'. Known: cifar-100, coco, cvat"):
        import_data("pascal", tmp_path / "data", tmp_path / "out")
    with pytest.raises(ConfigError, match="--classes and --category are for annotations, which cifar-100"):
        import_data("cifar-100", tmp_path / "data", tmp_path / "out", classes=True)
    with pytest.raises(DataError, match=r"--category has 'bird', which .* doesn't have; it has: cat, dog"):
        import_data("coco", tmp_path / "data", tmp_path / "out", categories=("bird",))
