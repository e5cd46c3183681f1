"""A task from outside of the package: which share of a picture is bright? One folder of modules in the real world.

A picture's file name ends with its share: `train/a_0.25.png`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samtune.base.machine import pick_device
from samtune.base.paths import find_path
from samtune.config import sections as shared
from samtune.data.loaders import EpochBatches, Loaders
from samtune.data.pictures import read_image
from samtune.data.splits import Splits
from samtune.data.verify import VerifyReport
from samtune.errors import DataError
from samtune.files.description import Description
from samtune.files.merged import load_merged
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap
from samtune.metrics.report import AnyReport, read_report
from samtune.models.backbone import Backbone, evaluation_mode
from samtune.models.table import build_model
from samtune.models.weights import RANDOM
from samtune.scoring.score import ScoreLoss
from samtune.selection import Addition, Needs
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.predict import Prediction
from samtune.tasks.service import Answer, Service
from samtune.tasks.table import TaskEntry
from samtune.tasks.task import Measuring, Pages, Task, Words
from samtune.types import ImageArray, OutputLoss

ENTRY = TaskEntry("toy_task:ShareConfig", "toy_task:ShareTask")
SIDE = 32


class Model(shared.Model):
    """`model`: what is tuned."""

    name: str = Field("toy_net", description="architecture")


class ShareConfig(shared.Config):
    """All settings of a job on shares."""

    task: Literal["shares"] = Field("shares", description="kind of job")
    model: Model = Model()
    data: shared.Data = Field(description="pictures")
    score: shared.Score = shared.Score()
    train: shared.Train = shared.Train()


@dataclass(frozen=True)
class ShareBatch:
    """Pictures (B, 3, S, S) uint8 with their shares (B,) in [0, 1]."""

    images: Tensor
    shares: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> ShareBatch:
        return replace(self, images=self.images.to(device), shares=self.shares.to(device))

    def split(self, size: int) -> list[ShareBatch]:
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [ShareBatch(self.images[part], self.shares[part], self.names[part]) for part in parts]

    def content(self) -> bytes:
        return bytes(self.images.cpu().numpy().tobytes() + self.shares.cpu().numpy().tobytes())


@dataclass(frozen=True)
class Picture:
    """One file; its name tells its share."""

    image: Path

    @property
    def name(self) -> str:
        return self.image.stem

    @property
    def share(self) -> float:
        return float(self.name.rpartition("_")[2])


class Pictures(Dataset[Picture]):
    """The pictures of a part."""

    skipped = 0

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = list(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Picture:
        return self.pictures[index]

    def set_epoch(self, epoch: int) -> None:
        """Nothing is drawn."""


def to_batch(pictures: Sequence[Picture]) -> ShareBatch:
    """Decodes pictures of SIDE x SIDE pixels."""
    pixels = [torch.from_numpy(read_image(picture.image).transpose(2, 0, 1).copy()) for picture in pictures]
    shares = torch.tensor([picture.share for picture in pictures])
    return ShareBatch(torch.stack(pixels), shares, tuple(picture.name for picture in pictures))


def share_of(logits: Tensor) -> Tensor:
    """Returns (B,) shares of (B, 1, h, w) logits."""
    return logits.float().sigmoid().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class ShareRow:
    """One picture: its share, and what the model says."""

    name: str
    truth: float
    answer: float

    @property
    def closeness(self) -> float:
        """1 - |answer - truth|."""
        return 1 - abs(self.answer - self.truth)


@dataclass(frozen=True)
class ShareReport(AnyReport):
    """How close the answers are."""

    task: ClassVar[str] = "shares"
    rows: tuple[ShareRow, ...]
    split: str
    definition: dict[str, str] = field(default_factory=lambda: {"closeness": "1 - error.", "ci95": "Bootstrap."})

    @property
    def values(self) -> dict[str, float]:
        return {"closeness": statistics.fmean(row.closeness for row in self.rows)}

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        return {"closeness": bootstrap_ci([row.closeness for row in self.rows])}

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.values)

    @property
    def n_images(self) -> int:
        return len(self.rows)

    def gain(self, before: ShareReport) -> dict[str, tuple[float, float, float]]:
        one, other = ([row.closeness for row in report.rows] for report in (before, self))
        return {"closeness": paired_bootstrap(one, other)}

    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        return ["name", "truth", "answer"], [[row.name, row.truth, row.answer] for row in self.rows]


class ShareDescription(Description):
    """What a merged file says."""

    task: ClassVar[str] = "shares"
    unit: str = "share"


class ShareService(Service):
    """Answers with a number."""

    fields = ()
    media_types = ("application/json",)
    page = Path(__file__).with_name("toy_page.html")

    def __init__(self, model: Backbone) -> None:
        self.model = model

    @classmethod
    def from_file(cls, path: Path, *, device: str) -> ShareService:
        return cls(load_merged(path, ShareDescription, device=pick_device(device))[0])

    def about(self) -> dict[str, Any]:
        return {"task": "shares", "model": self.model.name}

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        return Answer.of_json({"share": answer_of(self.model, image_hwc_uint8)})


def answer_of(model: Backbone, image: ImageArray) -> float:
    """Returns the share that a model sees in one (H, W, 3) picture."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    with torch.no_grad():
        return float(share_of(model(ShareBatch(pixels, torch.zeros(1), ("",)).to(model.device))))


