"""The job of a config: device, model and data, built and checked before anything runs."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor

from samtune.base.machine import pick_device, use_bf16
from samtune.base.tensors import state_hash
from samtune.config.sections import Config
from samtune.data.loaders import Loaders
from samtune.models.backbone import Backbone
from samtune.run.settings import needs_of
from samtune.selection import Needs, check_select
from samtune.tasks.table import task_of
from samtune.tasks.task import Task
from samtune.tuning.start import check_start

logger = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each precision


@dataclass(frozen=True)
class Job:
    """What the phases of a run share.

    Attributes:
        fabric: device and precision of the training.
        model: on that device.
        base: its untuned fp32 state, on the CPU; `base_hash` is the `state_hash` of it.
        needs: the scoring pass that the selector asks for.
        autocast: dtype of the training's forward passes, or None for fp32.
    """

    config: Config
    task: Task[Any]
    fabric: Fabric
    model: Backbone
    base: dict[str, Tensor]
    base_hash: str
    loaders: Loaders
    needs: Needs | None
    autocast: torch.dtype | None


def prepare(config: Config) -> Job:
    """Builds device, model and data; everything that can be wrong with them shows here."""
    seed_everything(config.run.seed, verbose=False)
    device = pick_device(config.run.device)
    task, needs = task_of(config), needs_of(config)
    model, loaders = task.build(needs)
    lowered = config.tune.base == "bf16"  # a base in bf16 runs in bf16 only
    bf16 = lowered or use_bf16(config.train.precision, device.type, pays_on_cpu=model.bf16_on_cpu)
    fabric = Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if bf16 else "32-true")
    choice = config.select
    if choice.file is None:
        check_select(model, name=choice.name, budget=choice.budget, exclude=config.tune.exclude, **choice.options)
    check_start(model, config.tune.start.blocks)
    model.checkpointing = config.train.checkpointing
    counts = [len(part) for part in (loaders.splits.train, loaders.splits.val, loaders.splits.test)]
    facts = (model.name, model.image_size, device, "bf16" if bf16 else "fp32", *counts)
    logger.info("%s at %d px on %s, %s; %d train, %d val, %d test images", *facts)
    for part in ("train", "val", "test"):
        if skipped := loaders.skipped(part):
            logger.warning("%d %s images have no object to prompt for and are left out", skipped, part)
    model.to(fabric.device)
    base = {name: tensor.detach().cpu().clone() for name, tensor in model.net.state_dict().items()}
    return Job(config, task, fabric, model, base, state_hash(base), loaders, needs, torch.bfloat16 if bf16 else None)
