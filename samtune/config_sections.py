"""The sections of a config: every key with its type, bounds, default and meaning. `samtune.config` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from samtune.config_problems import default_options, option_problems
from samtune.errors import unknown_name

PathText = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """What all sections share: strict types, no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _empty_block(cls, value: Any) -> Any:
        return {} if value is None else value  # `train:` with every line under it commented out


class Run(Section):
    """`run`: name, place and machine."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name of this job's runs")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of splits, order, augmentation, initial values")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    dir: PathText = Field(Path("runs"), description="parent folder; a run goes to DIR/NAME/TIME")


class Model(Section):
    """`model`: the pretrained model."""

    name: Literal["sam_tiny", "sam_vit_b", "sam_vit_l", "sam_vit_h"] = Field("sam_tiny", description="architecture")
    checkpoint: PathText | None = Field(
        None, description="weights file; empty: the model's own; random: segment-anything's own initialisation"
    )
    image_size: int | None = Field(
        None,
        ge=64,
        multiple_of=16,
        description="side of the square input in pixels; empty: the model's own",
    )


class Data(Section):
    """`data`: images, masks, split, prompts."""

    dir: PathText = Field(description="folder with images/ and masks/, or train/, val/, test/ with both")
    split: Literal["auto", "folders", "files", "ratio"] = Field("auto", description="where the parts come from")
    train: PathText | None = Field(None, description="sub-folder or file of names in data.dir")
    val: PathText | None = Field(None, description="sub-folder or file of names in data.dir")
    test: PathText | None = Field(None, description="sub-folder or file of names in data.dir")
    prompt: Literal["none", "box", "point"] = Field("none", description="what the model is told of the object")
    augment: bool = Field(
        True, description="random flips, quarter turns, a mild affine change and colours on training images"
    )
    workers: int = Field(0, ge=0, description="loader processes; 0 loads in the main process")
    cache: bool = Field(False, description="keep decoded images in memory")

    @model_validator(mode="after")
    def _parts_are_used(self) -> Self:
        given = [name for name in ("train", "val", "test") if getattr(self, name) is not None]
        if self.split == "ratio" and given:
            value = getattr(self, given[0])
            raise impossible_pair(given[0], value, "no value with data.split: ratio, which cuts the parts itself")
        return self


class Score(Section):
    """`score`: the gradient pass that selection reads."""

    loss: Literal["pixel_contrastive", "task"] | None = Field(
        None, description="what is differentiated; empty: what the selector's paper does"
    )
    images: int | None = Field(None, ge=1, description="number of training images; empty: all")
    batch: int = Field(8, ge=1, description="images per step")
    cells: int = Field(128, ge=2, description="feature cells drawn per image by the contrastive loss")
    temperature: float = Field(0.1, gt=0, description="temperature of the contrastive loss")
    subsets: int = Field(1, ge=1, description="GRFT: random parts of the images; the one of the smallest loss counts")
    file: PathText | None = Field(None, description="scores file: read and checked if it exists, else written")


class Select(Section):
    """`select`: which parameters train; options beside `name` are those of the selector."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("gps", description="selector")
    file: PathText | None = Field(None, description="a selection.safetensors of this base, used instead of selecting")
    budget: int | str | None = Field(
        None,
        description="most parameters to select and add, as a number or '0.5%' of the model; sets K, k, rank",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The selector's options by name, with its defaults."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        from samtune.selection import SELECTORS  # late: the selectors import torch

        given = [*self.options, *(["budget"] if self.budget is not None else [])]
        if self.file is not None and given:
            text = f"not used with a file; write 'select={{file: {self.file}}}'."
            raise PydanticCustomError("options", "options do not fit", {"problems": [(key, text) for key in given]})
        functions = {name: selector.function for name, selector in SELECTORS.items()}
        problems = option_problems("selector", self.name, self.options, functions)
        if problems:
            raise PydanticCustomError("options", "options do not fit", {"problems": problems})
        defaults = {} if self.file is not None else default_options(functions[self.name])
        if self.budget is not None:  # it says what the knob would
            defaults.pop(SELECTORS[self.name].knob or "", None)
        self.__pydantic_extra__ = {**defaults, **self.options}
        return self


class Start(Section):
    """`tune.start`: GRFT's pull to the start point, `weight * sum |w - w0|^2` over what trains."""

    weight: float = Field(0.0, ge=0, description="lambda; 0 for none")
    norm: Literal["l2", "l1"] = Field("l2", description="squares, or absolute values")
    blocks: int | None = Field(None, ge=0, description="the last L blocks, patch embedding and head; empty: everything")


class Tune(Section):
    """`tune`: what trains beside the selection, and how."""

    decoder: bool = Field(True, description="train the whole mask decoder")
    biases: bool | None = Field(None, description="train the biases of the encoder; empty: as the method's paper does")
    exclude: Names = Field((), description="parts that stay frozen, such as [block 0, neck]")
    base: Literal["fp32", "bf16"] = Field("fp32", description="how the frozen weights are held while training")
    start: Start = Field(Start(), description="GRFT's pull to the start point")


class Train(Section):
    """`train`: the optimisation."""

    epochs: int = Field(20, ge=1, description="passes over the training images")
    steps: int | None = Field(None, ge=1, description="optimizer steps at most; empty: no limit")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    batch: int = Field(8, ge=1, description="images per forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="arithmetic of the passes")
    checkpointing: bool = Field(False, description="recompute blocks: less memory, more time")
    embeddings: PathText | None = Field(
        None, description="folder of cached image embeddings; for decoder-only training without augmentation"
    )
    optimizer: Literal["adam", "adamw"] = Field("adamw", description="optimizer")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the rate rises")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; empty: any")
    patience: int | None = Field(None, ge=1, description="epochs without gain before it stops; empty: never")

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.min_lr > self.lr:
            raise impossible_pair("min_lr", self.min_lr, f"at most train.lr = {self.lr:g}")
        return self


class Loss(Section):
    """`loss`: the task loss."""

    name: Literal["dice_bce"] = Field("dice_bce", description="task loss")
    dice_weight: float = Field(1.0, ge=0, description="weight of the Dice term")
    bce_weight: float = Field(1.0, ge=0, description="weight of the binary cross-entropy term")

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.dice_weight == 0 and self.bce_weight == 0:
            raise impossible_pair("bce_weight", 0, "a value > 0 when loss.dice_weight is 0")
        return self


class Eval(Section):
    """`eval`: validation, the final report and its pictures."""

    metrics: Names = Field((), description="metrics beside Dice, IoU, precision and recall")
    empty: Literal["one", "nan"] = Field("one", description="score of an empty prediction for an empty truth")
    overlays: int = Field(3, ge=0, description="pictures of each of best, median and worst cases")

    @model_validator(mode="after")
    def _metrics_exist(self) -> Self:
        if self.metrics:
            from samtune.metrics import METRICS, POOLED_METRICS, PROBABILITY_METRICS  # late: they import torch

            known = [*METRICS, *PROBABILITY_METRICS, *POOLED_METRICS]
            problems = [("metrics", unknown_name("metric", name, known)) for name in self.metrics if name not in known]
            if problems:
                raise PydanticCustomError("options", "unknown metrics", {"problems": problems})
        return self


class Track(Section):
    """`track`: where numbers go beside the run folder."""

    mlflow: bool = Field(True, description="log to MLflow")
    experiment: str = Field("samtune", min_length=1, description="MLflow experiment")


def impossible_pair(key: str, value: object, expected: str) -> PydanticCustomError:
    """The error of a value that another value of its section rules out."""
    return PydanticCustomError("pair", "impossible pair", {"key": key, "value": value, "expected": expected})
