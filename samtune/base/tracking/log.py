"""Where the numbers of a run go: `history.jsonl` first, MLflow second.

The file is the source of truth. MLflow may be missing, slow or broken: then a warning says so once, the run goes on
without it, and `samtune sync` tells it later.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from samtune.base.disk import disk_errors, write_text
from samtune.base.tracking.about import HISTORY, RunState, about_run, ended_as, flatten, is_artifact
from samtune.base.tracking.mlflow_run import About, MlflowRun, find_store
from samtune.base.tracking.tracker import Tracker, reason_of, warn
from samtune.errors import DiskError


class _Log:
    """A context manager over a tracker, or none."""

    _tracker: Tracker | None

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None if there is none, or none yet."""
        return self._tracker.run_id if self._tracker else None

    def __enter__(self) -> Self:
        return self


class RunLog(_Log):
    """The log of one run, a context manager: a crash ends its MLflow run as FAILED, a signal as KILLED.

    Args:
        params: all settings.
        parent: id of the MLflow run that it belongs to.
        known: id of its own MLflow run, if that began before; without it the run is found by the folder.
        history: events to go on from; the file gets exactly these first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mlflow: bool,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        parent: str | None = None,
        known: str | None = None,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.history: list[dict[str, Any]] = [dict(event) for event in history]
        self._folder, self._told, self._artifacts = folder, 0, list[Path]()
        before = RunState.read(folder)
        self._state = RunState(before.id) if before else RunState()
        self._state.write(folder)
        write_text(folder / HISTORY, "".join(json.dumps(event) + "\n" for event in self.history))
        with disk_errors(folder / HISTORY):
            self._file = (folder / HISTORY).open("a", encoding="utf-8")
        about = about_run(folder, self._state.id, params, experiment=experiment, name=run_name, parent=parent)
        remedy = f"{HISTORY} has everything, to tell it later: samtune sync {shlex.quote(str(folder))}"
        again = before is not None
        self._tracker = _tracker(about, known=known, again=again, remedy=remedy) if mlflow else None
        if self._tracker is not None:
            self._tracker.do(lambda run: run.end_others(ended_as))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        status = _status(kind)
        with suppress(OSError):  # a full disk must not keep MLflow from hearing of it
            self._file.close()
        with suppress(DiskError):
            RunState(self._state.id, status).write(self._folder)
        if self._tracker is not None:
            self._tell()
            self._tracker.do(lambda run: run.end(status))
            self._tracker.do(lambda run: run.files(self._artifacts))  # last: large ones may come too late
            self._tracker.close(patient=kind is None)

    def event(self, event: Mapping[str, Any]) -> None:
        """Writes one event: "step", "epoch", "split" and values by name; what is not finite is null.

        Steps of training go to MLflow with the next event of another split.

        Raises:
            DiskError: the file can't be written.
        """
        record = {"time": round(time.time(), 3)} | {name: _finite(value) for name, value in event.items()}
        with disk_errors(self._folder / HISTORY):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self.history.append(record)
        if event.get("split") != "train":
            self._tell()

    def artifacts(self, paths: Sequence[Path]) -> None:
        """Hands files and folders of the run to MLflow, at its end; what is no result is left out."""
        self._artifacts += [path for path in paths if is_artifact(path)]

    def _tell(self) -> None:
        pending, self._told = self.history[self._told :], len(self.history)
        if pending and self._tracker:
            self._tracker.do(lambda run: run.metrics(pending))


class SweepLog(_Log):
    """The MLflow run that the runs of a sweep belong to; a sweep that goes on finds its id in `mlflow_run.txt`."""

    def __init__(self, folder: Path, *, mlflow: bool, experiment: str, name: str, params: Mapping[str, Any]) -> None:
        self._failed = False
        file = folder / "mlflow_run.txt"
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        about, remedy = About(experiment, name, flatten(params)), "the sweep's folder has everything"
        self._tracker = _tracker(about, known=known, again=False, remedy=remedy) if mlflow else None
        if self._tracker is not None and (run_id := self._tracker.wait_for_id()):
            write_text(file, run_id + "\n")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        status = "FAILED" if self._failed else _status(kind)
        if self._tracker is not None:
            self._tracker.do(lambda run: run.end(status))
            self._tracker.close(patient=kind is None)

    def end(self, means: Mapping[str, float], *, failed: bool) -> None:
        """Logs the means of the table, and notes whether a run failed."""
        self._failed = failed
        if self._tracker is not None:
            self._tracker.do(lambda run: run.values(means))


def _tracker(about: About, *, known: str | None, again: bool, remedy: str) -> Tracker | None:
    try:
        store = find_store()  # here, not in the thread: it depends on the working folder, and imports much
    except Exception as err:
        warn(reason_of(err), remedy)
        return None

    def begin() -> MlflowRun:
        run = MlflowRun(store, about, known=known, again=again)
        run.begin()
        return run

    return Tracker(store, begin, remedy=remedy)


def _status(kind: type[BaseException] | None) -> str:
    """Returns how a run ends in MLflow's words; a signal comes as `SystemExit`."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED"


def _finite(value: Any) -> Any:
    """Returns None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
