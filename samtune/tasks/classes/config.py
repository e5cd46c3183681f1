"""The settings of a classification job: what they have beside `samtune.config.sections`."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import Field

from samtune.config import sections as shared
from samtune.config.papers import hyperparameters
from samtune.config.problems import Fault, impossible_pair
from samtune.config.sections import BatchSize, PathText, SelectorFacts
from samtune.models.table import entry_of

RecipeName = Literal["gps", "grft", "spt"]


class Model(shared.Model):
    """`model`: a ViT, Swin, ConvNeXt or EfficientNet of timm, a DINO of transformers, or a small ViT of ours."""

    name: str = Field(
        "vit_base_patch16_224.augreg_in21k",
        min_length=1,
        description="a model of timm, or vit_mini; dinov2, dinov3, or a repository of one on the hub, OWNER/NAME",
    )
    head: Literal["new", "checkpoint"] = Field("new", description="a fresh head for the classes, or the checkpoint's")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model; of a DINO config and processor"
    )

    def faults(self) -> Iterator[Fault]:
        """Yields options that others set, and a model that gives no classes."""
        yield from super().faults()
        ours = {key: f"model.{key}" for key in ("name", "checkpoint", "image_size", "head")}
        ours |= {"classes": "the data", "drop_path": "train.drop_path", "seed": "run.seed", "grid": "the task"}
        for key in (key for key in self.options if key in ours):
            yield Fault(f"options.{key}", f"is no option of the model: {ours[key]} sets it.")
        if entry_of(self.name).gives != "classes":
            yield Fault("name", f'"{self.name}" gives masks, not classes. Set task: segmentation.')


class Data(shared.Data):
    """`data`: images and classes."""

    dir: PathText = Field(description="folder of class folders, or of a data set that data.name knows")
    name: str | None = Field(None, description="data set, such as vtab/cifar; empty: class folders")
    retrain: bool = Field(False, description="train on train and val together; the last epoch counts")
    shots: int | None = Field(None, ge=1, description="training images per class, drawn by run.seed; empty: all")
    resize: Literal["auto", "squash", "crop"] = Field(
        "auto", description="squash: straight to the square; crop: shorter side, then the centre; auto: as the papers"
    )
    augment: Literal["none", "light", "strong"] = Field(
        "none", description="of training images; light: crop and flip; strong: also RandAugment and erasing"
    )


class Score(shared.Score):
    """`score`: the gradient pass that selection reads."""

    loss: Literal["contrastive", "cross_entropy"] | None = Field(
        None, description="what is differentiated; empty: what the selector's paper does"
    )
    batch: int = Field(32, ge=1, description="images per step; the contrastive loss sees two views of each")
    temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss")


class Train(shared.Train):
    """`train`: the optimisation; defaults are GPS's."""

    epochs: int = Field(100, ge=1, description="passes over the training images")
    batch: BatchSize = Field(
        32, description="images per forward pass; auto: the default, in parts where memory is short"
    )
    optimizer: Literal["adam", "adamw"] = Field("adam", description="optimizer")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="weight decay")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps in which the rate rises")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; empty: any")
    drop_path: float = Field(0.0, ge=0, lt=1, description="rate of dropped residual branches at the last block")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0: none")


class Loss(shared.Section):
    """`loss`: the task loss."""

    name: Literal["cross_entropy"] = Field("cross_entropy", description="task loss")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each target that goes to all classes")


class ClassificationConfig(shared.Config):
    """All settings of a classification job; sections in the order of use."""

    task: Literal["classification"] = Field("classification", description="kind of job")
    recipe: RecipeName | None = Field(
        None, description="hyper-parameters of a paper for data.name, below what is set here"
    )
    model: Model = Model()
    data: Data = Field(description="images and classes")
    score: Score = Score()
    train: Train = Train()
    loss: Loss = Loss()

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with sections that are right one by one."""
        yield from super().faults()
        if self.data.retrain and self.eval.split == "val":
            yield impossible_pair("eval.split", "val", "test with data.retrain, which trains on val", "data.retrain")
        if self.data.retrain and self.train.patience is not None:
            expected = "no value with data.retrain, where nothing is chosen"
            yield impossible_pair("train.patience", self.train.patience, expected, "data.retrain")

    @classmethod
    def complete(cls, values: dict[str, Any], selectors: Mapping[str, SelectorFacts]) -> None:
        """Puts the hyper-parameters of `recipe` for `data.name` below the given values; see `Config.complete`."""
        recipe, data = values.get("recipe"), values.get("data")
        if not isinstance(recipe, str) or recipe not in get_args(RecipeName):
            return  # none, or one that validation refuses
        name = data.get("name") if isinstance(data, Mapping) else None
        table = hyperparameters(recipe, name if isinstance(name, str) else None)
        given = values["select"] if isinstance(values.get("select"), Mapping) else {}
        if given.get("name", table["select"]["name"]) != table["select"]["name"]:
            for section in ("select", "score", "tune"):  # another method: what the paper says of its own does not apply
                table.pop(section, None)
        elif given.get("file") is not None:
            del table["select"]
        elif given.get("budget") is not None:
            table["select"].pop(selectors[table["select"]["name"]].knob, None)  # the budget says what it would
        _fill(values, table)


def _fill(values: dict[str, Any], below: Mapping[str, Any]) -> None:
    for key, value in below.items():
        if isinstance(value, Mapping) and isinstance(values.get(key) or {}, dict):
            values[key] = dict(values.get(key) or {})
            _fill(values[key], value)
        else:
            values.setdefault(key, value)
