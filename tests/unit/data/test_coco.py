"""Annotations of COCO become pairs; what can't be drawn is told, and nothing outside of the folder is copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtune.data.importing import import_data
from samtune.data.pairs import find_pairs
from samtune.errors import DataError
from samtune.tasks.binary import read_mask
from samtune.tasks.masks.splits import verify_folder

HEIGHT, WIDTH = 20, 30
SQUARE = [[4, 2, 12, 2, 12, 10, 4, 10]]
PLAIN = {"size": [HEIGHT, WIDTH], "counts": [400, 60, 140]}  # by columns: 20 to 22
PACKED = {"size": [HEIGHT, WIDTH], "counts": "`<l1\\4"}  # the same


def write_coco(folder: Path, shapes: dict[str, list[Any]], place: str = "annotations/a.json") -> Path:
    """Writes pictures with their segmentations, by file name."""
    images, annotations = [], []
    for number, (name, found) in enumerate(shapes.items()):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotations += [{"id": len(annotations) + place, "image_id": number, "segmentation": shape}
                        for place, shape in enumerate(found)]  # fmt: skip
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def test_segmentations_become_one_mask(tmp_path: Path) -> None:
    shapes: dict[str, list[Any]] = {"a.png": [SQUARE], "b.png": [SQUARE, PLAIN], "c.png": [PACKED], "d.png": []}
    source = write_coco(tmp_path / "coco", shapes)
    with pytest.raises(DataError, match=rf"masks/ missing.*samtune data import coco {source} --out DIR"):
        find_pairs(source)
    folder = import_data("coco", source, tmp_path / "out")
    assert verify_folder(folder).errors == ()
    masks = {pair.name: read_mask(pair.mask) for pair in find_pairs(folder)}
    columns = np.zeros((HEIGHT, WIDTH), dtype=bool)
    columns[:, 20:23] = True
    assert masks["a"][5, 8] and 56 <= masks["a"].sum() <= 81 and not masks["d"].any()
    np.testing.assert_array_equal(masks["b"], masks["a"] | columns)
    np.testing.assert_array_equal(masks["c"], columns)
    with pytest.raises(DataError, match="holds images/, masks/ already"):
        import_data("coco", source, folder)


@pytest.mark.parametrize(
    "shape", [[[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [], {"size": [1, 1], "counts": [1]}, 7,
              {"size": [HEIGHT, WIDTH], "counts": [400, 600]}, {"size": [HEIGHT, WIDTH], "counts": "`<l1PPP4"}],
)  # fmt: skip
def test_what_can_not_be_drawn_is_told_and_nothing_is_left(tmp_path: Path, shape: Any) -> None:
    source = write_coco(tmp_path / "coco", {"a.png": [shape], "b.png": [SQUARE], "c.png": [shape]})
    with pytest.raises(
        DataError, match=r"(?s)2 problem\(s\).*a\.json: a\.png, annotation 0: .*a\.json: c\.png, annotation 2: "
    ):
        import_data("coco", source, tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()


def test_pictures_outside_absent_or_doubled(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco", {"a.png": [SQUARE], "x/b.png": [SQUARE], "y/b.png": [], "gone.png": []})
    (source / "images" / "gone.png").unlink()
    file = source / "annotations" / "a.json"
    file.write_text(file.read_text().replace('"a.png"', '"../../outside.png"'))
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "outside.png")
    with pytest.raises(DataError) as told:
        import_data("coco", source, tmp_path / "out")
    text = str(told.value)
    assert "3 problem(s)" in text and "names ../../outside.png, which is not in" in text
    assert (
        "names gone.png, which is not in" in text and "names images/y/b.png, and another picture of this stem" in text
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"images": [{}], "annotations": []}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for source in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(DataError, match=r"a\.json: not a file of COCO \(\w+: .*; export it again"):
            import_data("coco", source, tmp_path / "out")


def test_one_file_is_wanted(tmp_path: Path) -> None:
    source = write_coco(write_coco(tmp_path, {"a.png": [SQUARE]}), {"a.png": [SQUARE]}, "annotations/b.json")
    with pytest.raises(DataError, match=r"found: a\.json, b\.json; give the file as SRC"):
        import_data("coco", source, tmp_path / "out")
