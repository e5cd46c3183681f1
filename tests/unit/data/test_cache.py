"""What was found out about a file is not found out again, whatever happens to the memory of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from samtune.data.cache import file_hashes, recall
from samtune.errors import DataError
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.splits import resolve_split

NAMES = [f"n{i:02d}" for i in range(20)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five files in two folders."""
    paths = [tmp_path / place / f"{number}.txt" for place in ("a", "b") for number in range(3)][:5]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x" * number)
    return paths


@pytest.fixture
def asked() -> list[str]:
    """The names that were looked at."""
    return []


@pytest.fixture
def look(asked: list[str]) -> Callable[[Path], list[object]]:
    def look(path: Path) -> list[object]:
        asked.append(f"{path.parent.name}/{path.name}")
        if path.stat().st_size > 10:
            raise DataError(f"{path}: too long")
        return [path.stat().st_size, ("tuple",)]

    return look


def stored(own_cache: Path) -> list[Path]:
    return sorted((own_cache / "samtune").iterdir())


def test_only_new_and_changed_files_are_looked_at(files, look, asked) -> None:
    expected = [[number, ["tuple"]] for number in range(5)]
    assert recall("q", files, look) == expected == recall("q", files[::-1], look)[::-1]
    assert sorted(asked) == ["a/0.txt", "a/1.txt", "a/2.txt", "b/0.txt", "b/1.txt"]
    asked.clear()
    added = files[0].with_name("new.txt")
    added.write_text("xxxxxxx")
    os.utime(files[3], ns=(1, 1))
    assert recall("q", [*files, added, files[0]], look)[5:] == [[7, ["tuple"]], expected[0]]
    assert sorted(asked) == ["a/new.txt", "b/0.txt"]
    asked.clear()
    assert recall("another", files[:1], look) == expected[:1] and asked == ["a/0.txt"]


def test_a_file_with_the_size_and_time_of_the_old_one_is_new(files, look, asked) -> None:
    recall("q", files, look)
    asked.clear()
    facts = files[1].stat()
    files[1].write_text("y")
    new = files[2].with_name("new.txt")
    new.write_text("zz")
    os.utime(new, ns=(1, files[2].stat().st_mtime_ns))
    new.replace(files[2])
    os.utime(files[1], ns=(1, facts.st_mtime_ns))
    recall("q", files, look)
    assert sorted(asked) == ["a/1.txt", "a/2.txt"]


def test_what_fails_is_looked_at_again(files, look, asked) -> None:
    files[1].write_text("x" * 11)
    for _ in range(2):
        error = recall("q", files, look)[1]
        assert isinstance(error, DataError) and str(error) == f"{files[1]}: too long"
    assert asked.count("a/1.txt") == 2 and len(asked) == 6
    files[1].write_text("")
    assert recall("q", files, look)[1] == [0, ["tuple"]]


@pytest.mark.parametrize("damage", ["{", "", "[]", '{"0.txt": 3}', "flip", "folder"])
def test_a_damaged_memory_is_made_anew(files, look, asked, own_cache: Path, damage: str) -> None:
    first = recall("q", files[:3], look)
    (place,) = stored(own_cache)
    if damage == "flip":
        place.write_text(place.read_text().replace('2, ["tuple"]', '3, ["tuple"]'))
    elif damage == "folder":
        place.unlink()
        place.mkdir()
    else:
        place.write_text(damage)
    assert recall("q", files[:3], look) == first and len(asked) == 6
    assert recall("q", files[:3], look) == first and len(asked) == (9 if damage == "folder" else 6)


def test_a_cache_that_can_not_be_written_is_no_obstacle(files, look, asked, tmp_path: Path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert recall("q", files, look) == recall("q", files, look) and len(asked) == 10


def test_many_at_once_never_leave_half_a_memory(files, look, own_cache: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: recall("q", files[number % 3 :], look), range(24)))
    assert all(answer == answers[number % 3] for number, answer in enumerate(answers))
    for place in stored(own_cache):
        assert place.suffix == ".json" and isinstance(json.loads(place.read_text().partition("\n")[2]), dict)


def test_files_that_are_not_there_or_have_odd_names(tmp_path: Path, look, asked) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    odd.write_text("xxx")
    assert recall("q", [odd], look) == recall("q", [odd], look) == [[3, ["tuple"]]] and len(asked) == 1
    with pytest.raises(FileNotFoundError):
        recall("q", [tmp_path / "gone"], look)
    with pytest.raises(FileNotFoundError):
        file_hashes([tmp_path / "gone"])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that Pillow opened, by their last two names."""
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda p, **o: opened.append(f"{p.parent.name}/{p.name}") or real(p, **o))
    return opened


def test_a_first_start_decodes_each_file_once(make_folder, decoded: list[str]) -> None:
    folder = make_folder(NAMES)
    everything = sorted(f"{sub}/{name}.png" for sub in ("images", "masks") for name in NAMES)
    splits = resolve_split(folder, split="ratio")
    assert len(SegmentationDataset(splits.train, image_size=32, prompt="box")) == len(splits.train)  # components
    assert sorted(decoded) == everything
    decoded.clear()
    assert resolve_split(folder, split="ratio") == splits and decoded == []
    make_folder([*NAMES[:0], "zz"], seed=5)
    assert len(resolve_split(folder, split="ratio").train) == 17
    assert sorted(decoded) == ["images/zz.png", "masks/zz.png"]
