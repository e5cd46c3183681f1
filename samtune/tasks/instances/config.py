"""The settings of a job on instances: what they have beside those of `samtune.tasks.sections`."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from samtune.config import sections as shared
from samtune.config.problems import Fault, impossible_pair
from samtune.config.sections import LARGEST, PathText
from samtune.tasks.sections import PixelData, PixelModel, PixelScore, PromptEval


class Data(PixelData):
    """`data`: images and maps of objects."""

    dir: PathText = Field(
        description="folder with images/ and instances/, or train/, val/, test/ with both; or annotations"
    )
    augment: Literal["none", "upright", "turns"] = Field(
        "turns", description="of training images: mild changes and a flip; turns: also quarter turns and upside down"
    )


class Train(shared.Train):
    """`train`: the optimisation."""

    batch: shared.BatchSize = Field(
        4, description="images per forward pass; auto: the default, in parts where memory is short"
    )
    objects: int = Field(8, ge=1, le=1000, description="objects of an image that are prompted for in a step, at most")


class Loss(shared.Section):
    """`loss`: the task loss."""

    name: Literal["dice_bce"] = Field("dice_bce", description="task loss, of the maps and of the prompted objects")
    dice_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the maps' Dice term")
    bce_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the maps' binary cross-entropy term")
    prompt_weight: float = Field(
        1.0, ge=0, le=LARGEST, description="weight of the practice of boxes and clicks; 0: none"
    )
    iou_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the IoU head's error in the practice")

    def faults(self) -> Iterator[Fault]:
        """Yields a loss without the maps, which automatic masks need."""
        yield from super().faults()
        if self.dice_weight == 0 and self.bce_weight == 0:
            yield impossible_pair("bce_weight", 0, "a value > 0 when loss.dice_weight is 0", "dice_weight")


class InstanceConfig(shared.Config):
    """All settings of a job on instances; sections in the order of use."""

    task: Literal["instances"] = Field("instances", description="kind of job")
    model: PixelModel = PixelModel()
    data: Data = Field(description="images and maps of objects")
    score: PixelScore = PixelScore()
    train: Train = Train()
    loss: Loss = Loss()
    eval: PromptEval = PromptEval()
