"""Four files for which there is no room: exit code 7, nothing half-written, and the run goes on when there is."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from job import Prepare, Undisturbed, both, finetune, in_child, saving_always, trap, truths

from samtune.base import disk
from samtune.run import recipe
from samtune.run.checkpoints.keep import RunKeeper


def no_room() -> None:
    """From now on no file may grow beyond 2,000 bytes: writing fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))


CASES: dict[str, Prepare] = {
    "the selection": trap(recipe, "selection_of", 1, no_room),
    "a checkpoint": both(saving_always, trap(RunKeeper, "save", 3, no_room)),
    "delta and merged model": trap(recipe, "merge_and_audit", 1, no_room),
    "the report": trap(recipe, "save_pages", 1, no_room),
}


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_ends_a_run_that_goes_on_later(case: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder, work = tmp_path / "run", finetune(undisturbed.data, tmp_path / "run")
    ended = in_child(work, prepare=CASES[case])
    assert ended.code == 7, ended.said
    assert "File too large" in ended.said and "MB are free there" in ended.said
    assert not [path for path in folder.rglob("*") if path.suffix == ".part"]
    resumed = in_child(work)
    assert resumed.code == 0, resumed.said
    assert truths(folder) == undisturbed.truths


def test_a_disk_that_is_too_small_is_told_before_the_first_step(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def small() -> None:
        from samtune.run.checkpoints import space

        space.free_bytes = lambda path: 1_000_000  # type: ignore[assignment]

    ended = in_child(finetune(undisturbed.data, tmp_path / "run"), prepare=small)
    assert ended.code == 7
    assert "the run needs about" in ended.said and "and 1 MB are free" in ended.said
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert disk.free_bytes(tmp_path) > 1_000_000
