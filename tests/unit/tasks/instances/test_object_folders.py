"""One mask per object: both layouts, what becomes of overlaps, and everything that is wrong with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from object_maps import SIZE, discs, write_object_map
from PIL import Image

from samtune.cli import main as cli
from samtune.data.channels.read import read_stored
from samtune.tasks.instances.layouts.splits import kind_of, recognises, verify_folder
from samtune.tasks.instances.objects import read_objects, renumbered
from samtune.tasks.instances.task import InstanceTask
from samtune.tasks.masks.task import SegmentationTask
from samtune.tasks.table import task_of_data

Write = Callable[[Path, str, Sequence[np.ndarray]], Path]


def by_folder(place: Path, name: str, masks: Sequence[np.ndarray]) -> Path:
    """Writes images/NAME.png and instances/NAME/, and returns that folder."""
    write_object_map(place, name).unlink()
    return save(place / "instances" / name, masks)


def by_bowl(place: Path, name: str, masks: Sequence[np.ndarray]) -> Path:
    """Writes NAME/images/NAME.png and NAME/masks/, as the bowl does, and returns the folder of the masks."""
    write_object_map(place / name, name).unlink()
    (place / name / "instances").rmdir()
    return save(place / name / "masks", masks)


def save(folder: Path, masks: Sequence[np.ndarray]) -> Path:
    folder.mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number * 7 % 5}{number:x}.png")
    return folder


def apart(labels: np.ndarray) -> list[np.ndarray]:
    return [labels == number for number in np.unique(labels) if number]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=[by_folder, by_bowl])
def write(request: pytest.FixtureRequest) -> Write:
    return request.param  # type: ignore[no-any-return]


def read(place: Path) -> dict[str, np.ndarray]:
    pairs, problems = kind_of(place).scan(place)
    assert problems == []
    return {pair.name: read_objects(pair.mask) for pair in pairs}


def test_the_masks_of_a_picture_become_its_map(tmp_path: Path, write: Write) -> None:
    data = tmp_path / "data"
    for number in range(3):
        write(data, f"a{number}", apart(discs(number)))
    write(data, "empty", [])
    found = read(data)
    assert list(found) == ["a0", "a1", "a2", "empty"] and not found["empty"].any()
    for number in range(3):
        both = np.unique(np.stack([found[f"a{number}"].ravel(), discs(number).ravel()]), axis=1)
        assert both.shape == (2, 5)  # nothing, and four objects, one number for each
    assert recognises(data) and task_of_data(data, None) is InstanceTask
    assert not SegmentationTask.recognises(data) or write is by_folder


def test_a_picture_may_be_too_large_to_be_seen_as_a_whole(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(read_stored.__kwdefaults__, "most", 9)  # pixels, as without tiles
    write(tmp_path / "data", "a", apart(discs()))
    assert read(tmp_path / "data")["a"].shape == discs().shape


def test_parts(tmp_path: Path, write: Write) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        for number in range(count):
            write(tmp_path / "data" / part, f"{part}{number}", apart(discs(number)))
    report = verify_folder(tmp_path / "data", name=None)
    assert report.errors == ()
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "verify", str(tmp_path / "data")])
    assert caught.value.code == 0


def test_lists_of_names(tmp_path: Path, write: Write) -> None:
    for number in range(6):
        write(tmp_path / "data", f"a{number}", apart(discs(number % 5)))
    (tmp_path / "data/splits").mkdir()
    for part, names in (("train", "a0\na1\n"), ("val", "a2\n"), ("test", "a3\n")):
        (tmp_path / "data/splits" / f"{part}.txt").write_text(names)
    assert verify_folder(tmp_path / "data", name=None).errors == ()


def test_the_smaller_of_two_that_overlap_has_the_pixels(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    large, small = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
    large[5:30, 5:30], small[10:14, 25:35] = True, True
    with caplog.at_level(logging.WARNING):
        labels = read_after(write(tmp_path, "a", [small, large]), tmp_path)
    assert (np.bincount(labels.ravel())[1:] == [25 * 25 - 4 * 5, 4 * 10]).all()
    assert "objects overlap in 20 pixels; the smaller one has them" in caplog.text


def read_after(_: Path, place: Path) -> np.ndarray:
    return renumbered(read(place)["a"])[0]


def test_a_changed_mask_is_read_again(tmp_path: Path, write: Write) -> None:
    folder = write(tmp_path, "a", apart(discs()))
    assert read(tmp_path)["a"].max() == 4
    next(iter(sorted(folder.iterdir()))).unlink()
    assert read(tmp_path)["a"].max() == 3


def test_an_object_of_one_pixel_is_read_and_told(tmp_path: Path, write: Write) -> None:
    one = np.zeros(SIZE, dtype=bool)
    one[3, 3] = True
    for number in range(3):
        write(tmp_path, f"a{number}", [one, *apart(discs(number))])
    assert read(tmp_path)["a0"].max() == 5
    warnings = verify_folder(tmp_path, name=None).warnings
    assert any("1 object(s) of fewer than 4 pixels" in line for line in warnings)


def bad(name: str) -> tuple[list[np.ndarray], str]:
    full = np.zeros(SIZE, dtype=np.uint8)
    full[4:20, 4:20] = 255
    inner = np.zeros(SIZE, dtype=np.uint8)
    inner[4:20, 4:20] = 255
    many = np.zeros(SIZE, dtype=np.uint8)
    many[2:4, 2:4], many[6:8, 6:8] = 1, 2
    return {
        "empty": ([full, np.zeros(SIZE, dtype=np.uint8)], "covers no pixel; take it out"),
        "hidden": ([full, inner], "lies wholly under smaller ones"),
        "size": ([full, full[:, :30]], "size mismatch, mask 30 x 40, image 48 x 40"),
        "values": ([full, many], "looks like instance or class labels"),
    }[name]


@pytest.mark.parametrize("name", ["empty", "hidden", "size", "values"])
def test_a_bad_mask_is_named_with_its_file(tmp_path: Path, write: Write, name: str) -> None:
    masks, message = bad(name)
    write(tmp_path, "good", apart(discs()))
    folder = write(tmp_path, "bad", [])
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"m{number}.png")
    pairs, (line,) = kind_of(tmp_path).scan(tmp_path)
    assert [pair.name for pair in pairs] == ["good"]
    assert message in line and str(folder / "m") in line
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "verify", str(tmp_path)])
    assert caught.value.code == 3


def test_all_bad_masks_are_told_at_once(tmp_path: Path, write: Write) -> None:
    folder = write(tmp_path, "a", [])
    for number, name in enumerate(("size", "values")):
        Image.fromarray(bad(name)[0][1]).save(folder / f"m{number}.png")
    (folder / "m2.png").write_bytes(b"no picture")
    _, problems = kind_of(tmp_path).scan(tmp_path)
    assert len(problems) == 3 and all(f"m{number}.png" in line for number, line in enumerate(problems))


def test_pictures_and_folders_that_lack_each_other(tmp_path: Path) -> None:
    by_folder(tmp_path, "a", apart(discs()))
    by_folder(tmp_path, "b", apart(discs()))
    (tmp_path / "images/b.png").unlink()
    write_object_map(tmp_path, "c")
    _, problems = kind_of(tmp_path).scan(tmp_path)
    assert [line.split(": ")[1][:24] for line in problems] == [
        "a map beside folders wit",
        "no folder instances/c/ w",
        "masks of no image named ",
    ]


def test_a_folder_of_the_bowl_that_lacks_something(tmp_path: Path) -> None:
    by_bowl(tmp_path, "a", apart(discs()))
    by_bowl(tmp_path, "b", apart(discs()))
    (tmp_path / "b/images/b.png").rename(tmp_path / "b/images/other.png")
    _, problems = kind_of(tmp_path).scan(tmp_path)
    assert problems == [
        f"{tmp_path / 'b'}: no images/b.* with masks/ beside it, as other folders have; add them, or take it out"
    ]


def test_parts_of_pairs_are_no_pictures_of_the_bowl(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for sub in ("images", "masks"):
            (tmp_path / part / sub).mkdir(parents=True)
            Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(tmp_path / part / sub / f"{part}.png")
    assert not recognises(tmp_path) and task_of_data(tmp_path, None) is SegmentationTask
