"""Which files are maps of objects, what becomes of overlaps, and what a data folder is refused for."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from object_maps import discs, write_object_map, write_objects
from PIL import Image

from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.shapes import rectangle
from samtune.data.formats.table import ANY, WRITERS, Source
from samtune.data.maps import MapDataset
from samtune.data.pairs import Pair
from samtune.errors import ConfigError, DataError
from samtune.tasks.instances.layouts.splits import ObjectDrawing, kind_of, recognises, resolve_objects, verify_folder
from samtune.tasks.instances.objects import WHOLE, cut_out, object_facts, paint, read_objects, renumbered


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def square(size: tuple[int, int], top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "deep.tif", "palette.png"])
def test_files_that_are_maps(tmp_path: Path, name: str) -> None:
    labels = discs()
    if name.startswith("deep"):
        labels = labels * 500  # beyond 8 bits
    picture = Image.fromarray(labels.astype(np.uint16 if name.startswith("deep") else np.uint8))
    if name.startswith("palette"):
        picture.putpalette([5] * 768)
    picture.save(tmp_path / name)
    read = read_objects(tmp_path / name)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize(
    ("name", "mode", "text"), [("a.jpg", "L", "a JPEG"), ("a.png", "RGB", "mode 'RGB'"), ("a.tif", "F", "mode 'F'")]
)
def test_files_that_are_none(tmp_path: Path, name: str, mode: str, text: str) -> None:
    Image.fromarray(discs().astype(np.uint8)).convert(mode).save(tmp_path / name)
    with pytest.raises(DataError, match=text) as error:
        read_objects(tmp_path / name)
    assert name in str(error.value) and "8 or 16 bits" in str(error.value)


def test_numbers_beyond_16_bits(tmp_path: Path) -> None:
    Image.fromarray(discs() * 70_000, mode="I").save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="beyond 16 bits"):
        read_objects(tmp_path / "a.tif")


def oddities(tmp_path: Path, labels: np.ndarray) -> str:
    (facts,) = object_facts([write_object_map(tmp_path, "a", labels)])
    assert not isinstance(facts, DataError)
    return "; ".join(facts.oddities)


def test_what_a_user_may_want_to_know(tmp_path: Path) -> None:
    assert oddities(tmp_path / "good", discs()) == ""
    speck = discs()
    speck[0, 0] = 9
    assert "1 object(s) of fewer than 4 pixels, such as value 9" in oddities(tmp_path / "speck", speck)
    assert "no object" in oddities(tmp_path / "empty", np.zeros((40, 48), dtype=np.int32))
    assert "one object, value 255, in 3 pieces" in oddities(tmp_path / "binary", np.where(discs() > 0, 255, 0))
    many = np.arange(40 * 48, dtype=np.int32).reshape(40, 48)
    assert "1,919 objects; AP counts the 1,000" in oddities(tmp_path / "many", many)


def test_the_smaller_object_is_on_top() -> None:
    size = (10, 10)
    large, inner, beside = square(size, 0, 0, 8), square(size, 2, 2, 3), square(size, 6, 6, 4)
    labels = paint([(WHOLE, large), (WHOLE, beside), cut_out(inner)], size)
    assert [int((labels == number).sum()) for number in (1, 2, 3)] == [64 - 9 - 4, 16, 9]
    hidden, numbers = renumbered(paint([(WHOLE, inner), cut_out(inner)], size))
    assert numbers.tolist() == [2] and hidden.max() == 1


def write_coco(folder: Path, shapes: list[list[list[float]]], **change: object) -> Path:
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.full((40, 48, 3), 90, dtype=np.uint8)).save(folder / "images" / "a.png")
    annotations = [{"id": 7 + i, "image_id": 1, "category_id": 1, "segmentation": s} for i, s in enumerate(shapes)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 40}],
        "annotations": [{k: v for k, v in one.items() if k not in change} for one in annotations],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def scan(folder: Path, source: Source = ANY) -> tuple[list[Pair], list[str]]:
    return kind_of(folder, source).scan(folder)


def test_coco_objects_that_touch_and_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shapes = [box(12, 12, 16, 16), box(10, 10, 30, 30), box(30, 10, 40, 20)]
    with caplog.at_level(logging.WARNING):
        (pair,), problems = scan(write_coco(tmp_path / "coco", shapes))
    assert problems == [] and "objects overlap in 16 pixels" in caplog.text
    areas = np.bincount(read_objects(pair.mask).ravel())[1:]
    assert sorted(areas.tolist()) == [16, 100, 400 - 16]
    assert scan(tmp_path / "coco") == ([pair], [])  # kept


def test_coco_objects_without_a_pixel_are_told_at_once(tmp_path: Path) -> None:
    shapes = [box(10, 10, 20, 20), box(10, 10, 20, 20), box(45, 38, 45, 38)]
    pairs, problems = scan(write_coco(tmp_path / "coco", shapes))
    assert pairs == [] and len(problems) == 2
    assert "a.png, annotation 7 lies wholly under smaller ones" in problems[0]
    assert "a.png, annotation 9 covers no pixel" in problems[1]


def test_coco_without_segmentations(tmp_path: Path) -> None:
    pairs, problems = scan(write_coco(tmp_path / "coco", [box(1, 1, 9, 9)], segmentation=None))
    assert "annotation 7" in problems[0] and "segmentation" in problems[0] and "labels.json" in problems[0]
    assert [pair.name for pair in pairs] == ["a"]  # the problem stops the run, not the reading


def test_a_crowd_is_no_object_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_coco(tmp_path / "coco", [box(10, 10, 20, 20), box(0, 0, 40, 30)])
    content = json.loads((folder / "labels.json").read_text())
    content["annotations"][1]["iscrowd"] = 1
    (folder / "labels.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        (pair,), problems = scan(folder)
    assert problems == [] and np.bincount(read_objects(pair.mask).ravel())[1:].tolist() == [100]
    assert "1 annotation(s) of a crowd, such as a.png, annotation 8, are no objects; left out" in caplog.text


@pytest.mark.parametrize("form", ["coco", "yolo", "labelme", "label-studio", "cvat"])
def test_objects_of_every_format_that_tells_them_apart(tmp_path: Path, form: str) -> None:
    """Two cells that touch and a speck of dirt: three objects, or those of one category."""
    image = tmp_path / "data" / "images" / "a.png"
    image.parent.mkdir(parents=True)
    Image.fromarray(np.full((40, 48, 3), 90, dtype=np.uint8)).save(image)
    corners = {"cell": [(4, 4, 14, 14), (14, 4, 24, 16)], "dirt": [(30, 30, 35, 35)]}
    items = [Annotation(name, (rectangle(*box),)) for name, boxes in corners.items() for box in boxes]
    place = image.parent if form == "labelme" else image.parents[1]
    said = Annotations({"a": Annotated(image, image, 48, 40, items)}, {1: "cell", 2: "dirt"})
    WRITERS[form](said, place)
    source = image.parents[1] if form != "labelme" else place
    for chosen, areas in ((None, [120, 100, 25]), (("cell",), [120, 100])):
        (pair,), problems = scan(source, Source(categories=chosen))
        assert problems == [] and np.bincount(read_objects(pair.mask).ravel())[1:].tolist() == areas


def test_a_drawing_is_called_the_same_in_every_process() -> None:
    """Its name is a part of where its maps are kept."""
    names = [f"category {number}" for number in range(9)]
    assert str(ObjectDrawing(frozenset(names))) == f"objects without {names}"


def test_formats_and_categories_that_tell_no_objects_apart(tmp_path: Path) -> None:
    data = write_objects(tmp_path / "data")
    with pytest.raises(ConfigError, match="index does not tell objects of a category apart"):
        kind_of(data, Source("index"))
    with pytest.raises(ConfigError, match=r"data\.categories is cell"):
        kind_of(data, Source(categories=("cell",)))
    with pytest.raises(DataError, match=r"'nucleus', which .* doesn't have; it has: cell"):
        kind_of(write_coco(tmp_path / "coco", [box(1, 1, 9, 9)]), Source(categories=("nucleus",)))


def test_parts_of_a_folder(tmp_path: Path) -> None:
    data = write_objects(tmp_path / "data")
    splits = resolve_objects(data)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 2, 2]
    assert recognises(data) and not recognises(tmp_path)
    report = verify_folder(data, name=None)
    assert (report.errors, report.warnings) == ((), ())
    with pytest.raises(ConfigError, match="none of images and instances has a name"):
        verify_folder(data, name="cells")


def test_what_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    data = write_objects(tmp_path / "data")
    Image.fromarray(np.ones((20, 48), dtype=np.uint16)).save(write_object_map(data / "train", "small"))
    Image.fromarray(np.zeros((40, 48, 3), dtype=np.uint8)).save(data / "train" / "instances" / "train0.png")
    (data / "val" / "instances" / "val0.png").unlink()
    with pytest.raises(DataError) as error:
        resolve_objects(data)
    for text in ("mask 48 x 20, image 48 x 40", "no map of objects", "no mask named val0.* in instances/"):
        assert text in str(error.value), text


def test_nothing_to_learn(tmp_path: Path) -> None:
    data = write_objects(tmp_path / "data")
    for path in (data / "train" / "instances").iterdir():
        Image.fromarray(np.zeros((40, 48), dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match="all 4 maps of train are without an object"):
        resolve_objects(data)


@pytest.mark.parametrize("part", ["val", "test"])
def test_nothing_to_measure(tmp_path: Path, part: str) -> None:
    """Without an object in val no epoch would be chosen: the untuned weights would come back."""
    data = write_objects(tmp_path / "data")
    for path in (data / part / "instances").iterdir():
        Image.fromarray(np.zeros((40, 48), dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=f"all 2 maps of {part} are without an object.*no AP50 to measure; move images"):
        resolve_objects(data)
    assert len(verify_folder(data, name=None).errors) == 1


def test_a_sample_keeps_the_numbers(tmp_path: Path) -> None:
    data = write_objects(tmp_path / "data")
    pairs = resolve_objects(data).train
    plain = MapDataset(pairs, read_objects, outside=0, image_size=64)[0]
    assert plain.mask.shape == (53, 64) and plain.mask.dtype.is_signed
    assert np.unique(plain.mask.numpy()).tolist() == [0, 1, 2, 3, 4]
    changed = MapDataset(pairs, read_objects, outside=0, image_size=64, augment="turns")
    assert set(np.unique(changed[0].mask.numpy()).tolist()) <= {0, 1, 2, 3, 4}
