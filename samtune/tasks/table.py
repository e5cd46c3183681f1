"""The kinds of jobs by name. One more is one folder beside this module, or one of yours, and one line here.

Nothing of a task is imported before its name is asked for: its settings are light, the rest needs torch.
"""

from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

from samtune.config.sections import Config
from samtune.errors import CheckpointError, unknown_name
from samtune.files.description import Description, model_metadata
from samtune.files.description import task_of as named_task
from samtune.tasks.task import Task


@dataclass(frozen=True)
class TaskEntry:
    """A row of `TASKS`: `module:class` of the settings, which needs no torch, and of the `Task`."""

    config: str
    task: str

    def settings(self) -> type[Config]:
        """Returns the class of the settings."""
        return cast(type[Config], resolve_name(self.config))

    def load(self) -> type[Task[Any]]:
        """Returns the class of the task."""
        return cast(type[Task[Any]], resolve_name(self.task))


TASKS: dict[str, TaskEntry] = {
    "segmentation": TaskEntry(
        "samtune.tasks.masks.config:SegmentationConfig", "samtune.tasks.masks.task:SegmentationTask"
    ),
    "classification": TaskEntry(
        "samtune.tasks.classes.config:ClassificationConfig", "samtune.tasks.classes.task:ClassificationTask"
    ),
    "semantic": TaskEntry("samtune.tasks.semantic.config:SemanticConfig", "samtune.tasks.semantic.task:SemanticTask"),
    "instances": TaskEntry(
        "samtune.tasks.instances.config:InstanceConfig", "samtune.tasks.instances.task:InstanceTask"
    ),
}


def task_of(config: Config) -> Task[Any]:
    """Returns the task of a config, built from it."""
    return TASKS[config.task].load()(config)


def task_of_file(path: Path) -> type[Task[Any]]:
    """Returns the task of a merged file or bundle; a `CheckpointError` for another file, or one of no known task."""
    name = named_task(model_metadata(path), path)
    if name not in TASKS:
        raise CheckpointError(f"{path} is for another program: {unknown_name('task', name, TASKS)}")
    return TASKS[name].load()


def describe_file(path: Path) -> Description:
    """Returns what a merged file or bundle says about itself, in the terms of its task; raises as `task_of_file`."""
    return task_of_file(path).description.read(path)


def task_of_data(folder: Path, name: str | None) -> type[Task[Any]]:
    """Returns the last task whose layout a folder has, or which knows `name`; else the first, which says why not."""
    tasks = [entry.load() for entry in TASKS.values()]
    fitting = (task for task in reversed(tasks) if (task.recognises(folder) if name is None else task.knows(name)))
    return next(fitting, tasks[0])
