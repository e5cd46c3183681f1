"""The engine of all cuts, and that cuts stay what they were: numbers of old runs depend on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from class_trees import write_class_folders
from PIL import Image

from samtune.data.facts import group_near, hash_images
from samtune.data.pairs import find_pairs
from samtune.data.splits import Given, Reader, Splits, choose_part, cut_groups, put_given, repeated
from samtune.errors import DataError
from samtune.tasks.classes.splits import resolve_classes
from samtune.tasks.masks.splits import resolve_split


@dataclass(frozen=True)
class Picture:
    image: Path

    @property
    def name(self) -> str:
        return self.image.stem


NAMES = [f"n{i:02d}" for i in range(20)]


def brighter(source: Path) -> None:
    """Writes a near-duplicate `STEMx.png`: the same picture, a little brighter."""
    Image.fromarray(np.asarray(Image.open(source)) // 2 + 9).save(source.with_name(f"{source.stem}x.png"))


def with_duplicates(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        brighter(folder / "images" / f"{name}.png")
        shutil.copy(folder / "masks" / f"{name}.png", folder / "masks" / f"{name}x.png")
    return folder


def held(splits: Splits) -> str:
    """The names in val and in test."""
    return " ".join(item.name for item in splits.val) + " | " + " ".join(item.name for item in splits.test)


@pytest.mark.parametrize(
    ("options", "names", "digest"),
    [
        ({"seed": 0}, "n04 n04x n19 | n06 n06x n13", "91ba0f43bbe05746"),
        ({"seed": 1}, "n01 n01x n10 | n07 n16 n18", "41149219c19a2578"),
        ({"seed": 2}, "n06 n06x n18 | n07 n10 n11", "e3226e315bf01f9d"),
    ],
)
def test_cuts_of_pairs_stay_what_they_were(make_folder, options: dict, names: str, digest: str) -> None:
    """Names and digests are of the state before cuts were shared by the tasks (commit d8d99ee)."""
    splits = resolve_split(with_duplicates(make_folder(NAMES), NAMES[:7]), **options)
    assert held(splits) == names and splits.digest().startswith(digest)


def test_a_missing_part_of_pairs_is_cut_as_before(make_folder) -> None:
    make_folder(NAMES, "set/train", seed=1)
    splits = resolve_split(make_folder(NAMES[:5], "set/val", seed=2).parent, seed=3)
    assert held(splits) == "n00 n01 n02 n03 n04 | n12 n16" and splits.digest().startswith("f27878a4931935ff")


@pytest.mark.parametrize(
    ("seed", "val", "test", "digest"),
    [
        (0, "009 009x 017 000 011 015 008 008x 015", "004 015 015x 010 010x 014 000 010 018", "90993638b8a34a49"),
        (1, "001 010 019 006 016 016x 003 010 016", "006x 011 014 002 004 004x 005 005x 018", "b54811bbe54916bc"),
        (2, "013 018 018x 000 003 018 001 003 013", "010 015 015x 002 013 013x 004 010 018", "c88fc5bc0d7e9952"),
    ],
)
def test_cuts_of_classes_stay_what_they_were(tmp_path: Path, seed: int, val: str, test: str, digest: str) -> None:
    """As for pairs; three images of each class in order of the classes."""
    folder = write_class_folders(tmp_path, train=20, val=0, test=0) / "train"
    for path in sorted(folder.rglob("*.png"))[::3]:
        brighter(path)
    splits = resolve_classes(folder, seed=seed)
    classes = [f"class_{label}" for label in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    for part, stems in ((splits.val, val.split()), (splits.test, test.split())):
        assert [i.name for i in part] == [f"{place}/{stem}.png" for place, stem in zip(classes, stems, strict=True)]
    assert splits.digest().startswith(digest)
    if seed == 1:
        few = resolve_classes(folder, seed=1, shots=2, shots_seed=5)
        stems = ["012x", "015x", "001x", "015", "004", "014x"]
        assert [Path(item.name).stem for item in few.train] == stems and few.digest().startswith("7184a31e8610e7ee")


def test_groups_are_passed_over_and_every_part_gets_one() -> None:
    groups = [[0, 1, 2], [3], [4, 5], [6, 7]]
    for seed in range(5):
        parts = cut_groups(groups, {"val": 3, "test": 1, "none": 0}, (seed, 1))
        assert sorted(i for part in parts.values() for i in part) == list(range(8)) and parts["none"] == []
        assert len(parts["val"]) == 3
        assert all(
            set(group) <= set(part) or set(group).isdisjoint(part) for group in groups for part in parts.values()
        )
        assert len(parts["test"]) == (1 if 3 not in parts["val"] else 2)  # nothing fits: the smallest one
    assert cut_groups([[0, 1]], {"val": 1, "test": 1}, 0) == {"train": [], "val": [0, 1], "test": []}


def test_a_chosen_part_is_drawn_as_without_duplicates(make_folder) -> None:
    pairs = find_pairs(make_folder(NAMES, seed=1))
    assert choose_part(pairs, 0.25, 352) == ["n03", "n04", "n11", "n12", "n19"]  # sweeps chose on these before
    assert choose_part(pairs, 0.25, 352) != choose_part(pairs, 0.25, 353)
    assert choose_part(pairs, 0.04, 352) == []


def test_a_chosen_part_has_near_duplicates_on_one_side(make_folder) -> None:
    pairs = find_pairs(with_duplicates(make_folder(NAMES), NAMES[:10]))
    groups = group_near(hash_images([pair.image for pair in pairs]))
    assert sum(len(group) == 2 for group in groups) == 10
    sizes = set()
    for seed in range(8):
        chosen = choose_part(pairs, 0.17, seed)
        sizes.add(len(chosen))
        for group in groups:
            assert len({pairs[index].name in chosen for index in group}) == 1
    assert sizes == {5}  # a pair that comes when one place is left is passed over


def test_parts_that_share_an_image_are_found_once_per_file() -> None:
    where = [("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"), ("test", "e")]
    found = repeated(where, ["1", "1", "1", "2", "1"])
    assert found == [("val", "c", "train", "a"), ("test", "e", "train", "a")]


@pytest.fixture
def reader() -> Reader[Path]:
    """Reads a folder as the paths in it, and a file as the paths that it names."""
    return Reader(
        folder=lambda path: sorted(path.iterdir()),
        file=lambda path: [Path(line) for line in path.read_text().split()],
        path_of=lambda path: path,
        wanted="this nor that",
    )


def test_given_parts_replace_those_of_the_folder(tmp_path: Path, reader: Reader[Path]) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x").touch()
    (tmp_path / "list.txt").write_text("/y\n")
    parts = {"val": [Path("/a")], "test": [Path("/b")]}
    given = Given(train="more", val=tmp_path / "list.txt", test="gone")
    lines = put_given(parts, given, tmp_path, reader)
    assert parts == {"train": [tmp_path / "more" / "x"], "val": [Path("/y")], "test": []}
    assert lines == [f"data.test: gone is neither this nor that (tried gone and {tmp_path / 'gone'})"]


def test_the_working_folder_comes_first(tmp_path: Path, reader: Reader[Path], monkeypatch) -> None:
    for place, named in ((tmp_path, "/here"), (tmp_path / "data", "/there")):
        place.mkdir(exist_ok=True)
        (place / "list.txt").write_text(named)
    monkeypatch.chdir(tmp_path)
    parts: dict[str, list[Path]] = {}
    assert put_given(parts, Given(val="list.txt"), tmp_path / "data", reader) == []
    assert parts == {"val": [Path("/here")]}


def test_what_is_held_out_is_not_trained_on_however_its_path_is_written(tmp_path: Path, reader, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("b")
    train = [tmp_path / name for name in "abc"]
    parts = {"train": train, "test": [train[2]]}
    put_given(parts, Given(val="list.txt"), tmp_path, reader)
    assert parts == {"train": [train[0], train[2]], "val": [Path("b")], "test": [train[2]]}
    put_given(parts, Given(train=tmp_path / "list.txt", val="list.txt"), tmp_path, reader)
    assert parts["train"] == [Path("b")]  # what the user says; shared images are refused elsewhere


def test_few_images_are_drawn_by_the_seed_and_the_rest_stays(tmp_path: Path) -> None:
    items = [Picture(tmp_path / f"{name}.png") for name in NAMES]
    splits = Splits(items[:12], items[12:15], items[15:], ["seen"])
    few, again, other = (splits.with_few(8, seed) for seed in (1, 1, 2))
    assert few == again and [item.name for item in few.train] != [item.name for item in other.train]
    assert len(few.train) == 8 and sorted(few.train, key=items.index) == few.train and set(few.train) <= set(items[:12])
    assert (few.val, few.test) == (splits.val, splits.test)
    assert few.notes == ["8 of 12 training images, drawn with seed 1", "seen"] and splits.notes == ["seen"]
    with pytest.raises(DataError, match=r"^data\.shots is 13, but train has 12 image\(s\)\. Lower data\.shots\.$"):
        splits.with_few(13, 0)
