"""How the folders of the known data sets are read, and what is said about broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from class_trees import FGVC_FOLDERS, write_class_folders, write_fgvc, write_imagenet, write_imagenet_c, write_vtab

from samtune.config.papers import datasets
from samtune.errors import ConfigError, DataError
from samtune.tasks.classes.layouts.known import DATASETS, Layout, read_layout


def names(layout: Layout) -> dict[str, list[str]]:
    return {p: [f"{path.relative_to(layout.root)} {n}" for path, n in items] for p, items in layout.parts.items()}


def test_the_table_is_that_of_the_papers() -> None:
    paper = datasets()
    for name, known in DATASETS.items():
        if known.trains:
            assert (known.title, known.classes) == (paper[name].title, paper[name].classes)
    assert sum(known.classes for known in DATASETS.values() if known.layout == "vtab") == 940
    assert [DATASETS[f"fgvc/{name}"].classes for name in FGVC_FOLDERS] == [200, 555, 102, 196, 120]
    for name, known in DATASETS.items():
        assert known.resize == ("squash" if name.startswith(("vtab/", "cifar")) else "crop")
        if known.layout == "vtab":
            assert name == f"vtab/{known.folder}"
        if known.layout == "fgvc":
            assert known.folder == FGVC_FOLDERS[name[5:]][0]


def test_vtab_as_root_and_as_task_folder(tmp_path: Path) -> None:
    write_vtab(tmp_path, "svhn", classes=3, train=6, val=3, test=3)
    layout = read_layout(tmp_path, "vtab/svhn")
    assert layout.problems == [] and layout.classes == tuple("0123456789")
    assert names(layout)["val"] == [f"images/val200/00000{i}.jpg {i}" for i in range(3)]
    assert read_layout(tmp_path / "svhn", "vtab/svhn").parts == layout.parts
    both = read_layout(tmp_path, "vtab/svhn", retrain=True)
    assert sorted(both.parts) == ["test", "train"] and len(both.parts["train"]) == 9


def test_vtab_lists_with_faults(tmp_path: Path) -> None:
    write_vtab(tmp_path, "kitti")
    root = tmp_path / "kitti"
    good = (root / "train800.txt").read_text()
    (root / "train800.txt").write_text(
        good + "\nimages/train800/000000.jpg 4\nimages/train800/000001.jpg -1\nonly\nimages/gone.jpg 1\n" + good[:29]
    )
    (root / "val200.txt").write_text("\ufeff")
    (root / "test.txt").unlink()
    assert read_layout(tmp_path, "vtab/kitti").problems == [
        f"{root}/train800.txt:10: 'only' is not a path with a class, such as 'images/a.jpg 3'",
        f"{root}/train800.txt:8: labels out of range: '4' is not one of the 4 classes (0 to 3)",
        f"{root}/train800.txt:9: labels out of range: '-1' is not one of the 4 classes (0 to 3)",
        f"{root}/train800.txt:12: names images/train800/000000.jpg a second time",
        f"{root}/train800.txt:11: names images/gone.jpg, which is not in {root}",
        f"{root}/val200.txt: names no image; a line is a path and a class",
        f"{root}/test.txt: no such list (found: images, train800.txt, train800val200.txt, val200.txt); "
        "see data/README.md for the layout",
    ]
    (root / "val200.txt").write_bytes(b"\xff\xfe")
    assert any("val200.txt: can't be read" in line for line in read_layout(tmp_path, "vtab/kitti").problems)


def test_a_list_without_its_pictures_is_one_line(tmp_path: Path) -> None:
    write_vtab(tmp_path, "dtd")
    (tmp_path / "dtd" / "images" / "test").rename(tmp_path / "away")
    (line,) = read_layout(tmp_path, "vtab/dtd").problems
    assert line.endswith(f"none of its 6 images is in {tmp_path / 'dtd'}, such as images/test/000000.jpg")


@pytest.mark.parametrize("name", FGVC_FOLDERS)
def test_fgvc_finds_pictures_where_each_release_has_them(tmp_path: Path, name: str) -> None:
    write_fgvc(tmp_path, name, classes=11, train=1, val=1, test=1)
    layout = read_layout(tmp_path, f"fgvc/{name}")
    assert layout.problems == [] and {part: len(items) for part, items in layout.parts.items()} == {
        "train": 11, "val": 11, "test": 11
    }  # fmt: skip
    assert layout.classes == tuple(str(label) for label in range(1, 12))  # as numbers: 10 after 9
    assert layout.notes == [
        f"11 of the {DATASETS[f'fgvc/{name}'].classes} classes of {DATASETS[f'fgvc/{name}'].title} are here"
    ]


def test_fgvc_lists_with_faults(tmp_path: Path) -> None:
    root = write_fgvc(tmp_path, "cub") / "CUB_200_2011"
    (root / "val.json").write_text("{")
    listed = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps({**listed, "gone.jpg": 1, "odd.jpg": [1]}))
    (root / "test.json").write_text("[]")
    lines = read_layout(root, "fgvc/cub").problems
    assert len(lines) == 4
    assert lines[0].endswith("'odd.jpg' has the label [1]; a number or a name is needed")
    assert lines[1].endswith(f"train.json: names gone.jpg, which is not in {root}")
    assert "val.json: damaged list" in lines[2] and "test.json: not a list of images" in lines[3]
    (root / "val.json").unlink()
    assert sorted(read_layout(root, "fgvc/cub").parts) == ["test", "train"]


def test_more_classes_than_published(tmp_path: Path) -> None:
    write_fgvc(tmp_path, "oxford_flowers", classes=103, train=1, val=0, test=0, size=8)
    assert (
        "labels out of range: 103 classes found, but Oxford Flowers has 102"
        in read_layout(tmp_path, "fgvc/oxford_flowers").problems
    )


def test_class_folders(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "parts", test=0)
    (tmp_path / "parts" / "train" / ".hidden").mkdir()
    (tmp_path / "parts" / "train" / "__MACOSX").mkdir()
    (tmp_path / "parts" / "train" / "class_0" / "._000.png").touch()
    (tmp_path / "parts" / "train" / "class_0" / "notes.txt").touch()
    layout = read_layout(tmp_path / "parts", None)
    assert layout.problems == [] and layout.notes == ["no test/ here: val/ is what is reported, and opened once"]
    assert {part: len(items) for part, items in layout.parts.items()} == {"train": 12, "test": 6}
    assert names(layout)["train"][0] == "train/class_0/000.png class_0"
    assert list(read_layout(tmp_path / "parts" / "train", None).parts) == ["all"]
    assert len(read_layout(write_imagenet(tmp_path / "in"), "imagenet").parts["train"]) == 18  # .JPEG


def test_pictures_that_are_left_out_are_counted(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    place = tmp_path / "train" / "class_0"
    (place / "more" / "deep").mkdir(parents=True)
    for path in ("more/a.png", "more/deep/b.JPG", "more/notes.txt", "c.gif", "d.HEIC", "._e.gif", "../f.png"):
        (place / path).touch()
    layout = read_layout(tmp_path, None)
    assert layout.problems == [] and len(layout.parts["train"]) == 12
    (note,) = layout.notes
    assert note.startswith(
        f"{tmp_path / 'train'}: pictures left out: 1 beside the class folders, 2 of a format that is"
    )
    assert note.endswith(", 2 in sub-folders of a class")


def test_class_folders_with_faults(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    for place in (tmp_path / "val").iterdir():
        place.rename(tmp_path / "test" / f"of_val_{place.name}")
    (tmp_path / "val" / "a.png").touch()
    assert read_layout(tmp_path, None).problems == [
        f"{tmp_path}/train/empty: empty class folder, no picture in it "
        "(allowed: .png .jpg .jpeg .tif .tiff .bmp .webp)",
        f"{tmp_path}/val: no class folder; pictures belong into val/CLASS/ (found: a.png)",
    ]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    picture = tmp_path / "train" / "class_0" / "000.png"
    try:
        picture.rename(picture.with_name("caf\udce9.png"))
        (tmp_path / "train" / "class_1").rename(tmp_path / "train" / "r\udce9")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    lines = read_layout(tmp_path, None).problems
    assert [line.rpartition(": ")[2] for line in lines] == ["name is not UTF-8; rename it"] * 2


def test_corruptions(tmp_path: Path) -> None:
    write_imagenet_c(tmp_path / "imagenet-c")
    layout = read_layout(tmp_path, "imagenet-c")
    assert sorted(layout.parts) == ["fog/1", "fog/5", "gaussian_noise/1", "gaussian_noise/5"]
    assert layout.problems == [] and len(layout.parts["fog/5"]) == 6
    (tmp_path / "imagenet-c" / "fog" / "mild").mkdir()
    assert "fog/mild: not a severity" in read_layout(tmp_path, "imagenet-c").problems[0]
    (tmp_path / "other").mkdir()
    assert "no CORRUPTION/SEVERITY/CLASS/picture" in read_layout(tmp_path / "other", "imagenet-c").problems[0]


def test_a_missing_name_is_asked_for(tmp_path: Path) -> None:
    write_vtab(tmp_path, "dtd")
    write_fgvc(tmp_path, "cub")
    assert (
        "holds known data sets (CUB_200_2011, dtd); say which by data.name" in read_layout(tmp_path, None).problems[0]
    )
    assert "say which task: data.name (--name) vtab/dtd" in read_layout(tmp_path / "dtd", None).problems[0]
    assert "train.json is a list of FGVC" in read_layout(tmp_path / "CUB_200_2011", None).problems[0]


def test_unknown_name_and_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'vtab/cifr'.*Did you mean 'vtab/cifar'"):
        read_layout(tmp_path, "vtab/cifr")
    with pytest.raises(DataError, match=r"data folder .*gone does not exist; set data.dir"):
        read_layout(tmp_path / "gone", None)
