"""May a run go on from what it left, and from where? A run folder that was used is checked against the job at hand."""

import logging
import re
from pathlib import Path
from typing import Any

from samtune.base.folder import MARKER
from samtune.base.tracking import flatten
from samtune.config.sections import Config
from samtune.data.splits import FOLDER, Splits, changed_since
from samtune.errors import CheckpointError, ConfigError, DataError, RunFolderError
from samtune.run.settings import load_config

logger = logging.getLogger(__name__)

FREE = ("train.epochs", "train.steps", "train.patience", "data.workers", "data.cache", "track.", "run.")
"""Settings that may change when a run goes on: how long, where and by what; `run.seed` may not."""
FIXED = ("run.seed",)
DONE = "report.html"
"""The last file of a run: a run that has it is complete."""
HISTORY = "history.jsonl"
COMMAND = "# command: "
"""Begins the line of a run's config that says what was typed."""


def find_run(config: Config, run_dir: Path | None) -> Path | None:
    """Returns the run that "auto" goes on with: the given folder, else the newest of this name that is not complete.

    None where there is no such run: a new one then begins.
    """
    if run_dir is not None:
        return run_dir if _is_run(run_dir) else None
    parent = config.run.dir / config.run.name
    begun = [folder for folder in parent.glob("*") if _is_run(folder) and not (folder / DONE).is_file()]
    same = [folder for folder in begun if not _changes(folder, config)]
    return max(same, key=lambda folder: ((folder / "config.yaml").stat().st_mtime_ns, folder.name), default=None)


def check_settings(folder: Path, config: Config) -> None:
    """Refuses to go on with another job.

    Raises:
        RunFolderError: the folder holds no run.
        ConfigError: settings that decide the result differ; all are named.
    """
    if not _is_run(folder):
        raise RunFolderError(f"{folder} holds no run to go on with (no {MARKER}, config.yaml and {FOLDER}/).")
    if changed := _changes(folder, config):
        free = ", ".join(f"{key}*" if key.endswith(".") else key for key in FREE)
        raise ConfigError(
            f"{folder} can't go on with other settings: {len(changed)} differ\n" + "\n".join(changed) + f"\nOnly "
            f"{free} may change. Set these back, or start a new run."
        )


def check_inputs(folder: Path, *, base_hash: str, splits: Splits[Any]) -> None:
    """Refuses to go on on another base, or with other images.

    Raises:
        CheckpointError: the weights are others than those of the run.
        DataError: images of another content, or in another part.
    """
    found = re.search(r"base_hash=(\w+)", (folder / "config.yaml").read_text(encoding="utf-8"))
    earlier = found[1] if found else ""
    if earlier != base_hash:
        raise CheckpointError(
            f"{folder} was run on another base (hash {earlier[:12]}, now {base_hash[:12]}). Set model.checkpoint to "
            "that base."
        )
    if (folder / FOLDER).is_dir() and (changed := changed_since(folder, splits)):
        names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise DataError(
            f"{folder} was run on other images: {names} changed, or went to another part. Put back what its "
            f"{FOLDER}/*.txt list, or start a new run."
        )


def check_threads(folder: Path, threads: int) -> None:
    """Warns where sums will not have the last bits that they had in the run so far."""
    found = re.search(r" threads=(\d+)", (folder / "config.yaml").read_text(encoding="utf-8"))
    if found and int(found[1]) != threads:
        logger.warning("the run had %s threads, now %d: its numbers go on, but not to the last bit", found[1], threads)


def earlier_command(folder: Path) -> str:
    """Returns what was typed when the run began; "" for a new one."""
    file = folder / "config.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.removeprefix(COMMAND) for line in lines if line.startswith(COMMAND)), "")


def _is_run(folder: Path) -> bool:
    """Tells whether a training began in a folder; `select` leaves no splits."""
    return all((folder / name).exists() for name in (MARKER, "config.yaml", FOLDER))


def _changes(folder: Path, config: Config) -> list[str]:
    """Lists the settings that must not change and did."""
    earlier = flatten(load_config((folder / "config.yaml").absolute()).model_dump(mode="json"))
    now = flatten(config.model_dump(mode="json"))
    return [
        f"  - {key}: {now.get(key, 'None')}, was {earlier.get(key, 'None')}"
        for key in sorted(earlier.keys() | now.keys())
        if _fixed(key) and earlier.get(key) != now.get(key)
    ]


def _fixed(key: str) -> bool:
    return key in FIXED or not key.startswith(FREE)
