"""Pre-trains `vit_mini`, the small ViT inside the package, to tell 300 classes of generated pictures apart.

    uv run python scripts/pretrain_tiny_vit.py --out runs/vit --minutes 46
    uv run python scripts/pretrain_tiny_vit.py --out runs/vit --minutes 46 --resume
    uv run python scripts/pretrain_tiny_vit.py --out runs/vit --export samtune/models/timm/vit_mini.safetensors

Every picture of `tiny_classes` is new. Cross-entropy with label smoothing in bf16 autocast, Muon and AdamW; the
learning rate follows the clock. Half of the patches are dropped at random until the last part of the training, which
makes a step almost twice as cheap. `log.jsonl` in the output folder holds every number of the model card.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from tiny_classes import CLASSES, HELD_OUT_GLYPHS, HELD_OUT_SEED, draw_pictures, family_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samtune.base.tensors import save_tensors

ARCHITECTURE = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
DROPPED_PATCHES, DROPPED_UNTIL = 0.5, 0.6  # share of the patches, share of the time
WARMUP, SMOOTHING = 0.03, 0.1


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch `i` of an endless list of pictures; made in the loader's process.

    Args:
        seed: of the list.
        batch: pictures per batch.
    """

    def __init__(self, *, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels = draw_pictures(number * self.batch, self.batch, seed=self.seed)
        return torch.from_numpy(images), torch.from_numpy(labels)


@dataclass
class State:
    """What a resumed training continues with."""

    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    steps: int = 0
    seconds: float = 0.0

    def save(self, file: Path) -> None:
        """Writes a checkpoint; a crash leaves the one before."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        facts = {"model": self.model.state_dict(), "optimizers": optimizers}
        torch.save({**facts, "steps": self.steps, "seconds": self.seconds}, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)

    def load(self, file: Path) -> None:
        """Reads a checkpoint of `save`."""
        facts = torch.load(file, weights_only=True)
        self.model.load_state_dict(facts["model"])
        for optimizer, values in zip(self.optimizers, facts["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.steps, self.seconds = facts["steps"], facts["seconds"]


def build(classes: int = CLASSES, *, patch_drop_rate: float = 0.0) -> torch.nn.Module:
    """Makes the ViT of the package; attention as plain matrix products, whose backward is the faster one on a CPU."""
    model = timm.create_model(
        "vit_tiny_patch16_224", **ARCHITECTURE, num_classes=classes, patch_drop_rate=patch_drop_rate
    )
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def optimizers_of(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else; `match_rms_adamw` lets both use one learning rate."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
    others = [p for name, p in named if not (name.startswith("blocks.") and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pixels_of(images: Tensor) -> Tensor:
    """(B, 64, 64, 3) uint8 to (B, 3, 64, 64) in [-1, 1]: mean and deviation 0.5."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def rate(progress: float, peak: float) -> float:
    """Learning rate at a share of the time: warm-up, then a cosine to 1 % of the peak."""
    cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return peak * min((progress + 1e-3) / WARMUP, 1.0) * cosine


def pretrain(args: argparse.Namespace) -> None:
    """Trains until the time or the steps are over; writes `log.jsonl` and, every few minutes, `state.pt`."""
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    model = build(patch_drop_rate=DROPPED_PATCHES)
    state = State(model, optimizers_of(model))
    if args.resume:
        state.load(args.out / "state.pt")
    last = args.steps or 10**9
    numbers = range(state.steps, last)
    loader = DataLoader(
        Batches(seed=args.seed, batch=args.batch),
        batch_size=None,
        sampler=numbers,
        num_workers=args.workers,
        prefetch_factor=8 if args.workers else None,
    )
    total, base, start, saved = args.minutes * 60, state.seconds, time.monotonic(), time.monotonic()
    mean = math.nan
    for images, labels in loader:
        progress = max(state.seconds / total, state.steps / last)
        if progress >= 1:
            break
        loss = train_step(state, images, labels, progress, rate(progress, args.lr))
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        state.steps += 1
        state.seconds = base + time.monotonic() - start
        if state.steps % 100 == 0:
            speed = args.batch * state.steps / state.seconds
            write(args.out, step=state.steps, seconds=state.seconds, loss=mean, pictures_per_s=speed)
        if time.monotonic() - saved > args.save_every * 60:
            state.save(args.out / "state.pt")
            write(args.out, step=state.steps, held_out=held_out_accuracy(model, args.pictures))
            saved = time.monotonic()
    state.save(args.out / "state.pt")
    write(args.out, step=state.steps, seconds=state.seconds, pictures=state.steps * args.batch, final=True)


def train_step(state: State, images: Tensor, labels: Tensor, progress: float, lr: float) -> float:
    """Updates the weights with one batch and returns its loss."""
    state.model.train()
    state.model.patch_drop.prob = DROPPED_PATCHES if progress < DROPPED_UNTIL else 0.0
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    with torch.autocast("cpu", torch.bfloat16):
        logits = state.model(pixels_of(images))
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def outputs_of(model: torch.nn.Module, count: int, *, start: int = 0, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the (count, C) fp32 outputs and the labels of pictures from `start` of the held-out seed."""
    model.eval()
    outputs, labels = [], []
    for begin in range(start, start + count, 250):
        images, truth = draw_pictures(begin, min(250, start + count - begin), seed=HELD_OUT_SEED, held_out=held_out)
        outputs.append(model(pixels_of(torch.from_numpy(images))))
        labels.append(torch.from_numpy(truth))
    return torch.cat(outputs), torch.cat(labels)


def held_out_accuracy(model: torch.nn.Module, count: int) -> dict[str, float]:
    """Share of new pictures of the trained classes that are told right, of all and by family."""
    outputs, labels = outputs_of(model, count)
    right = (outputs.argmax(1) == labels).float()
    families = [family_of(int(label))[0] for label in labels]
    shares = {"all": right.mean().item()}
    for family in dict.fromkeys(families):
        shares[family] = right[[name == family for name in families]].mean().item()
    return {name: round(share, 4) for name, share in shares.items()}


def transfer(model: torch.nn.Module, count: int) -> dict[str, float]:
    """Accuracy on the 40 glyph classes that were never trained on, from the features before the head.

    Args:
        model: without a head.
        count: pictures; a third of them teaches the probes, the others are told.

    Returns:
        knn: the label of the most similar labelled picture, by cosine. linear: logistic regression.
    """
    train = count // 3
    features, labels = outputs_of(model, count, held_out=True)
    features = (features - features[:train].mean(0)) / features[:train].std(0).clamp_min(1e-6)
    directions = F.normalize(features, dim=1)
    nearest = (directions[train:] @ directions[:train].T).argmax(1)
    torch.manual_seed(0)
    probe = torch.nn.Linear(features.shape[1], HELD_OUT_GLYPHS)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(probe(features[:train]), labels[:train]).backward()
        optimizer.step()
    answers = {"knn": labels[:train][nearest], "linear": probe(features[train:]).argmax(1)}
    return {name: round((told == labels[train:]).float().mean().item(), 4) for name, told in answers.items()}


def export(out: Path, target: Path, count: int) -> None:
    """Rounds the weights to fp16, writes `target` without the head, and measures exactly those weights."""
    state = torch.load(out / "state.pt", weights_only=True)["model"]
    state = {name: value.half() for name, value in state.items()}
    body = {name: value for name, value in state.items() if not name.startswith("head.")}
    save_tensors(target, body, {"model": "vit_mini", "made_by": Path(__file__).name})
    model = build()
    model.load_state_dict({name: value.float() for name, value in state.items()})
    accuracy = held_out_accuracy(model, count)
    trained, random = build(0), build(0)
    trained.load_state_dict({name: value.float() for name, value in body.items()})
    transfers = {"transfer": transfer(trained, count), "transfer_random": transfer(random, count)}
    write(out, exported=target.name, held_out=accuracy, **transfers)


def write(out: Path, **facts: object) -> None:
    """Appends one line to `log.jsonl` and prints it."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
    line = json.dumps(rounded)
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; the module's docstring shows the uses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of log and checkpoint")
    parser.add_argument("--minutes", type=float, default=46.0, help="training time, over all resumed parts")
    parser.add_argument("--steps", type=int, default=0, help="end after so many steps, if that is sooner")
    parser.add_argument("--batch", type=int, default=96, help="pictures per step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and weights; not the held-out seed")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--save-every", type=float, default=5.0, help="minutes between checkpoints")
    parser.add_argument("--pictures", type=int, default=3000, help="held-out pictures of an evaluation")
    parser.add_argument("--resume", action="store_true", help="continue from OUT/state.pt")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write OUT's weights as fp16 and measure")
    args = parser.parse_args(arguments)
    if args.export:
        export(args.out, args.export, args.pictures)
    else:
        pretrain(args)


if __name__ == "__main__":
    main()
