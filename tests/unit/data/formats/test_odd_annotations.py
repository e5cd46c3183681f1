"""What programs write beside the plain cases: turned boxes, labels apart from shapes, links, packed run lengths."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from annotated import annotations, write_format
from PIL import Image
from pycocotools import mask as coco_mask

from samtune.data.formats.annotations import Annotations
from samtune.data.formats.drawing import Drawing
from samtune.data.formats.index import read_labels
from samtune.data.formats.shapes import polygon, run_lengths
from samtune.data.formats.table import FORMATS, WRITERS
from samtune.data.importing import import_data
from samtune.errors import DataError
from samtune.tasks.masks.splits import verify_folder

HEIGHT, WIDTH = 20, 30
SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
BOX = {"x": 10, "y": 20, "width": 50, "height": 30}


def place(folder: Path, *, pictures: tuple[str, ...] = ("a",), **files: str) -> Path:
    """Writes black pictures and the files of annotations; `_` in a name stands for its dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in pictures:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.png")
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def coco(folder: Path, name: str = "a.png", segmentation: Any = ([1, 1, 9, 1, 9, 9],)) -> Annotations:
    images = [{"id": 1, "file_name": name, "width": WIDTH, "height": HEIGHT}]
    found = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}]
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "cat"}]}
    return FORMATS["coco"].read(place(folder, a_json=json.dumps(content)))


def cvat(folder: Path, *shapes: str) -> Annotations:
    named = zip("abc", shapes, strict=False)
    images = "".join(f'<image name="{n}.png" width="{WIDTH}" height="{HEIGHT}">{shape}</image>' for n, shape in named)
    return FORMATS["cvat"].read(place(folder, pictures=("a", "b"), a_xml=f"<annotations>{images}</annotations>"))


def label_studio(folder: Path, *results: dict[str, Any]) -> Annotations:
    found = [{"id": f"r{number}", **SIZE, **result} for number, result in enumerate(results)]
    tasks = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": found}]}]
    return FORMATS["label-studio"].read(place(folder, a_json=json.dumps(tasks)))


def where(found: Annotations) -> tuple[int, int, int, int]:
    """First row and column, and last ones, of the only object."""
    assert found.problems == ()
    (item,) = found.images["a"].objects
    at = np.argwhere(found.images["a"].mask(item))
    (top, left), (bottom, right) = at.min(axis=0).tolist(), at.max(axis=0).tolist()
    assert len(at) == (bottom - top + 1) * (right - left + 1)
    return top, left, bottom, right


def packed(*counts: int) -> str:
    size = HEIGHT, WIDTH
    text: bytes = coco_mask.frPyObjects({"size": list(size), "counts": list(counts)}, *size)["counts"]
    return text.decode("ascii")


