"""One run in MLflow, by the client API: no global state.

Everything may be done twice: what MLflow has of the run is not added again. So a run that goes on, or is told later,
only adds what is missing.
"""

from __future__ import annotations

import hashlib
import logging
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtune.base import environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FILE_LIMIT = 100 * 2**20  # bytes; of a larger file only path and hash are kept
PARAM_LIMIT = 6000  # characters that MLflow keeps
WEIGHTS = ("merged.safetensors", "bundle.safetensors")
"""Not copied into an artifact store on the same machine: base and delta give them, and they are large."""

ID, FOLDER, HOST = (f"samtune.{tag}" for tag in ("id", "folder", "host"))
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class About:
    """What MLflow is told of a run when it begins there.

    Attributes:
        params: the settings by key.
        tags: `ID`, by which the run is found again, and others.
        dataset: name, digest and source of its data; None for no data.
        begun: in ms since 1970; None for now.
    """

    experiment: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: tuple[str, str, str] | None = None
    begun: int | None = None


@dataclass(frozen=True)
class Store:
    """Where runs are kept: the address of the database or server, and of files if it is a database."""

    uri: str
    artifacts: str | None

    @property
    def database(self) -> Path | None:
        """The file of a SQLite database."""
        path = self.uri.removeprefix("sqlite:///").partition("?")[0]
        return Path(path) if self.uri.startswith("sqlite:///") and not path.startswith("file:") else None


