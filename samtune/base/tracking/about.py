"""What is MLflow told of a run, and how is it found there again?"""

import json
import re
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from samtune.base.disk import write_json
from samtune.base.folder import locked
from samtune.base.tracking.mlflow_run import FOLDER, HOST, ID, PARENT, About
from samtune.errors import SamtuneError

HISTORY, STATE = "history.jsonl", "tracking.json"


@dataclass(frozen=True)
class RunState:
    """What a run folder keeps of its tracking: an id of its own, by which MLflow knows it, and how the run ended."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: str = "RUNNING"

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Returns the state in a folder; None if there is none that can be read."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        return None

    def write(self, folder: Path) -> None:
        """Writes the state into a folder."""
        write_json(folder / STATE, asdict(self))


def is_artifact(path: Path) -> bool:
    """Tells whether MLflow gets a file or folder of a run folder: what is a result."""
    return not path.name.startswith(".") and path.name not in (HISTORY, STATE, "checkpoints")


def ended_as(folder: Path, own_id: str) -> str | None:
    """Returns how the run with this id in a folder ended; None if it goes on, or nothing is known as it is not here."""
    state = RunState.read(folder)
    if state is None:
        return None
    if state.id != own_id:
        return "KILLED"  # another run took its place
    try:
        with locked(folder):
            return "KILLED" if state.status == "RUNNING" else state.status
    except SamtuneError:
        return None


def about_folder(folder: Path, own_id: str, *, begun: int | None, parent: str | None = None) -> About:
    """Returns what MLflow is told of a run, by the config in its folder; `begun` is in ms since 1970.

    `parent` takes the place of the config's.
    """
    found = None
    with suppress(OSError, yaml.YAMLError):
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    params: dict[str, Any] = found if isinstance(found, dict) else {}
    track, run = params.get("track") or {}, params.get("run") or {}
    experiment, name = str(track.get("experiment", "samtune")), str(run.get("name", folder.name))
    parent = parent or track.get("parent")
    return about_run(folder, own_id, params, experiment=experiment, name=name, parent=parent, begun=begun)


def about_run(
    folder: Path,
    own_id: str,
    params: Mapping[str, Any],
    *,
    experiment: str,
    name: str,
    parent: str | None,
    begun: int | None = None,
) -> About:
    """Returns what MLflow is told of a run: its name has the method, its tags say what and where it is."""
    select = params.get("select") or {}
    method = "given selection" if select.get("file") else str(select.get("name", ""))
    model = (params.get("model") or {}).get("name", "")
    facts = {"method": method, "model": str(model), "task": str(params.get("task", ""))}
    tags = {f"samtune.{fact}": text for fact, text in facts.items()}
    tags |= {ID: own_id, FOLDER: str(folder.resolve()), HOST: socket.gethostname()}
    tags |= {} if parent is None else {PARENT: parent}
    full_name = f"{name} {method}".strip()
    return About(experiment, full_name, flatten(params), tags, _dataset(folder, params.get("data") or {}), begun)


def _dataset(folder: Path, data: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Returns name, digest of the parts, and place of a run's data."""
    if "dir" not in data:
        return None
    place, header = Path(str(data["dir"])), ""
    with suppress(OSError):
        header = (folder / "config.yaml").read_text(encoding="utf-8")
    splits = re.search(r"splits=(\w+)", header)
    return str(data.get("name") or place.name or place), splits[1] if splits else "unknown", str(place)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested settings as `section.key` -> text."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat
