"""Processes of a sweep: their share of the cores, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from processes import is_alive, until

from samtune.base.children import Children
from samtune.sweep import trial as sweep_trial
from samtune.sweep.plan import Cell


def cells(folder: Path, names: str) -> list[Cell]:
    """Planned by hand, as planning needs torch."""
    nothing: Any = None
    return [
        Cell(n, "", n, n, folder / n, folder / f"{n}.log", Path(n), (), (), nothing, False, {}, False, 0.0)
        for n in names
    ]


def test_a_child_gets_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(3)"
    status = Children().run([sys.executable, "-c", code], tmp_path / "log", 5)
    assert status == 3
    assert (tmp_path / "log").read_text() == "5\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    Children().run([sys.executable, "-c", code], tmp_path / "log", 5)
    assert (tmp_path / "log").read_text() == "2\n"


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_ends_the_children_and_no_other_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    monkeypatch.setattr("samtune.base.children.GRACE_SECONDS", 0.3 if stubborn else 20)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
    code = f"import signal, time; {ignore}print('up', flush=True); time.sleep(60)"
    children, codes, log = Children(), [], tmp_path / "log"
    thread = threading.Thread(target=lambda: codes.append(children.run([sys.executable, "-c", code], log, 1)))
    thread.start()
    while not log.is_file() or "up" not in log.read_text():
        time.sleep(0.01)
    children.stop()
    thread.join(10)
    assert codes == [-signal.SIGKILL if stubborn else -signal.SIGTERM]
    assert children.run([sys.executable, "-c", "print('late')"], log, 1) < 0
    assert "late" not in log.read_text()


def test_a_killed_parent_takes_its_children_with_it(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from samtune.base.children import Children
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
with Children() as children:
    children.run([sys.executable, "-S", "-c", "pass"], Path(sys.argv[1]), 1)
    children.run([sys.executable, "-S", "-c", sleep], Path(sys.argv[1]), 1)
"""
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", code, str(log)])
    until(lambda: log.is_file() and log.read_text().endswith("\n"))
    child = int(log.read_text())
    parent.kill()
    parent.wait()
    until(lambda: not is_alive(child), 5)


def test_the_guard_ends_with_the_children(tmp_path: Path) -> None:
    with Children() as children:
        children.run([sys.executable, "-S", "-c", "pass"], tmp_path / "log", 1)
        guard = children._guard
        assert guard is not None and guard.poll() is None
    assert guard.returncode == 0


def test_ctrl_c_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    started = threading.Event()

    def run_trial(cell: Cell, children: Children, *, threads: int) -> Any:
        if cell.name == "a":
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        codes.append(children.run([sys.executable, "-c", "import time; time.sleep(60)"], cell.log, threads))

    monkeypatch.setattr(sweep_trial, "run_trial", run_trial)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), sweep_trial.local_engine(jobs=2, folder=tmp_path, address=None) as run_all:
        run_all(cells(tmp_path, "abcdef"), lambda result: None)
    assert time.monotonic() - start < 10
    assert codes and all(code == -signal.SIGTERM for code in codes)


def test_sigterm_leaves_no_orphan(tmp_path: Path) -> None:
    # the command's own handler, the real pool, and children that only sleep
    code = """
import sys
from pathlib import Path
from samtune.base.signals import end_by_signals
from samtune.sweep import trial as sweep_trial
from test_children import cells
run = sweep_trial.Children.run
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
sweep_trial.Children.run = lambda self, command, log, threads: run(self, [sys.executable, "-c", sleep], log, threads)
end_by_signals()
with sweep_trial.local_engine(jobs=1, folder=Path(), address=None) as run_all:
    run_all(cells(Path(sys.argv[1]), "ab"), print)
"""
    log = tmp_path / "a.log"
    folders = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:3])
    environment = os.environ | {"PYTHONPATH": folders}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    until(lambda: log.is_file() and log.read_text().endswith("\n"), 30)
    child = int(log.read_text())
    parent.terminate()
    assert parent.wait(20) == 143
    assert not is_alive(child)
    assert not log.with_name("b.log").is_file() or log.with_name("b.log").read_text() == ""  # never started
