"""Two runs in one folder, folders that can't be written, and a clock that goes back."""

from __future__ import annotations

import os
import time
from pathlib import Path

from job import SETTINGS, Undisturbed, finetune, in_child, samtune, trap, truths

from samtune.base.folder import locked
from samtune.run.updates import Updates


def test_a_second_run_in_a_folder_is_refused(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        second = in_child(finetune(undisturbed.data, tmp_path / "run"))
    assert second.code == 8
    assert f"in use by process {os.getpid()} on" in second.said


def test_overwrite_does_not_empty_the_folder_of_a_live_run(undisturbed: Undisturbed, tmp_path: Path) -> None:
    place = ("--run-dir", tmp_path / "run", "--overwrite")
    work = samtune("finetune", "--config", "polyp.yaml", *place, *SETTINGS, f"data.dir={undisturbed.data}")
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "merged.safetensors").touch()
        assert in_child(work).code == 8
        assert (tmp_path / "run" / "merged.safetensors").is_file()


def test_a_used_folder_asks_for_resume_or_overwrite(undisturbed: Undisturbed, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".samtune-run").touch()
    (tmp_path / "run" / "config.yaml").touch()
    place = ("--run-dir", tmp_path / "run")
    work = samtune("finetune", "--config", "polyp.yaml", *place, *SETTINGS, f"data.dir={undisturbed.data}")
    ended = in_child(work)
    assert ended.code == 8
    assert "--resume" in ended.said and "--overwrite" in ended.said


def test_a_live_run_can_not_be_resumed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def in_between() -> None:
        # from within the first run, as another process would
        from samtune.errors import RunFolderError

        try:
            with locked(tmp_path / "run"):
                raise AssertionError("the folder was free")
        except RunFolderError:
            os.write(2, b"refused\n")

    ended = in_child(finetune(undisturbed.data, tmp_path / "run"), prepare=trap(Updates, "_update", 2, in_between))
    assert ended.code == 0 and "refused" in ended.said


def test_a_clock_that_goes_back_changes_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def back() -> None:
        real, start = time.time, time.time()
        time.time = lambda: start - (real() - start)  # type: ignore[assignment]

    ended = in_child(finetune(undisturbed.data, tmp_path / "run"), prepare=back)
    assert ended.code == 0, ended.said
    assert truths(tmp_path / "run") == undisturbed.truths


def test_a_place_that_can_not_be_written_is_told(undisturbed: Undisturbed, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = in_child(finetune(undisturbed.data, tmp_path / "file" / "run"))
    assert ended.code == 7
    assert "Choose a writable folder" in ended.said
