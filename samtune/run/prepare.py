"""The job of a config: device, model and data, built and checked before anything runs."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from samtune import console
from samtune.base.machine import pick_device, set_threads, use_bf16
from samtune.base.share import Share
from samtune.base.tensors import state_hash
from samtune.config.sections import Config
from samtune.data.loaders import Loaders
from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.run.settings import needs_of
from samtune.selection import Needs, check_select
from samtune.tasks.table import task_of
from samtune.tasks.task import Task
from samtune.tuning.precision import check_rounding
from samtune.tuning.start import check_start

logger = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each precision


PATIENCE = timedelta(days=7)
"""Of a process for the others: who starts them ends them all when one fails, so that none waits in vain."""


@dataclass(frozen=True)
class Job:
    """What the phases of a run share.

    Attributes:
        fabric: device and precision of the training.
        share: which part of it is done by this process.
        model: on that device.
        base: its untuned fp32 state, on the CPU; `base_hash` is the `state_hash` of it.
        needs: the scoring pass that the selector asks for.
        autocast: dtype of the training's forward passes, or None for fp32.
    """

    config: Config
    task: Task[Any]
    fabric: Fabric
    share: Share
    model: Backbone
    base: dict[str, Tensor]
    base_hash: str
    loaders: Loaders
    needs: Needs | None
    autocast: torch.dtype | None


def prepare(config: Config) -> Job:
    """Builds device, model and data; everything that can be wrong with them shows here."""
    seed_everything(config.run.seed, verbose=False)
    set_threads(config.run.threads)
    device = pick_device(config.run.device)
    task, needs = task_of(config), needs_of(config)
    model, loaders = task.build(needs)
    lowered = config.tune.base == "bf16"  # a base in bf16 runs in bf16 only
    bf16 = lowered or use_bf16(config.train.precision, device.type, pays_on_cpu=model.bf16_on_cpu)
    fabric = open_fabric(device.type, "bf16-mixed" if bf16 else "32-true")
    share = Share(fabric.global_rank, fabric.world_size, fabric.device)
    console.set_quiet(not share.first)
    choice = config.select
    if choice.file is None:
        check_select(model, name=choice.name, budget=choice.budget, exclude=config.tune.exclude, **choice.options)
    check_start(model, config.tune.start.blocks)
    if config.tune.base == "int8":
        check_rounding(model)
    model.checkpointing = config.train.checkpointing
    counts = [len(part) for part in (loaders.splits.train, loaders.splits.val, loaders.splits.test)]
    facts = (model.name, model.image_size, device, "bf16" if bf16 else "fp32", *counts)
    logger.info("%s at %d px on %s, %s; %d train, %d val, %d test images", *facts)
    for part in ("train", "val", "test"):
        if skipped := loaders.skipped(part):
            logger.warning("%d %s images have no object to prompt for and are left out", skipped, part)
    if share.count > 1:
        divide(model, loaders, share, mixes=task.mixing(loaders) is not None)
    model.to(fabric.device)
    base = {name: tensor.detach().cpu().clone() for name, tensor in model.net.state_dict().items()}
    return Job(
        config, task, fabric, share, model, base, state_hash(base), loaders, needs, torch.bfloat16 if bf16 else None
    )


def open_fabric(accelerator: str, precision: Any) -> Fabric:
    """Opens the device of this process; where it is one of several, joins the others."""
    count, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if count == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    if accelerator == "cuda" and here > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"{here} processes need a GPU each, and there are {found}. Use --devices {found}.")
    strategy = DDPStrategy(timeout=PATIENCE, process_group_backend="nccl" if accelerator == "cuda" else "gloo")
    # our own variables count, or torchrun's, but not those of a batch system around them
    plugins: list[Any] = [] if "TORCHELASTIC_RUN_ID" in os.environ else [LightningEnvironment()]
    fabric = Fabric(
        accelerator=accelerator, devices=here, num_nodes=count // here, strategy=strategy, precision=precision,
        plugins=plugins,
    )  # fmt: skip
    fabric.launch()
    return fabric


def divide(model: Backbone, loaders: Loaders, share: Share, *, mixes: bool) -> None:
    """Gives this process its part of each training batch; where images of a batch are mixed, after that.

    Raises:
        ConfigError: the model's batch norms would measure their batch, of which each process has only a part.
    """
    model.train()
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise ConfigError(f"{model.name} measures batch statistics, which several processes can't share: --devices 1.")
    if not mixes:
        loaders.divide(share.part)
