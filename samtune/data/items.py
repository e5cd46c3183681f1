"""What every data set consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Item(Protocol):
    """An image with its truth: a pair of image and mask, or an image with a class."""

    @property
    def name(self) -> str:
        """The name, unique in its data set."""

    @property
    def image(self) -> Path:
        """The image file."""
