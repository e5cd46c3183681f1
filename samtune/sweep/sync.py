"""Tells MLflow later what it lacks of a sweep: the run of the sweep itself, and its runs under it."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import yaml

from samtune.base.disk import write_text
from samtune.base.tracking import flatten
from samtune.base.tracking.about import HISTORY
from samtune.base.tracking.mlflow_run import About, MlflowRun, find_store
from samtune.base.tracking.sync import Delivered, not_taken, sync

PARENT = "mlflow_run.txt"
"""Holds the id of the sweep's run in MLflow."""


def is_sweep(folder: Path) -> bool:
    """Tells whether a folder is that of a sweep."""
    return (folder / "sweep.yaml").is_file()


def sync_sweep(folder: Path) -> Iterator[tuple[Path, Delivered]]:
    """Tells MLflow of a sweep that has ended, from its files alone; yields what each folder lacked, its own first.

    Raises:
        ConfigError: MLflow does not take it.
        RunFolderError: a run of it has not ended.
    """
    runs = sorted(path.parent for part in ("grid", "cells") for path in (folder / part).rglob(HISTORY))
    finished = [run for run in runs if (run / "cell.json").is_file()]
    means = _means(folder / "cells", finished)
    try:
        about = _about(folder, finished)
        run = MlflowRun(find_store(), about, known=_known(folder))
        missing = {name: mean for name, mean in means.items() if run.value(name) != mean}
        run.values(missing)
        status = "FINISHED" if len(finished) == len(runs) else "FAILED"
        run.end(status)
    except Exception as err:  # of any kind: a server may answer anything
        raise not_taken(folder, err) from err
    write_text(folder / PARENT, run.run_id + "\n")
    yield folder, Delivered(len(missing), 0, status, run.run_id)
    for path in runs:
        yield path, sync(path, parent=run.run_id)


def _about(folder: Path, finished: list[Path]) -> About:
    """Describes a sweep as its own log does; the experiment is that of its runs."""
    params = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
    track = yaml.safe_load((finished[0] / "config.yaml").read_text(encoding="utf-8")).get("track") if finished else {}
    return About((track or {}).get("experiment", "samtune"), str(params["name"]), flatten(params))


def _known(folder: Path) -> str | None:
    return (folder / PARENT).read_text(encoding="utf-8").strip() if (folder / PARENT).is_file() else None


def _means(cells: Path, finished: list[Path]) -> dict[str, float]:
    """Returns the mean over the seeds of each reported value of the table, by `task/row/name`."""
    values: dict[str, list[float]] = {}
    for run in (run for run in finished if run.is_relative_to(cells)):
        report = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        row = run.relative_to(cells).as_posix().rpartition("_")[0]  # without the seed
        for name in (name for name in report["ci95"] if report[name] is not None):
            values.setdefault(f"{row}/{name}", []).append(report[name])
    return {name: fmean(found) for name, found in values.items()}
