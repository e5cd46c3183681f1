"""Where the numbers of a run go: `history.jsonl` first, MLflow second.

The file is the source of truth. MLflow may be missing, slow or broken: then a warning says so once, and the run goes
on without it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from samtune import environment

logger = logging.getLogger(__name__)

MLFLOW_FILE_LIMIT = 100 * 2**20  # bytes; of a larger file only the path is logged
PARAM_LIMIT = 6000  # characters that MLflow keeps


class RunLog:
    """The log of one run; a context manager, so that a crash ends the MLflow run as FAILED.

    Args:
        folder: the run folder; gets `history.jsonl`.
        mlflow: also log to MLflow.
        experiment: MLflow experiment.
        run_name: name of the MLflow run.
        params: the resolved configuration, nested.
    """

    def __init__(
        self, folder: Path, *, mlflow: bool, experiment: str, run_name: str, params: Mapping[str, Any]
    ) -> None:
        self._file = (folder / "history.jsonl").open("a", encoding="utf-8")
        self.history: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._mlflow: _MlflowRun | None = None
        if mlflow:
            try:
                self._mlflow = _MlflowRun(experiment, run_name, flatten(params))
            except Exception as err:  # whatever goes wrong in a tracker must not stop a training
                self._give_up(err)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._to_mlflow()
        status = "FINISHED" if kind is None else "KILLED" if kind in (KeyboardInterrupt, SystemExit) else "FAILED"
        if self._mlflow:
            try:
                self._mlflow.end(status)
            except Exception as err:  # as above
                self._give_up(err)

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
        if self._mlflow:
            try:
                for path in paths:
                    self._mlflow.artifact(path)
            except Exception as err:  # as above
                self._give_up(err)

    def _to_mlflow(self) -> None:
        pending, self._pending = self._pending, []
        if self._mlflow and pending:
            try:
                self._mlflow.metrics(pending)
            except Exception as err:  # as above
                self._give_up(err)

    def _give_up(self, err: Exception) -> None:
        self._mlflow = None
        logger.warning("MLflow does not take this run (%s: %s); history.jsonl has everything", type(err).__name__, err)


class _MlflowRun:
    """One MLflow run, by the client API: no global state."""

    def __init__(self, experiment: str, run_name: str, params: Mapping[str, str]) -> None:
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
        known = self.client.get_experiment_by_name(experiment)
        location = (runs / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        number = known.experiment_id if known else self.client.create_experiment(experiment, location)
        self.run_id = self.client.create_run(number, run_name=run_name).info.run_id
        self.client.log_batch(self.run_id, params=[Param(k, v[:PARAM_LIMIT]) for k, v in params.items()])

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