def find_store() -> Store:
    """Returns the store of `MLFLOW_TRACKING_URI`, by default `runs/mlflow.db` in the working folder.

    Imports MLflow, which takes seconds the first time, and quiets it: what goes wrong comes as an exception.
    """
    environment.set_defaults()
    import mlflow

    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.CRITICAL), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    runs = Path.cwd() / "runs"
    given = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    uri = mlflow.get_tracking_uri() if given else f"sqlite:///{runs / 'mlflow.db'}"
    return Store(uri, (runs / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None)


class MlflowRun:
    """A run that MLflow has or gets now.

    Args:
        known: its id in MLflow, if it may be there; else it is looked for by its `ID` where `again` is true.
    """

    def __init__(self, store: Store, about: About, *, known: str | None = None, again: bool = False) -> None:
        import mlflow

        self._added: set[tuple[str, int]] = set()  # (metric, step) that MLflow has
        self._files: dict[str, int | None] = {}  # sizes of the files that it has
        with _one_at_a_time(store.database):
            self.client: MlflowClient = mlflow.MlflowClient(store.uri)
            self.experiment = self._experiment(about.experiment, store.artifacts)
        found = self._by_id(known) if known is not None else None
        if found is None and again:
            found = self._by_tag(about.tags[ID])
        run = found or self._create(about)
        self.run_id: str = run.info.run_id
        self._status: str = run.info.status
        self._tags: dict[str, str] = dict(run.data.tags)
        self._values: dict[str, float] = dict(run.data.metrics)
        self._is_local = (run.info.artifact_uri or "").startswith(("file:", "/"))
        if found:
            self._read(run)
        self._describe(run, about)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        if found := self.client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name, artifacts))
        except MlflowException:  # another run was quicker
            if found := self.client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def _by_id(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException:
            return None  # of another server, or deleted

    def _by_tag(self, value: str) -> Run | None:
        found = self.client.search_runs([self.experiment], f"tags.`{ID}` = '{value}'", max_results=1)
        return found[0] if found else None

    def _create(self, about: About) -> Run:
        from mlflow.tracking.context import registry

        tags = registry.resolve_tags() | dict(about.tags)
        return self.client.create_run(self.experiment, about.begun, tags, about.name)

    def _read(self, run: Run) -> None:
        """Finds out what MLflow has of the run."""
        for name in run.data.metrics:
            self._added |= {(name, metric.step) for metric in self.client.get_metric_history(self.run_id, name)}
        self._files = dict(self._stored(None))

    def _stored(self, folder: str | None) -> Iterator[tuple[str, int | None]]:
        for item in self.client.list_artifacts(self.run_id, folder):
            if item.is_dir:
                yield from self._stored(item.path)
            else:
                yield item.path, item.file_size

    def _describe(self, run: Run, about: About) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        # a parameter that differs keeps its first value: MLflow refuses a change
        missing = [Param(k, v[:PARAM_LIMIT]) for k, v in about.params.items() if k not in run.data.params]
        for start in range(0, len(missing), 100):  # MLflow takes at most 100 at once
            self.client.log_batch(self.run_id, params=missing[start : start + 100])
        if (belongs := about.tags.get(PARENT)) is not None and self._tags.get(PARENT) != belongs:
            self.client.set_tag(self.run_id, PARENT, belongs)
        if about.dataset is not None and not (run.inputs and run.inputs.dataset_inputs):
            name, digest, source = about.dataset
            data = Dataset(name, digest[:36], source_type="local", source=source)
            inputs = DatasetInput(data, [InputTag("mlflow.data.context", "training")])
            self.client.log_inputs(self.run_id, [inputs])

    def begin(self) -> None:
        """Says that the run goes on, if it had ended."""
        if self._status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"

    def value(self, name: str) -> float | None:
        """Returns the value of a name that MLflow had at first; None if it had none."""
        return self._values.get(name)

    def values(self, values: Mapping[str, float]) -> None:
        """Sets values that are not of a step; the last one counts."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value)

    def metrics(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Adds the finite numbers of events of `RunLog` as `split/name`; returns how many were missing."""
        from mlflow.entities import Metric

        entries: dict[tuple[str, int], Metric] = {}
        for event in events:
            step = int(event.get("step", 0))
            for name, value in event.items():
                key = (f"{event.get('split', 'run')}/{name}", step)
                number = isinstance(value, int | float) and math.isfinite(value)
                if number and name not in ("time", "step", "split") and key not in self._added:
                    entries[key] = Metric(key[0], float(value), int(event.get("time", 0) * 1000), step)
        missing = list(entries.values())
        for start in range(0, len(missing), 1000):  # MLflow takes at most 1000 at once
            self.client.log_batch(self.run_id, metrics=missing[start : start + 1000])
        self._added |= entries.keys()
        return len(missing)

    def files(self, paths: Sequence[Path]) -> int:
        """Adds files and folders, small ones first; returns how many files were missing.

        Of weights in a store on this machine, and of any file above the limit, a tag says path and SHA-256.
        """
        found = [(file.stat().st_size, file, path.parent) for path in paths for file in _files(path)]
        return sum(self._file(file, size, root) for size, file, root in sorted(found))

    def _file(self, file: Path, size: int, root: Path) -> bool:
        """Adds a file, unless it is there; returns whether it was missing."""
        name = file.relative_to(root)
        if size > FILE_LIMIT or (self._is_local and file.name in WEIGHTS):
            key, text = f"file/{name.as_posix()}", _path_and_hash(file)
            if self._tags.get(key) == text:
                return False
            self.client.set_tag(self.run_id, key, text)
            self._tags[key] = text
            return True
        if self._files.get(name.as_posix()) == size:
            return False
        folder = name.parent.as_posix()
        self.client.log_artifact(self.run_id, str(file), None if folder == "." else folder)
        self._files[name.as_posix()] = size
        return True

    def end(self, status: str, at: int | None = None) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, at a time in ms since 1970, by default now."""
        if self._status != status:
            self.client.set_terminated(self.run_id, status, at)
            self._status = status

    def end_others(self, ended_as: Callable[[Path, str], str | None]) -> None:
        """Ends runs of this machine that still count as running, but were killed or could not say that they ended.

        Args:
            ended_as: returns how the run with an id ended in a folder, None while it goes on.
        """
        query = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
        for run in self.client.search_runs([self.experiment], query):
            run_id, tags = run.info.run_id, run.data.tags
            status = None if run_id == self.run_id else ended_as(Path(tags.get(FOLDER, "")), tags.get(ID, ""))
            # it may have ended itself just now
            if status is not None and self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, status)


@contextmanager
def _one_at_a_time(database: Path | None) -> Iterator[None]:
    """Keeps other processes out while a database is opened: two that make the same tables both fail."""
    if database is None:
        yield
        return
    import fcntl  # not on Windows, where several first runs at once are not kept apart

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _path_and_hash(file: Path) -> str:
    with file.open("rb") as content:
        return f"{file.absolute()} sha256={hashlib.file_digest(content, 'sha256').hexdigest()}"
