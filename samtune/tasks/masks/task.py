"""Segmentation: Segment Anything, pairs of image and mask, Dice and IoU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from samtune.base.paths import find_path
from samtune.data.loaders import Loaders
from samtune.files.merged import MergedInfo, load_merged
from samtune.models.sam.model import SamModel, upsample_logits
from samtune.models.table import build_model
from samtune.scoring.score import ScoreLoss
from samtune.selection import Addition, Needs
from samtune.tasks.masks.config import SegmentationConfig
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.draw import HEADLINE, gallery_sections
from samtune.tasks.masks.evaluate import DEFAULT_METRICS, evaluate
from samtune.tasks.masks.loaders import build_data
from samtune.tasks.masks.losses import LOSSES, contrastive_loss, task_loss
from samtune.tasks.masks.report import Report
from samtune.tasks.task import Advance, Pages, Task, batch_text, checkpoint_of, needs_of
from samtune.tuning import Counts
from samtune.types import LogitLoss, OutputLoss


class SegmentationTask(Task):
    """Tunes a Segment Anything model with Dice + BCE."""

    packages = ("segment-anything", "monai")
    measures_before = True
    contrast_draws = True  # cells

    def build(self, config: SegmentationConfig) -> tuple[SamModel, Loaders]:
        model = build_model(
            config.model.name,
            checkpoint=checkpoint_of(config),
            image_size=config.model.image_size,
        )
        data, needs = config.data, needs_of(config)
        loaders = build_data(
            find_path(data.dir),
            image_size=model.image_size,
            batch=config.train.batch,
            split=data.split,
            prompt=data.prompt,
            seed=config.run.seed,
            workers=data.workers,
            augment=data.augment,
            cache=data.cache,
            score_images=config.score.images,
            score_batch=config.score.batch,
            # contrast is between the whole foreground and the background; the task's loss wants the task's prompt
            score_prompt=data.prompt if needs is not None and needs.loss == "task" else "none",
            train=data.train,
            val=data.val,
            test=data.test,
        )
        return model, loaders

    def training_loss(self, config: SegmentationConfig) -> OutputLoss:
        loss = _logit_loss(config)
        return lambda low, batch: loss(upsample_logits(low, batch.images.shape[-1]), batch)

    def scoring_loss(self, config: SegmentationConfig, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        options, batch = config.score, batch_text(config, needs)
        if needs.loss == "task":
            text = " ".join(f"{key}={value}" for key, value in config.loss.model_dump().items())
            return task_loss(_logit_loss(config)), f"task {text} prompt={config.data.prompt}{batch}"
        text = f"pixel_contrastive cells={options.cells} temperature={options.temperature:g} seed={seed}{batch}"
        return contrastive_loss(cells=options.cells, temperature=options.temperature, seed=seed), text

    def evaluate(
        self,
        config: SegmentationConfig,
        model: nn.Module,
        loaders: Loaders,
        *,
        split: str,
        full: bool,
        autocast: torch.dtype | None = None,
        keep: Path | None = None,
        advance: Advance | None = None,
    ) -> Report:
        return evaluate(
            model,
            getattr(loaders, split),
            metrics=(*DEFAULT_METRICS, *config.eval.metrics) if full else (),
            split=split,
            empty=config.eval.empty,
            autocast_dtype=autocast,
            on_batch=None if advance is None else lambda *_: advance(),
        )

    def info(
        self,
        config: SegmentationConfig,
        model: SamModel,
        loaders: Loaders,
        *,
        base_hash: str,
        additions: tuple[Addition, ...],
    ) -> MergedInfo:
        return MergedInfo(
            model=model.name,
            image_size=model.image_size,
            prompt=config.data.prompt,
            base_hash=base_hash,
            additions=additions,
        )

    def load_merged(self, path: Path, *, device: torch.device) -> SamModel:
        return load_merged(path, device=device)[0]

    def notes(self, counts: Counts, model: SamModel) -> list[str]:
        if not counts.decoder:
            return []
        # parameters that mask token 0 does not depend on: IoU head, other tokens' hypernetworks
        decoder = model.mask_decoder
        idle = [decoder.iou_prediction_head, *list(decoder.output_hypernetworks_mlps)[1:]]
        count = sum(p.numel() for module in idle for p in module.parameters())
        return [f"of the decoder, {count:,} parameters serve other mask tokens than 0 and get no gradient"]

    def draw(
        self, config: SegmentationConfig, model: SamModel, loaders: Loaders, report: Report, folder: Path
    ) -> Pages:
        dataset: Any = getattr(loaders, report.split).dataset
        assert isinstance(dataset, SegmentationDataset)
        pairs = getattr(loaders.splits, report.split)
        return Pages(
            facts={
                "Model": f"{model.name}, {model.image_size} px",
                "Data": str(config.data.dir),
                "Prompt": config.data.prompt,
            },
            headline=HEADLINE,
            sections=gallery_sections(folder / "overlays", model, dataset, pairs, report, each=config.eval.overlays),
        )


def _logit_loss(config: SegmentationConfig) -> LogitLoss:
    options = config.loss.model_dump()
    function = LOSSES[options.pop("name")]
    return lambda logits, batch: function(logits, batch, **options)