@pytest.mark.parametrize("counts", [(100, 50), (100, 50, 451), (600, 600)])
def test_packed_run_lengths_fill_the_picture(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"run lengths of {sum(counts)} pixels, but the picture has 600"):
        run_lengths({"size": [HEIGHT, WIDTH], "counts": packed(*counts)}, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ("", "run lengths of 0 pixels"),
        ("é", "a letter that is none"),
        ("P", "that end too early"),
        ([599.5, 0.5], "no whole"),
    ],
)
def test_counts_that_are_none(counts: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        run_lengths({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)


def test_packed_run_lengths_of_any_mask_are_right() -> None:
    rng = np.random.default_rng(5)
    for share in (0.0, 0.03, 0.5, 0.97, 1.0):
        mask = np.asfortranarray(rng.random((HEIGHT, WIDTH)) < share)
        text = coco_mask.encode(mask.astype(np.uint8))["counts"].decode("ascii")
        found = {"size": [HEIGHT, WIDTH], "counts": text}
        assert run_lengths(found, HEIGHT, WIDTH) == found


@pytest.mark.parametrize("points", [[[1, 1, 5], [9, 1, 5], [9, 9, 5], [1, 9, 5]], [[[1, 1], [9, 1], [9, 9]]], 5, None])
def test_a_polygon_has_two_numbers_for_each_corner(points: Any) -> None:
    with pytest.raises(ValueError, match=r"a polygon of numbers in the shape .*; x and y in turn are needed"):
        polygon(points)


def test_an_outline_that_no_machine_could_walk() -> None:
    with pytest.raises(ValueError, match="a polygon whose outline is 9,999,900 pixels long; 5,000,000 are the most"):
        polygon([[0, 0], [99_999, 1]] * 50)


def test_a_box_of_cvat_turns_around_its_centre(tmp_path: Path) -> None:
    box = '<box label="cat" xtl="5" ytl="8" xbr="17" ybr="12"{}/>'
    assert where(cvat(tmp_path / "level", box.format(""))) == (8, 5, 11, 16)
    assert where(cvat(tmp_path / "turned", box.format(' rotation="90"'))) == (4, 9, 15, 12)


def test_labels_that_cvat_does_not_list_are_found_in_all_pictures(tmp_path: Path) -> None:
    shape = '<polygon label="{}" points="1,1;9,1;9,9"/>'
    found = cvat(tmp_path, shape.format("dog"), shape.format("cat"))
    assert found.problems == () and dict(found.categories) == {1: "cat", 2: "dog"}


def test_an_order_that_is_no_number_is_none(tmp_path: Path) -> None:
    assert cvat(tmp_path, '<polygon label="cat" z_order="--3" points="1,1;9,1;9,9"/>').problems == ()


def test_entities_of_xml_are_not_followed(tmp_path: Path) -> None:
    grown = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    text = f'<!DOCTYPE a [<!ENTITY e0 "x">{grown}]><annotations><image name="&e9;" width="9" height="9"/></annotations>'
    with pytest.raises(Exception, match=r"a.xml: not a file of CVAT for images 1.1 \(limit on input amplification"):
        FORMATS["cvat"].read(place(tmp_path, a_xml=text))


def test_shapes_of_label_studio_with_their_labels_apart(tmp_path: Path) -> None:
    shape = {"id": "one", "type": "rectangle", "value": BOX}
    named = {"id": "one", "type": "labels", "value": {**BOX, "labels": ["cat"]}}
    assert where(label_studio(tmp_path / "both", shape, named)) == (4, 3, 9, 17)
    alone = label_studio(tmp_path / "alone", shape)
    assert [line.partition(": a.png, ")[2] for line in alone.problems] == ["task 1, result one: no label; label it"]


def test_an_object_with_two_labels_is_one_of_both(tmp_path: Path) -> None:
    found = label_studio(tmp_path, {"type": "rectanglelabels", "value": {**BOX, "rectanglelabels": ["cat", "wet"]}})
    assert [item.category for item in found.images["a"].objects] == ["cat", "wet"]


def bitmask(mask: np.ndarray, kind: str = "PNG") -> str:
    """What Label Studio's canvas gives: black on transparent, as a data URL."""
    pixels, file = np.zeros((*mask.shape, 4), dtype=np.uint8), BytesIO()
    pixels[..., 3] = mask
    Image.fromarray(pixels).convert("RGBA" if kind == "PNG" else "RGB").save(file, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize("apart", [False, True])
def test_bitmasks_of_label_studio_are_where_their_alpha_is(apart: bool, tmp_path: Path) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH))  # the edges of round strokes are soft
    value = {"imageDataURL": bitmask(alpha)}
    named = {"type": "labels", "value": {**value, "labels": ["cat"]}}
    whole = {"type": "bitmasklabels", "value": {**value, "bitmasklabels": ["cat"]}}
    shapes = [{"id": "one", "type": "bitmask", "value": value}, {"id": "one", **named}] if apart else [whole]
    found = label_studio(tmp_path, *shapes)
    image = found.images["a"]
    assert found.problems == () and [item.category for item in image.objects] == ["cat"]
    assert np.array_equal(image.mask(image.objects[0]), alpha > 127)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (None, "a bitmask that does not start with data:image/png;base64,"),
        (bitmask(np.ones((HEIGHT, WIDTH)), "JPEG"), "a bitmask that does not start with data:image/png;base64,"),
        ("data:image/png;base64,AAAA", "a mask that is no PNG in base64 (cannot identify image file"),
        ("data:image/png;base64,%", "a mask that is no PNG in base64 ("),
        ("data:image/png;base64,\u00e9", "a mask that is no PNG in base64 ("),
        (bitmask(np.ones((3, 4))), "a bitmask of 4 x 3 pixels, but the picture has 30 x 20"),
    ],
)
def test_bitmasks_that_are_none(url: str | None, wanted: str, tmp_path: Path) -> None:
    value = {"imageDataURL": url, "bitmasklabels": ["cat"]}
    found = label_studio(tmp_path, {"type": "bitmasklabels", "value": value})
    assert f"a.png, task 1, result r0: {wanted}" in found.problems[0]


