"""What a merged file of segmentation says about itself."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from samtune.files.description import Description
from samtune.types import PromptMode

THRESHOLD = 0.5


class MaskDescription(Description):
    """What a merged file of segmentation says about itself.

    Attributes:
        prompt: prompt mode that it was tuned with.
        threshold: pixels of a higher probability are foreground; always 0.5 in this format.
    """

    task: ClassVar[str] = "segmentation"
    prompt: PromptMode
    threshold: float = Field(THRESHOLD, ge=THRESHOLD, le=THRESHOLD)
