"""The sections that the settings of every task have: each key with its type, bounds, default and meaning.

What only one task has stands beside that task. Defaults stand here and there, and nowhere else.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from samtune.config.budget import BUDGETS, read_budget
from samtune.config.options import default_options, option_problems
from samtune.config.problems import Fault, faults_error, impossible_pair, shown, told

PathText = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]

BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]

LARGEST = 1e30  # of a number that training computes with: fp32 ends at 3e38

SELECTORS = "selectors"
"""Key of the table of selectors in the context that `Select` is checked with."""


class SelectorFacts(Protocol):
    """What a config asks of a selector: whose arguments its options are, and which of them a budget sets."""

    @property
    def signature(self) -> Callable[..., Any]: ...

    @property
    def knob(self) -> str | None: ...


class Section(BaseModel):
    """What all sections share: strict types, no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _empty_block(cls, value: Any) -> Any:
        return {} if value is None else value  # `train:` with every line under it commented out

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if found := list(self.faults()):
            raise faults_error(found)
        return self

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with values that are right one by one; a class adds to those of the one it extends."""
        yield from ()


class Run(Section):
    """`run`: name, place and machine."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name of this job's runs")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of splits, order, augmentation, initial values")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of arithmetic on the CPU; empty: OMP_NUM_THREADS, else one per core"
    )
    dir: PathText = Field(Path("runs"), description="parent folder; a run goes to DIR/NAME/TIME")


class Model(Section):
    """`model`: the pretrained model."""

    name: str = Field(description="architecture")
    checkpoint: PathText | None = Field(
        None, description="weights file; empty: the model's own; random: the initialisation of its library"
    )
    image_size: int | None = Field(
        None, ge=16, le=4096, description="side of the square input in pixels; empty: the model's own"
    )


class Data(Section):
    """`data`: images and their parts."""

    dir: PathText = Field(description="data folder")
    train: PathText | None = Field(None, description="sub-folder or list of names in data.dir")
    val: PathText | None = Field(None, description="sub-folder or list of names in data.dir")
    test: PathText | None = Field(None, description="sub-folder or list of names in data.dir")
    workers: int = Field(0, ge=0, le=256, description="loader processes; 0 loads in the main process")
    cache: bool = Field(False, description="keep decoded images in memory")


class Score(Section):
    """`score`: the gradient pass that selection reads."""

    loss: str | None = Field(None, description="what is differentiated; empty: what the selector's paper does")
    images: int | None = Field(None, ge=1, description="number of training images; empty: all")
    batch: int = Field(8, ge=1, description="images per step")
    temperature: float = Field(0.1, gt=0, description="temperature of the contrastive loss")
    subsets: int = Field(1, ge=1, description="GRFT: random parts of the images; the one of the smallest loss counts")
    file: PathText | None = Field(None, description="scores file: read and checked if it exists, else written")

    @property
    def kind(self) -> Literal["contrastive", "task"] | None:
        """What `loss` asks for: a contrastive loss on features, or the task's own; None where it is empty."""
        return None if self.loss is None else "contrastive" if self.loss.endswith("contrastive") else "task"


def _a_budget(value: object) -> object:
    if value is not None and read_budget(value) is None:
        raise told(f"{shown(value)}, expected {BUDGETS}.")
    return value


class Select(Section):
    """`select`: which parameters train; options beside `name` are those of the selector."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("gps", description="selector")
    file: PathText | None = Field(None, description="a selection.safetensors of this base, used instead of selecting")
    budget: Annotated[int | str | None, BeforeValidator(_a_budget)] = Field(
        None, description="most parameters to select and add, as a number or '0.5%' of the model; sets K, k, rank"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The selector's options by name, with its defaults."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _options_fit(self, info: ValidationInfo) -> Self:
        """Checks the options by the table of selectors that `read_config` hands over, and fills in their defaults."""
        table: Mapping[str, SelectorFacts] = (info.context or {}).get(SELECTORS, {})
        if not table:
            return self  # built by hand: `select` itself checks it
        given = [*self.options, *(["budget"] if self.budget is not None else [])]
        if self.file is not None and given:
            text = f"not used with a file; write 'select={{file: {self.file}}}'."
            raise faults_error(Fault(key, text, ("file",)) for key in given)
        functions = {name: selector.signature for name, selector in table.items()}
        if problems := option_problems("selector", self.name, self.options, functions):
            # with a wrong name, nothing is known of the options
            raise faults_error(Fault(key, text, ("name",) if key != "name" else ()) for key, text in problems)
        defaults = {} if self.file is not None else default_options(functions[self.name])
        if self.budget is not None:  # it says what the knob would
            defaults.pop(table[self.name].knob or "", None)
        self.__pydantic_extra__ = {**defaults, **self.options}
        return self


class Start(Section):
    """`tune.start`: GRFT's pull to the start point, `weight * sum |w - w0|^2` over what trains."""

    weight: float = Field(0.0, ge=0, le=LARGEST, description="lambda; 0 for none")
    norm: Literal["l2", "l1"] = Field("l2", description="squares, or absolute values")
    blocks: int | None = Field(None, ge=0, description="the last L blocks, patch embedding and head; empty: everything")


