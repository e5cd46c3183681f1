"""The job of a config: device, model and data, built and checked before anything runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor

from samtune.config import Config
from samtune.data import Loaders, build_data
from samtune.losses import LOSSES
from samtune.machine import pick_device, use_bf16
from samtune.models import RANDOM, SamModel, build_model
from samtune.paths import find_path
from samtune.selection import SELECTORS, check_select
from samtune.startpoint import check_start
from samtune.tensorfile import state_hash
from samtune.types import LogitLoss

logger = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each precision


@dataclass(frozen=True)
class Job:
    """What the phases of a run share.

    Attributes:
        config: the settings.
        fabric: device and precision of the training.
        model: on that device.
        base: its untuned fp32 state, on the CPU.
        base_hash: `state_hash` of that state.
        loaders: the data.
        autocast: dtype of the training's forward passes, or None for fp32.
    """

    config: Config
    fabric: Fabric
    model: SamModel
    base: dict[str, Tensor]
    base_hash: str
    loaders: Loaders
    autocast: torch.dtype | None


def scores_task(config: Config) -> bool:
    """Says whether the scoring pass differentiates the task's loss, through the decoder and with its prompts."""
    if config.score.loss is not None:
        return config.score.loss == "task"
    needs = SELECTORS[config.select.name].needs(**config.select.options)
    return needs is not None and needs.loss == "task"


def prepare(config: Config) -> Job:
    """Builds device, model and data; everything that can be wrong with them shows here."""
    seed_everything(config.run.seed, verbose=False)
    device = pick_device(config.run.device)
    bf16 = use_bf16(config.train.precision, device.type)
    fabric = Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if bf16 else "32-true")
    checkpoint = None if config.model.checkpoint is None else str(config.model.checkpoint)
    if checkpoint is not None and checkpoint != RANDOM:
        checkpoint = str(find_path(checkpoint))
    model = build_model(config.model.name, checkpoint=checkpoint, image_size=config.model.image_size)
    choice = config.select
    if choice.file is None:
        check_select(model, name=choice.name, budget=choice.budget, exclude=config.tune.exclude, **choice.options)
    check_start(model, config.tune.start.blocks)
    model.checkpointing = config.train.checkpointing
    data = config.data
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
        score_prompt=data.prompt if scores_task(config) else "none",
        train=data.train,
        val=data.val,
        test=data.test,
    )
    logger.info(
        "%s at %d px on %s, %s; %d train, %d val, %d test images",
        model.name,
        model.image_size,
        device,
        "bf16" if bf16 else "fp32",
        *(len(part) for part in (loaders.splits.train, loaders.splits.val, loaders.splits.test)),
    )
    for part in ("train", "val", "test"):
        dataset = getattr(loaders, part).dataset
        if dataset.skipped:
            logger.warning("%d %s images have no object to prompt for and are left out", dataset.skipped, part)
    model.to(fabric.device)
    base = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    return Job(config, fabric, model, base, state_hash(base), loaders, torch.bfloat16 if bf16 else None)


def task_loss_of(config: Config) -> LogitLoss:
    """Returns the loss of the `loss` section."""
    options = config.loss.model_dump()
    function = LOSSES[options.pop("name")]
    return lambda logits, batch: function(logits, batch, **options)
