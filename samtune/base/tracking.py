"""Where the numbers of a run go: `history.jsonl` first, MLflow second.

The file is the source of truth. MLflow may be missing, slow or broken: then a warning says so once, and the run goes
on without it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from samtune.base import environment
from samtune.base.disk import write_text

logger = logging.getLogger(__name__)

MLFLOW_FILE_LIMIT = 100 * 2**20  # bytes; of a larger file only the path is logged
PARAM_LIMIT = 6000  # characters that MLflow keeps


class _Tracked:
    """What is logged to MLflow as long as that works; whatever goes wrong in a tracker must not stop a training.

    A context manager, so that a crash ends the MLflow run as FAILED.
    """

    kept_in = "history.jsonl"

    def __init__(self) -> None:
        self._mlflow: _MlflowRun | None = None
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        status = "FINISHED" if kind is None else "KILLED" if kind in (KeyboardInterrupt, SystemExit) else "FAILED"
        self._try(lambda run: run.end("FAILED" if self._failed else status))

    def _open(self, experiment: str, name: str, params: Mapping[str, Any], **options: str | None) -> None:
        try:
            self._mlflow = _MlflowRun(experiment, name, flatten(params), **options)
        except Exception as err:
            self._give_up(err)

    def _try(self, action: Callable[[_MlflowRun], None]) -> None:
        if self._mlflow:
            try:
                action(self._mlflow)
            except Exception as err:
                self._give_up(err)

    def _give_up(self, err: Exception) -> None:
        self._mlflow = None
        reason = f"{type(err).__name__}: {err}"
        logger.warning("MLflow does not take this run (%s); %s has everything", reason, self.kept_in)


class RunLog(_Tracked):
    """The log of one run; `parent` is the id of the MLflow run that it belongs to."""

    def __init__(
        self,
        folder: Path,
        *,
        mlflow: bool,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        parent: str | None = None,
        history: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Begins the file with `history`, the events of a run that goes on."""
        super().__init__()
        self.history: list[dict[str, Any]] = list(history)
        write_text(folder / "history.jsonl", "".join(json.dumps(record) + "\n" for record in history))
        self._file = (folder / "history.jsonl").open("a", encoding="utf-8")
        self._pending: list[dict[str, Any]] = []
        if mlflow:
            self._open(experiment, run_name, params, parent=parent)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        self._to_mlflow()
        super().__exit__(kind, *rest)

    def event(self, event: Mapping[str, Any]) -> None:
        """Writes one event: "step", "epoch", "split" and values by name; what is not finite is null.

        Steps of training go to MLflow with the next event of another split.
        """
        record = {"time": round(time.time(), 3)} | {name: _finite(value) for name, value in event.items()}
        self.history.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._pending.append(record)
        if event.get("split") != "train":
            self._to_mlflow()

    def artifacts(self, paths: list[Path]) -> None:
        """Hands files and folders of the run to MLflow."""
        for path in paths:
            self._try(lambda run, path=path: run.artifact(path))  # type: ignore[misc]

    def _to_mlflow(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            self._try(lambda run: run.metrics(pending))


class SweepLog(_Tracked):
    """The MLflow run that the runs of a sweep belong to; a sweep that goes on finds its id in `mlflow_run.txt`."""

    kept_in = "the sweep's folder"

    def __init__(self, folder: Path, *, mlflow: bool, experiment: str, name: str, params: Mapping[str, Any]) -> None:
        super().__init__()
        if mlflow:
            file = folder / "mlflow_run.txt"
            known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
            self._open(experiment, name, params, known=known)
            if self.run_id is not None:
                write_text(file, self.run_id + "\n")

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None if there is none."""
        return self._mlflow.run_id if self._mlflow else None

    def end(self, means: Mapping[str, float], *, failed: bool) -> None:
        """Logs the means of the table, and notes whether a run failed."""
        self._failed = failed
        self._try(lambda run: run.values(means))


class _MlflowRun:
    """One MLflow run, by the client API: no global state.

    Args:
        known: id of an earlier run to go on with, if the server still has it.
    """

    def __init__(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, str],
        *,
        parent: str | None = None,
        known: str | None = None,
    ) -> None:
        environment.set_defaults()
        import mlflow
        from mlflow.entities import Param

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        runs = Path.cwd() / "runs"
        uri = f"sqlite:///{runs / 'mlflow.db'}"
        if mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
            uri = mlflow.get_tracking_uri()  # of MLFLOW_TRACKING_URI
        else:
            runs.mkdir(exist_ok=True)
        self.client = mlflow.MlflowClient(uri)
        if known is not None and self._reopen(known):
            self.run_id = known
            return
        found = self.client.get_experiment_by_name(experiment)
        location = (runs / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        number = found.experiment_id if found else self.client.create_experiment(experiment, location)
        tags = {} if parent is None else {"mlflow.parentRunId": parent}
        self.run_id = self.client.create_run(number, run_name=name, tags=tags).info.run_id
        self.client.log_batch(self.run_id, params=[Param(k, v[:PARAM_LIMIT]) for k, v in params.items()])

    def _reopen(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return False  # of another server, or deleted
        return True

    def values(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value)

    def metrics(self, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        entries = [
            Metric(f"{event['split']}/{name}", float(value), int(event["time"] * 1000), int(event.get("step", 0)))
            for event in events
            for name, value in event.items()
            if name not in ("time", "step", "split") and isinstance(value, int | float) and math.isfinite(value)
        ]
        for start in range(0, len(entries), 1000):  # MLflow takes at most 1000 at once
            self.client.log_batch(self.run_id, metrics=entries[start : start + 1000])

    def artifact(self, path: Path) -> None:
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        elif path.stat().st_size <= MLFLOW_FILE_LIMIT:
            self.client.log_artifact(self.run_id, str(path))
        else:
            self.client.set_tag(self.run_id, f"file/{path.name}", str(path))

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


def _finite(value: Any) -> Any:
    """Returns None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested settings as `section.key` -> text."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat
