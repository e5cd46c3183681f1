"""What a task is: everything in which kinds of jobs differ, behind one contract. No other folder asks which it has."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn

from samtune.base.paths import find_path
from samtune.config.sections import Config
from samtune.console import Table
from samtune.data.loaders import LoaderOptions, Loaders
from samtune.data.splits import Item
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
from samtune.files.description import Description
from samtune.metrics.report import AnyReport
from samtune.models.backbone import Backbone
from samtune.models.weights import RANDOM
from samtune.report.page import Section
from samtune.scoring.score import ScoreLoss
from samtune.selection import Addition, Needs, Selection
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.predict import Prediction
from samtune.tasks.service import Service
from samtune.tuning import Counts
from samtune.types import Mix, OutputLoss

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Words:
    """In which words results are shown.

    Attributes:
        headlines: headline metric -> its label, in the order to show.
        choice: the metric by which epochs, hyper-parameters and rows are chosen; higher is better.
        columns: reported mean -> its value of one row of `per_image.csv`: the columns of `compare`.
        percent: whether `compare` shows these means in percent; `explained` is how it says what they are of.
        axis: label of the axis of `choice`, with its unit.
    """

    headlines: Mapping[str, str]
    choice: str
    columns: Mapping[str, Callable[[Any], float]]
    percent: bool
    explained: str
    axis: str


@dataclass(frozen=True)
class Pages:
    """What a task draws of a finished run: a few words each about model and data, and sections in order."""

    facts: Mapping[str, str]
    sections: Sequence[Section]


@dataclass(frozen=True)
class Measuring:
    """What of a model is measured, and how.

    Attributes:
        split: "val" or "test".
        full: with every metric, not the headline numbers alone.
        autocast: dtype of the forward pass, or None for fp32.
        keep: folder for what else the pass found, such as features; None keeps nothing, measures no trivial answers.
        advance: called after each batch.
    """

    split: str
    full: bool
    autocast: torch.dtype | None = None
    keep: Path | None = None
    advance: Callable[[], None] | None = None


class Measured(Protocol):
    """What an evaluation of a file returns: a report, or another table."""

    def to_table(self) -> Table:
        """Returns the numbers for the terminal."""


class Task(ABC, Generic[ConfigT]):
    """How jobs of one kind build, train, measure and show.

    It is built from the settings of a job; what it knows without any, such as how its files are read, measured,
    predicted with and served, are class methods.
    """

    name: ClassVar[str]
    """What configs and files call it; its key in `TASKS`."""
    words: ClassVar[Words]
    packages: ClassVar[tuple[str, ...]]
    """What beside torch decides the numbers, for the header of a run's config."""
    contrast_draws: ClassVar[bool]
    """Whether the contrastive scoring loss draws by a seed of its own: a second pass then shows what the draw does."""
    description: ClassVar[type[Description]]
    """What a merged file of this task says about itself."""
    service: ClassVar[type[Service]]
    """What loads such a file to answer requests."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    def measures_before(self) -> bool:
        """Whether the untuned model is measured: a new head can't be."""
        return False

    @abstractmethod
    def build(self, needs: Needs | None) -> tuple[Backbone, Loaders]:
        """Builds model and data for a scoring pass to come, or None; all that can be wrong with them shows here."""

    @abstractmethod
    def skeleton(self) -> Backbone:
        """Returns the model of the config without values (meta tensors), to check a selection by its shapes."""

    @abstractmethod
    def training_loss(self) -> OutputLoss:
        """Returns the loss of the `loss` section."""

    def mixing(self, loaders: Loaders) -> Mix | None:
        """Returns what changes training batches, or None."""
        return None

    @abstractmethod
    def scoring_loss(self, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        """Returns the loss of a scoring pass and its text: all that scores depend on beside model and images."""

    def network(
        self, model: Backbone, selection: Selection, *, base_hash: str, autocast: torch.dtype | None
    ) -> nn.Module:
        """Returns what is trained: the model with `selection` attached, or something around it.

        Args:
            base_hash: `state_hash` of the untuned model.
            autocast: dtype of the training's forward passes, or None for fp32.
        """
        return model

    @abstractmethod
    def evaluate(self, model: nn.Module, loaders: Loaders, how: Measuring) -> AnyReport:
        """Measures a model on a part.

        Args:
            model: attached or merged, in the training's precision or in fp32.
        """

    @abstractmethod
    def describe(
        self, model: Backbone, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> Description:
        """Returns what the file of a merged model says: with `additions` that could not be merged, on this base."""

    def notes(self, counts: Counts, model: Backbone) -> list[str]:
        """Returns what a user should know of what trains."""
        return []

    @abstractmethod
    def draw(self, model: Backbone, loaders: Loaders, report: Any, folder: Path) -> Pages:
        """Draws the pictures of a report into the run folder."""

    def checkpoint(self) -> str | None:
        """Returns the checkpoint of the `model` section: a path that was looked up, "random", or None."""
        given = self.config.model.checkpoint
        return None if given is None else RANDOM if str(given) == RANDOM else str(find_path(given))

    def loader_options(self) -> LoaderOptions:
        """Returns how the images are read."""
        train, score, data, seed = self.config.train, self.config.score, self.config.data, self.config.run.seed
        return LoaderOptions(train.images, score.batch, score.images, seed, data.workers, data.cache)

    def batch_text(self, needs: Needs) -> str:
        """Returns the part of a scoring loss's text that says how images were grouped."""
        return f" batch={self.config.score.batch}" if needs.per == "batch" else ""

    def remarks(self, model: Backbone, loaders: Loaders, report: Any, before: AnyReport | None) -> list[str]:
        """Returns sentences on what limits this report, or is worse than `before`; none where nothing is."""
        return []

    @classmethod
    @abstractmethod
    def load_report(cls, folder: Path) -> AnyReport:
        """Reads back the report that a run or an evaluation left, or raises a `DataError`."""

    @classmethod
    @abstractmethod
    def evaluate_file(cls, request: Evaluation) -> Measured:
        """Measures a merged file on a folder, by the prediction path of a run's own report.

        Raises:
            ConfigError: an option that this task does not have.
            CheckpointError: a missing or damaged file.
            DataError: an unusable folder.
        """

    @classmethod
    @abstractmethod
    def predict_files(cls, request: Prediction) -> str:
        """Writes the answers for image files, and returns a line that says what was written where.

        Raises:
            ConfigError, CheckpointError: as `evaluate_file`.
            DataError: nothing to predict, or images that can't be read; the answers of the others are written.
        """

    @classmethod
    @abstractmethod
    def recognises(cls, folder: Path) -> bool:
        """Tells by names alone whether a data folder has this task's layout."""

    @classmethod
    def knows(cls, name: str) -> bool:
        """Tells whether this task has public data sets of its own, of which `name` may be one."""
        return False

    @classmethod
    @abstractmethod
    def verify(cls, folder: Path, *, name: str | None) -> VerifyReport:
        """Reads everything in a data folder of this task's layout, or of the known data set `name`.

        Raises:
            ConfigError: an unknown name.
            DataError: the folder doesn't exist.
        """

    @classmethod
    def items(cls, folder: Path) -> Sequence[Item]:
        """Lists the images of one part, for a sweep that chooses on a share of train; a `ConfigError` if not for it."""
        raise ConfigError(f"choose_on is not for {cls.name}: its data have a validation part of their own.")

    @classmethod
    def quiet(cls, *, in_grid: bool) -> tuple[str, ...]:
        """Returns changes to the config for the runs of a sweep: pictures that nobody looks at are not drawn."""
        return ()
