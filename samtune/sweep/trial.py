"""One run of a sweep: what it does, and how it is known to be finished; and many of them at once on this machine.

`cell.json` appears when a run is complete, in one step: a sweep may be killed at any moment.
"""

import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from samtune.base.children import Children
from samtune.base.disk import write_json
from samtune.base.machine import cores
from samtune.base.tracking import flatten
from samtune.config.sections import Config
from samtune.errors import ConfigError, DiskError, NonFiniteError, RunFolderError
from samtune.sweep.plan import Cell
from samtune.tasks.table import TASKS

logger = logging.getLogger(__name__)

# Settings that do not decide a result: where things are kept, and what computes them.
MACHINE = ("score.file", "track.", "run.dir", "run.name", "run.device", "data.workers", "data.cache")
HEAVY = ("merged.safetensors", "bundle.safetensors", "delta.safetensors", "features.safetensors")


class TrialResult(TypedDict):
    """How a run ended: its name, its exit code (0 is well), and the last error of its log, or ""."""

    name: str
    code: int
    error: str


Done = Callable[[TrialResult], None]  # is told of every run that ended
RunAll = Callable[[list[Cell], Done], None]  # runs all of the cells, and returns when the last one ended


def run_trial(cell: Cell, children: Children, *, threads: int) -> TrialResult:
    """Runs `samtune finetune` in a process with so many `threads`, and writes `cell.json`; a failure raises nothing."""
    done = TrialResult(name=cell.name, code=0, error="")
    if result_file(cell).is_file():  # another process of a cluster was quicker
        return done
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "samtune", "finetune", "--config", str(cell.base), *cell.overrides]
    place = ["--run-dir", str(cell.folder), "--resume", "auto"]  # a run that was cut off goes on
    code = children.run([*command, *place], cell.log, threads)
    if code == NonFiniteError.exit_code and cell.in_grid:
        # a value with which training diverges loses: that is a result, and trying again would give the same
        lost = {"name": cell.name, "values": cell.values, "choice": None, "settings": _settings(cell.config)}
        logger.warning("%s diverged (%s): its values lose", cell.name, _last_error(cell.log, code))
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_json(result_file(cell), lost, indent=1)
        return done
    if code:
        return TrialResult(name=cell.name, code=code, error=_last_error(cell.log, code))
    try:
        facts = _facts(cell)
        shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)  # nothing goes on from here
        if cell.in_grid:
            for name in HEAVY:  # of the grid only the choice counts
                (cell.folder / name).unlink(missing_ok=True)
        write_json(result_file(cell), facts, indent=1)
    except (OSError, DiskError, ValueError, KeyError, TypeError) as err:
        return TrialResult(name=cell.name, code=1, error=f"the run left no complete result: {err!r}")
    return done


@contextmanager
def local_engine(*, jobs: int, folder: Path, address: str | None) -> Iterator[RunAll]:
    """Opens the engine that runs child processes from a pool of threads; each of the `jobs` has its share of the cores.

    Raises:
        ConfigError: an address, which only Ray can use.
    """
    if address is not None:
        raise ConfigError(f"--address {address}: only Ray runs on other machines; add --engine ray.")
    yield partial(_run_all, jobs=jobs)


def _run_all(cells: list[Cell], done: Done, *, jobs: int) -> None:
    threads = max(1, cores() // jobs)
    with Children() as children, ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(run_trial, cell, children, threads=threads) for cell in cells]):
                done(future.result())
        except BaseException:  # Ctrl-C and SIGTERM arrive here
            children.stop()
            raise


def is_finished(cell: Cell) -> bool:
    """Tells whether a cell was run; one of the grid may also have less warm-up: see `had_less_warmup`.

    Raises:
        RunFolderError: it was run with other settings, and is no result of this sweep.
    """
    if not result_file(cell).is_file():
        return False
    found, wanted = read_result(cell)["settings"], _settings(cell.config)
    if found.get("train.warmup") == str(cell.warmup):
        wanted["train.warmup"] = str(cell.warmup)
    # a key that only one of them has came with another version, but for options of timm
    both = wanted.keys() & found.keys() | {key for key in wanted | found if key.startswith("model.options.")}
    other = [
        f"{key}={found.get(key, 'nothing')}, not {wanted.get(key, 'nothing')}"
        for key in sorted(both)
        if not key.startswith(MACHINE) and wanted.get(key) != found.get(key)
    ]
    if other:
        raise RunFolderError(f"{cell.folder} was run with {'; '.join(other)}. Choose another --out, or delete it.")
    return True


def had_less_warmup(cell: Cell) -> bool:
    """Tells whether a finished run of the grid has the table's share of warm-up, and so fewer steps: an older one."""
    wanted = str(cell.config.train.warmup)
    return bool(read_result(cell)["settings"].get("train.warmup", wanted) != wanted)


def result_file(cell: Cell) -> Path:
    """Returns the file whose presence says that a cell is finished."""
    return cell.folder / "cell.json"


def read_result(cell: Cell) -> dict[str, Any]:
    """Returns the content of `cell.json`."""
    return dict(json.loads(result_file(cell).read_text(encoding="utf-8")))


def _facts(cell: Cell) -> dict[str, Any]:
    """Returns the content of `cell.json`, from the events of the run."""
    lines = (cell.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    metric = TASKS[cell.config.task].load().words.choice
    choice = [e[metric] for e in events if e["split"] == "val" and e.get(metric) is not None]
    asked: dict[str, Any] = {"name": cell.name, "task": cell.task, "row": cell.row, "title": cell.title}
    asked |= {"overrides": cell.changes, "lr": cell.config.train.lr, "values": cell.values, "edge": cell.edge}
    asked |= {"seed": cell.config.run.seed, "steps": max(event["step"] for event in events)}
    cost = costs(events)
    if "seconds" not in cost:
        raise ValueError("history.jsonl does not say how long the training took")
    return asked | cost | {"choice": max(choice, default=None), "settings": _settings(cell.config)}


def costs(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns time and memory of a run, from its events: of selecting, of the training if it has ended, of the test."""
    # apart: scores can be shared, and imports and pictures are no cost of a method
    found = {event["split"]: event for event in reversed(events) if {"split", "seconds", "memory_mib"} <= event.keys()}
    fit, test, select = found.get("fit"), found.get("test", {}), found.get("select")
    training = {"seconds": round(fit["seconds"], 1), "memory_mib": round(fit["memory_mib"])} if fit else {}
    selecting = {"select_seconds": select["seconds"], "select_memory_mib": select["memory_mib"]} if select else {}
    return selecting | training | {"test_seconds": test.get("seconds"), "test_memory_mib": test.get("memory_mib")}


def _settings(config: Config) -> dict[str, str]:
    """Returns what decides the result of a run."""
    flat = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if not key.startswith(MACHINE)}


def _last_error(log: Path, code: int) -> str:
    """Returns the last error line of a log, else its last line."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]
