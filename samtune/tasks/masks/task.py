"""Segmentation: Segment Anything, pairs of image and mask, Dice and IoU."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samtune.base.paths import find_path
from samtune.data.formats.table import Source
from samtune.data.loaders import Loaders
from samtune.data.pairs import Pair, find_pairs
from samtune.data.splits import Given
from samtune.data.verify import VerifyReport
from samtune.metrics.advice import too_small
from samtune.metrics.report import AnyReport
from samtune.metrics.trivial import TrivialMasks, mean_mask
from samtune.models.backbone import Backbone
from samtune.models.table import build_model, build_shapes
from samtune.selection import Addition, Needs, Selection
from samtune.tasks.binary import read_mask
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.config import Data, SegmentationConfig
from samtune.tasks.masks.dataset import SegmentationDataset, build_data, mask_dataset
from samtune.tasks.masks.draw import gallery_sections
from samtune.tasks.masks.evaluate import MaskDescription, evaluate, evaluate_file
from samtune.tasks.masks.losses import LOSSES
from samtune.tasks.masks.mixed import ByPrompt
from samtune.tasks.masks.predict import predict_files
from samtune.tasks.masks.report import DEFAULT_METRICS, Report, object_sides
from samtune.tasks.masks.service import MaskService
from samtune.tasks.masks.splits import kind_of, recognises, resolve_split, verify_folder, with_object
from samtune.tasks.pixels import PromptTask
from samtune.tasks.predict import Prediction
from samtune.tasks.probe.answers import spread
from samtune.tasks.probe.kept import DEFINITION, kept_sections, lost, measure_kept, measured_before, object_batches
from samtune.tasks.task import Measuring, Pages, Words
from samtune.tuning import Counts
from samtune.types import Batch

MEAN_OF = 100  # training masks at most, spread over all


class SegmentationTask(PromptTask[SegmentationConfig]):
    """Tunes a Segment Anything model with Dice + BCE."""

    name = "segmentation"
    words = Words(
        headlines={"mDice": "Mean Dice", "mIoU": "Mean IoU"},
        choice="mDice",
        columns={"mDice": lambda row: row.dice, "mIoU": lambda row: row.iou},
        percent=False,
        explained="the foreground metric, from 0 to 1",
        axis="mDice",
    )
    losses = LOSSES
    description = MaskDescription
    service = MaskService

    def build(self, needs: Needs | None) -> tuple[Backbone, Loaders]:
        config, data = self.config, self.config.data
        size, pixels = config.model.image_size, self.pixels
        model = build_model(config.model.name, checkpoint=self.checkpoint(), image_size=size, channels=pixels.channels)
        given = Given(data.train, data.val, data.test)
        splits = resolve_split(
            find_path(data.dir),
            split=data.split,
            seed=config.run.seed,
            given=given,
            source=Source(data.format, data.categories),
            pixels=pixels,
            empty=data.empty if data.asked == "none" else "skip",
        )
        by_task = needs is not None and needs.loss == "task"
        loaders = build_data(
            splits if data.shots is None else splits.with_few(data.shots, config.run.seed),
            self.tiled_options(model),
            image_size=model.image_size,
            prompt=data.shares if data.prompt == "mixed" else data.prompt,
            augment=data.augment,
            # contrast is between the whole foreground and the background; the task's loss wants the task's prompt
            score_prompt=data.asked if by_task else "none",
            score_empty=by_task,
            pixels=pixels,
        )
        return model, loaders

    def skeleton(self) -> Backbone:
        model = self.config.model
        size, count = model.image_size, model.channels
        return build_shapes(model.name, checkpoint=self.checkpoint(), image_size=size, channels=count)

    def target_text(self) -> str:
        return f" prompt={self.config.data.asked}"

    def network(
        self, model: Backbone, selection: Selection, *, base_hash: str, autocast: torch.dtype | None
    ) -> nn.Module:
        network = self.encoder(model, selection, base_hash=base_hash, autocast=autocast)
        return network if len(self.config.data.shares) == 1 else ByPrompt(network)

    def evaluate(self, model: nn.Module, loaders: Loaders, how: Measuring) -> Report:
        options, answers = self.config.eval, None
        if how.keep is not None:
            train = loaders.splits.train
            spread = train[:: math.ceil(len(train) / MEAN_OF)]
            answers = TrivialMasks(mean_mask(read_mask(pair.mask) for pair in spread))

        def on_batch(batch: Batch, _: object) -> None:
            if answers is not None:
                answers.add(batch)
            if how.advance is not None:
                how.advance()

        report = evaluate(
            model,
            loaders.part(how.split),
            metrics=(*DEFAULT_METRICS, *options.metrics) if how.full else (),
            split=how.split,
            autocast_dtype=how.autocast,
            on_batch=on_batch,
        )
        if how.full and options.prompts:
            report = self._with_kept(report, model, loaders)
        return report if answers is None else replace(report, trivial=answers.dice)

    def _with_kept(self, report: Report, model: nn.Module, loaders: Loaders) -> Report:
        assert isinstance(model, Backbone)
        count, side, tiles = self.config.eval.prompts, model.image_size, self.tiling(model)
        pairs = spread(with_object(loaders.splits.val), count)
        objects = object_batches(mask_dataset(tiles, side)(pairs, pixels=self.pixels), side, tiles)
        kept = measure_kept(model, objects, pictures=count, unprompted=True)
        return replace(report, kept=kept, definition=report.definition | {"prompts": DEFINITION})

    def describe(
        self, model: Backbone, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> MaskDescription:
        data = self.config.data
        own: Any = {"data_format": data.format, "categories": data.categories, "range": data.range}
        own["tiles"] = self.tile_sides
        if len(data.shares) > 1:
            own["prompts"] = tuple(data.shares)
        return MaskDescription.of(model, base_hash=base_hash, additions=additions, prompt=data.asked, **own)

    def notes(self, counts: Counts, model: Backbone) -> list[str]:
        if not counts.decoder:
            return []
        count = sum(model.net.get_parameter(name).numel() for name in model.idle())
        return [f"of the decoder, {count:,} parameters serve other mask tokens than 0 and get no gradient"]

    def remarks(self, model: Backbone, loaders: Loaders, report: Any, before: AnyReport | None) -> list[str]:
        data = self.config.data
        objects = object_sides(getattr(loaders.splits, report.split), report, tile=data.tiles.size)
        mixed = data.prompt == "mixed"
        remedy = "Larger shares of them in data.mix keep more." if mixed else "data.prompt=mixed keeps more."
        return [
            *too_small(objects, image_size=model.image_size, tiled=data.asked == "none"),
            *lost(report.kept, {} if before is None else before.kept, remedy),
        ]

    def draw(self, model: Backbone, loaders: Loaders, report: Any, folder: Path) -> Pages:
        data, each = self.config.data, self.config.eval.overlays
        dataset: Any = loaders.part(report.split).dataset
        assert isinstance(dataset, SegmentationDataset)
        pairs = getattr(loaders.splits, report.split)
        facts = {"Model": f"{model.name}, {model.image_size} px", "Data": str(data.dir), "Prompt": _told(data)}
        pictures = gallery_sections(folder / "overlays", model, dataset, pairs, report, each=each)
        before = measured_before(Report.load, folder)
        return Pages(facts, [*kept_sections(report.kept, before.kept if before else {}), *pictures])

    @classmethod
    def load_report(cls, folder: Path) -> Report:
        return Report.load(folder)

    @classmethod
    def evaluate_file(cls, request: Evaluation) -> Report:
        return evaluate_file(request)

    @classmethod
    def predict_files(cls, request: Prediction) -> str:
        return predict_files(request)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return recognises(folder)

    @classmethod
    def verify(cls, folder: Path, *, name: str | None) -> VerifyReport:
        return verify_folder(folder, name=name)

    @classmethod
    def items(cls, folder: Path) -> list[Pair]:
        return find_pairs(folder, kind_of(folder).scan)


def _told(data: Data) -> str:
    """Says what the model is told of the objects, in training and here."""
    asked = data.asked if data.asked == "none" else f"{data.asked} of the true mask"
    if data.prompt != "mixed":
        return asked
    return f"{asked}; trained with {', '.join(f'{kind} {share:.0%}' for kind, share in data.shares.items())}"
