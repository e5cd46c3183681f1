"""What a task is: everything in which segmentation and classification differ, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samtune.base.paths import find_path
from samtune.config.load import Config
from samtune.data.loaders import Loaders
from samtune.files.merged import Described
from samtune.metrics.report import AnyReport
from samtune.models.backbone import TunableModel
from samtune.models.weights import RANDOM
from samtune.report.page import Section
from samtune.run.fit import Mix
from samtune.scoring.score import ScoreLoss
from samtune.selection import SELECTORS, Addition, Needs
from samtune.tuning import Counts
from samtune.types import OutputLoss

Advance = Callable[[], None]


@dataclass(frozen=True)
class Pages:
    """What a task draws of a finished run, for its report.

    Attributes:
        facts: a few words each about model and data, shown below the title.
        headline: name of a metric -> its label, of those that head the page; the first one has its curve shown.
        sections: pictures and tables, in order.
    """

    facts: Mapping[str, str]
    headline: Mapping[str, str]
    sections: Sequence[Section]


class Task(ABC):
    """How a job of one kind builds, trains, measures and shows; without state."""

    packages: tuple[str, ...]
    """What beside torch decides the numbers, for the header of a run's config."""
    measures_before: bool
    """Whether the untuned model can be measured: a new head can't."""
    contrast_draws: bool
    """Whether the contrastive scoring loss draws by a seed of its own: a second pass then shows what the draw does."""

    @abstractmethod
    def build(self, config: Any) -> tuple[TunableModel, Loaders]:
        """Builds model and data; everything that can be wrong with them shows here."""

    @abstractmethod
    def training_loss(self, config: Any) -> OutputLoss:
        """Returns the loss of the `loss` section."""

    def mixing(self, config: Any, loaders: Loaders) -> Mix | None:
        """Returns what changes training batches, or None."""
        return None

    @abstractmethod
    def scoring_loss(self, config: Any, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        """Returns the loss of a scoring pass and its text: all that scores depend on beside model and images."""

    @abstractmethod
    def evaluate(
        self,
        config: Any,
        model: nn.Module,
        loaders: Loaders,
        *,
        split: str,
        full: bool,
        autocast: torch.dtype | None = None,
        keep: Path | None = None,
        advance: Advance | None = None,
    ) -> AnyReport:
        """Measures a model on a part.

        Args:
            config: of the job.
            model: attached or merged, in the training's precision or in fp32.
            loaders: the data.
            split: "val" or "test".
            full: with every metric, not the headline numbers alone.
            autocast: dtype of the forward pass, or None for fp32.
            keep: folder for what else the pass found, such as features; None keeps nothing.
            advance: called after each batch.
        """

    @abstractmethod
    def info(
        self, config: Any, model: Any, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> Described:
        """Returns what the merged file says about itself."""

    @abstractmethod
    def load_merged(self, path: Path, *, device: torch.device) -> TunableModel:
        """Loads what `save_merged` wrote."""

    def notes(self, counts: Counts, model: Any) -> list[str]:
        """Returns what a user should know of what trains."""
        return []

    @abstractmethod
    def draw(self, config: Any, model: Any, loaders: Loaders, report: Any, folder: Path) -> Pages:
        """Draws the pictures of a report into the run folder."""


def needs_of(config: Config) -> Needs | None:
    """Returns the scoring pass that the config's selector needs, with the loss that the config asks for."""
    needs = SELECTORS[config.select.name].needs(**config.select.options)
    if needs is None or config.score.loss is None:
        return needs
    return replace(needs, loss="task" if config.score.loss in ("task", "cross_entropy") else "contrastive")


def batch_text(config: Config, needs: Needs) -> str:
    """Returns the part of a loss's text that says how images were grouped."""
    return f" batch={config.score.batch}" if needs.per == "batch" else ""


def checkpoint_of(config: Config) -> str | None:
    """Returns the checkpoint of the `model` section: a path that was looked up, "random", or None."""
    checkpoint = None if config.model.checkpoint is None else str(config.model.checkpoint)
    return checkpoint if checkpoint in (None, RANDOM) else str(find_path(checkpoint))
