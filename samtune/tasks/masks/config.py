"""The settings of a segmentation job: what they have beside `samtune.config.sections`."""

import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from samtune.config import sections as shared
from samtune.config.problems import Fault, impossible_pair, told
from samtune.config.sections import LARGEST, SelectorFacts
from samtune.errors import unknown_name
from samtune.tasks.sections import CachingTrain, PixelData, PixelModel, PixelScore, PromptEval

logger = logging.getLogger(__name__)

Kind = Literal["none", "box", "point"]
"""A `samtune.types.PromptMode`, whose module brings torch."""


class Mix(shared.Section):
    """`data.mix`: how often a training image has each kind of prompt, by `data.prompt: mixed`."""

    none: float = Field(0.5, ge=0, le=LARGEST, description="share without a prompt, which wants the whole foreground")
    box: float = Field(0.25, ge=0, le=LARGEST, description="share with the box of an object; the sum need not be 1")
    point: float = Field(0.25, ge=0, le=LARGEST, description="share with a click on an object")

    def faults(self) -> Iterator[Fault]:
        """Yields shares of nothing."""
        yield from super().faults()
        if not any(self.shares().values()):
            yield impossible_pair("point", 0, "a share > 0 when those of none and box are 0", "none")

    def shares(self) -> dict[Kind, float]:
        """Returns the shares by kind, whatever their sum."""
        return {"none": self.none, "box": self.box, "point": self.point}


class Data(PixelData):
    """`data`: images, masks, split, prompts."""

    prompt: Literal["none", "box", "point", "mixed"] = Field(
        "none", description="what the model is told of the object; mixed: drawn for each training image, by data.mix"
    )
    mix: Mix = Field(Mix(), description="shares of the kinds of prompt of data.prompt: mixed")
    augment: bool = Field(
        True, description="random flips, quarter turns, a mild affine change and colours on training images"
    )
    empty: Literal["refuse", "train"] = Field(
        "refuse", description="pictures whose mask shows no object: an error, or trained on and counted apart"
    )

    def faults(self) -> Iterator[Fault]:
        """Yields pictures without an object, and tiles, where the model is told of an object."""
        yield from super().faults()
        if self.empty == "train" and self.asked != "none":
            expected = f"refuse with data.prompt: {self.prompt}, which leaves out pictures with nothing to prompt for"
            yield impossible_pair("empty", "train", expected, "prompt")
        if self.prompt != "mixed" and self.mix != Mix():
            yield impossible_pair("mix", self.mix.shares(), "no value without data.prompt: mixed", "prompt")
        if self.tiles.size is not None and self.asked != "none":
            how = "mixed without a share of none" if self.prompt == "mixed" else self.prompt
            expected = f"no tiles with data.prompt: {how}, which measures whole objects of whole pictures"
            yield impossible_pair("tiles.size", self.tiles.size, expected, "prompt")

    @property
    def shares(self) -> dict[Kind, float]:
        """Kind of prompt -> how often a training image has it; the shares add up to 1."""
        if self.prompt != "mixed":
            return {self.prompt: 1.0}
        shares = {kind: share for kind, share in self.mix.shares().items() if share}
        return {kind: share / sum(shares.values()) for kind, share in shares.items()}

    @property
    def asked(self) -> Kind:
        """The kind of prompt that is validated and predicted with: none if it is trained, else the commonest."""
        return asked_of(self.shares)


def asked_of(shares: Mapping[Kind, float]) -> Kind:
    """Returns the kind that a model trained with these shares is asked with by default."""
    return "none" if "none" in shares else max(shares, key=lambda kind: shares[kind])


class Tune(shared.Tune):
    """`tune`: what trains beside the selection, and how."""

    decoder: bool = Field(True, description="train the whole mask decoder")

    @property
    def trains_head(self) -> bool:
        return self.decoder


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


class Eval(PromptEval):
    """`eval`: validation, the final report and its pictures."""

    metrics: Annotated[tuple[Annotated[str, AfterValidator(_a_metric)], ...], Field(strict=False)] = Field(
        (), description="metrics beside Dice, IoU, precision and recall"
    )


class SegmentationConfig(shared.Config):
    """All settings of a segmentation job; sections in the order of use."""

    task: Literal["segmentation"] = Field("segmentation", description="kind of job")
    model: PixelModel = PixelModel()
    data: Data = Field(description="images and masks")
    score: PixelScore = PixelScore()
    tune: Tune = Tune()
    train: CachingTrain = CachingTrain()
    loss: Loss = Loss()
    eval: Eval = Eval()

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with sections that are right one by one."""
        yield from super().faults()
        yield from self.train.views(self.data, self.data.augment, False)
        if self.select.file is not None and not self.tune.decoder:
            yield impossible_pair("select.file", self.select.file, "no tune.decoder: false beside it", "tune.decoder")

    @classmethod
    def complete(cls, values: dict[str, Any], selectors: Mapping[str, SelectorFacts]) -> None:
        """Takes out `eval.empty` of earlier versions, which mixed pictures without an object into the means."""
        super().complete(values, selectors)
        section = values.get("eval")
        if isinstance(section, dict) and section.get("empty") in ("one", "nan"):
            values["eval"] = {key: value for key, value in section.items() if key != "empty"}
            logger.warning(
                "eval.empty has no meaning any more: images without an object are counted apart (data.empty)"
            )
