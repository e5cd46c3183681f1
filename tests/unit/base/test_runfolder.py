from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samtune.base.disk import MARKER, disk_errors, open_run_folder
from samtune.errors import DiskError, RunFolderError


def test_runs_of_one_second_get_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    folders = [open_run_folder(tmp_path / "job", None, overwrite=False) for _ in range(3)]
    assert [folder.name for folder in folders] == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]
    assert all([path.name for path in folder.iterdir()] == [MARKER] for folder in folders)


def test_an_empty_folder_is_taken_and_a_used_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    assert open_run_folder(tmp_path, folder, overwrite=False) == folder
    (folder / "config.yaml").touch()
    with pytest.raises(RunFolderError, match=r"a/b holds an earlier run. Choose another --run-dir, or --overwrite it"):
        open_run_folder(tmp_path, folder, overwrite=False)
    open_run_folder(tmp_path, folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == [MARKER]


def test_overwrite_never_empties_another_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.pdf").touch()
    (tmp_path / "config.yaml").touch()  # a common name
    with pytest.raises(RunFolderError, match=r"no run folder \(it has no \.samtune-run\); it is not emptied"):
        open_run_folder(tmp_path, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.pdf").exists()


def test_runs_that_start_at_once_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: open_run_folder(tmp_path, None, overwrite=False), range(16)))
    assert len(set(folders)) == 16


def test_a_file_in_the_way_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(DiskError, match=r"can't write to .*file.*: .*Choose a writable folder"):
            open_run_folder(tmp_path, place, overwrite=False)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), disk_errors(Path("x")):
        raise KeyError("x")
