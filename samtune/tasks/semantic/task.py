"""Several classes: a Segment Anything with a token for each, pairs of image and map, mean IoU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.base.paths import find_path
from samtune.data.formats.table import Source
from samtune.data.loaders import Loaders
from samtune.data.maps import MapDataset, build_map_data
from samtune.data.pairs import Pair, find_pairs
from samtune.data.splits import Given
from samtune.data.verify import VerifyReport
from samtune.models.backbone import Backbone
from samtune.models.sam.cached import CachedEncoder
from samtune.models.segmenter import Segmenter
from samtune.models.table import build_model, build_shapes
from samtune.selection import Addition, Needs, Selection
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.pixels import PixelTask, coverage, object_loss
from samtune.tasks.predict import Prediction
from samtune.tasks.semantic.config import SemanticConfig
from samtune.tasks.semantic.draw import classes_section, gallery_sections
from samtune.tasks.semantic.evaluate import MapDescription, evaluate_map_file, evaluate_maps
from samtune.tasks.semantic.losses import LOSSES, BoxPractice
from samtune.tasks.semantic.maps import ClassTable
from samtune.tasks.semantic.predict import predict_map_files
from samtune.tasks.semantic.report import MapReport
from samtune.tasks.semantic.service import MapService
from samtune.tasks.semantic.splits import MapSplits, kind_of, most_frequent, recognises, resolve_maps, verify_folder
from samtune.tasks.task import Measuring, Pages, Words
from samtune.types import IGNORE, Batch, OutputLoss


class SemanticTask(PixelTask[SemanticConfig]):
    """Tunes a Segment Anything to tell the class of every pixel, with Dice + cross-entropy."""

    name = "semantic"
    words = Words(
        headlines={"mIoU": "Mean IoU", "mDice": "Mean Dice"},
        choice="mIoU",
        columns={"mIoU": lambda row: row.iou, "mDice": lambda row: row.dice},
        percent=False,
        explained="means over classes, from 0 to 1; intervals and differences of the images' own means",
        axis="mIoU",
    )
    losses = LOSSES
    description = MapDescription
    service = MapService

    def build(self, needs: Needs | None) -> tuple[Backbone, Loaders]:
        config, data, name = self.config, self.config.data, self.config.model.name
        splits = resolve_maps(
            find_path(data.dir),
            names=data.classes,
            ignore=data.ignore_index,
            split=data.split,
            seed=config.run.seed,
            given=Given(data.train, data.val, data.test),
            source=Source(data.format, data.categories),
            pixels=self.pixels,
        )
        count, size = len(splits.table.names), config.model.image_size
        added = {"classes": count, "channels": self.pixels.channels, "pixel_seed": config.run.seed}
        model = build_model(name, checkpoint=self.checkpoint(), image_size=size, **added)
        how: Any = {"image_size": model.image_size, "augment": data.augment, "pixels": self.pixels}
        few = splits if data.shots is None else splits.with_few(data.shots, config.run.seed)
        return model, build_map_data(few, self.tiled_options(model), splits.table.places, outside=IGNORE, **how)

    def skeleton(self) -> Backbone:
        model = self.config.model
        added = {
            "classes": 2,
            "channels": model.channels,
            "pixel_seed": 0,
        }  # two do for a check: how many there are, the data says
        return build_shapes(model.name, checkpoint=self.checkpoint(), image_size=model.image_size, **added)

    def target_text(self) -> str:
        return ""

    def loss_options(self) -> dict[str, Any]:
        return {key: value for key, value in super().loss_options().items() if key != "box_weight"}

    def network(
        self, model: Backbone, selection: Selection, *, base_hash: str, autocast: torch.dtype | None
    ) -> nn.Module:
        encoder = self.encoder(model, selection, base_hash=base_hash, autocast=autocast)
        if not self.config.loss.box_weight or not isinstance(model, Segmenter):
            return encoder
        return BoxPractice(model, encoder.embed if isinstance(encoder, CachedEncoder) else model.embed)

    def training_loss(self) -> OutputLoss:
        classes, weight = super().training_loss(), self.config.loss.box_weight

        def loss(output: Any, batch: Batch) -> Tensor:
            if isinstance(output, Tensor):
                return classes(output, batch)
            low, boxed, objects = output
            each = object_loss(boxed, *coverage(objects, batch.valid(), boxed.shape[-1]))
            return classes(low, batch) + weight * each.mean()

        return loss

    def evaluate(self, model: nn.Module, loaders: Loaders, how: Measuring) -> MapReport:
        report = evaluate_maps(
            model,
            loaders.part(how.split),
            classes=_table(loaders).names,
            split=how.split,
            autocast_dtype=how.autocast,
            advance=how.advance,
        )
        if how.keep is None:
            return report
        frequent = most_frequent(loaders.splits.train, _table(loaders))
        return replace(report, trivial={"most_frequent": [row.iou_of(frequent) for row in report.rows]})

    def describe(
        self, model: Backbone, loaders: Loaders, *, base_hash: str, additions: tuple[Addition, ...]
    ) -> MapDescription:
        table = _table(loaders)
        own = {"classes": table.names, "values": table.values, "ignore_index": table.ignore}
        data = self.config.data
        own |= {"data_format": data.format, "categories": data.categories, "range": data.range}
        own |= {"tiles": self.tile_sides}
        return MapDescription.of(model, base_hash=base_hash, additions=additions, **own)

    def draw(self, model: Backbone, loaders: Loaders, report: Any, folder: Path) -> Pages:
        data, each = self.config.data, self.config.eval.overlays
        dataset: Any = loaders.part(report.split).dataset
        assert isinstance(dataset, MapDataset)
        facts = {
            "Model": f"{model.name}, {model.image_size} px",
            "Data": str(data.dir),
            "Classes": str(len(report.classes)),
        }
        pictures = gallery_sections(folder / "overlays", model, dataset, report, each=each)
        return Pages(facts, [classes_section(report, folder / "confusion.png"), *pictures])

    @classmethod
    def load_report(cls, folder: Path) -> MapReport:
        return MapReport.load(folder)

    @classmethod
    def evaluate_file(cls, request: Evaluation) -> MapReport:
        return evaluate_map_file(request)

    @classmethod
    def predict_files(cls, request: Prediction) -> str:
        return predict_map_files(request)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return recognises(folder)

    @classmethod
    def verify(cls, folder: Path, *, name: str | None) -> VerifyReport:
        return verify_folder(folder, name=name)

    @classmethod
    def items(cls, folder: Path) -> list[Pair]:
        return find_pairs(folder, kind_of(folder, None, IGNORE).scan)


def _table(loaders: Loaders) -> ClassTable:
    assert isinstance(loaders.splits, MapSplits)
    return loaders.splits.table
