"""The kinds of jobs by name. One more task is one file and one line here."""

from __future__ import annotations

from samtune.tasks.base import Task
from samtune.tasks.classification import ClassificationTask
from samtune.tasks.segmentation import SegmentationTask

TASKS: dict[str, Task] = {"segmentation": SegmentationTask(), "classification": ClassificationTask()}

__all__ = ["TASKS", "Task"]
