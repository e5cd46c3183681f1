"""Which pair goes where, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtune.data.facts import group_near, hash_images
from samtune.data.pairs import find_pairs
from samtune.data.splits import PARTS, Given, Splits
from samtune.errors import DataError
from samtune.tasks.masks.splits import resolve_split

NAMES = [f"n{i:02d}" for i in range(20)]


def names(splits: Splits) -> dict[str, list[str]]:
    return {part: [pair.name for pair in getattr(splits, part)] for part in PARTS}


def write_lists(folder: Path, **lists: list[str]) -> None:
    (folder / "splits").mkdir(exist_ok=True)
    for part, entries in lists.items():
        (folder / "splits" / f"{part}.txt").write_text("\n".join(entries) + "\n")


def brighter(source: Path, target: Path) -> None:
    """Writes a near-duplicate: the same picture, a little brighter."""
    Image.fromarray(np.asarray(Image.open(source)) // 2 + 9).save(target)


def test_ratio_is_seeded_and_disjoint(make_folder) -> None:
    folder = make_folder(NAMES)
    splits = resolve_split(folder, seed=1)
    found = names(splits)
    assert [len(found[p]) for p in PARTS] == [16, 2, 2]
    assert sorted(name for part in found.values() for name in part) == NAMES and all(
        found[p] == sorted(found[p]) for p in PARTS
    )
    again, other = resolve_split(folder, seed=1), resolve_split(folder, seed=2)
    assert names(again) == found != names(other)
    assert again.digest() == splits.digest() != other.digest()
    assert "val and test cut from train with seed 1" in splits.notes[0]


def test_near_duplicates_stay_together(make_folder) -> None:
    folder = make_folder(NAMES)
    for name in NAMES[:10]:
        brighter(folder / "images" / f"{name}.png", folder / "images" / f"{name}x.png")
        shutil.copy(folder / "masks" / f"{name}.png", folder / "masks" / f"{name}x.png")
    pairs = find_pairs(folder)
    groups = group_near(hash_images([pair.image for pair in pairs]))
    assert sorted(len(g) for g in groups) == [1] * 10 + [2] * 10
    for seed in range(4):
        found = names(resolve_split(folder, seed=seed))
        assert all(len(found[p]) > 0 for p in PARTS)
        for part in found.values():
            assert all((f"{n}x" in part) == (n in part) for n in NAMES[:10])


def test_folders_come_first_and_missing_parts_are_cut_from_train(make_folder) -> None:
    make_folder(NAMES, "set/train", seed=1)
    folder = make_folder(NAMES[:5], "set/val", seed=2).parent
    splits = resolve_split(folder)
    assert [len(v) for v in names(splits).values()] == [18, 5, 2]
    assert "test cut from train" in splits.notes[0]
    assert {p.image.parent.parent.name for p in splits.test} == {"train"}
    make_folder(NAMES[:4], "set/test", seed=3)
    splits = resolve_split(folder)
    assert [len(v) for v in names(splits).values()] == [20, 5, 4] and splits.notes == []


def test_lists_of_names(make_folder) -> None:
    folder = make_folder(NAMES)
    write_lists(folder, train=NAMES[:10], val=[f"{n}.png" for n in NAMES[10:13]], test=["", *NAMES[13:16]])
    splits = resolve_split(folder)
    assert names(splits) == {"train": NAMES[:10], "val": NAMES[10:13], "test": NAMES[13:16]}
    assert splits.notes == ["4 image(s) are in no list of splits/ and not used"]
    assert names(resolve_split(folder, split="ratio")) != names(splits)


def test_lists_naming_absent_files_or_nothing(make_folder) -> None:
    folder = make_folder(NAMES)
    write_lists(folder, train=NAMES[:10], val=["gone", "lost"], test=[])
    with pytest.raises(DataError) as caught:
        resolve_split(folder)
    message = str(caught.value)
    assert "3 problem(s)" in message
    assert "val.txt: names gone" in message and "names lost" in message and "test.txt: empty" in message


def test_the_same_image_in_two_parts_is_refused(make_folder) -> None:
    folder = make_folder(NAMES)
    write_lists(folder, train=NAMES[:10], val=NAMES[9:12], test=NAMES[12:])
    with pytest.raises(DataError, match=r"n09\.png: is in train and in val; take it out of one part"):
        resolve_split(folder)
    make_folder(NAMES, "set/train")
    parts = make_folder(NAMES[:3], "set/val").parent
    with pytest.raises(DataError, match="3 problem"):
        resolve_split(parts)


def test_everything_is_told_at_once(make_folder) -> None:
    """What the layout, the lists, the files and the parts get wrong: four kinds in one message."""
    folder = make_folder(NAMES)
    write_lists(folder, train=[*NAMES[:10], "gone"], val=NAMES[9:12], test=NAMES[12:])
    (folder / "images" / "n03.png").write_bytes(b"")
    (folder / "masks" / "n15.png").unlink()
    with pytest.raises(DataError) as caught:
        resolve_split(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6 and "5 problem(s)" in lines[0]
    for text in (
        "n15.png: no mask",
        "names gone",
        "names n15",
        "n03.png: empty file",
        "n09.png: is in train and in val",
    ):
        assert sum(text in line for line in lines) == 1


def test_all_training_masks_empty_is_an_error(make_folder) -> None:
    make_folder(NAMES[:5], "set/val", seed=2)
    make_folder(NAMES[:5], "set/test", seed=3)
    folder = make_folder(NAMES, "set/train").parent
    for path in (folder / "train" / "masks").iterdir():
        Image.new("L", (40, 30)).save(path)
    with pytest.raises(DataError, match=r"all 20 masks of train are empty, such as .*n00\.png: nothing to learn"):
        resolve_split(folder)


def test_a_cut_that_leaves_only_empty_masks_in_train_is_an_error(make_folder) -> None:
    folder = make_folder(NAMES)
    held = resolve_split(folder, seed=4).test[0].name
    for path in (folder / "masks").iterdir():
        if path.stem != held:
            Image.new("L", (40, 30)).save(path)
    with pytest.raises(DataError, match="all 16 masks of train are empty"):
        resolve_split(folder, seed=4)


def test_a_list_that_is_no_text(make_folder) -> None:
    folder = make_folder(NAMES)
    write_lists(folder, train=NAMES[:10], val=NAMES[10:12], test=NAMES[12:])
    (folder / "splits" / "val.txt").write_bytes(b"\xff\xfe\x00n")
    with pytest.raises(DataError, match=r"val\.txt: can't be read .*; save it as a text file in UTF-8"):
        resolve_split(folder)


def test_a_part_without_pairs_is_not_passed_over(make_folder) -> None:
    folder = make_folder(NAMES, "set/train").parent
    (folder / "val" / "pictures").mkdir(parents=True)
    with pytest.raises(DataError, match=r"val: images/ and masks/ missing \(found: pictures\)"):
        resolve_split(folder)


def test_near_duplicates_in_a_published_split_are_noted(make_folder) -> None:
    make_folder(NAMES, "set/train")
    make_folder(NAMES[:5], "set/val", seed=2)
    folder = make_folder(NAMES[:4], "set/test", seed=3).parent
    brighter(folder / "train" / "images" / "n07.png", folder / "test" / "images" / "n01.png")
    (note,) = resolve_split(folder).notes
    assert (
        note.startswith("1 near-duplicate pair(s) across parts")
        and "n07.png (train) and" in note
        and note.endswith("test/images/n01.png (test)")
    )


def test_parts_given_by_name(make_folder) -> None:
    folder = make_folder(NAMES)
    elsewhere = make_folder(NAMES[:3], "elsewhere", seed=7)
    (folder / "mine.txt").write_text("n03\nn04\n")
    splits = resolve_split(folder, given=Given(val="mine.txt", test=elsewhere))
    found = names(splits)
    assert found["val"] == ["n03", "n04"] and len(found["test"]) == 3 and len(found["train"]) == 18
    with pytest.raises(DataError, match=r"data\.test: nowhere is neither a folder nor a list"):
        resolve_split(folder, given=Given(test="nowhere"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"split": "ration"}, "unknown split 'ration'. Did you mean 'ratio'"),
        ({"split": "folders"}, "no train/, val/ or test/"),
        ({"split": "files"}, r"no splits/train\.txt"),
    ],
)
def test_refused_options(make_folder, options: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        resolve_split(make_folder(NAMES), **options)


def test_folders_that_cannot_be_split(make_folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data folder .* does not exist; set data\.dir"):
        resolve_split(tmp_path / "gone")
    with pytest.raises(DataError, match="2 images in 2 group"):
        resolve_split(make_folder(NAMES[:2], "few"))
    only_val = make_folder(NAMES, "only/val").parent
    with pytest.raises(DataError, match=r"no training part \(found: val\)"):
        resolve_split(only_val)


def test_layout_problems_come_with_bad_files(make_folder) -> None:
    folder = make_folder(NAMES)
    (folder / "masks" / "n00.png").unlink()
    (folder / "images" / "n01.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)2 problem.*n00\.png: no mask.*n01\.png: empty file"):
        resolve_split(folder)
