"""The settings of a segmentation job: what they have beside `samtune.config.sections`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from samtune.config import sections as shared
from samtune.config.problems import Fault, impossible_pair, told
from samtune.config.sections import LARGEST, PathText
from samtune.errors import unknown_name
from samtune.models.table import names_that_give


class Model(shared.Model):
    """`model`: a model whose output is a mask."""

    name: str = Field("sam_lite", description="architecture")
    image_size: int | None = Field(
        None, ge=64, le=4096, description="side of the square input in pixels; empty: the model's own"
    )

    @field_validator("name")
    @classmethod
    def _gives_masks(cls, name: str) -> str:
        *first, last = map(repr, names_that_give("masks"))
        if repr(name) not in (*first, last):
            expected = f"{', '.join(first)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return name


class Data(shared.Data):
    """`data`: images, masks, split, prompts."""

    dir: PathText = Field(description="folder with images/ and masks/, or train/, val/, test/ with both")
    split: Literal["auto", "folders", "files", "ratio"] = Field("auto", description="where the parts come from")
    shots: int | None = Field(None, ge=1, description="training images, drawn by run.seed; empty: all")
    prompt: Literal["none", "box", "point"] = Field("none", description="what the model is told of the object")
    augment: bool = Field(
        True, description="random flips, quarter turns, a mild affine change and colours on training images"
    )

    def faults(self) -> Iterator[Fault]:
        """Yields the parts that are named where they are cut."""
        yield from super().faults()
        for name in ("train", "val", "test") if self.split == "ratio" else ():
            if (value := getattr(self, name)) is not None:
                yield impossible_pair(
                    name, value, "no value with data.split: ratio, which cuts the parts itself", "split"
                )


class Score(shared.Score):
    """`score`: the gradient pass that selection reads."""

    loss: Literal["pixel_contrastive", "task"] | None = Field(
        None, description="what is differentiated; empty: what the selector's paper does"
    )
    cells: int = Field(128, ge=2, description="feature cells drawn per image by the contrastive loss")


class Tune(shared.Tune):
    """`tune`: what trains beside the selection, and how."""

    decoder: bool = Field(True, description="train the whole mask decoder")

    @property
    def trains_head(self) -> bool:
        return self.decoder


class Train(shared.Train):
    """`train`: the optimisation."""

    embeddings: PathText | None = Field(
        None, description="folder of cached image embeddings; for decoder-only training without augmentation"
    )


class Loss(shared.Section):
    """`loss`: the task loss."""

    name: Literal["dice_bce"] = Field("dice_bce", description="task loss")
    dice_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the Dice term")
    bce_weight: float = Field(1.0, ge=0, le=LARGEST, description="weight of the binary cross-entropy term")

    def faults(self) -> Iterator[Fault]:
        """Yields a loss of nothing."""
        yield from super().faults()
        if self.dice_weight == 0 and self.bce_weight == 0:
            yield impossible_pair("bce_weight", 0, "a value > 0 when loss.dice_weight is 0", "dice_weight")


def _a_metric(name: str) -> str:
    from samtune.metrics.table import METRICS, POOLED_METRICS, PROBABILITY_METRICS  # late: they import torch

    known = [*METRICS, *PROBABILITY_METRICS, *POOLED_METRICS]
    if name not in known:
        raise told(unknown_name("metric", name, known))
    return name


class Eval(shared.Eval):
    """`eval`: validation, the final report and its pictures."""

    metrics: Annotated[tuple[Annotated[str, AfterValidator(_a_metric)], ...], Field(strict=False)] = Field(
        (), description="metrics beside Dice, IoU, precision and recall"
    )
    empty: Literal["one", "nan"] = Field("one", description="score of an empty prediction for an empty truth")
    overlays: int = Field(3, ge=0, description="pictures of each of best, median and worst cases")


class SegmentationConfig(shared.Config):
    """All settings of a segmentation job; sections in the order of use."""

    task: Literal["segmentation"] = Field("segmentation", description="kind of job")
    model: Model = Model()
    data: Data = Field(description="images and masks")
    score: Score = Score()
    tune: Tune = Tune()
    train: Train = Train()
    loss: Loss = Loss()
    eval: Eval = Eval()

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with sections that are right one by one."""
        yield from super().faults()
        if self.train.embeddings is not None and self.data.augment:
            expected = "false with train.embeddings, which keeps one view of an image"
            yield impossible_pair("data.augment", True, expected, "train.embeddings")
        if self.select.file is not None and not self.tune.decoder:
            yield impossible_pair("select.file", self.select.file, "no tune.decoder: false beside it", "tune.decoder")
