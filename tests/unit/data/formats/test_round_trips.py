"""What goes into a format comes out the same: written, read, written and read again, and read in place by tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from annotated import CATEGORIES, FAR, HEIGHT, RING, WIDTH, annotations, masks_of, write_format
from PIL import Image

from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.index_pictures import read_values
from samtune.data.formats.shapes import encode_rle
from samtune.data.formats.table import FORMATS, WRITERS, Source, find_format
from samtune.data.importing import import_data
from samtune.errors import ConfigError, DataError
from samtune.tasks.binary import read_mask
from samtune.tasks.masks.splits import resolve_split
from samtune.tasks.masks.splits import verify_folder as verify_masks
from samtune.tasks.semantic.splits import recognises, resolve_maps, verify_folder

EACH = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def in_parts(name: str, folder: Path) -> Path:
    """Writes train, val and test, of pictures that differ."""
    for part, count in (("train", 6), ("val", 3), ("test", 3)):
        write_format(name, folder / part, names=tuple(f"{part}{index}" for index in range(count)))
    return folder


@EACH
def test_masks_come_out_as_they_went_in(name: str, tmp_path: Path) -> None:
    given = write_format(name, tmp_path / "once")
    once = FORMATS[name].read(tmp_path / "once")
    assert once.problems == () and list(once.categories.values()) == ["cat", "dog"]
    shutil.copytree(tmp_path / "once" / "images", tmp_path / "twice" / "images")
    WRITERS[name](once, tmp_path / "twice")
    twice = FORMATS[name].read(tmp_path / "twice")
    assert list(once.images) == list(twice.images) == ["a", "b", "c"]
    wanted = masks_of(given)
    if name == "index":  # its pixels have one class each: the block lies over the triangle where both are
        wanted[("b", "dog")] = wanted[("b", "dog")] | FAR
    for found in (masks_of(once), masks_of(twice)):
        for key, mask in wanted.items():
            np.testing.assert_array_equal(found[key], mask, err_msg=f"{name} {key}")


@EACH
def test_files_that_are_read_are_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    write_format(name, tmp_path / "once")
    shutil.copytree(tmp_path / "once" / "images", tmp_path / "twice" / "images")
    WRITERS[name](FORMATS[name].read(tmp_path / "once"), tmp_path / "twice")
    for folder in (tmp_path / "once", tmp_path / "twice"):
        assert find_format(folder) == ("pairs" if name == "index" else name)
    once, twice = (sorted(path.rglob("*.*")) for path in (tmp_path / "once", tmp_path / "twice"))
    assert [path.name for path in once] == [path.name for path in twice]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in twice]


@EACH
def test_random_masks_come_out_as_they_went_in(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    made = annotations(tmp_path, names=("n0", "n1", "n2", "n3", "n4", "n5"))
    images = {}
    for number, (stem, image) in enumerate(made.images.items()):
        mask = rng.random((HEIGHT, WIDTH)) < (number + 0.5) / 6
        images[stem] = image._replace(objects=[Annotation("cat", encode_rle(mask)[0], score=0.25)])
    given = Annotations(images, CATEGORIES)
    WRITERS[name](given, tmp_path)
    found = FORMATS[name].read(tmp_path)
    for key, mask in masks_of(given).items():
        np.testing.assert_array_equal(masks_of(found)[key], mask)
    scores = {item.score for image in found.images.values() for item in image.objects}
    assert scores == ({None} if name in ("yolo", "index") else {0.25})


@EACH
def test_a_folder_is_read_in_place_by_both_tasks(name: str, tmp_path: Path) -> None:
    folder = in_parts(name, tmp_path / "data")
    source = Source(name)  # type: ignore[arg-type]
    masks = resolve_split(folder, source=source)
    assert [len(part) for part in (masks.train, masks.val, masks.test)] == [6, 3, 3]
    first, empty = read_mask(masks.train[0].mask), read_mask(masks.train[2].mask)
    np.testing.assert_array_equal(first, RING | FAR)
    assert not empty.any()
    cats = resolve_split(folder, source=source._replace(categories=("cat",)))
    np.testing.assert_array_equal(read_mask(cats.train[0].mask), RING)
    maps = resolve_maps(folder, names=None, ignore=255, source=source)
    assert maps.table.names == ("background", "cat", "dog") and maps.table.values == (0, 1, 2)
    np.testing.assert_array_equal(read_values(maps.train[0].mask), np.where(FAR, 2, np.where(RING, 1, 0)))
    dogs = resolve_maps(folder, names=None, ignore=255, source=source._replace(categories=("dog",)))
    assert dogs.table.names == ("background", "dog")
    np.testing.assert_array_equal(read_values(dogs.train[0].mask), FAR)
    assert recognises(folder) and verify_folder(folder, name=None).errors == ()
    with pytest.raises(DataError, match=r"data.categories has 'bird', which .*data doesn't have; it has: cat, dog"):
        resolve_split(folder, source=source._replace(categories=("bird",)))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "index"])
def test_auto_finds_the_format_and_says_it(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = in_parts(name, tmp_path / "data")
    with caplog.at_level("INFO"):
        splits = resolve_split(folder)
    assert f"{folder} is read as {name}, which it has (data.format)" in caplog.messages
    np.testing.assert_array_equal(read_mask(splits.val[0].mask), RING | FAR)
    assert verify_masks(folder).errors == ()


def test_two_formats_in_one_folder_are_a_choice(tmp_path: Path) -> None:
    for name in ("coco", "cvat"):
        write_format(name, tmp_path)
    with pytest.raises(ConfigError, match=r"has annotations as of coco and cvat. Choose one by data.format=coco, or"):
        resolve_split(tmp_path)


def test_masks_without_names_have_no_categories(tmp_path: Path) -> None:
    write_format("index", tmp_path)
    (tmp_path / "labels.txt").unlink()
    for resolve in (lambda how: resolve_split(tmp_path, source=how),
                    lambda how: resolve_maps(tmp_path, names=None, ignore=255, source=how)):  # fmt: skip
        with pytest.raises(ConfigError, match=r"data.categories is cat, but the masks of .* name no categories"):
            resolve(Source("auto", ("cat",)))


@EACH
def test_import_draws_masks_and_maps(name: str, tmp_path: Path) -> None:
    folder = in_parts(name, tmp_path / "data")
    out = import_data(name, folder, tmp_path / "masks")
    np.testing.assert_array_equal(read_mask(out / "train" / "masks" / "train0.png"), RING | FAR)
    assert sorted(path.name for path in out.iterdir()) == ["test", "train", "val"]
    assert verify_masks(out).errors == ()
    cats = import_data(name, folder, tmp_path / "cats", categories=("cat",))
    np.testing.assert_array_equal(read_mask(cats / "val" / "masks" / "val0.png"), RING)
    if name == "index":
        with pytest.raises(ConfigError, match="--classes is not for index pictures"):
            import_data(name, folder, tmp_path / "maps", classes=True)
        return
    maps = import_data(name, folder, tmp_path / "maps", classes=True)
    assert (maps / "labels.txt").read_text() == "0 background\n1 cat\n2 dog\n"
    splits = resolve_maps(maps, names=None, ignore=255)
    assert splits.table.names == ("background", "cat", "dog")
    np.testing.assert_array_equal(read_values(splits.train[0].mask), np.where(FAR, 2, np.where(RING, 1, 0)))


def test_one_file_of_coco_may_be_given(tmp_path: Path) -> None:
    write_format("coco", tmp_path / "data")
    out = import_data("coco", tmp_path / "data" / "annotations.json", tmp_path / "out")
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["a.png", "b.png", "c.png"]


def test_the_parts_of_coco_and_yolo_as_they_are_published(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3)):
        names = tuple(f"{part}{index}" for index in range(count))
        made = annotations(tmp_path / "made" / part, names=names)
        shutil.copytree(tmp_path / "made" / part / "images", tmp_path / "coco" / f"{part}2017")
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        written = WRITERS["coco"](made, tmp_path / "made" / part)
        for kind in ("instances", "person_keypoints"):  # of which the second has some of the objects again
            shutil.copy(written, tmp_path / "coco" / "annotations" / f"{kind}_{part}2017.json")
        WRITERS["yolo"](made, tmp_path / "made" / part)
        for kind in ("images", "labels"):
            shutil.copytree(tmp_path / "made" / part / kind, tmp_path / "yolo" / kind / part)
        shutil.copy(tmp_path / "made" / part / "data.yaml", tmp_path / "yolo" / "data.yaml")
    for name in ("coco", "yolo"):
        splits = resolve_split(tmp_path / name)
        assert {pair.name for pair in splits.val} == {"val0", "val1", "val2"}
        assert len(splits.train) + len(splits.test) == 6


def test_a_name_that_changes_draws_again(tmp_path: Path) -> None:
    """YOLO's text files have numbers alone: who renames a class changes no other file."""
    folder = in_parts("yolo", tmp_path / "data")
    first = resolve_maps(folder, names={0: "background", 1: "cat", 2: "dog"}, ignore=255)
    for part in ("train", "val", "test"):
        file = folder / part / "data.yaml"
        file.write_text(file.read_text().replace('0: "cat"\n  1: "dog"', '0: "dog"\n  1: "cat"'))
    again = resolve_maps(folder, names={0: "background", 1: "cat", 2: "dog"}, ignore=255)
    swapped = np.array([0, 2, 1])[read_values(first.train[0].mask)]
    np.testing.assert_array_equal(read_values(again.train[0].mask), swapped)


def test_five_thousand_annotations_are_read_in_three_seconds(tmp_path: Path) -> None:
    from time import process_time

    picture = tmp_path / "a.png"
    Image.new("RGB", (640, 480)).save(picture)
    images, found = [], []
    for number in range(500):
        (tmp_path / f"p{number}.png").symlink_to(picture)
        images.append({"id": number, "file_name": f"p{number}.png", "width": 640, "height": 480})
        for item in range(10):
            points = [float(value) for corner in range(40) for value in (corner * 10 + item, (corner * 37) % 400)]
            found.append({"id": len(found), "image_id": number, "category_id": 1, "segmentation": [points]})
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    start = process_time()
    read = FORMATS["coco"].read(tmp_path)
    assert process_time() - start < 3
    assert read.problems == () and sum(len(image.objects) for image in read.images.values()) == 5000
    assert isinstance(read.images["p7"], Annotated)
