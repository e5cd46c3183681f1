"""Pascal VOC is read through supervision: what it draws, in place and imported, and all that is wrong at once."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtune.data.formats.table import FORMATS, Source, find_format
from samtune.data.formats.voc import voc_files
from samtune.data.importing import import_data
from samtune.errors import ConfigError, DataError
from samtune.starting.names import find_names
from samtune.tasks.binary import read_mask
from samtune.tasks.masks.splits import resolve_split, verify_folder
from samtune.tasks.semantic.splits import resolve_maps

NEEDED = pytest.mark.skipif(find_spec("supervision") is None, reason="supervision is an extra")
HEIGHT, WIDTH = 10, 20
BOX = "<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>7</xmax><ymax>5</ymax></bndbox>"
"""Pixels 2 to 6 of rows 1 to 4: VOC counts from 1, and both ends belong to it."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def thing(name: str = "cat", box: str = BOX, *outlines: list[tuple[float, float]]) -> str:
    """Words an object; corners of outlines count from 1."""
    each = "".join(
        "<polygon>" + "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(points, 1)) + "</polygon>"
        for points in outlines
    )
    return f"<object><name>{name}</name>{box}{each}</object>"


def write(
    folder: Path, stem: str, *objects: str, size: bool = True, name: str | None = None, published: bool = False
) -> Path:
    """Writes a picture and its file, both in a folder, or in two as the data set itself is published."""
    pictures, files = (folder / "JPEGImages", folder / "Annotations") if published else (folder, folder)
    for place in (pictures, files):
        place.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(stem.encode())).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / f"{stem}.png")
    sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>" if size else ""
    named = f"<filename>{f'{stem}.png' if name is None else name}</filename>"
    (files / f"{stem}.xml").write_text(f"<annotation>{named}{sides}{''.join(objects)}</annotation>")
    return files / f"{stem}.xml"


def block(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@NEEDED
def test_boxes_and_polygons_cover_what_supervision_says(tmp_path: Path) -> None:
    square = [(3, 2), (7, 2), (7, 5), (3, 5)]  # through the corner pixels of the box
    two = thing("dog", BOX, [(11, 4), (13, 4), (13, 6), (11, 6)], [(15.4, 4), (17, 4), (17, 6), (15.4, 6)])
    write(tmp_path, "a", thing(), thing("cat", BOX, square), two)
    write(tmp_path, "empty", size=False)
    found = FORMATS["voc"].read(tmp_path)
    assert found.problems == () and found.categories == {1: "cat", 2: "dog"}
    image = found.images["a"]
    box, outline, pair = map(image.mask, image.objects)
    np.testing.assert_array_equal(box, block(2, 1, 7, 5))
    np.testing.assert_array_equal(outline, box)
    np.testing.assert_array_equal(pair, block(10, 3, 13, 6) | block(14, 3, 17, 6))  # united; 14.4 rounds to 14
    assert found.images["empty"].objects == [] and found.images["empty"].width == WIDTH
    assert found.notes == (f"{tmp_path}: 1 object(s) are boxes, which are read as filled rectangles",)


@NEEDED
def test_what_supervision_writes_is_read_as_the_same_mask(tmp_path: Path) -> None:
    import supervision as sv

    mask = block(2, 1, 12, 8)
    mask[1:4, 2:5] = False
    path = write(tmp_path, "a")
    box = sv.mask_to_xyxy(mask[None]).astype(float)
    said = sv.Detections(xyxy=box, mask=mask[None], class_id=np.array([0]))
    picture = str(tmp_path / "a.png")
    sv.DetectionDataset(["cat"], [picture], {picture: said}).as_pascal_voc(
        annotations_directory_path=str(tmp_path), approximation_percentage=0.0
    )
    assert "roboflow" in path.read_text()
    image = FORMATS["voc"].read(tmp_path).images["a"]
    np.testing.assert_array_equal(image.mask(image.objects[0]), mask)


@NEEDED
def test_a_folder_as_it_is_published_is_found_trained_on_and_imported(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / "data", f"n{number}", thing("cat" if number % 2 else "dog"), published=True)
    assert find_format(tmp_path / "data") == "voc"
    splits = resolve_split(tmp_path / "data")
    assert len(splits.train) + len(splits.val) + len(splits.test) == 10
    np.testing.assert_array_equal(read_mask(splits.val[0].mask), block(2, 1, 7, 5))
    maps = resolve_maps(tmp_path / "data", names=None, ignore=255, source=Source("voc", ("dog",)))
    assert maps.table.names == ("background", "dog")
    assert verify_folder(tmp_path / "data").errors == ()
    named = find_names(tmp_path / "data")
    assert named is not None and named.objects == {"cat": 5, "dog": 5}
    assert named.text() == "annotations of Pascal VOC, 2 categories"
    out = import_data("voc", tmp_path / "data", tmp_path / "out", classes=True)
    assert (out / "labels.txt").read_text() == "0 background\n1 cat\n2 dog\n"


@NEEDED
def test_all_that_is_wrong_is_told_with_file_and_object(tmp_path: Path) -> None:
    two, odd = thing("cat", BOX, [(1, 1), (4, 4)]), thing("cat", BOX + "<polygon><x1>2</x1></polygon>")
    write(tmp_path, "a", thing("", BOX), thing("cat", ""), two, thing("cat", BOX.replace(">3<", ">x<")), odd)
    write(tmp_path, "b", name="gone.png")
    write(tmp_path, "c", name="")
    (tmp_path / "d.xml").write_text("<annotation><filename>")
    with pytest.raises(DataError) as caught:
        import_data("voc", tmp_path, tmp_path / "out")
    told = [
        "a.xml: a.png, object 1 (): no name; name it",
        "a.png, object 2 (cat): Missing bndbox",
        "a.png, object 3 (cat): a polygon of 2 point(s), which has no area",
        "a.png, object 4 (cat): Invalid 'xmin' value 'x'",
        "a.png, object 5 (cat): a polygon of 1 numbers",
        "b.xml: names gone.png, which is not in",
        "c.xml: names no picture",
        "d.xml: not a file of Pascal VOC",
    ]
    assert [line for line in told if line not in str(caught.value)] == []
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a", thing())
    monkeypatch.setitem(sys.modules, "supervision.dataset.formats.pascal_voc", None)
    with pytest.raises(ConfigError, match=r"Pascal VOC is read by supervision.*pip install 'samtune\[supervision\]'"):
        FORMATS["voc"].read(tmp_path)


def test_other_files_in_xml_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotations><image/></annotations>")
    assert voc_files(tmp_path) == []
