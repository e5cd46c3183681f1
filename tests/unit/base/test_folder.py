from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samtune.base.folder import MARKER, locked, new_run
from samtune.errors import DiskError, RunFolderError


def make(parent: Path, run_dir: Path | None = None, *, overwrite: bool = False) -> Path:
    with new_run(parent, run_dir, overwrite=overwrite) as folder:
        return folder


def test_runs_of_one_second_get_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    folders = [make(tmp_path / "job") for _ in range(3)]
    assert [folder.name for folder in folders] == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]
    assert all([path.name for path in folder.iterdir()] == [MARKER] for folder in folders)


def test_an_empty_folder_is_taken_and_a_used_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    assert make(tmp_path, folder) == folder
    assert make(tmp_path, folder) == folder  # with nothing but the marker, as a run leaves that was killed at once
    (folder / "config.yaml").touch()
    with pytest.raises(RunFolderError, match=r"a/b holds an earlier run. Go on with it by --resume .*/a/b, choose"):
        make(tmp_path, folder)
    make(tmp_path, folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == [MARKER]


def test_overwrite_never_empties_another_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.pdf").touch()
    (tmp_path / "config.yaml").touch()  # a common name
    with pytest.raises(RunFolderError, match=r"no run folder \(it has no \.samtune-run\); it is not emptied"):
        make(tmp_path, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.pdf").exists()


def test_runs_that_start_at_once_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make(tmp_path), range(16)))
    assert len(set(folders)) == 16


def test_a_file_in_the_way_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(DiskError, match=r"can't write to .*file.*: .*Choose a writable folder"):
            make(tmp_path, place)


def test_a_folder_in_use_is_refused_with_its_holder_even_to_overwrite(tmp_path: Path) -> None:
    holder = f"in use by process {os.getpid()}, which is this one"
    with locked(tmp_path / "run"), pytest.raises(RunFolderError, match=holder):
        make(tmp_path, tmp_path / "run", overwrite=True)
    with locked(tmp_path / "run"):  # free again
        assert json.loads((tmp_path / "run" / MARKER).read_text())["pid"] == os.getpid()


def test_the_lock_of_another_process_holds_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom samtune.base.folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunFolderError, match=f"in use by process {other.pid} on .* since 20"),
            locked(tmp_path / "run"),
        ):
            pass
        other.kill()
    with locked(tmp_path / "run"):
        pass


def test_a_fork_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    """Loader workers that outlive a killed run must not keep its folder."""
    code = (
        "import os, sys, pathlib, time\nfrom samtune.base.folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n        os.close(1); time.sleep(20); os._exit(0)\n"
        "    print('held', flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, timeout=30, check=False)
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / MARKER).read_text())["pid"] == os.getpid()
