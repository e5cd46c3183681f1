"""The kinds of jobs by name. One more task is one file and one line here."""

from __future__ import annotations

from samtune.tasks.classes.task import ClassificationTask
from samtune.tasks.masks.task import SegmentationTask
from samtune.tasks.task import Task

TASKS: dict[str, Task] = {"segmentation": SegmentationTask(), "classification": ClassificationTask()}

__all__ = ["TASKS", "Task"]
