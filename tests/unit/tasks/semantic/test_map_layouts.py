"""Folders of binary masks per class, and COCO's annotations, are read as maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from class_maps import IGNORED, NAMES, write_maps
from PIL import Image

from samtune.data.formats.index_pictures import read_values
from samtune.data.pairs import Pair
from samtune.errors import DataError
from samtune.tasks.semantic.splits import MapSplits, recognises, resolve_maps, verify_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    return write_maps(tmp_path / "maps")


def resolve(folder: Path, names: dict[int, str] | None = None) -> MapSplits:
    return resolve_maps(folder, names=names, ignore=IGNORED)


def as_folders(maps: Path, folder: Path) -> Path:
    """Writes PART/masks/CLASS/STEM.png of blobs and stripes; what is in none is the background."""
    for mask in maps.glob("*/masks/*.png"):
        part, values = mask.parts[-3], read_values(mask)
        (folder / part / "images").mkdir(parents=True, exist_ok=True)
        (folder / part / "images" / mask.name).write_bytes((maps / part / "images" / mask.name).read_bytes())
        for value, name in ((1, "blob"), (2, "stripe")):
            (folder / part / "masks" / name).mkdir(parents=True, exist_ok=True)
            binary = np.where(values == value, 255, 0).astype(np.uint8)
            Image.fromarray(binary).save(folder / part / "masks" / name / mask.name)
    return folder


def as_coco(maps: Path, folder: Path) -> Path:
    """Writes PART/annotations.json with a rectangle of each class in each picture."""
    for part in ("train", "val", "test"):
        images, annotations = [], []
        for number, image in enumerate(sorted((maps / part / "images").iterdir())):
            (folder / part / "images").mkdir(parents=True, exist_ok=True)
            (folder / part / "images" / image.name).write_bytes(image.read_bytes())
            images.append({"id": number, "file_name": image.name, "width": 48, "height": 40})
            for category, (x, y) in {7: (4, 4), 30: (12, 8)}.items():
                shape = [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]]
                annotations.append({"image_id": number, "category_id": category, "segmentation": shape})
        categories = [{"id": 30, "name": "road"}, {"id": 7, "name": "car"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / part / "annotations.json").write_text(json.dumps(content))
    return folder


def values_of(pairs: list[Pair]) -> list[np.ndarray]:
    return [read_values(pair.mask) for pair in sorted(pairs, key=lambda pair: pair.name)]


def test_a_folder_per_class(maps: Path, tmp_path: Path) -> None:
    folder = as_folders(maps, tmp_path / "folders")
    splits = resolve(folder)
    assert splits.table.names == ("background", "blob", "stripe") and splits.table.values == (0, 1, 2)
    for drawn, given in zip(values_of(splits.train), values_of(resolve(maps, NAMES).train), strict=True):
        np.testing.assert_array_equal(drawn, np.where(given == IGNORED, 0, given))
    assert recognises(folder) and verify_folder(folder, name=None).errors == ()


def test_without_a_background_in_the_list_the_rest_does_not_count(maps: Path, tmp_path: Path) -> None:
    splits = resolve(as_folders(maps, tmp_path / "folders"), {0: "stripe", 1: "blob"})
    (drawn, *_) = values_of(splits.train)
    assert set(np.unique(drawn)) == {0, 1, IGNORED} and bool((drawn[32, 2:] == 0).all())


def test_a_changed_mask_is_drawn_again(maps: Path, tmp_path: Path) -> None:
    folder = as_folders(maps, tmp_path / "folders")
    (before, *_), kept = values_of(resolve(folder).train), resolve(folder).train[0].mask
    assert resolve(folder).train[0].mask == kept
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(folder / "train" / "masks" / "stripe" / "train0.png")
    (after, *_) = values_of(resolve(folder).train)
    assert (after == 2).all() and not (before == 2).all()


def test_what_is_wrong_with_folders_is_told_at_once(maps: Path, tmp_path: Path) -> None:
    folder = as_folders(maps, tmp_path / "folders")
    masks = folder / "train" / "masks"
    (folder / "train" / "images" / "train0.png").unlink()
    (masks / "odd").mkdir()
    with pytest.raises(DataError) as caught:
        resolve(folder, {0: "background", 1: "blob", 2: "stripe"})
    text = str(caught.value)
    assert "no image named train0.*" in text and "class 'odd' is not in data.classes (background, blob, stripe)" in text
    (masks / "odd").rmdir()
    for name in ("blob", "stripe"):
        (masks / name / "train0.png").unlink()
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(masks / "stripe" / "train1.png")
    with pytest.raises(DataError, match=r"stripe/train1.png: size mismatch, mask 9 x 9, image 48 x 40"):
        resolve(folder)


def test_coco(maps: Path, tmp_path: Path) -> None:
    folder = as_coco(maps, tmp_path / "coco")
    splits = resolve(folder)
    assert splits.table.names == ("background", "car", "road")
    (drawn, *_) = values_of(splits.train)
    assert drawn[10, 6] == 1 and drawn[15, 15] == 2 and drawn[26, 30] == 2 and drawn[39, 47] == 0
    assert recognises(folder) and verify_folder(folder, name=None).errors == ()


def test_categories_that_are_none(maps: Path, tmp_path: Path) -> None:
    folder = as_coco(maps, tmp_path / "coco")
    file = folder / "train" / "annotations.json"
    file.write_text(file.read_text().replace('"category_id": 7', '"category_id": 8'))
    with pytest.raises(DataError, match="category_id 8 is not among its categories"):
        resolve(folder)
    with pytest.raises(DataError, match=r"class 'road' is not in data.classes \(car, bus\)"):
        resolve(folder, {0: "car", 1: "bus"})


def test_another_list_in_json_is_no_coco(maps: Path, tmp_path: Path) -> None:
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "names.json").write_text('["cat"]')
    assert not recognises(tmp_path / "classes")
