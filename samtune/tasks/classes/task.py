"""Classification: a timm backbone with a head for the classes, labelled images, top-1 accuracy."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from samtune.base.paths import find_path
from samtune.base.tensors import save_tensors
from samtune.data.loaders import Loaders
from samtune.data.pictures import read_image
from samtune.files.classifier import ClassifierInfo, check_classes, load_classifier
from samtune.models.timm.model import Classifier, build_classifier
from samtune.models.weights import RANDOM
from samtune.report.page import Picture, Section
from samtune.run.fit import Mix
from samtune.scoring.score import ScoreLoss
from samtune.selection import Addition, Needs
from samtune.tasks.classes.config import ClassificationConfig
from samtune.tasks.classes.draw import (
    HEADLINE,
    MISTAKES_NOTE,
    Example,
    confident_mistakes,
    save_examples,
    wrong_classes_section,
)
from samtune.tasks.classes.evaluate import evaluate_classes, head_inputs
from samtune.tasks.classes.known import DATASETS
from samtune.tasks.classes.labelled import ClassSplits, resolve_classes
from samtune.tasks.classes.loaders import build_class_data
from samtune.tasks.classes.losses import cross_entropy, head_cross_entropy, image_contrastive
from samtune.tasks.classes.mixing import mixer
from samtune.tasks.classes.report import ClassReport
from samtune.tasks.task import Advance, Pages, Task, batch_text, checkpoint_of, needs_of
from samtune.types import OutputLoss, Resize

FEATURES = 2000  # at most this many images, spread over all, have their features kept, for maps of the feature space


class ClassificationTask(Task):
    """Tunes a ViT, Swin or ConvNeXt with cross-entropy."""

    packages = ("timm", "torchvision")
    measures_before = False
    contrast_draws = False  # the two views come with the images

    def build(self, config: ClassificationConfig) -> tuple[Classifier, Loaders]:
        data, needs, seed = config.data, needs_of(config), config.run.seed
        splits = resolve_classes(
            find_path(data.dir),
            name=data.name,
            train=data.train,
            val=data.val,
            test=data.test,
            retrain=data.retrain,
            shots=data.shots,
            shots_seed=seed,
        )
        checkpoint = checkpoint_of(config)
        if config.model.head == "checkpoint" and checkpoint not in (None, RANDOM):
            check_classes(Path(checkpoint), splits.classes)
        model = build_classifier(
            config.model.name,
            classes=len(splits.classes),
            checkpoint=checkpoint,
            image_size=config.model.image_size,
            head=config.model.head,
            drop_path=config.train.drop_path,
            seed=seed,
            **config.model.options,
        )
        loaders = build_class_data(
            splits,
            image_size=model.image_size,
            batch=config.train.batch,
            resize=resize_of(config),
            augment=data.augment,
            interpolation=model.interpolation,
            seed=seed,
            workers=data.workers,
            cache=data.cache,
            score_images=config.score.images,
            score_batch=config.score.batch,
            score_views=needs is not None and needs.loss == "contrastive",
        )
        return model, loaders

    def training_loss(self, config: ClassificationConfig) -> OutputLoss:
        smoothing = config.loss.label_smoothing
        return lambda logits, batch: cross_entropy(logits, batch, label_smoothing=smoothing)

    def mixing(self, config: ClassificationConfig, loaders: Loaders) -> Mix | None:
        train, classes = config.train, len(_splits(loaders).classes)
        return mixer(mixup=train.mixup, cutmix=train.cutmix, classes=classes, seed=config.run.seed)

    def scoring_loss(self, config: ClassificationConfig, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        batch = batch_text(config, needs)
        if needs.loss == "task":
            return head_cross_entropy, f"cross_entropy head_seed={config.run.seed}{batch}"
        temperature = config.score.temperature
        return image_contrastive(temperature=temperature), f"contrastive temperature={temperature:g} views=2{batch}"

    def evaluate(
        self,
        config: ClassificationConfig,
        model: nn.Module,
        loaders: Loaders,
        *,
        split: str,
        full: bool,
        autocast: torch.dtype | None = None,
        keep: Path | None = None,
        advance: Advance | None = None,
    ) -> ClassReport:
        images = getattr(_splits(loaders), split)
        every = 0 if keep is None else math.ceil(len(images) / FEATURES)
        with head_inputs(_classifier(model), every=every) as features:
            report = evaluate_classes(
                model,
                getattr(loaders, split),
                classes=_splits(loaders).classes,
                split=split,
                autocast_dtype=autocast,
                on_batch=None if advance is None else lambda *_: advance(),
            )
        if keep is not None:
            labels = torch.tensor([row.label for row in report.rows[::every]])
            save_tensors(keep / "features.safetensors", {"features": features(), "labels": labels}, {})
        return report

    def info(
        self,
        config: ClassificationConfig,
        model: Classifier,
        loaders: Loaders,
        *,
        base_hash: str,
        additions: tuple[Addition, ...],
    ) -> ClassifierInfo:
        return ClassifierInfo.of(
            model,
            classes=_splits(loaders).classes,
            resize=resize_of(config),
            base_hash=base_hash,
            additions=additions,
        )

    def load_merged(self, path: Path, *, device: torch.device) -> Classifier:
        return load_classifier(path, device=device)[0]

    def draw(
        self, config: ClassificationConfig, model: Classifier, loaders: Loaders, report: ClassReport, folder: Path
    ) -> Pages:
        return Pages(
            facts={
                "Model": f"{model.name}, {model.image_size} px",
                "Data": f"{config.data.name or 'class folders'}, {config.data.dir}",
                "Classes": str(len(report.classes)),
            },
            headline=HEADLINE,
            sections=[
                *_mistakes(loaders, report, folder / "mistakes.png"),
                wrong_classes_section(report, folder / "confusion.png"),
            ],
        )


def resize_of(config: ClassificationConfig) -> Resize:
    """Returns how images come to the square input: as the config says, else as the papers do for its data set."""
    if config.data.resize != "auto":
        return config.data.resize
    return DATASETS[config.data.name].resize if config.data.name is not None else "crop"


def _mistakes(loaders: Loaders, report: ClassReport, file: Path) -> list[Section]:
    """Draws the images that the model is wrong and sure about; returns their section, or nothing without any."""
    images = {item.name: item.image for item in getattr(_splits(loaders), report.split)}
    names = report.classes
    examples = [
        Example(row.name, read_image(images[row.name]), names[row.label], names[row.predicted], row.confidence)
        for row in confident_mistakes(report)
    ]
    if not examples:
        return []
    save_examples(file, examples)
    picture = Picture(f"{len(examples)} most confident mistakes", file)
    return [Section("Pictures", MISTAKES_NOTE, pictures=[picture])]


def _classifier(model: nn.Module) -> Classifier:
    assert isinstance(model, Classifier)
    return model


def _splits(loaders: Loaders) -> ClassSplits:
    assert isinstance(loaders.splits, ClassSplits)
    return loaders.splits
