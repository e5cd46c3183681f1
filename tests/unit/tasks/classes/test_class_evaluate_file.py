"""Evaluation of a classifier's file: which parts are refused, and what ImageNet-C needs before and leaves behind."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from class_trees import WNIDS, write_class_folders, write_imagenet_c
from descriptions import class_description
from toyvit import toy_classifier

from samtune.errors import ConfigError, DataError, DiskError
from samtune.files.merged import save_merged
from samtune.metrics.corruption import ALEXNET_ERRORS
from samtune.tasks.classes import corruptions as class_corruptions
from samtune.tasks.classes.corruptions import evaluate_corruptions
from samtune.tasks.classes.evaluate import evaluate_classifier
from samtune.tasks.evaluate import Evaluation

SEVERITIES = range(1, 6)


def save_toy(path: Path, classes: tuple[str, ...]) -> Path:
    model = toy_classifier("vit")
    save_merged(path, model, class_description(model, classes=classes, resize="squash", base_hash="0"))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("model") / "merged.safetensors", WNIDS[:3])


@pytest.fixture(scope="module")
def corruptions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_imagenet_c(folder, images=1, corruptions=ALEXNET_ERRORS, severities=SEVERITIES, size=16)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The corruption of each evaluation, in order."""
    seen: list[str] = []
    real = class_corruptions._report

    def report(model: Any, info: Any, images: Any, **options: Any) -> Any:
        seen.append("/".join(images[0].name.split("/")[:2]))
        return real(model, info, images, **options)

    monkeypatch.setattr(class_corruptions, "_report", report)
    yield seen


def test_all_corruptions_count_alike(checkpoint: Path, corruptions: Path, evaluated: list[str], tmp_path: Path) -> None:
    table = evaluate_corruptions(Evaluation(checkpoint, corruptions, out=tmp_path / "out", device="cpu"))
    assert evaluated == [f"{kind}/{severity}" for kind in ALEXNET_ERRORS for severity in SEVERITIES]
    assert list(table.errors) == list(ALEXNET_ERRORS) and all(len(values) == 5 for values in table.errors.values())
    assert {round(3 * error, 6) for values in table.errors.values() for error in values} <= {0, 1, 2, 3}
    fog = 100 * sum(table.errors["fog"]) / 5 / ALEXNET_ERRORS["fog"]
    assert table.corruption_errors["fog"] == pytest.approx(fog)
    written = json.loads((tmp_path / "out" / "corruptions.json").read_text())
    assert written == {
        "errors": table.errors,
        "corruption_errors": table.corruption_errors,
        "mean_corruption_error": table.mean_corruption_error,
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["corruptions.json"]


def test_missing_parts_are_named_before_anything_is_evaluated(
    checkpoint: Path, evaluated: list[str], tmp_path: Path
) -> None:
    write_imagenet_c(tmp_path / "c", images=1, size=16)  # two corruptions at severities 1 and 5
    message = r"c lacks 71 of the 75 parts of ImageNet-C: gaussian_noise/2, .*shot_noise/1, .*\. Needed: severities 1 "
    with pytest.raises(DataError, match=message):
        evaluate_corruptions(Evaluation(checkpoint, tmp_path / "c", out=tmp_path / "out", device="cpu"))
    assert evaluated == [] and not (tmp_path / "out").exists()


def test_what_a_crash_leaves(
    checkpoint: Path, corruptions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = class_corruptions._report, iter(range(100))

    def report(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 7:
            raise MemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(class_corruptions, "_report", report)
    with pytest.raises(MemoryError):
        evaluate_corruptions(Evaluation(checkpoint, corruptions, out=tmp_path, device="cpu"))
    written = json.loads((tmp_path / "corruptions.json").read_text())
    assert list(written) == ["errors"]
    assert {kind: len(values) for kind, values in written["errors"].items()} == {"gaussian_noise": 5, "shot_noise": 2}


def test_a_folder_that_can_not_be_written_fails_at_once(
    checkpoint: Path, corruptions: Path, evaluated: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"can't write to .*file"):
        evaluate_corruptions(Evaluation(checkpoint, corruptions, out=tmp_path / "file", device="cpu"))
    assert evaluated == []


def test_the_extra_corruptions_are_left_out(
    checkpoint: Path, corruptions: Path, evaluated: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in corruptions.iterdir():
        (tmp_path / kind.name).symlink_to(kind)
    write_imagenet_c(tmp_path, images=1, corruptions=("spatter", "saturate"), severities=(1, 2), size=16)
    with caplog.at_level(logging.WARNING, logger="samtune.tasks.classes.corruptions"):
        table = evaluate_corruptions(Evaluation(checkpoint, tmp_path, device="cpu"))
    assert set(table.errors) == set(ALEXNET_ERRORS) and len(evaluated) == 75
    assert "left out: saturate/1, saturate/2, spatter/1, spatter/2" in caplog.text


def test_parts_of_masks_are_not_of_classes(tmp_path: Path) -> None:
    file = save_toy(tmp_path / "merged.safetensors", ("class_0", "class_1", "class_2"))
    write_class_folders(tmp_path / "data", train=0, val=1, test=2)
    with pytest.raises(ConfigError, match=r"--split 'all' is not for classes\. Known: auto, train, val, test"):
        evaluate_classifier(Evaluation(file, tmp_path / "data", split="all", device="cpu"))
    auto, val = (
        evaluate_classifier(Evaluation(file, tmp_path / "data", split=s, device="cpu")) for s in ("auto", "val")
    )
    assert (auto.split, auto.n_images, val.split, val.n_images) == ("test", 6, "val", 3)
