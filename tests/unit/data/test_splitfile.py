"""The lists of a run's images, and the evaluation that reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
from descriptions import mask_description
from helpers import write_data
from toy import SIZE, toy_model

from samtune.base.download import file_sha256
from samtune.data import cache, splits
from samtune.data.pairs import find_pairs
from samtune.data.splits import save_splits, trained_on
from samtune.errors import DiskError
from samtune.files.merged import save_merged
from samtune.models.table import MODELS, ModelEntry
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.evaluate import evaluate_file
from samtune.tasks.masks.splits import resolve_split


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", train=3, val=1, test=2)


@pytest.fixture
def checkpoint(data: Path, tmp_path: Path) -> Path:
    """A file in a run folder that says what was trained on."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_splits(folder, resolve_split(data))
    return folder / "merged.safetensors"


def test_a_line_is_a_name_and_the_hash_of_the_image(data: Path, checkpoint: Path) -> None:
    lines = {path.name: path.read_text().splitlines() for path in (checkpoint.parent / "splits").iterdir()}
    assert {name: len(part) for name, part in lines.items()} == {"train.txt": 3, "val.txt": 1, "test.txt": 2}
    assert lines["train.txt"][1] == f"p01\t{file_sha256(data / 'images' / 'p01.png')}"


def test_the_content_counts_and_not_the_name(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    parts = resolve_split(data)
    assert [trained_on(checkpoint, pairs) for pairs in (parts.train, parts.val, parts.test)] == [3, 0, 0]
    assert trained_on(checkpoint, find_pairs(write_data(tmp_path / "other", seed=1))) == 0  # the same names
    shutil.copy(data / "images" / "p00.png", data / "images" / "renamed.png")
    shutil.copy(data / "masks" / "p00.png", data / "masks" / "renamed.png")
    assert trained_on(checkpoint, find_pairs(data)) == 4


def test_a_huge_part_has_sizes_and_no_file_is_read_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    monkeypatch.setattr(splits, "HASHED", 1)
    parts = resolve_split(data)
    for _ in range(2):
        save_splits(tmp_path, parts)
        assert trained_on(tmp_path / "merged.safetensors", parts.train) == 3
    assert sorted(read) == [pair.image for pair in (*parts.train, *parts.val)]
    first = (tmp_path / "splits" / "test.txt").read_text().splitlines()[0]
    assert first == f"{parts.test[0].name}\t{parts.test[0].image.stat().st_size}"


def test_without_a_list_nothing_is_known(data: Path, tmp_path: Path) -> None:
    assert trained_on(tmp_path / "merged.safetensors", find_pairs(data)) == 0


def test_a_folder_that_can_not_be_written_is_a_disk_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"can't write to .*file"):
        save_splits(tmp_path / "file", resolve_split(data))


@pytest.mark.parametrize(("split", "warning"), [("all", "3 of 6"), ("train", "3 of 3"), ("auto", None)])
def test_evaluating_on_training_images_is_said(
    data: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture, split: str, warning: str | None
) -> None:
    entry = ModelEntry("toy:build_toy", "masks")
    with patch.dict(MODELS, {"toy": entry}):
        info = mask_description(model="toy", image_size=SIZE, prompt="none", base_hash="0")
        save_merged(checkpoint, toy_model(), info)
        evaluate_file(Evaluation(checkpoint, data, device="cpu", split=split))
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    meaning = "evaluated images were trained on; the numbers say nothing about new images"
    assert said == ([f"{warning} {meaning}"] if warning else [])