class Tune(Section):
    """`tune`: what trains beside the selection, and how."""

    biases: bool | None = Field(None, description="train the biases of the encoder; empty: as the method's paper does")
    exclude: Names = Field((), description="parts that stay frozen, such as [block 0, neck]")
    base: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="how the frozen weights are held while training; int8, of linear layers, moves answers"
    )
    start: Start = Field(Start(), description="GRFT's pull to the start point")

    @property
    def trains_head(self) -> bool:
        """Whether the mask decoder or classification head trains whole."""
        return True


class Train(Section):
    """`train`: the optimisation."""

    epochs: int = Field(20, ge=1, description="passes over the training images")
    steps: int | None = Field(None, ge=1, description="optimizer steps at most; empty: no limit")
    lr: float = Field(1e-3, gt=0, le=LARGEST, description="peak learning rate")
    batch: BatchSize = Field(
        8, description="images per forward pass; auto: the default, in parts where memory is short"
    )
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="arithmetic of the passes")
    checkpointing: bool = Field(False, description="recompute blocks: less memory, more time")
    optimizer: Literal["adam", "adamw"] = Field("adamw", description="optimizer")
    weight_decay: float = Field(1e-4, ge=0, le=1e6, description="weight decay")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the rate rises")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; empty: any")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a moving average of what trains; empty: none")
    patience: int | None = Field(None, ge=1, description="epochs without gain before it stops; empty: never")
    validate_every: int = Field(1, ge=1, description="epochs between validations; the last epoch always is validated")

    @property
    def images(self) -> int:
        """Images per batch: those of a forward pass, unless memory asks for parts of them."""
        default: int = type(self).model_fields["batch"].default
        return default if self.batch == "auto" else self.batch

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with rates that are right one by one."""
        yield from super().faults()
        if self.min_lr > self.lr:
            yield impossible_pair("min_lr", self.min_lr, f"at most train.lr = {self.lr:g}", "lr")


class Eval(Section):
    """`eval`: validation, the final report and its pictures."""

    split: Literal["test", "val"] = Field("test", description="what the final report is of; val leaves test closed")


class Track(Section):
    """`track`: where numbers go beside the run folder."""

    mlflow: bool = Field(True, description="log to MLflow")
    experiment: str = Field("samtune", min_length=1, description="MLflow experiment")
    parent: str | None = Field(None, min_length=1, description="id of the MLflow run that this one belongs to")


class Config(Section):
    """What the settings of every job have; sections in the order of use."""

    task: str = Field(description="kind of job")
    run: Run = Run()
    model: Model
    data: Data
    score: Score
    select: Select = Select()
    tune: Tune = Tune()
    train: Train
    eval: Eval = Eval()
    track: Track = Track()

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with sections that are right one by one."""
        yield from super().faults()
        beside = self.tune.exclude or self.tune.biases is not None
        if self.select.file is not None and beside:
            expected = "no tune.biases or exclude beside it"
            yield impossible_pair("select.file", self.select.file, expected, "tune.biases", "tune.exclude")
        if self.tune.base == "bf16" and self.train.precision == "fp32":
            yield impossible_pair("tune.base", "bf16", "fp32 with train.precision: fp32", "train.precision")

    @classmethod
    def complete(cls, values: dict[str, Any], selectors: Mapping[str, SelectorFacts]) -> None:
        """Puts into `values`, before they are checked, what follows from others and is not given; here nothing."""

    def to_yaml(self) -> str:
        """Returns all settings, with defaults, as YAML that `load_config` reads back to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
