"""Classification: a timm backbone with a head for the classes, labelled images, top-1 accuracy."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from samtune.base.paths import find_path
from samtune.base.tensors import save_tensors
from samtune.data.loaders import Loaders
from samtune.data.splits import Given
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
from samtune.files.description import Description
from samtune.metrics.trivial import most_frequent
from samtune.models.backbone import Backbone
from samtune.models.table import build_model, build_shapes
from samtune.models.weights import RANDOM
from samtune.scoring.score import ScoreLoss
from samtune.selection import Addition, Needs
from samtune.tasks.classes.config import ClassificationConfig
from samtune.tasks.classes.corruptions import evaluate_corruptions
from samtune.tasks.classes.dataset import build_class_data
from samtune.tasks.classes.description import ClassDescription, check_classes
from samtune.tasks.classes.draw import mistakes_section, wrong_classes_section
from samtune.tasks.classes.evaluate import evaluate_classes, evaluate_classifier, head_inputs
from samtune.tasks.classes.layouts.known import DATASETS
from samtune.tasks.classes.losses import cross_entropy, head_cross_entropy, image_contrastive
from samtune.tasks.classes.predict import ClassService, predict_class_files
from samtune.tasks.classes.report import TOP_K, ClassReport
from samtune.tasks.classes.splits import ClassSplits, resolve_classes
from samtune.tasks.classes.verify import recognises, verify_folder
from samtune.tasks.classes.views import build_view, mixer
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.predict import Prediction
from samtune.tasks.task import Measured, Measuring, Pages, Task, Words
from samtune.types import Mix, OutputLoss, Resize

FEATURES = 2000  # at most this many images, spread over all, have their features kept, for maps of the feature space


class ClassificationTask(Task[ClassificationConfig]):
    """Tunes a ViT, Swin, ConvNeXt or EfficientNet with cross-entropy."""

    name = "classification"
    words = Words(
        headlines={"top1": "Top-1 accuracy", "top5": "Top-5 accuracy", "mean_per_class": "Mean per class"},
        choice="top1",
        columns={"top1": lambda row: float(row.rank == 0), "top5": lambda row: float(row.rank < TOP_K)},
        percent=True,
        explained="accuracy in percent",
        axis="top-1 accuracy, %",
    )
    packages = ("timm", "torchvision")
    contrast_draws = False  # the two views come with the images
    description: ClassVar[type[Description]] = ClassDescription
    service = ClassService

    def build(self, needs: Needs | None) -> tuple[Backbone, Loaders]:
        config, data, seed = self.config, self.config.data, self.config.run.seed
        given = Given(data.train, data.val, data.test)
        splits = resolve_classes(
            find_path(data.dir), name=data.name, given=given, retrain=data.retrain, shots=data.shots, shots_seed=seed
        )
        checkpoint = self.checkpoint()
        if config.model.head == "checkpoint" and checkpoint not in (None, RANDOM):
            check_classes(Path(checkpoint), splits.classes)
        model = build_model(
            config.model.name,
            classes=len(splits.classes),
            checkpoint=checkpoint,
            image_size=config.model.image_size,
            head=config.model.head,
            drop_path=config.train.drop_path,
            seed=seed,
            **config.model.options,
        )
        size, kernel = model.image_size, model.interpolation
        view_of = partial(build_view, image_size=size, resize=self.resize(), interpolation=kernel)
        twice = needs is not None and needs.loss == "contrastive"
        return model, build_class_data(splits, self.loader_options(), view_of, augment=data.augment, score_views=twice)

    def skeleton(self) -> Backbone:
        model = self.config.model
        size, options = model.image_size, {"head": "new", **model.options}
        # two classes do for a check: how many there are, the data says
        return build_shapes(model.name, checkpoint=self.checkpoint(), image_size=size, classes=2, **options)

    def training_loss(self) -> OutputLoss:
        return partial(cross_entropy, label_smoothing=self.config.loss.label_smoothing)

    def mixing(self, loaders: Loaders) -> Mix | None:
        train, classes = self.config.train, len(_splits(loaders).classes)
        return mixer(mixup=train.mixup, cutmix=train.cutmix, classes=classes, seed=self.config.run.seed)

    def scoring_loss(self, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        batch = self.batch_text(needs)
        if needs.loss == "task":
            return head_cross_entropy, f"cross_entropy head_seed={self.config.run.seed}{batch}"
        temperature = self.config.score.temperature
        return image_contrastive(temperature=temperature), f"contrastive temperature={temperature:g} views=2{batch}"

    def evaluate(self, model: nn.Module, loaders: Loaders, how: Measuring) -> ClassReport:
        images, classes = getattr(_splits(loaders), how.split), _splits(loaders).classes
        every = 0 if how.keep is None else math.ceil(len(images) / FEATURES)
        assert isinstance(model, Backbone)
        with head_inputs(model, every=every) as features:
            report = evaluate_classes(
                model,
                loaders.part(how.split),
                classes=classes,
                split=how.split,
                autocast_dtype=how.autocast,
                advance=how.advance,
            )
        if how.keep is not None:
            labels = torch.tensor([row.label for row in report.rows[::every]])
            save_tensors(how.keep / "features.safetensors", {"features": features(), "labels": labels}, {})
            train = [item.label for item in _splits(loaders).train]
            frequent = most_frequent([row.label for row in report.rows], train)
            report = replace(report, trivial={"most_frequent": frequent})
        return report

    def describe(
        self, model: Backbone, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> Description:
        return ClassDescription.of(
            model,
            base_hash=base_hash,
            additions=additions,
            classes=_splits(loaders).classes,
            resize=self.resize(),
            interpolation=model.interpolation,
        )

    def draw(self, model: Backbone, loaders: Loaders, report: Any, folder: Path) -> Pages:
        facts = {
            "Model": f"{model.name}, {model.image_size} px",
            "Data": f"{self.config.data.name or 'class folders'}, {self.config.data.dir}",
            "Classes": str(len(report.classes)),
        }
        images = {item.name: item.image for item in getattr(_splits(loaders), report.split)}
        mistakes = mistakes_section(report, images, folder / "mistakes.png")
        return Pages(facts, [*mistakes, wrong_classes_section(report, folder / "confusion.png")])

    def resize(self) -> Resize:
        """Returns how images come to the square input: as the config says, else as the papers do for its data set."""
        data = self.config.data
        if data.resize != "auto":
            return data.resize
        return DATASETS[data.name].resize if data.name is not None else "crop"

    @classmethod
    def load_report(cls, folder: Path) -> ClassReport:
        return ClassReport.load(folder)

    @classmethod
    def evaluate_file(cls, request: Evaluation) -> Measured:
        if request.metrics:
            raise ConfigError(
                f"--metrics {request.metrics[0]!r} is of masks; all metrics of a classifier are shown anyway."
            )
        return evaluate_corruptions(request) if request.name == "imagenet-c" else evaluate_classifier(request)

    @classmethod
    def predict_files(cls, request: Prediction) -> str:
        return predict_class_files(request)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return recognises(folder)

    @classmethod
    def knows(cls, name: str) -> bool:
        return True

    @classmethod
    def verify(cls, folder: Path, *, name: str | None) -> VerifyReport:
        return verify_folder(folder, name=name)


def _splits(loaders: Loaders) -> ClassSplits:
    assert isinstance(loaders.splits, ClassSplits)
    return loaders.splits
