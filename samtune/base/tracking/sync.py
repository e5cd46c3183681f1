"""Tells MLflow later what it lacks of a run, from the files of the run folder alone; twice is as good as once."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtune.base.folder import locked
from samtune.base.tracking.about import HISTORY, RunState, about_folder, is_artifact
from samtune.base.tracking.mlflow_run import MlflowRun, find_store
from samtune.base.tracking.tracker import reason_of
from samtune.errors import ConfigError


@dataclass(frozen=True)
class Delivered:
    """What `sync` did: the numbers and files that MLflow lacked, how the run ended, and its id there."""

    numbers: int
    files: int
    status: str
    run_id: str


def sync(folder: Path, *, parent: str | None = None) -> Delivered:
    """Tells MLflow what it lacks of a run that has ended: numbers, files, settings and how it ended.

    Args:
        parent: id of the MLflow run that it belongs to; None for the one of its config.

    Raises:
        ConfigError: no run folder, or MLflow does not take it.
        RunFolderError: the run has not ended.
    """
    if not (folder / HISTORY).is_file():
        raise ConfigError(f"{folder} is no run folder: it has no {HISTORY}. Name what 'samtune finetune' printed last.")
    with locked(folder):
        state = _ended(folder)
        state.write(folder)
        events = read_history(folder / HISTORY)
        times = [int(event["time"] * 1000) for event in events if "time" in event]
        about = about_folder(folder, state.id, begun=times[0] if times else None, parent=parent)
        artifacts = [path for path in sorted(folder.iterdir()) if is_artifact(path)]
        try:
            run = MlflowRun(find_store(), about, again=True)
            numbers = run.metrics(events)
            run.end(state.status, times[-1] if times else None)
            files = run.files(artifacts)
        except Exception as err:  # of any kind: a server may answer anything
            raise not_taken(folder, err) from err
    return Delivered(numbers, files, state.status, run.run_id)


def not_taken(folder: Path, err: Exception) -> ConfigError:
    """Words the error of a folder that MLflow does not take."""
    again = "Check MLFLOW_TRACKING_URI, then the same command goes on where it stopped"
    return ConfigError(f"MLflow does not take {folder} ({reason_of(err)}). {again}.")


def read_history(file: Path) -> list[dict[str, Any]]:
    """Returns the events of a `history.jsonl`; a last line that a full disk or a kill cut off is left out."""
    events = list[dict[str, Any]]()
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def _ended(folder: Path) -> RunState:
    """Returns how a run ended; one that could not say so, or did not keep it yet, was killed if it has no result."""
    state = RunState.read(folder) or RunState()
    if state.status != "RUNNING":
        return state
    return RunState(state.id, "FINISHED" if (folder / "report.html").is_file() else "KILLED")
