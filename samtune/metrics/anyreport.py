"""What the reports of all tasks have in common, as far as training, tracking and tables use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class AnyReport(Protocol):
    """The result of an evaluation of any task."""

    @property
    def split(self) -> str:
        """Which part of the data was evaluated."""

    @property
    def definition(self) -> dict[str, str]:
        """A sentence for each reported number."""

    @property
    def values(self) -> dict[str, float]:
        """The headline numbers by name, in [0, 1]; the first is what choices are made by."""

    @property
    def choice(self) -> float:
        """The first of `values`."""

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap interval (low, high) of each headline number."""

    @property
    def n_images(self) -> int:
        """Number of images."""

    def save(self, folder: Path, *, before: Any = None, trainable: Mapping[str, float] | None = None) -> None:
        """Writes `metrics.json` and `per_image.csv`."""
