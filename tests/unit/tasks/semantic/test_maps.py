"""Data folders of maps: what is read, what is found, and what is refused, with file and all at once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from class_maps import IGNORED, NAMES, write_map, write_maps
from PIL import Image

from samtune.data.loaders import LoaderOptions
from samtune.data.maps import MapDataset, build_map_data
from samtune.errors import DataError
from samtune.tasks.semantic.maps import ClassTable
from samtune.tasks.semantic.splits import MapSplits, recognises, resolve_maps, verify_folder
from samtune.tasks.table import task_of_data
from samtune.types import IGNORE

TABLE = ClassTable.of({3: "sky", 7: "road"}, 0)


def resolve(folder: Path, names: dict[int, str] | None = NAMES) -> MapSplits:
    return resolve_maps(folder, names=names, ignore=IGNORED)


def refused(folder: Path, names: dict[int, str] | None = NAMES) -> str:
    with pytest.raises(DataError) as caught:
        resolve(folder, names)
    return str(caught.value)


def test_classes_are_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        splits = resolve(write_maps(tmp_path), None)
    assert splits.table == ClassTable(("class 0", "class 1", "class 2"), (0, 1, 2), IGNORED)
    assert "3 classes: 0 class 0, 1 class 1, 2 class 2; value 255 does not count" in caplog.text
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 2, 2]


def test_a_palette_is_read_by_index(tmp_path: Path) -> None:
    plain, palette = (resolve(write_maps(tmp_path / kind, palette=kind == "p")) for kind in ("g", "p"))
    for one, other in zip(plain.train, palette.train, strict=True):
        np.testing.assert_array_equal(NAMED.places(one.mask), NAMED.places(other.mask))


NAMED = ClassTable.of(NAMES, IGNORED)


def test_values_become_places_and_back(tmp_path: Path) -> None:
    path = write_map(tmp_path, "x", np.array([[0, 3, 7]] * 8, dtype=np.uint8).repeat(8, 1))
    places = TABLE.places(path)
    assert np.unique(places).tolist() == [0, 1, IGNORE]
    np.testing.assert_array_equal(TABLE.to_values(places), np.array(Image.open(path)))


def test_every_problem_is_told_at_once_with_its_file(tmp_path: Path) -> None:
    write_maps(tmp_path)
    masks = tmp_path / "train" / "masks"
    strange = write_map(tmp_path / "train", "strange", np.full((40, 48), 9, dtype=np.uint8))
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(masks / "train0.png")
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(masks / "train1.png")
    text = refused(tmp_path, {**NAMES, 5: "ghost"})
    assert f"{strange}: value 9 of no class (data.classes has 0, 1, 2, 5, data.ignore_index is 255)" in text
    assert "train0.png: size mismatch, mask 20 x 20, image 48 x 40" in text
    assert "train1.png: pixels of mode 'RGB' are no map of classes" in text
    assert "class 'ghost' (value 5) is in no mask of train; add a picture of it to train, or take it out" in text
    assert text.count("\n") == 4


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    write_maps(tmp_path)
    only = write_map(tmp_path / "val", "only", np.full((40, 48), 4, dtype=np.uint8))
    text = refused(tmp_path, None)
    assert f"class 'class 4' (value 4) is in no mask of train, though {only} has it" in text


def test_palette_and_grey_mixed(tmp_path: Path) -> None:
    write_maps(tmp_path)
    write_map(tmp_path / "train", "odd", palette=True)
    text = refused(tmp_path)
    assert "1 masks have a palette, such as" in text and "odd.png, and 8 are grey" in text


def test_nothing_that_counts(tmp_path: Path) -> None:
    blank = np.full((40, 48), IGNORED, dtype=np.uint8)
    write_maps(tmp_path)
    write_map(tmp_path / "train", "blank", blank)
    assert any("blank.png: every pixel is data.ignore_index (255)" in note for note in resolve(tmp_path).notes)
    for mask in (tmp_path / "train" / "masks").iterdir():
        write_map(tmp_path / "train", mask.stem, blank)
    assert "masks of train are data.ignore_index (255) only" in refused(tmp_path)


def test_one_class_and_jpeg(tmp_path: Path) -> None:
    for number in range(4):
        write_map(tmp_path / "one", f"p{number}", np.where(np.eye(40, 48), 255, 0).astype(np.uint8))
    assert "one class only, value 0" in refused(tmp_path / "one", None)
    write_maps(tmp_path / "jpeg")
    mask = tmp_path / "jpeg" / "train" / "masks" / "train0.png"
    Image.open(mask).convert("L").save(mask, format="JPEG")
    assert "train0.png: a JPEG, whose values are not exact" in refused(tmp_path / "jpeg")


def test_data_verify_knows_such_a_folder(tmp_path: Path) -> None:
    write_maps(tmp_path)
    assert recognises(tmp_path) and task_of_data(tmp_path, None).name == "semantic"
    assert verify_folder(tmp_path, name=None).errors == ()
    (tmp_path / "val" / "masks" / "val0.png").unlink()
    assert any("val0.png: no mask" in line for line in verify_folder(tmp_path, name=None).errors)


def test_a_list_of_names_tells_maps_of_two_classes_from_masks(tmp_path: Path) -> None:
    for number in range(4):
        write_map(tmp_path, f"p{number}", np.eye(40, 48, dtype=np.uint8))
    assert task_of_data(tmp_path, None).name == "segmentation"
    (tmp_path / "labels.txt").write_text("0 sky\n1 lawn\n2 path\n")
    assert task_of_data(tmp_path, None).name == "semantic"
    for number in range(4):
        write_map(tmp_path, f"p{number}", 255 * np.eye(40, 48, dtype=np.uint8))
    assert task_of_data(tmp_path, None).name == "segmentation"


def test_augmented_maps_keep_their_values(tmp_path: Path) -> None:
    """No class is invented between two others, and where the picture moved away nothing counts."""
    splits = resolve(write_maps(tmp_path))
    dataset = MapDataset(splits.train, splits.table.places, outside=IGNORE, image_size=64, augment="turns")
    seen = set()
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            sample = dataset[index]
            black = sample.image.sum(0) == 0
            seen |= set(np.unique(sample.mask.numpy()).tolist())
            assert sample.mask.shape == sample.image.shape[1:]
            assert float((sample.mask[black] == IGNORE).float().mean()) > 0.9 or int(black.sum()) < 20
    assert seen == {0, 1, 2, IGNORE}


def test_batches_pad_with_what_does_not_count(tmp_path: Path) -> None:
    splits = resolve(write_maps(tmp_path))
    loaders = build_map_data(
        splits, LoaderOptions(2, 2), splits.table.places, outside=IGNORE, image_size=64, augment="upright"
    )
    batch = next(iter(loaders.part("val")))
    assert batch.masks.shape == (2, 1, 64, 64) and batch.sizes_input == ((53, 64), (53, 64))
    assert bool((batch.masks[:, :, 53:] == IGNORE).all())
    assert batch.truths[0].shape == (40, 48)


def test_few_shots_keep_the_classes_and_say_which_they_do_not_show(tmp_path: Path) -> None:
    """Three pictures of train, of which one has class 2: the one that seed 0 draws is another."""
    for number, value in enumerate((1, 1, 2)):
        values = np.zeros((40, 48), dtype=np.uint8)
        values[10:20, 10 + number : 20] = value
        write_map(tmp_path / "train", f"t{number}", values)
    for part in ("val", "test"):
        write_map(tmp_path / part, part)
    splits = resolve_maps(tmp_path, names=None, ignore=255)
    drawn = [splits.with_few(1, seed) for seed in range(12)]
    assert {few.train[0].name for few in drawn} == {"t0", "t1", "t2"}
    for few in drawn:
        absent = "class 1" if few.train[0].name == "t2" else "class 2"
        assert few.table == splits.table and (few.val, few.test) == (splits.val, splits.test)
        assert few.notes[0].startswith("1 of 3 training images, drawn with seed ")
        assert (
            few.notes[1] == f"they do not show {absent}, which can't be learned; raise data.shots, or take another seed"
        )
    assert len(splits.with_few(3, 0).notes) == len(splits.notes) + 1
    with pytest.raises(DataError, match=r"data\.shots is 4, but train has 3 image\(s\)"):
        splits.with_few(4, 0)
