"""Processes of a sweep: their share of the cores, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samtune import sweep_local
from samtune.children import Children
from samtune.sweep_plan import Cell


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # of a dead process that nobody has waited for yet, only the entry is left
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def cells(folder: Path, names: str) -> list[Cell]:
    """Planned by hand, as planning needs torch."""
    nothing: Any = None
    return [
        Cell(n, "", n, n, folder / n, (folder / f"{n}.log"), Path(n), (), (), nothing, False, {}, False) for n in names
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
    monkeypatch.setattr("samtune.children.GRACE_SECONDS", 0.3 if stubborn else 20)
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


def test_ctrl_c_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(jobs=2, seeds=[0, 1, 2])
    (sweep.folder / "logs").mkdir(parents=True)
    codes: list[int] = []
    started = threading.Event()

    def run_cell(cell: Cell, log: Path, threads: int, children: Children) -> int:
        if cell.name == "linear_0":
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        codes.append(children.run([sys.executable, "-c", "import time; time.sleep(60)"], log, threads))
        return codes[-1]

    monkeypatch.setattr(sweep_module, "run_cell", run_cell)
    cells = plan(sweep, dict.fromkeys(ROWS))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, sweep)
    assert time.monotonic() - start < 10
    assert codes and all(code == -signal.SIGTERM for code in codes)


def test_sigterm_leaves_no_orphan(tmp_path: Path) -> None:
    # the command's own handler, the real pool, and children that only sleep; planned by hand, as planning needs torch
    code = """
import sys
from pathlib import Path
from samtune import cli, sweep, sweepconfig
run = sweep.Children.run
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
sweep.Children.run = lambda self, command, log, threads: run(self, [sys.executable, "-c", sleep], log, threads)
cli.signal.signal(cli.signal.SIGTERM, cli._exit_143)
cells = [sweepconfig.Cell(n, n, n, Path(n), Path(n), (), (), None, False, None, False) for n in "ab"]
sweep.run_cells(cells, sweepconfig.load_sweep(sys.argv[1]))
"""
    log = tmp_path / "runs/sweeps/demo/logs/a.log"
    log.parent.mkdir(parents=True)
    parent = subprocess.Popen([sys.executable, "-c", code, str(write())])
    end = time.monotonic() + 30
    while time.monotonic() < end and not (log.is_file() and log.read_text().strip()):
        time.sleep(0.05)
    child = int(log.read_text())
    parent.terminate()
    assert parent.wait(20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not log.with_name("b.log").is_file() or log.with_name("b.log").read_text() == ""  # never started
