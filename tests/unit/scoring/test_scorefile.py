"""The score file: exact, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import toy_batch, toy_model

from samtune.base.tensors import read_metadata
from samtune.errors import CheckpointError, DiskError
from samtune.scoring.file import FORMAT, check_scores_file, load_scores, save_scores
from samtune.scoring.score import score
from samtune.tasks.pixels import ContrastiveLoss
from samtune.types import Scores

SUMS = {"a/b.weight": torch.tensor([[1.0, -2.0], [0.5, 1e-30]]), "c": torch.tensor([3.0])}
SQUARES = {name: tensor.square() for name, tensor in SUMS.items()}
SCORES = Scores(SUMS, 5, 2, "11" * 32, SQUARES, "sample", "contrastive cells=128", "22" * 32)
FITS: dict[str, Any] = {"base_hash": "22" * 32, "loss": "contrastive cells=128", "per": "sample", "squares": True}


def same(first: Scores, second: Scores) -> bool:
    """Whether everything is equal, tensors bit by bit."""
    for field in ("sums", "squares"):
        a, b = getattr(first, field), getattr(second, field)
        if (a is None) != (b is None):
            return False
        if a is not None and (a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a)):
            return False
    return replace(first, sums={}, squares=None) == replace(second, sums={}, squares=None)


@pytest.mark.parametrize("squares", [SQUARES, None], ids=["squares", "no squares"])
def test_everything_comes_back(squares: dict[str, torch.Tensor] | None, tmp_path: Path) -> None:
    scores, path = replace(SCORES, squares=squares), tmp_path / "scores.safetensors"
    save_scores(scores, path)
    assert same(load_scores(path), scores)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no half-written file beside it


def test_scores_of_a_model_come_back(tmp_path: Path) -> None:
    scores = score(toy_model(), [toy_batch()], ContrastiveLoss(cells=4, temperature=0.1, seed=0), squares=True)
    save_scores(scores, tmp_path / "s")
    assert same(load_scores(tmp_path / "s"), scores)


def test_the_names_in_the_file_are_stated(tmp_path: Path) -> None:
    save_scores(SCORES, tmp_path / "s")
    assert sorted(load_file(tmp_path / "s")) == ["square/a/b.weight", "square/c", "sum/a/b.weight", "sum/c"]
    assert read_metadata(tmp_path / "s")["format"] == FORMAT == "samtune-scores-1"
    again = tmp_path / "again"
    save_scores(SCORES, again)
    assert again.read_bytes() == (tmp_path / "s").read_bytes()


def test_a_folder_that_can_not_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder would be")
    with pytest.raises(DiskError, match=r"can't write .*taken"):
        save_scores(SCORES, tmp_path / "taken" / "s")


# --- files that are none


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent does not exist"):
        load_scores(tmp_path / "absent")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_scores(SCORES, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"s is damaged"):
        load_scores(path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    save_file(SUMS, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights is no score file \(samtune-scores-1\)\. Delete the file, or"):
        load_scores(tmp_path / "weights")


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"other": torch.ones(1)}, {}),
        ({"square/b": torch.ones(1)}, {}),
        ({}, {"per": "epoch"}),
        ({}, {"batches": "-1"}),
        ({}, {"skipped": "many"}),
    ],
)
def test_parts_that_do_not_belong_together(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], tmp_path: Path
) -> None:
    good = {"format": FORMAT, "per": "batch", "batches": "1", "skipped": "0"}
    path = tmp_path / "s"
    save_file({"sum/a": torch.ones(1), **tensors}, path, metadata={**good, **metadata})
    with pytest.raises(CheckpointError, match=r"s is damaged \(its parts don't belong together\)\. Delete the file"):
        load_scores(path)


@pytest.mark.parametrize("odd", [torch.ones(1, dtype=torch.int32), torch.ones(1).half(), torch.tensor([torch.nan])])
def test_scores_are_finite_float32(odd: torch.Tensor, tmp_path: Path) -> None:
    good = {"format": FORMAT, "per": "batch", "batches": "1", "skipped": "0"}
    save_file({"sum/a": torch.ones(1), "sum/b": odd}, tmp_path / "s", metadata=good)
    with pytest.raises(CheckpointError, match=r"not finite float32 numbers \(sum/b\)\. Delete the file"):
        load_scores(tmp_path / "s")


# --- files that do not fit


def test_scores_that_fit() -> None:
    check_scores_file(SCORES, **FITS)
    check_scores_file(SCORES, **FITS, images_hash="11" * 32)
    check_scores_file(SCORES, **{**FITS, "squares": False})  # more than is needed
    check_scores_file(replace(SCORES, squares=None), **{**FITS, "squares": False})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_hash": "33" * 32}, r"another model \(weights 222222222222, here 333333333333\)"),
        ({"loss": "task"}, r"another loss \(contrastive cells=128, here task\)"),
        ({"per": "batch"}, r"of one gradient per sample, here per batch"),
        ({"images_hash": "44" * 32}, r"of other images \(hash 111111111111, here 444444444444\)"),
    ],
)
def test_what_differs_is_named_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message + r"\. Delete the file, or give another score\.file\."):
        check_scores_file(SCORES, **{**FITS, **changes})


def test_missing_squares_and_origins() -> None:
    with pytest.raises(CheckpointError, match=r"without squared gradients, which this method or report needs\. Del"):
        check_scores_file(replace(SCORES, squares=None), **FITS)
    with pytest.raises(CheckpointError, match=r"weights not known, here 2{12}\); of another loss \(not known, here"):
        check_scores_file(replace(SCORES, base_hash="", loss=""), **FITS)


def test_what_a_pass_took_is_kept_where_it_is_known(tmp_path: Path) -> None:
    save_scores(replace(SCORES, seconds=1.25, memory_mib=300.5), tmp_path / "s")
    assert (load_scores(tmp_path / "s").seconds, load_scores(tmp_path / "s").memory_mib) == (1.25, 300.5)
    save_scores(SCORES, tmp_path / "t")
    assert load_scores(tmp_path / "t").seconds is None


def test_a_file_of_an_older_version_is_of_gradients(tmp_path: Path) -> None:
    save_scores(SCORES, tmp_path / "s")
    metadata = {key: value for key, value in read_metadata(tmp_path / "s").items() if key != "of"}
    old = {key: value for key, value in metadata.items() if not key.startswith("samtune_")}
    save_file(load_file(tmp_path / "s"), tmp_path / "old", old)
    assert same(load_scores(tmp_path / "old"), SCORES)
    save_file(load_file(tmp_path / "s"), tmp_path / "odd", {**old, "of": "outputs"})
    with pytest.raises(CheckpointError, match="odd is damaged"):
        load_scores(tmp_path / "odd")