@pytest.mark.parametrize("kind", ["magicwand", "vector", "videorectangle"])
def test_regions_that_are_not_read_are_told(kind: str, tmp_path: Path) -> None:
    found = label_studio(tmp_path, {"type": kind, "value": {"labels": ["cat"]}})
    assert f"a.png, task 1, result r0: a {kind}, which is not read; polygon, brush" in found.problems[0]


def test_a_size_that_is_none(tmp_path: Path) -> None:
    value = {**BOX, "rectanglelabels": ["cat"]}
    found = label_studio(tmp_path, {"type": "rectanglelabels", "value": value, "original_width": [30]})
    assert "task 1: the size of its picture is not known" in found.problems[0]


def test_pictures_behind_a_link_in_the_folder(tmp_path: Path) -> None:
    place(tmp_path / "elsewhere", pictures=("far",))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    assert coco(tmp_path / "data", "far.png").problems == ()
    for name in ("../elsewhere/far.png", str(tmp_path / "elsewhere" / "far.png"), "x" * 5000):
        assert "which is not in" in coco(tmp_path / "data", name).problems[0]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("labels.txt", "sky\n\nroad\ncar\n", "line 2 is empty, and the lines number the names"),
        ("labels.txt", "\nsky\n", "line 1 is empty"),
        ("labels.json", '"sky"', "'sky' is neither a list of names nor numbers with names"),
        ("labels.json", '[{"id": 0, "name": "sky"}]', r"\"{'id': 0, 'name': 'sky'}\" is no name"),
        ("labels.json", "[null]", "'None' is no name"),
    ],
)
def test_lists_of_names_that_are_none(name: str, content: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: no list of classes \({wanted}"):
        read_labels(tmp_path / name)


def test_empty_lines_between_numbered_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("3 sky\n\n7 road\n\n")
    assert read_labels(tmp_path / "labels.txt") == {3: "sky", 7: "road"}


@pytest.mark.parametrize("names", ["cat", "[[cat], dog]"])
def test_yaml_whose_names_are_none(names: str, tmp_path: Path) -> None:
    write_format("yolo", tmp_path)
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    with pytest.raises(DataError, match=r"data.yaml: no list of names \(ValueError: .* is (no name|neither)"):
        FORMATS["yolo"].read(tmp_path)


def test_an_import_looks_at_the_pictures_too(tmp_path: Path) -> None:
    """Else it makes a folder that no run takes."""
    folder = tmp_path / "data"
    write_format("coco", folder)
    Image.new("RGB", (9, 9)).save(folder / "images" / "a.png")
    (folder / "images" / "b.png").write_bytes((folder / "images" / "b.png").read_bytes()[:90])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "c.png", exif=turned)
    with pytest.raises(DataError) as caught:
        import_data("coco", folder, tmp_path / "out")
    text = str(caught.value)
    assert "a.png: annotated as 30 x 20 pixels, but it has 9 x 9; annotate the picture as it is" in text
    assert "images/b.png: damaged file" in text
    assert "c.png: annotated as 30 x 20 pixels, but it has 20 x 30, turned by its EXIF orientation; save it" in text
    assert text.count("\n") == 3 and not (tmp_path / "out").exists()
    said = "the mask drawn for .*a.png: size mismatch, mask 30 x 20, image 9 x 9; annotate the picture as it is"
    assert re.search(said, "\n".join(verify_folder(folder, name=None).errors))


def test_annotations_of_pictures_of_five_channels(tmp_path: Path) -> None:
    made = annotations(tmp_path)
    WRITERS["yolo"](made, tmp_path)
    for path in list((tmp_path / "images").iterdir()):
        path.unlink()
        values = np.zeros((HEIGHT, WIDTH, 5), np.uint16)
        tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig")
    found = FORMATS["yolo"].read(tmp_path)
    assert found.problems == () and {(image.width, image.height) for image in found.images.values()} == {(30, 20)}


def test_a_drawing_is_named_alike_in_every_process() -> None:
    """Its text names the file of what is drawn: that of a set has another order in each process."""
    assert str(Drawing({"cat": 1}, 0, frozenset("hgfedcba"))) == f"{{'cat': 1}} 0 {list('abcdefgh')}"
