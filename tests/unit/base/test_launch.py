"""Processes that train together, by trivial commands: variables, exit codes, signals, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from samtune.base import launch as module
from samtune.base.launch import launch


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-S", "-c", code, *map(str, arguments)]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_each_process_knows_its_number_and_where_the_others_are(tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    code = (
        "import os, sys\nfound = ' '.join(os.environ[n] for n in sys.argv[2].split())\n"
        "open(sys.argv[1] + os.environ['RANK'], 'w').write(found)"
    )
    environment = dict(os.environ)
    os.environ.pop("OMP_NUM_THREADS", None)
    try:
        assert launch(python(code, f"{tmp_path}/", names), 2, threads=3) == 0
    finally:
        os.environ.update(environment)
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in range(2))
    assert first[:6] == ["0", "0", "2", "2", "0", "127.0.0.1"] and second[:2] == ["1", "1"]
    assert first[6] == second[6] and first[7] == "3"


def test_the_code_of_the_first_that_fails_counts_and_the_others_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    code = (
        "import os, sys, time\nopen(sys.argv[1] + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "if os.environ['RANK'] == '1':\n    sys.exit(5)\ntime.sleep(60)"
    )
    start = time.monotonic()
    assert launch(python(code, f"{tmp_path}/"), 2, threads=1) == 5
    assert time.monotonic() - start < 10
    assert gone(int((tmp_path / "0").read_text()))


def test_a_killed_process_is_a_failure() -> None:
    code = "import os\nif os.environ['RANK'] == '0':\n    os.kill(os.getpid(), 9)"
    assert launch(python(code), 2, threads=1) == 128 + 9


def test_signals_are_passed_on_once() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\ntime.sleep(60)"
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    assert launch(python(code), 2, threads=1) == 143
    timer.join()


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    child = (
        "import os, sys, time\nfrom samtune.base.launch import end_with_parent\nend_with_parent()\n"
        "open(sys.argv[1] + os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    parent = (
        "import sys\nfrom samtune.base.launch import launch\n"
        "launch([sys.executable, '-c', sys.argv[2], sys.argv[1]], 2, threads=1)"
    )
    with subprocess.Popen([sys.executable, "-c", parent, f"{tmp_path}/", child]) as starter:
        deadline = time.monotonic() + 20
        files = [tmp_path / str(rank) for rank in range(2)]
        while not all(file.is_file() and file.read_text() for file in files):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        starter.kill()
    pids = [int(file.read_text()) for file in files]
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
