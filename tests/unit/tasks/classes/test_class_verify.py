"""Images that can't be decoded, images in two parts, and telling classes from pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from class_trees import write_class_folders, write_fgvc, write_imagenet_c, write_vtab
from PIL import Image

from samtune.errors import ConfigError, DataError
from samtune.tasks.classes import verify as class_verify
from samtune.tasks.classes.layouts.known import read_layout
from samtune.tasks.classes.splits import resolve_classes
from samtune.tasks.classes.verify import check_classes, recognises, verify_folder


def test_good_folders_are_silent(tmp_path: Path) -> None:
    for folder, name in (
        (write_class_folders(tmp_path / "a"), None),
        (write_vtab(tmp_path / "b"), "vtab/cifar"),
        (write_imagenet_c(tmp_path / "c"), "imagenet-c"),
    ):
        report = verify_folder(folder, name=name)
        assert report.errors == () and report.warnings == ()
    report = verify_folder(write_fgvc(tmp_path), name="fgvc/cub")
    assert report.errors == () and report.warnings == ("3 of the 200 classes of CUB-200-2011 are here",)


def test_classes_are_recognised_by_names(tmp_path: Path, make_folder) -> None:
    pairs = make_folder(["a", "b"], "pairs")
    assert not recognises(pairs) and not recognises(make_folder(["a"], "parts/train").parent)
    shutil.rmtree(pairs / "masks")
    assert not recognises(pairs)
    classes = write_class_folders(tmp_path / "classes")
    (classes / "val" / "none").mkdir()
    assert recognises(classes) and "none: empty class folder" in verify_folder(classes).errors[0]
    write_vtab(tmp_path / "vtab")
    assert recognises(tmp_path / "vtab" / "cifar")
    assert "say which task" in verify_folder(tmp_path / "vtab" / "cifar").errors[0]
    (tmp_path / "nothing").mkdir()
    assert not recognises(tmp_path / "nothing") and not recognises(tmp_path / "gone")
    with pytest.raises(ConfigError, match="unknown data set 'cub'"):
        verify_folder(tmp_path, name="cub")


def test_everything_is_decoded_and_listed_at_once(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    images = tmp_path / "cifar" / "images"
    whole = (images / "test" / "000003.jpg").read_bytes()
    (images / "test" / "000003.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "train800" / "000001.jpg").write_bytes(b"")
    (images / "train800val200" / "000002.jpg").write_text("text")
    errors = verify_folder(tmp_path, name="vtab/cifar").errors
    assert [line.split(": ")[1][:12] for line in errors] == ["damaged file", "empty file (", "not a PNG, J"]


def test_a_long_picture_is_found_before_the_run(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    Image.new("RGB", (2, 202)).save(folder / "train" / "class_0" / "long.png")
    line = f"{folder / 'train' / 'class_0' / 'long.png'}: 2 x 202 pixels, one side more than 100 times the other"
    assert [error.partition(";")[0] for error in verify_folder(folder).errors] == [line]
    with pytest.raises(DataError, match=r"long\.png: 2 x 202 pixels"):
        resolve_classes(folder)


def test_huge_parts_are_not_decoded_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vtab(tmp_path)
    (tmp_path / "cifar" / "images" / "test" / "000003.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"000003\.jpg: not a PNG"):
        resolve_classes(tmp_path, name="vtab/cifar")
    monkeypatch.setitem(class_verify.DECODED, "test", 5)
    assert len(resolve_classes(tmp_path, name="vtab/cifar").test) == 6
    assert len(verify_folder(tmp_path, name="vtab/cifar").errors) == 1


def test_the_same_image_in_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_class_folders(tmp_path)
    twin = folder / "test" / "class_1" / "twin.PNG"
    shutil.copy(folder / "train" / "class_0" / "001.png", twin)
    line = f"{twin} (test) is the same image as {folder / 'train' / 'class_0' / '001.png'} (train)"
    with pytest.raises(DataError) as error:
        resolve_classes(folder)
    assert f"{line}; take it out of one part" in str(error.value)
    assert verify_folder(folder).errors == (f"{line}; take it out of one part",)
    parts = read_layout(folder, None).parts
    notes = check_classes(folder, parts, [], published=("train", "val", "test"))
    assert notes == [f"1 image(s) of this published split are in two of its parts or classes, such as {line}"]
    monkeypatch.setattr(class_verify, "COMPARED", 20)
    assert verify_folder(folder).errors == ()


def test_the_same_image_in_two_classes(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path) / "train"
    shutil.copy(folder / "class_0" / "001.png", folder / "class_2" / "again.png")
    line = f"{folder / 'class_2' / 'again.png'} (class class_2) is the same image as {folder / 'class_0' / '001.png'}"
    for place in (tmp_path, folder):
        (told,) = verify_folder(place).errors
        assert told == f"{line} (class class_0); keep it in the right class"
        with pytest.raises(
            DataError, match=r"again\.png \(class class_2\) is the same image.*keep it in the right class"
        ):
            resolve_classes(place)
    notes = check_classes(tmp_path, read_layout(tmp_path, None).parts, [], published=("train", "val", "test"))
    assert notes[0].startswith("1 image(s) of this published split") and notes[0].endswith(f"{line} (class class_0)")


@pytest.mark.parametrize("parts", ["", "train", "val"])
def test_images_and_masks_are_no_classes(tmp_path: Path, make_folder, parts: str) -> None:
    make_folder(["a", "b"], f"data/{parts}")
    offered = r"images/ and masks/ are pairs for task: segmentation \(--config polyp\.yaml\); if they are two classes"
    with pytest.raises(DataError, match=offered):
        resolve_classes(tmp_path / "data")


def test_bad_files_are_told_each_time(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    first = resolve_classes(folder)
    assert resolve_classes(folder) == first
    Image.new("F", (20, 20), 3e9).save(folder / "train" / "class_0" / "odd.tif")
    for _ in range(2):
        with pytest.raises(DataError, match=r"odd\.tif: values of more than 16 bits"):
            resolve_classes(folder)


def test_a_dangling_link_is_a_problem(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    (folder / "train" / "class_0" / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"link\.png: dangling link to .*nowhere\.png; put the file there"):
        resolve_classes(folder)
