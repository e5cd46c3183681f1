"""What `samtune init` makes of annotations, of pictures of any channels and depth, and of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from annotated import CATEGORIES, FAR, RING
from PIL import Image

from samtune.config.pixels import RGB, Pixels
from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.shapes import encode_rle
from samtune.data.formats.table import WRITERS
from samtune.errors import ConfigError, DataError
from samtune.run.settings import load_config
from samtune.starting.detect import find_task
from samtune.starting.names import find_names
from samtune.starting.start import Started, start
from samtune.tasks.table import task_of

COUNT = 12
HEIGHT, WIDTH = RING.shape


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def values_of(number: int, channels: int) -> np.ndarray:
    """(20, 30, channels) uint8, smooth enough that no two pictures are near-duplicates."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(coarse[..., k]).resize((WIDTH, HEIGHT), 0)) for k in range(channels)], 2
    )


def save_picture(folder: Path, number: int, values: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"p{number:02d}.tif"
    tifffile.imwrite(
        path, values.squeeze(), photometric="minisblack", planarconfig="contig" if values.ndim == 3 else None
    )
    return path


def write_folder(folder: Path, form: str, *, categories: int = 2, empty: int = 0, channels: int = 5) -> Path:
    """Writes annotated pictures of several channels: a ring of "cat", then a block of "dog", and some with nothing."""
    masks = dict(zip(list(CATEGORIES.values())[:categories], (RING, FAR), strict=False))
    images = {}
    for number in range(COUNT):
        path = save_picture(folder / "images", number, values_of(number, channels))
        objects = [Annotation(name, encode_rle(mask)[0]) for name, mask in masks.items()] if number >= empty else []
        images[path.stem] = Annotated(path, path, WIDTH, HEIGHT, objects)
    WRITERS[form](Annotations(images, CATEGORIES), folder)
    return folder


def write_pairs(folder: Path, pictures: list[np.ndarray]) -> Path:
    (folder / "masks").mkdir(parents=True)
    for number, values in enumerate(pictures):
        path = save_picture(folder / "images", number, values)
        Image.fromarray(RING).save(folder / "masks" / f"{path.stem}_mask.png")
    return folder


def started_and_tried(folder: Path) -> tuple[Started, Any]:
    """Returns what init made, and its config, after the model and all data of a run were built by it, unchanged."""
    started = start(folder)
    config = load_config(started.config)
    task_of(config).build(None)
    return started, config


@pytest.mark.parametrize("form", WRITERS)
def test_categories_decide_on_the_task(tmp_path: Path, form: str) -> None:
    """One category that occurs is a foreground, also where the list has two; two are classes."""
    pieces = 3 if form == "yolo" else 1  # of the ring, a line each
    one = find_names(write_folder(tmp_path / "one", form, categories=1, channels=3))
    assert one is not None and (one.format, one.objects) == (form, {"cat": pieces * COUNT})
    assert one.text().endswith(", 1 category")
    two = start(write_folder(tmp_path / "two", form, channels=3))
    assert two.found.task == "semantic" and two.found.named is not None
    assert two.found.named.objects == {"cat": pieces * COUNT, "dog": COUNT}
    text = two.config.read_text()
    config: Any = load_config(two.config)
    assert (config.data.format, config.data.categories) == (form, None)
    assert "each is a class; to take some only" in text and "\n  # categories: [cat, dog]\n" in text
    taken: Any = load_config(two.config, ["data.categories=[dog]"])
    assert taken.data.categories == ("dog",)
    assert f"of each category: cat {pieces * COUNT}, dog {COUNT}" in text


def test_five_channels_in_yolo(tmp_path: Path) -> None:
    started, config = started_and_tried(write_folder(tmp_path / "data", "yolo"))
    assert (config.task, config.model.channels, config.data.range) == ("semantic", 5, None)
    assert started.found.pixels == Pixels(5) and dict(started.found.pictures.channels) == {"8-bit, 5 channels": COUNT}
    assert "have 5 channels; the first three start as red, green and blue" in started.config.read_text()
    with Image.open(started.sheet) as sheet:
        shown = len({tuple(colour) for colour in np.asarray(sheet)[40:120, 20:120].reshape(-1, 3).tolist()})
        assert sheet.width == 4 * 286 and shown > 20


def test_sixteen_bits_in_coco_with_empty_pictures(tmp_path: Path) -> None:
    """The range is the smallest and the largest of what leaves half a percent of a picture off: whole numbers."""
    folder = write_folder(tmp_path / "data", "coco", categories=1, empty=5, channels=1)
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        deep = values_of(number, 1)[..., 0].astype(np.uint16) * 8 + 300
        deep.flat[:3], deep.flat[-3:] = 100, 60_000  # 3 of 600 are half a percent
        tifffile.imwrite(path, deep)
    started, config = started_and_tried(folder)
    assert (config.task, config.data.empty, config.data.format) == ("segmentation", "train", "coco")
    low, high = config.data.range
    assert 100 < low <= 300 + 8 * 255 and low < high < 60_000 and low == int(low) and high == int(high)
    assert started.found.empty == 5 and "more than 8 bits" in started.config.read_text()
    assert dict(started.found.pictures.channels) == {"16-bit grey": COUNT}


def test_floating_point_and_two_channels_with_masks_by_a_rule(tmp_path: Path) -> None:
    pictures = [values_of(number, 2).astype(np.float32) / 1000 for number in range(COUNT)]
    started, config = started_and_tried(write_pairs(tmp_path / "data", pictures))
    assert (config.task, config.model.channels) == ("segmentation", 2)
    low, high = config.data.range
    assert 0 <= low < high <= 0.255 and dict(started.found.pictures.channels) == {"floating-point, 2 channels": COUNT}
    assert "data.categories" not in started.config.read_text() and started.found.named is None


def test_a_seed_is_chosen_that_cuts_usable_parts(tmp_path: Path) -> None:
    """Of 12 pictures one is test: where half show nothing, one of the first ten seeds still has an object in each."""
    seeds = []
    for number, empty in enumerate((0, 6, 8)):
        started, config = started_and_tried(
            write_folder(tmp_path / f"d{number}", "coco", categories=1, empty=empty, channels=3)
        )
        assert config.run.seed == started.found.seed
        seeds.append(config.run.seed)
    assert seeds[0] == 0 and max(seeds) > 0
    with pytest.raises(DataError, match=r"all 12 masks are empty, such as the mask drawn for \S+none/images/p00\.tif"):
        start(write_folder(tmp_path / "none", "coco", categories=1, empty=COUNT, channels=3))


def test_where_no_setting_would_fit(tmp_path: Path) -> None:
    pictures = [values_of(number, 1) for number in range(COUNT)]
    mixed = write_pairs(tmp_path / "mixed", [*pictures[:9], *(p.astype(np.uint16) * 100 for p in pictures[9:])])
    with pytest.raises(DataError, match=r"9 pictures have 8 bits, .* 3 have more.*save all in one depth"):
        start(mixed)
    few = [values_of(number, 5) for number in range(COUNT - 1)]
    with pytest.raises(DataError, match=r"p11\.tif: 4 channels, but the model takes 5"):
        start(write_pairs(tmp_path / "few", [*few, values_of(11, 4)]))
    both = write_folder(tmp_path / "both", "coco")
    write_folder(both, "yolo")
    with pytest.raises(ConfigError, match="has annotations as of coco and yolo"):
        start(both)
    (tmp_path / "bad").mkdir()
    bad = write_folder(tmp_path / "bad", "yolo")
    (bad / "labels" / "p03.txt").write_text("7 0.1 0.1 0.5 0.5 0.2 0.9\n")
    with pytest.raises(DataError, match=r"p03\.txt.*class '7' is not among the names"):
        start(bad)
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.parametrize("part", ["", "train"])
def test_images_and_masks_by_other_names_are_not_taken_for_two_classes(tmp_path: Path, part: str) -> None:
    for number in range(COUNT):
        save_picture(tmp_path / "data" / part / "photos", number, values_of(number, 3))
        save_picture(tmp_path / "data" / part / "labels", number, np.uint8(RING) * 255)
    with pytest.raises(DataError) as caught:
        start(tmp_path / "data")
    said = str(caught.value)
    assert "labels/ and photos/ have pictures of the same names, those in labels/ of few values" in said
    assert "rename the two folders to images/ and masks/" in said and "--task classification: the two" in said
    assert find_task(tmp_path / "data", "classification")[0] == "classification"
    for number in range(COUNT):  # two classes that number their pictures alike
        save_picture(tmp_path / "data" / part / "labels", number, values_of(number + COUNT, 3))
    assert find_task(tmp_path / "data", None)[0] == "classification"


def test_a_list_beside_masks_of_two_levels_is_no_list_of_their_classes(tmp_path: Path, make_folder: Any) -> None:
    folder = make_folder([f"n{number:02d}" for number in range(COUNT)])
    (folder / "labels.txt").write_text("background\npolyp\nother\n")
    assert find_names(folder) is None
    started = start(folder)
    assert (started.found.task, started.found.pixels) == ("segmentation", RGB)
