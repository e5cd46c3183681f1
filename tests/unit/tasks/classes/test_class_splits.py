"""Which image gets which label and goes to which part."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from class_trees import (
    WNIDS,
    class_picture,
    write_class_folders,
    write_fgvc,
    write_imagenet,
    write_imagenet_c,
    write_vtab,
)
from PIL import Image

from samtune.data.splits import Given
from samtune.errors import ConfigError, DataError
from samtune.tasks.classes import verify as class_verify
from samtune.tasks.classes.corruptions import corruption_parts
from samtune.tasks.classes.layouts.folders import sort_classes
from samtune.tasks.classes.splits import ClassSplits, LabelledImage, evaluation_images, resolve_classes


def sizes(splits: ClassSplits) -> list[int]:
    return [len(splits.train), len(splits.val), len(splits.test)]


def labels(items: list[LabelledImage]) -> list[int]:
    return [count for _, count in sorted(Counter(item.label for item in items).items())]


def test_published_folders_stay_as_they_are(tmp_path: Path) -> None:
    splits = resolve_classes(write_class_folders(tmp_path))
    assert splits.classes == ("class_0", "class_1", "class_2") and sizes(splits) == [12, 6, 6] and splits.notes == []
    first = splits.train[0]
    assert first == LabelledImage(tmp_path / "train" / "class_0" / "000.png", 0, "train/class_0/000.png")
    everything = [item.name for part in (splits.train, splits.val, splits.test) for item in part]
    assert len(set(everything)) == 24 and [i.name for i in splits.train] == sorted(i.name for i in splits.train)
    assert resolve_classes(tmp_path, seed=5).digest() == splits.digest()
    assert resolve_classes(tmp_path, retrain=True).digest() != splits.digest()


def test_a_folder_of_classes_is_cut_by_class(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path, train=20, val=0, test=0) / "train"
    splits = resolve_classes(folder, seed=1)
    assert sizes(splits) == [48, 6, 6] and labels(splits.val) == labels(splits.test) == [2, 2, 2]
    assert splits.notes == [
        "val and test cut from train with seed 1, by class, near-duplicates kept together: 48 train, 6 val, 6 test"
    ]
    assert resolve_classes(folder, seed=1).digest() == splits.digest() != resolve_classes(folder, seed=2).digest()
    again = resolve_classes(folder, seed=1, retrain=True)
    assert again.test == splits.test and sizes(again) == [54, 0, 6]
    assert again.train == sorted([*splits.train, *splits.val], key=lambda item: item.name)
    assert "train and val train together: 54 images" in again.notes


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path, classes=2, train=10, val=0, test=0) / "train"
    for path in sorted(folder.rglob("*.png")):
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 9).save(path.with_name(f"{path.stem}x.png"))
    for seed in range(3):
        splits = resolve_classes(folder, seed=seed)
        assert sizes(splits) == [32, 4, 4]
        for part in (splits.train, splits.val, splits.test):
            assert all(count == 2 for count in Counter(i.name.replace("x.png", ".png") for i in part).values())


def test_images_that_are_all_alike_and_small_classes(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path, train=5, val=0, test=0) / "train"
    for number, path in enumerate(sorted((folder / "class_0").iterdir())):
        Image.new("RGB", (30, 30), (number, 0, 0)).save(path)
    for path in sorted((folder / "class_1").iterdir())[2:]:
        path.unlink()
    splits = resolve_classes(folder)
    assert labels(splits.train) == [3, 2, 3] and labels(splits.test) == [1, 1]
    assert "only identical images kept together where all of a class are alike: 2 class(es): class_0, class_1" in (
        splits.notes
    )
    assert "too few images to cut, all stay in train: 1 class(es): class_1" in splits.notes
    for place in (folder / "class_0", folder / "class_2"):
        for path in sorted(place.iterdir())[2:]:
            path.unlink()
    with pytest.raises(DataError, match="6 images are too few to cut val and test from train"):
        resolve_classes(folder)


def test_missing_parts(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "a", train=12, val=0)
    splits = resolve_classes(tmp_path / "a")
    assert sizes(splits) == [33, 3, 6] and splits.notes[1].startswith("val cut from train with seed 0")
    retrained = resolve_classes(tmp_path / "a", retrain=True)
    assert sizes(retrained) == [36, 0, 6] and retrained.notes[1:] == ["train and val train together: 36 images"]
    assert splits.notes[0] == retrained.notes[0] and splits.notes[0].startswith("1 near-duplicate pair(s) across parts")
    splits = resolve_classes(write_imagenet(tmp_path / "b", train=12), name="imagenet")
    assert sizes(splits) == [33, 3, 6] and {item.name.split("/")[0] for item in splits.test} == {"val"}
    assert splits.classes == WNIDS[:3]
    assert splits.notes[0] == "no test/ here: val/ is what is reported, and opened once"


def test_vtab(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    splits = resolve_classes(tmp_path, name="vtab/cifar")
    assert sizes(splits) == [6, 3, 6] and splits.classes == tuple(str(label) for label in range(100))
    assert splits.val[1].name == "images/val200/000001.jpg" and splits.val[1].label == 1
    assert resolve_classes(tmp_path / "cifar", name="vtab/cifar").digest() == splits.digest()
    retrained = resolve_classes(tmp_path, name="vtab/cifar", retrain=True)
    assert sizes(retrained) == [9, 0, 6] and retrained.train[0].name == "images/train800val200/000000.jpg"
    assert retrained.test == splits.test


def test_fgvc(tmp_path: Path) -> None:
    write_fgvc(tmp_path, "stanford_dogs")
    splits = resolve_classes(tmp_path, name="fgvc/stanford_dogs")
    assert sizes(splits) == [12, 6, 6] and splits.classes == ("1", "2", "3")
    assert sorted({(item.name.split("/")[1], item.label) for item in splits.train}) == [
        ("001.Kind_0", 0), ("002.Kind_1", 1), ("003.Kind_2", 2)
    ]  # fmt: skip


def test_shots(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    splits = resolve_classes(tmp_path, shots=2, shots_seed=3)
    assert labels(splits.train) == [2, 2, 2] and sizes(splits)[1:] == [6, 6]
    assert splits.train == sorted(splits.train, key=lambda item: item.name)
    assert resolve_classes(tmp_path, shots=2, shots_seed=3) == splits
    assert any(resolve_classes(tmp_path, shots=2, shots_seed=seed).train != splits.train for seed in range(3))
    (tmp_path / "train" / "class_1" / "000.png").unlink()
    with pytest.raises(DataError, match=r"data.shots is 4, but .* fewer training images: 1 class\(es\): class_1 \(3\)"):
        resolve_classes(tmp_path, shots=4)
    with pytest.raises(DataError, match=r"data.shots is 0; at least 1"):
        resolve_classes(tmp_path, shots=0)


def test_lists_and_folders_instead_of_parts(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data")
    (folder / "few.txt").write_text(
        "train/class_0/000.png class_0\ntrain/class_1/000.png\tclass_1\n\ntrain/class_2/000.png class_2\n"
    )
    splits = resolve_classes(folder, given=Given(val="few.txt"))
    assert sizes(splits) == [9, 3, 6] and labels(splits.val) == [1, 1, 1]  # what is chosen by is not trained on
    other = write_class_folders(tmp_path / "other", train=0, val=0, test=3)
    for number, path in enumerate(sorted(other.rglob("*.png"))):  # the same pictures would be refused
        class_picture(0, 1000 + number).save(path)
    splits = resolve_classes(folder, given=Given(test=other / "test"))
    assert sizes(splits) == [12, 6, 9] and splits.test[0].name == "../other/test/class_0/000.png"


def test_only_lists(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path) / "train"
    (tmp_path / "a.txt").write_text("".join(f"class_{i % 3}/00{i // 3}.png {9 + i % 3}\n" for i in range(9)))
    (tmp_path / "b.txt").write_text("".join(f"class_{i}/003.png {9 + i}\n" for i in range(3)))
    lists = Given(train=tmp_path / "a.txt", test=tmp_path / "b.txt")
    splits = resolve_classes(folder, given=lists, retrain=True)
    assert splits.classes == ("9", "10", "11") and sizes(splits) == [9, 0, 3]
    (tmp_path / "b.txt").write_text("class_0/003.png 12\n")
    with pytest.raises(DataError, match=r"test: class '12' of .* is not among the 3 classes of train"):
        resolve_classes(folder, given=lists)


def test_faults_are_listed_at_once(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    (folder / "train" / "class_0" / "000.png").write_bytes(b"")
    (folder / "test" / "class_9").mkdir()
    shutil.copy(folder / "val" / "class_0" / "004.png", folder / "test" / "class_9" / "a.png")
    with pytest.raises(DataError) as error:
        resolve_classes(folder, given=Given(val="gone.txt"))
    text = str(error.value)
    assert "can't be used: 3 problem(s)" in text and "000.png: empty file" in text
    assert "data.val: gone.txt is neither a folder of classes nor a list" in text
    assert "test: class 'class_9'" in text


def test_what_can_not_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ImageNet-A is for evaluation only"):
        resolve_classes(tmp_path, name="imagenet-a")
    write_class_folders(tmp_path / "one", classes=1)
    with pytest.raises(DataError, match=r"one class only \(class_0\)"):
        resolve_classes(tmp_path / "one")
    write_class_folders(tmp_path / "none", train=0)
    with pytest.raises(DataError, match="no training image"):
        resolve_classes(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"val": "test.txt"},
            r"6 image\(s\) are in two parts, such as .*\.jpg: is in val and in test; change data\.train",
        ),
        ({"train": "train800val200.txt"}, r"3 image\(s\) are in two parts, such as .*\(val\) is the same .*\(train\)"),
        ({"test": "val200.txt"}, r"3 image\(s\) are in two parts"),
    ],
)
@pytest.mark.parametrize("compared", [100_000, 0])
def test_what_the_user_names_must_not_be_another_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], line: str, compared: int
) -> None:
    write_vtab(tmp_path, "kitti")
    monkeypatch.setattr(class_verify, "COMPARED", compared)  # beyond that number only paths tell
    if compared == 0 and "train" in given:
        assert sizes(resolve_classes(tmp_path, name="vtab/kitti", given=Given(**given))) == [9, 3, 6]
        return
    with pytest.raises(DataError, match=line):
        resolve_classes(tmp_path, name="vtab/kitti", given=Given(**given))


def test_overlaps_of_the_published_parts_stay_notes(tmp_path: Path) -> None:
    images = write_vtab(tmp_path, "kitti") / "kitti" / "images"
    shutil.copy(images / "train800" / "000000.jpg", images / "test" / "000000.jpg")
    (tmp_path / "kitti" / "few.txt").write_text("images/val200/000001.jpg 1\n")
    splits = resolve_classes(tmp_path, name="vtab/kitti", given=Given(val="few.txt"))
    assert sizes(splits) == [6, 1, 6] and "1 image(s) of this published split are in two" in splits.notes[0]


@pytest.mark.parametrize("name", ["imagenet", None])
def test_val_is_what_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    write_imagenet(tmp_path, train=12)
    monkeypatch.chdir(tmp_path.parent)
    for given, cut in (("val", "test"), ("test", "val")):
        splits = resolve_classes(tmp_path, name=name, given=Given(**{given: "val"}))
        held = getattr(splits, given)
        assert len(held) == 6 and {item.name.split("/")[0] for item in held} == {"val"}
        assert {item.name.split("/")[0] for item in getattr(splits, cut)} == {"train"}
        text = " ".join(splits.notes)
        assert f"{cut} cut from train" in text and "val/ is what is reported" not in text


def test_a_class_without_a_training_image_is_noted(tmp_path: Path) -> None:
    root = write_fgvc(tmp_path) / "CUB_200_2011"
    listed = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps({path: label for path, label in listed.items() if label != 2}))
    splits = resolve_classes(tmp_path, name="fgvc/cub")
    assert splits.notes[-1] == "1 class(es) of val and test without a training image, which can't be learned: 2"
    assert splits.classes == ("1", "2", "3")


def test_classes_of_lists_are_the_names_of_folders(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    for place in sorted(tmp_path.glob("*/class_*")):
        place.rename(place.with_name(place.name.replace("class_", "00")))
    (tmp_path / "held.txt").write_text("val/002/005.png 002\n")
    splits = resolve_classes(tmp_path, given=Given(val="held.txt"))
    assert splits.classes == ("000", "001", "002") and [item.label for item in splits.val] == [2]
    file = write_vtab(tmp_path / "vtab") / "cifar" / "val200.txt"
    file.write_text("images/val200/000001.jpg 001\n")  # VTAB-1k's classes are numbers
    assert [item.label for item in resolve_classes(tmp_path / "vtab", name="vtab/cifar").val] == [1]


def test_order_of_classes() -> None:
    assert sort_classes(["10", "9", "9"]) == ("9", "10") and sort_classes(["10", "9", "a"]) == ("10", "9", "a")


def test_evaluation_images(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "a")
    known = ("zebra", "class_2", "class_1", "class_0")  # the labels are the model's
    images = evaluation_images(tmp_path / "a", known)
    assert labels(images) == [2, 2, 2] and images[0].name == "test/class_0/006.png" and images[0].label == 3
    assert len(evaluation_images(tmp_path / "a", known, split="val")) == 6
    assert len(evaluation_images(tmp_path / "a" / "train", known)) == 12
    write_imagenet(tmp_path / "b")
    assert len(evaluation_images(tmp_path / "b", WNIDS)) == 6
    assert len(evaluation_images(tmp_path / "b" / "val", WNIDS, name="imagenet-r")) == 6
    write_vtab(tmp_path)
    assert len(evaluation_images(tmp_path, ("0", "1", "2"), name="vtab/cifar", split="val")) == 3
    write_fgvc(tmp_path)
    assert evaluation_images(tmp_path, ("1", "2", "3"), name="fgvc/cub")[-1].label == 2


def test_evaluation_refuses(tmp_path: Path) -> None:
    write_class_folders(tmp_path, val=0)
    with pytest.raises(
        DataError,
        match=r"2 class\(es\) unknown to the checkpoint: class_1, class_2; the checkpoint knows 2 classes: a, class_0",
    ):
        evaluation_images(tmp_path, ("a", "class_0"))
    with pytest.raises(DataError, match=r"no val images \(parts found: train, test\); add val/, or .* --split"):
        evaluation_images(tmp_path, ("class_0",), split="val")
    with pytest.raises(ConfigError, match="unknown split 'tests'"):
        evaluation_images(tmp_path, ("class_0",), split="tests")
    (tmp_path / "test" / "class_0" / "004.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"004\.png: not a PNG"):
        evaluation_images(tmp_path, ("class_0", "class_1", "class_2"))


def test_corruption_parts(tmp_path: Path) -> None:
    write_imagenet_c(tmp_path)
    parts = corruption_parts(tmp_path, WNIDS)
    assert sorted(parts) == ["fog/1", "fog/5", "gaussian_noise/1", "gaussian_noise/5"]
    first = parts["fog/1"][0]
    assert (first.label, first.name) == (0, "fog/1/n01440764/ILSVRC2012_val_00000000.JPEG")
    assert {item.label for item in corruption_parts(tmp_path, WNIDS[::-1])["fog/5"]} == {7, 8, 9}
    with pytest.raises(DataError, match="the checkpoint knows 2 classes"):
        corruption_parts(tmp_path, WNIDS[:2])
    with pytest.raises(DataError, match="no CORRUPTION/SEVERITY/CLASS/picture"):
        corruption_parts(tmp_path / "fog" / "1", WNIDS)
