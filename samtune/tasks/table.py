"""The kinds of jobs by name. One more is one folder beside this module, or one of yours, and one line here.

Nothing of a task is imported before its name is asked for: its settings are light, the rest needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from samtune.config.sections import Config
from samtune.errors import CheckpointError, unknown_name
from samtune.files.description import Description, model_metadata
from samtune.files.description import task_of as named_task
from samtune.tasks.task import Task


@dataclass(frozen=True)
class TaskEntry:
    """A row of `TASKS`.

    Attributes:
        config: `module:class` of the settings, a `Config`; importing it needs no torch.
        task: `module:class` of the `Task`.
    """

    config: str
    task: str

    def settings(self) -> type[Config]:
        """Returns the class of the settings."""
        found: type[Config] = _load(self.config)
        return found

    def load(self) -> type[Task[Any]]:
        """Returns the class of the task."""
        found: type[Task[Any]] = _load(self.task)
        return found


TASKS: dict[str, TaskEntry] = {
    "segmentation": TaskEntry(
        "samtune.tasks.masks.config:SegmentationConfig", "samtune.tasks.masks.task:SegmentationTask"
    ),
    "classification": TaskEntry(
        "samtune.tasks.classes.config:ClassificationConfig", "samtune.tasks.classes.task:ClassificationTask"
    ),
}


def task_of(config: Config) -> Task[Any]:
    """Returns the task of a config, built from it."""
    return TASKS[config.task].load()(config)


def task_of_file(path: Path) -> type[Task[Any]]:
    """Returns the task that a merged file or bundle is for.

    Raises:
        CheckpointError: missing, damaged, no merged file, or of a task that is not in the table.
    """
    name = named_task(model_metadata(path), path)
    if name not in TASKS:
        raise CheckpointError(f"{path} is for another program: {unknown_name('task', name, TASKS)}")
    return TASKS[name].load()


def describe_file(path: Path) -> Description:
    """Returns what a merged file or bundle says about itself, in the terms of its task; raises as `task_of_file`."""
    return task_of_file(path).description.from_metadata(model_metadata(path), path)


def task_of_data(folder: Path, name: str | None) -> type[Task[Any]]:
    """Returns the task whose layout a data folder has, later rows asked first; where none has, the first says why.

    Args:
        folder: of the images.
        name: of a known data set, which says more than the layout.
    """
    tasks = [entry.load() for entry in TASKS.values()]
    fitting = (task for task in reversed(tasks) if (task.recognises(folder) if name is None else task.knows(name)))
    return next(fitting, tasks[0])


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
