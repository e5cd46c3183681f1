"""kill -9 at 24 moments of a run: what is resumed ends with the files of the undisturbed run, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from job import LITE, Prepare, Undisturbed, both, die, finetune, in_child, saving_always, trap, truths

from samtune.run import phases, publish, recipe, select
from samtune.run.checkpoints import store as checkpoint
from samtune.run.checkpoints.keep import RunKeeper, ScoreKeeper
from samtune.run.updates import Updates
from samtune.scoring import score


def at(owner: Any, name: str, nth: int = 1, *, after: bool = False) -> Prepare:
    return trap(owner, name, nth, die, after=after)


MOMENTS = {
    "before anything is measured": at(recipe, "measure_before"),
    "while the untuned model is measured": at(publish, "peak_mib"),
    "after it is measured": at(recipe, "measure_before", after=True),
    "after the first scoring batch": at(ScoreKeeper, "offer", after=True),
    "in the second scoring batch": at(score._Gradients, "take", 2),
    "after the scores": at(select, "selection_from"),
    "after the selection": at(phases, "save_selection", after=True),
    "in the first step": at(Updates, "_update"),
    "in mid-epoch": at(Updates, "_update", 2),
    "between steps": at(RunKeeper, "due", 2),
    "in a validation": at(Updates, "averaged"),
    "in the second epoch": at(Updates, "_update", 5),
    "after the last step": at(RunKeeper, "due", 9, after=True),
    "before the merge": at(recipe, "merge_and_audit"),
    "in the merge": at(recipe, "merge_and_audit", after=True),
    "before the report": at(recipe, "save_pages"),
}


def half_written(share: float) -> Prepare:
    """Kills in the write of the third checkpoint's values, when that share of the bytes is on the disk."""

    def prepare() -> None:
        real, calls = checkpoint._write, 0

        def trapped(path: Path, content: bytes) -> None:
            nonlocal calls
            calls += path.name == "values.safetensors"
            if calls == 5 and path.name == "values.safetensors":
                path.write_bytes(content[: int(share * len(content))])
                die()
            real(path, content)

        checkpoint._write = trapped

    return prepare


SAVING = {
    "before the first file": half_written(0.0),
    "at 25 % of the bytes": half_written(0.25),
    "at 50 % of the bytes": half_written(0.5),
    "at 75 % of the bytes": half_written(0.75),
    "before the manifest": at(checkpoint, "_sync", 7),
    "before the rename": at(Path, "rename", 4),
    "before LATEST": at(Path, "rename", 4, after=True),
    "in the pruning": at(shutil, "rmtree", 12),
}


@pytest.mark.parametrize("moment", [*MOMENTS, *SAVING])
def test_a_killed_run_ends_as_if_nothing_had_happened(moment: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    work = finetune(undisturbed.data, tmp_path / "run")
    killed = in_child(work, prepare=both(saving_always, (MOMENTS | SAVING)[moment]))
    assert killed.code == -9, killed.said
    resumed = in_child(work, prepare=saving_always)
    assert resumed.code == 0, resumed.said
    assert truths(tmp_path / "run") == undisturbed.truths


def test_a_killed_run_of_sam_lite_ends_as_if_nothing_had_happened(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Its parameters lie in the selection's file in another order than that of the choice."""
    assert in_child(finetune(undisturbed.data, tmp_path / "whole", *LITE), prepare=saving_always).code == 0
    work = finetune(undisturbed.data, tmp_path / "run", *LITE)
    for moment in ("in the second scoring batch", "in mid-epoch"):
        assert in_child(work, prepare=both(saving_always, MOMENTS[moment])).code == -9
    resumed = in_child(work, prepare=saving_always)
    assert resumed.code == 0, resumed.said
    assert truths(tmp_path / "run") == truths(tmp_path / "whole")