class ShareTask(Task[ShareConfig]):
    """Tunes a model to tell the share of bright pixels."""

    name = "shares"
    words = Words(
        headlines={"closeness": "Closeness"},
        choice="closeness",
        columns={"closeness": lambda row: row.closeness},
        percent=False,
        explained="closeness of shares",
        axis="closeness",
    )
    packages = ()
    measures_before = True
    contrast_draws = False
    description = ShareDescription
    service = ShareService

    def build(self, needs: Needs | None) -> tuple[Backbone, Loaders]:
        config = self.config
        model = build_model(config.model.name, checkpoint=self.checkpoint(), image_size=SIDE)
        parts = Splits(*(pictures_of(find_path(config.data.dir) / part) for part in ("train", "val", "test")))

        def loader(pictures: list[Picture], **options: Any) -> DataLoader[Any]:
            return DataLoader(Pictures(pictures), collate_fn=to_batch, **options)

        batch = config.train.images
        batches = EpochBatches(len(parts.train), batch, seed=config.run.seed)
        return model, Loaders(
            score=loader(parts.train, batch_size=config.score.batch),
            train=loader(parts.train, batch_sampler=batches),
            val=loader(parts.val, batch_size=batch),
            test=loader(parts.test, batch_size=batch),
            splits=parts,
        )

    def skeleton(self) -> Backbone:
        with torch.device("meta"):
            return build_model(self.config.model.name, checkpoint=RANDOM, image_size=SIDE)

    def training_loss(self) -> OutputLoss:
        return lambda logits, batch: (share_of(logits) - batch.shares).abs().mean()

    def scoring_loss(self, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        loss = self.training_loss()
        return lambda model, batch: loss(model(batch), batch), f"shares{self.batch_text(needs)}"

    def evaluate(self, model: nn.Module, loaders: Loaders, how: Measuring) -> ShareReport:
        return measure(model, loaders.part(how.split).dataset.pictures, how.split)  # type: ignore[attr-defined]

    def describe(
        self, model: Backbone, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> ShareDescription:
        return ShareDescription.of(model, base_hash=base_hash, additions=additions)

    def draw(self, model: Backbone, loaders: Loaders, report: Any, folder: Path) -> Pages:
        return Pages({"Model": model.name}, ())

    @classmethod
    def load_report(cls, folder: Path) -> ShareReport:
        content, records = read_report(folder)
        rows = (ShareRow(r["name"], float(r["truth"]), float(r["answer"])) for r in records)
        return ShareReport(tuple(rows), content["split"], content["definition"])

    @classmethod
    def evaluate_file(cls, request: Evaluation) -> ShareReport:
        model, _ = load_merged(request.checkpoint, cls.description, device=pick_device(request.device))
        report = measure(model, pictures_of(request.data), "all")
        if request.out is not None:
            report.save(request.out)
        return report

    @classmethod
    def predict_files(cls, request: Prediction) -> str:
        model, _ = load_merged(request.checkpoint, cls.description, device=pick_device(request.device))
        answers = {path.name: answer_of(model, read_image(path)) for path in request.paths}
        request.out.mkdir(parents=True, exist_ok=True)
        (request.out / "shares.json").write_text(json.dumps(answers))
        return f"{len(answers)} shares in {request.out}"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return any(folder.glob("train/*_0.*.png"))

    @classmethod
    def verify(cls, folder: Path, *, name: str | None) -> VerifyReport:
        return VerifyReport((), (f"{len(list(folder.rglob('*.png')))} pictures with shares",))


def measure(model: nn.Module, pictures: Sequence[Picture], split: str) -> ShareReport:
    """Measures a model on pictures."""
    with evaluation_mode(model), torch.no_grad():
        answers = share_of(model(to_batch(pictures)))
    rows = (ShareRow(p.name, p.share, float(answer)) for p, answer in zip(pictures, answers, strict=True))
    return ShareReport(tuple(rows), split)


def pictures_of(folder: Path) -> list[Picture]:
    """Lists the pictures of a folder.

    Raises:
        DataError: there is none.
    """
    pictures = [Picture(path) for path in sorted(folder.glob("*.png"))]
    if not pictures:
        raise DataError(f"{folder}: no picture with a share; name it such as a_0.25.png")
    return pictures
