"""Instances: a Segment Anything with maps of objects, pairs of image and map, average precision."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.base.paths import find_path
from samtune.data.channels.read import read_pixels
from samtune.data.formats.table import Source
from samtune.data.loaders import Loaders
from samtune.data.maps import MapDataset, build_map_data, map_dataset
from samtune.data.pairs import Pair, find_pairs
from samtune.data.splits import Given
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
from samtune.metrics.instances import Matches, match
from samtune.metrics.report import AnyReport
from samtune.models.backbone import Backbone
from samtune.models.segmenter import Segmenter
from samtune.models.table import build_model, build_shapes
from samtune.selection import Addition, Needs, Selection
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.instances.config import InstanceConfig
from samtune.tasks.instances.draw import gallery_sections
from samtune.tasks.instances.evaluate import InstanceDescription, evaluate_instance_file, evaluate_instances
from samtune.tasks.instances.layouts.splits import kind_of, recognises, resolve_objects, verify_folder
from samtune.tasks.instances.objects import read_objects, renumbered
from samtune.tasks.instances.predict import predict_instance_files
from samtune.tasks.instances.prompts.practice import PromptPractice, practice_loss
from samtune.tasks.instances.report import InstanceReport
from samtune.tasks.instances.separate import MAPS, maps_dice_bce, trivial_instances
from samtune.tasks.instances.service import InstanceService
from samtune.tasks.pixels import PromptTask
from samtune.tasks.predict import Prediction
from samtune.tasks.probe.answers import spread
from samtune.tasks.probe.kept import DEFINITION, kept_sections, lost, measure_kept, measured_before, object_batches
from samtune.tasks.task import Measuring, Pages, Words
from samtune.types import Batch, OutputLoss


class InstanceTask(PromptTask[InstanceConfig]):
    """Tunes a Segment Anything to find every object, by maps of its own and by prompts."""

    name = "instances"
    words = Words(
        headlines={"AP50": "Average precision", "PQ": "Panoptic quality", "mDice": "Mean Dice by box"},
        choice="AP50",
        columns={"AP50": lambda row: row.ap50, "PQ": lambda row: row.pq, "mDice": lambda row: row.boxed},
        percent=False,
        explained="means of the images' own numbers, from 0 to 1",
        axis="AP50",
    )
    losses = {"dice_bce": maps_dice_bce}  # noqa: RUF012
    description = InstanceDescription
    service = InstanceService

    def build(self, needs: Needs | None) -> tuple[Backbone, Loaders]:
        config, data = self.config, self.config.data
        splits = resolve_objects(
            find_path(data.dir),
            split=data.split,
            seed=config.run.seed,
            given=Given(data.train, data.val, data.test),
            source=Source(data.format, data.categories),
            pixels=self.pixels,
        )
        model = self._built(build_model)
        how: Any = {"image_size": model.image_size, "augment": data.augment, "pixels": self.pixels}
        return model, build_map_data(splits, self.tiled_options(model), read_objects, outside=0, **how)

    def skeleton(self) -> Backbone:
        return self._built(build_shapes)

    def _built(self, build: Callable[..., Backbone]) -> Segmenter:
        name, side = self.config.model.name, self.config.model.image_size
        added = {"classes": len(MAPS), "channels": self.pixels.channels}
        model = build(name, checkpoint=self.checkpoint(), image_size=side, **added)
        if not isinstance(model, Segmenter):
            raise ConfigError(f"task: instances is for Segment Anything, which {name} is not.")
        model.keeps_prompts = not self.config.loss.prompt_weight
        return model

    def target_text(self) -> str:
        return ""

    def loss_options(self) -> dict[str, Any]:
        practice = ("prompt_weight", "iou_weight")
        return {key: value for key, value in super().loss_options().items() if key not in practice}

    def contrasted(self, batch: Batch) -> Batch:
        """Tells objects from the ground: cells of two objects of one kind should not be pushed apart."""
        return replace(batch, masks=batch.masks > 0)

    def network(
        self, model: Backbone, selection: Selection, *, base_hash: str, autocast: torch.dtype | None
    ) -> nn.Module:
        assert isinstance(model, Segmenter)
        return PromptPractice(model, self.config.train.objects) if self.config.loss.prompt_weight else model

    def training_loss(self) -> OutputLoss:
        maps, options = super().training_loss(), self.config.loss

        def loss(output: Any, batch: Batch) -> Tensor:
            if isinstance(output, Tensor):
                return maps(output, batch)
            low, rounds = output
            return maps(low, batch) + options.prompt_weight * practice_loss(rounds, options.iou_weight)

        return loss

    def evaluate(self, model: nn.Module, loaders: Loaders, how: Measuring) -> InstanceReport:
        loader = loaders.part(how.split)
        sam = model.model if isinstance(model, PromptPractice) else model
        report = evaluate_instances(
            sam, loader, split=how.split, prompts=how.full, autocast_dtype=how.autocast, advance=how.advance
        )
        if how.full and self.config.eval.prompts:
            report = self._with_kept(report, sam, loaders)
        if how.keep is None:
            return report
        answers: dict[str, list[Matches]] = {}
        for pair in getattr(loaders.splits, how.split):
            truth = renumbered(read_objects(pair.mask))[0]
            for key, found in trivial_instances(read_pixels(pair.image, self.pixels)).items():
                answers.setdefault(key, []).append(match(found, truth))
        return replace(report, answers=answers)

    def _with_kept(self, report: InstanceReport, model: nn.Module, loaders: Loaders) -> InstanceReport:
        assert isinstance(model, Segmenter) and model.classes is not None
        count, side, tiles = self.config.eval.prompts, model.image_size, self.tiling(model)
        pairs = spread(loaders.splits.val, count)
        val = map_dataset(tiles, side)(pairs, read_objects, outside=0, pixels=self.pixels)
        unprompted = not model.classes.fresh  # an untuned model has no maps
        kept = measure_kept(model, object_batches(val, side, tiles), pictures=count, unprompted=unprompted)
        return replace(report, kept=kept, definition=report.definition | {"prompts": DEFINITION})

    def remarks(self, model: Backbone, loaders: Loaders, report: Any, before: AnyReport | None) -> list[str]:
        weight = f"More practice keeps more: a loss.prompt_weight above {self.config.loss.prompt_weight:g}."
        return lost(report.kept, {} if before is None else before.kept, weight)

    def describe(
        self, model: Backbone, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> InstanceDescription:
        data = self.config.data
        own: Any = {"classes": MAPS, "data_format": data.format, "categories": data.categories, "range": data.range}
        own["tiles"] = self.tile_sides
        return InstanceDescription.of(model, base_hash=base_hash, additions=additions, **own)

    def draw(self, model: Backbone, loaders: Loaders, report: Any, folder: Path) -> Pages:
        data, each = self.config.data, self.config.eval.overlays
        dataset: Any = loaders.part(report.split).dataset
        assert isinstance(dataset, MapDataset)
        facts = {"Model": f"{model.name}, {model.image_size} px", "Data": str(data.dir)}
        pictures = gallery_sections(folder / "overlays", model, dataset, report, each=each)
        whole, before = f"All of {report.split}", measured_before(InstanceReport.load, folder)
        prompts = kept_sections(
            {whole: report.prompted, **report.kept}, {whole: before.prompted, **before.kept} if before else {}
        )
        return Pages(facts, [*prompts, *pictures])

    @classmethod
    def load_report(cls, folder: Path) -> InstanceReport:
        return InstanceReport.load(folder)

    @classmethod
    def evaluate_file(cls, request: Evaluation) -> InstanceReport:
        return evaluate_instance_file(request)

    @classmethod
    def predict_files(cls, request: Prediction) -> str:
        return predict_instance_files(request)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return recognises(folder)

    @classmethod
    def verify(cls, folder: Path, *, name: str | None) -> VerifyReport:
        return verify_folder(folder, name=name)

    @classmethod
    def items(cls, folder: Path) -> list[Pair]:
        return find_pairs(folder, kind_of(folder).scan)
