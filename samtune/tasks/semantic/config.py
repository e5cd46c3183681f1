"""The settings of a semantic job: what they have beside those of `samtune.tasks.sections`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from samtune.config import sections as shared
from samtune.config.problems import Fault, impossible_pair, shown, told
from samtune.config.sections import LARGEST
from samtune.models.table import names_for_maps
from samtune.tasks.sections import CachingTrain, PixelData, PixelEval, PixelModel, PixelScore

MOST = 255  # values of a picture of 8 bits, of which one stands for what does not count


def _named(value: object) -> object:
    """Returns the names of classes by their value in the masks; of a list, the place is the value."""
    if value is None:
        return None
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    pairs = [(int(key) if isinstance(key, str) and key.isdecimal() else key, name) for key, name in items]
    whole = all(type(key) is int and 0 <= key <= MOST and isinstance(name, str) and name for key, name in pairs)
    names = [name for _, name in pairs]
    if not whole or len(pairs) < 2 or len(set(map(str, names))) < len(names):
        wanted = "two or more different names, [sky, road], or by their values from 0 to 255, {0: sky, 7: road}"
        raise told(f"{shown(value)}, expected {wanted}.")
    return dict(sorted(pairs))


class Model(PixelModel):
    """`model`: a model that gives a map of each class."""

    @classmethod
    def fitting(cls) -> list[str]:
        return names_for_maps()


class Data(PixelData):
    """`data`: images and maps of classes."""

    classes: Annotated[dict[int, str] | None, BeforeValidator(_named)] = Field(
        None, description="names of the classes, in the order of their values or by value; empty: those found, printed"
    )
    ignore_index: int = Field(255, ge=0, le=MOST, description="value of the pixels that count nowhere")
    augment: Literal["none", "upright", "turns"] = Field(
        "upright", description="of training images: mild changes and a flip; turns: also quarter turns and upside down"
    )

    def faults(self) -> Iterator[Fault]:
        """Yields a class of the pixels that do not count."""
        yield from super().faults()
        if self.classes and self.ignore_index in self.classes:
            name = self.classes[self.ignore_index]
            yield impossible_pair("ignore_index", self.ignore_index, f"no class, but {name!r} has it", "classes")


class Loss(shared.Section):
    """`loss`: the task loss."""

    name: Literal["dice_ce"] = Field("dice_ce", description="task loss")
    dice_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the Dice term")
    ce_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the cross-entropy term")
    box_weight: float = Field(
        0.2, ge=0, le=LARGEST, description="weight of the practice that keeps the answers to boxes; 0: none"
    )

    def faults(self) -> Iterator[Fault]:
        """Yields a loss of nothing."""
        yield from super().faults()
        if self.dice_weight == 0 and self.ce_weight == 0:
            yield impossible_pair("ce_weight", 0, "a value > 0 when loss.dice_weight is 0", "dice_weight")


class SemanticConfig(shared.Config):
    """All settings of a semantic job; sections in the order of use."""

    task: Literal["semantic"] = Field("semantic", description="kind of job")
    model: Model = Model()
    data: Data = Field(description="images and maps of classes")
    score: PixelScore = PixelScore()
    train: CachingTrain = CachingTrain()
    loss: Loss = Loss()
    eval: PixelEval = PixelEval()

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with sections that are right one by one."""
        yield from super().faults()
        yield from self.train.views(self.data, self.data.augment, "none")
