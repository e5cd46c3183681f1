"""What a merged file of classification says about its classes and its input."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from samtune.base.tensors import read_metadata
from samtune.errors import CheckpointError
from samtune.files.description import Description, task_of
from samtune.tasks.classes.views import MARGIN, View, build_view
from samtune.types import Interpolation, Resize


class ClassDescription(Description):
    """What a merged file of classification says about itself: the names of its outputs, and how its input is scaled."""

    task: ClassVar[str] = "classification"
    classes: tuple[str, ...] = Field(min_length=1)
    resize: Resize
    interpolation: Interpolation

    def view(self) -> View:
        """Returns how an image becomes what the model sees."""
        return build_view("none", image_size=self.image_size, resize=self.resize, interpolation=self.interpolation)

    def input_text(self) -> str:
        side = self.image_size
        resize = f"scaled to {side} x {side} px"
        if self.resize == "crop":
            shorter = round(side * MARGIN)
            resize = f"scaled to {shorter} px on the shorter side and cut to the {side} x {side} in the middle"
        mean, std = (tuple(round(v / 255, 6) for v in values) for values in (self.pixel_mean, self.pixel_std))
        return (
            f"it takes RGB images {resize} ({self.interpolation}, antialiased), "
            f"as (value - mean) / std of values in 0 to 1, mean {mean}, std {std}"
        )


def check_classes(path: Path, classes: Sequence[str]) -> None:
    """Refuses the head of a merged classifier whose classes are not these, in this order.

    Any other checkpoint than a classifier's merged file says nothing of its classes, and passes.

    Raises:
        CheckpointError: the names or their order differ; a missing, or a damaged safetensors file.
    """
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    if not metadata.get("format", "").startswith("samtune-") or task_of(metadata, path) != ClassDescription.task:
        return
    own = ClassDescription.from_metadata(metadata, path).classes
    for place, (found, wanted) in enumerate(zip_longest(own, classes)):
        if found != wanted:
            one, other = ("none" if name is None else repr(name) for name in (found, wanted))
            raise CheckpointError(
                f"the head of {path} is for {len(own)} other classes: output {place} is {one}, where the data has "
                f"{other}. Use model.head=new, or the classes of that run."
            )
