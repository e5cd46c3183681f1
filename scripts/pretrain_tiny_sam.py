"""Pre-trains `sam_tiny`, the small Segment Anything inside the package, on generated scenes.

    uv run python scripts/pretrain_tiny_sam.py --out runs/pretrain --stages 128:35,256:40
    uv run python scripts/pretrain_tiny_sam.py --out runs/pretrain --export samtune/models/sam/sam_tiny.safetensors
    uv run python scripts/pretrain_tiny_sam.py --out runs/overfit --overfit 8 --stages 256:4

Promptable segmentation (box, point, no prompt; mask token 0) of `tiny_scenes`, in stages `SIZE:MINUTES` of rising
resolution. Each picture is encoded once and decoded with several prompts. Two dense auxiliary targets teach the
encoder directly (foreground and boundary at a quarter of the resolution, and which cells belong to one object);
their heads are thrown away. Weights train in bf16 copies with fp32 masters; the exponential mean of the masters is
what is evaluated and exported. `log.jsonl` in the output folder holds every number of the model card.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_scenes import HELD_OUT_SEED, Scenes, generate_scenes, load_photos
from torch import Tensor, nn

from samtune.base.tensors import save_tensors
from samtune.models.sam.model import SamModel, upsample_logits
from samtune.models.sam.vit import build_vit
from samtune.models.segmenter import Embedded
from samtune.models.weights import RANDOM
from samtune.scoring.contrastive import supervised_contrastive
from samtune.types import Prompts

BOXES, POINTS = 2, 1  # prompts per picture and step, beside one without a prompt
HELD_OUT_SCENES = 512
MOST_OBJECTS = 6


@dataclass(frozen=True)
class Targets:
    """Prompted objects of a batch; `masks` are (N, S, S) bool, prompts in pixels of the same frame."""

    masks: Tensor
    prompts: Prompts | None


class Pool:
    """A ring of generated scenes: new ones replace the oldest, batches are drawn from all and turned at random.

    Args:
        size: side of a picture in pixels.
        capacity: scenes held.
        fresh: scenes generated for each batch.
        seed: seed of the generator.
        device: where scenes are made and kept.
    """

    def __init__(self, *, size: int, capacity: int, fresh: int, seed: int, device: torch.device) -> None:
        self.size, self.fresh, self.device = size, fresh, device
        self.generator = torch.Generator().manual_seed(seed)
        self.photos = load_photos()
        self.images = torch.empty((capacity, 3, size, size), dtype=torch.uint8, device=device)
        self.instances = torch.empty((capacity, size, size), dtype=torch.uint8, device=device)
        self.filled = self.position = self.generated = 0

    def draw(self, batch: int) -> Scenes:
        """Adds fresh scenes, then returns `batch` scenes flipped and turned at random."""
        while self.filled < batch or not self.generated:
            self._add(batch)
        if self.fresh:
            self._add(self.fresh)
        picks = torch.randint(self.filled, (batch,), generator=self.generator).to(self.device)
        images, instances = self.images[picks], self.instances[picks]
        for dims in ((-1,), (-2,)):
            flip = torch.rand(batch, generator=self.generator).to(self.device) < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(dims), images)
            instances = torch.where(flip[:, None, None], instances.flip(dims), instances)
        turn = torch.rand(batch, generator=self.generator).to(self.device) < 0.5
        images = torch.where(turn[:, None, None, None], images.transpose(-1, -2), images)
        return Scenes(images, torch.where(turn[:, None, None], instances.transpose(-1, -2), instances))

    def _add(self, count: int) -> None:
        scenes = generate_scenes(
            count, size=self.size, generator=self.generator, photos=self.photos, device=self.device
        )
        slots = (torch.arange(count) + self.position) % len(self.images)
        self.images[slots], self.instances[slots] = scenes.images, scenes.instances
        self.position = (self.position + count) % len(self.images)
        self.filled = min(self.filled + count, len(self.images))
        self.generated += count


def draw_targets(instances: Tensor, kind: str, count: int, generator: torch.Generator) -> Targets:
    """Draws prompts for objects chosen at random.

    Args:
        instances: (B, S, S) uint8.
        kind: "box" (corners jittered by up to 5 % of the side), "point" (inside), "none" (all objects at once).
        count: prompts per picture; rows of one picture are consecutive.
        generator: source of randomness.
    """
    if kind == "none":
        return Targets(instances > 0, None)
    ids = torch.arange(1, MOST_OBJECTS + 1, device=instances.device, dtype=torch.uint8)
    areas = torch.stack([(instances == i).sum(dim=(1, 2)) for i in ids], dim=1)
    chosen = torch.multinomial((areas > 0).float().cpu(), count, replacement=True, generator=generator)
    chosen = ids[chosen.flatten().to(ids.device)]
    masks = instances.repeat_interleave(count, 0) == chosen[:, None, None]
    if kind == "box":
        boxes = boxes_of(masks)
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        jitter = torch.rand(boxes.shape, generator=generator).to(boxes) * 0.1 - 0.05
        return Targets(masks, Prompts(boxes_input=(boxes + jitter * sides).clamp(0, masks.shape[-1])))
    points = points_in(masks, generator)
    labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
    return Targets(masks, Prompts(points_input=points, labels=labels))


def boxes_of(masks: Tensor) -> Tensor:
    """Returns the tight XYXY boxes (N, 4) of (N, S, S) bool masks, in pixel edges."""
    sides = []
    for dim in (1, 2):  # columns first: x
        hit = masks.any(dim=dim).to(torch.uint8)
        sides.append((hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def points_in(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Returns (N, 1, 2) XY points, each in a 4 x 4 cell that lies as far inside its mask as cells do."""
    cover = F.avg_pool2d(masks[:, None].float(), 4)[:, 0]
    chance = torch.rand(cover.shape, generator=generator).to(cover.device)
    cell = (chance * 0.5 + cover).flatten(1).argmax(1)
    width = cover.shape[-1]
    return torch.stack([cell % width, cell // width], dim=1)[:, None].float() * 4 + 1.5


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """BCE + Dice of (N, 1, s, s) logits against the coverage of each low-res pixel by (N, S, S) masks."""
    logits = logits.float()
    target = F.avg_pool2d(masks[:, None].float(), masks.shape[-1] // logits.shape[-1])
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return F.binary_cross_entropy_with_logits(logits, target) * 2 + dice.mean()


class DenseHeads(nn.Module):
    """Auxiliary targets of the encoder, thrown away afterwards.

    Args:
        channels: of the image embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, 2 * 16, 1)
        self.cells = nn.Conv2d(channels, 64, 1)

    def forward(self, embeddings: Tensor, instances: Tensor) -> Tensor:
        """Returns the loss: foreground and boundary maps, and a contrastive loss over the cells of each object.

        Args:
            embeddings: (B, C, h, w).
            instances: (B, 16h, 16w) uint8.
        """
        maps = F.pixel_shuffle(self.maps(embeddings), 4).float()  # (B, 2, 4h, 4w)
        centre = instances[:, 2::4, 2::4].long()
        edges = torch.zeros_like(centre, dtype=torch.bool)
        edges[:, 1:] |= centre[:, 1:] != centre[:, :-1]
        edges[:, :, 1:] |= centre[:, :, 1:] != centre[:, :, :-1]
        target = torch.stack([centre > 0, edges], dim=1).float()
        dense = F.binary_cross_entropy_with_logits(maps, target)
        features = self.cells(embeddings)[:8].flatten(2).transpose(1, 2)  # (8, h*w, 64): enough pairs
        labels = instances[:8, 8::16, 8::16].flatten(1).long()
        labels = labels + torch.arange(len(labels), device=labels.device)[:, None] * (MOST_OBJECTS + 1)
        losses = [supervised_contrastive(f.float(), i, temperature=0.1) for f, i in zip(features, labels, strict=True)]
        contrast = [loss for loss in losses if loss is not None]
        return dense + 0.1 * sum(contrast, torch.zeros((), device=maps.device)) / max(len(contrast), 1)


class Masters:
    """fp32 masters, their exponential mean, and AdamW, for a model whose heavy parts run in bf16."""

    def __init__(self, working: nn.Module, *, lr: float, decay: float) -> None:
        self.working = list(working.parameters())
        self.weights = [p.detach().float().clone().requires_grad_() for p in self.working]
        self.mean = [p.detach().clone() for p in self.weights]
        matrices = [p for p in self.weights if p.ndim > 1]
        vectors = [p for p in self.weights if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self.decay, self.steps = decay, 0

    def step(self, lr: float) -> None:
        """Clips, updates the masters and their mean, and copies the masters into the working weights."""
        self.steps += 1
        for master, weight in zip(self.weights, self.working, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            keep = min(self.decay, self.steps / (self.steps + 10))
            torch._foreach_lerp_(self.mean, self.weights, 1 - keep)
            self.publish(self.weights)

    @torch.no_grad()
    def publish(self, source: list[Tensor]) -> None:
        """Copies `source` (masters or their mean) into the working weights."""
        for weight, value in zip(self.working, source, strict=True):
            weight.copy_(value)


def initialise(model: SamModel) -> None:
    """Truncated normal weights of deviation 0.02 in the encoder, as ViTs are trained from scratch."""
    for module in model.net.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.net.image_encoder.pos_embed, std=0.02)


def training_loss(model: SamModel, heads: DenseHeads, scenes: Scenes, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns the loss of each prompt kind and the auxiliary one, by name."""
    embeddings = model.encode(pixels_of(model, scenes.images))
    losses = {"dense": heads(embeddings, scenes.instances)}
    for kind, count in (("box", BOXES), ("point", POINTS), ("none", 1)):
        targets = draw_targets(scenes.instances, kind, count, generator)
        logits = model.decode(Embedded(embeddings.repeat_interleave(count, 0)), targets.prompts)
        losses[kind] = mask_loss(logits, targets.masks)
    return losses


def pixels_of(model: SamModel, images: Tensor) -> Tensor:
    """Normalises (B, 3, S, S) uint8 pictures without padding, in the encoder's dtype."""
    valid = torch.ones((1, 1, *images.shape[-2:]), dtype=torch.bool, device=images.device)
    return model.normalise(images, valid).to(model.net.image_encoder.patch_embed.proj.weight.dtype)


@torch.no_grad()
def held_out_dice(model: SamModel, size: int, device: torch.device) -> dict[str, float]:
    """Mean Dice per prompt on the held-out scenes, beside the best trivial answers.

    Returns:
        box, point and none: the model at logit > 0, full resolution. `filled_box` and `ellipse`: the tight box of
        the true mask as an answer, filled or as its inscribed ellipse. The model is given that box jittered, so
        the comparison is to the trivial answers' advantage. `disc`: a disc around the point, of the one radius
        that is best on these scenes.
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    photos = load_photos()
    totals: dict[str, list[Tensor]] = {}
    radii = torch.arange(4, 96, 4, device=device) * size / 256
    for _ in range(HELD_OUT_SCENES // 32):
        scenes = generate_scenes(32, size=size, generator=generator, photos=photos, device=device)
        embedded = Embedded(model.encode(pixels_of(model, scenes.images)))
        for kind in ("box", "point", "none"):
            targets = draw_targets(scenes.instances, kind, 1, generator)
            logits = upsample_logits(model.decode(embedded, targets.prompts), size)[:, 0]
            totals.setdefault(kind, []).append(dice(logits > 0, targets.masks))
            if kind == "box":
                filled, ellipse = box_answers(boxes_of(targets.masks), size)
                totals.setdefault("filled_box", []).append(dice(filled, targets.masks))
                totals.setdefault("ellipse", []).append(dice(ellipse, targets.masks))
            if kind == "point" and targets.prompts is not None and targets.prompts.points_input is not None:
                distance = distances(targets.prompts.points_input[:, 0], size)
                by_radius = torch.stack([dice(distance < radius, targets.masks) for radius in radii], dim=1)
                totals.setdefault("disc", []).append(by_radius)
    means = {name: torch.cat(values).mean(0) for name, values in totals.items()}
    return {name: round(float(value.max()), 4) for name, value in means.items()}


def box_answers(boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the filled box and the ellipse inscribed in it, (N, S, S) bool."""
    steps = torch.arange(size, device=boxes.device) + 0.5
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x = ((steps - centre[:, :1]) / half[:, :1]).abs()[:, None, :]
    y = ((steps - centre[:, 1:]) / half[:, 1:]).abs()[:, :, None]
    return (x <= 1) & (y <= 1), x**2 + y**2 <= 1


def distances(points: Tensor, size: int) -> Tensor:
    """Returns the (N, S, S) distance of every pixel to the (N, 2) points."""
    steps = torch.arange(size, device=points.device)
    x, y = steps - points[:, :1], steps - points[:, 1:]
    return torch.hypot(x[:, None, :], y[:, :, None])


def dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """Returns (N,) Dice of (N, S, S) bool masks; 1 where both are empty."""
    overlap = (prediction & truth).sum(dim=(1, 2)) * 2.0
    total = prediction.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
    return torch.where(total > 0, overlap / total.clamp(min=1), torch.ones_like(overlap))


def rates(stages: list[tuple[int, float]], peak: float) -> Iterator[tuple[int, float]]:
    """Yields (size, learning rate) for each step, by the clock: warm-up over 3 %, then cosine to 1 % of the peak."""
    total = sum(minutes for _, minutes in stages) * 60
    ends = [sum(m for _, m in stages[: i + 1]) * 60 for i in range(len(stages))]
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < total:
        size = next(size for (size, _), end in zip(stages, ends, strict=True) if elapsed < end)
        progress = elapsed / total
        cosine = 0.01 + 0.99 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
        yield size, peak * min(progress / 0.03, 1.0) * cosine


def pretrain(args: argparse.Namespace) -> None:
    """Runs all stages; writes `log.jsonl` and, every few minutes, `weights.safetensors`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    master = build_vit("sam_tiny", checkpoint=RANDOM)
    initialise(master)
    heads = DenseHeads(master.net.mask_decoder.transformer_dim)
    working = nn.ModuleDict({"model": copy.deepcopy(master), "heads": heads}).to(device)
    if args.resume:
        working["model"].net.load_state_dict(load_file(args.resume))
    masters = Masters(working, lr=args.lr, decay=0.998)
    model = working["model"]
    model.net.image_encoder.bfloat16()
    model.net.mask_decoder.bfloat16()
    heads.bfloat16()
    generator = torch.Generator().manual_seed(args.seed + 1)
    pool, size_now, seen, last_save = None, 0, 0, time.monotonic()
    means: dict[str, float] = {}
    start = time.monotonic()
    for size, lr in rates(args.stages, args.lr):
        if size != size_now or pool is None:
            capacity, fresh = (args.overfit, 0) if args.overfit else (args.pool, args.fresh)
            pool = Pool(size=size, capacity=capacity, fresh=fresh, seed=args.seed + size, device=device)
            resize_model(model, size)
            size_now = size
        losses = training_loss(model, heads, pool.draw(args.overfit or args.batch), generator)
        sum(losses.values(), torch.zeros((), device=device)).backward()
        masters.step(lr)
        seen += args.overfit or args.batch
        for name, value in losses.items():
            now = float(value.detach())
            means[name] = 0.98 * means.get(name, now) + 0.02 * now
        if masters.steps % 200 == 0:
            rate = seen / (time.monotonic() - start)
            write(args.out, step=masters.steps, size=size, lr=lr, images=seen, fresh=pool.generated, rate=rate, **means)
        if time.monotonic() - last_save > args.save_every * 60:
            save(args.out, model, masters, held_out=not args.overfit)
            last_save = time.monotonic()
    if args.overfit:
        masters.publish(masters.mean)
        write(args.out, overfit=overfit_dice(model, pool, generator))
    save(args.out, model, masters, held_out=not args.overfit, final=True)


@torch.no_grad()
def overfit_dice(model: SamModel, pool: Pool, generator: torch.Generator) -> float:
    """Mean box Dice on the scenes of the pool themselves."""
    targets = draw_targets(pool.instances, "box", 1, generator)
    logits = model.decode(Embedded(model.encode(pixels_of(model, pool.images))), targets.prompts)
    return float(dice(upsample_logits(logits, pool.size)[:, 0] > 0, targets.masks).mean())


def resize_model(model: SamModel, size: int) -> None:
    """Makes the prompt encoder and the model work in another input frame; no parameter changes."""
    model.image_size = size
    model.net.prompt_encoder.input_image_size = (size, size)
    model.net.prompt_encoder.image_embedding_size = (size // 16, size // 16)


def save(out: Path, model: SamModel, masters: Masters, *, held_out: bool, final: bool = False) -> None:
    """Writes the mean weights in fp32 and, unless overfitting, measures them on the held-out scenes."""
    masters.publish(masters.mean)
    names = [f"model.{name}" for name, _ in model.net.named_parameters()]
    state = {name.removeprefix("model."): value for name, value in zip(names, masters.mean, strict=False)}
    state |= {name: value.float() for name, value in model.net.named_buffers() if name in model.net.state_dict()}
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, out / "weights.safetensors")
    if held_out:
        write(out, step=masters.steps, held_out=held_out_dice(model, model.image_size, model.device), final=final)
    masters.publish(masters.weights)


def write(out: Path, **facts: object) -> None:
    """Appends one line to `log.jsonl` and prints it."""
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in facts.items()}
    line = json.dumps({"time": round(time.time(), 1), **rounded})
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def export(out: Path, target: Path) -> None:
    """Rounds the trained weights to fp16, writes `target`, and measures exactly those weights at 256 px."""
    state = {name: value.half() for name, value in load_file(out / "weights.safetensors").items()}
    save_tensors(target, state, {"model": "sam_tiny", "made_by": "scripts/pretrain_tiny_sam.py"})
    model = build_vit("sam_tiny", checkpoint=RANDOM)
    model.net.load_state_dict({name: value.float() for name, value in state.items()})
    write(out, exported=str(target.name), held_out=held_out_dice(model, 256, torch.device("cpu")))


def main() -> None:
    """Parses the command line; the module's docstring shows the uses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of log and weights")
    parser.add_argument("--stages", default="128:35,256:40", help="SIZE:MINUTES, comma-separated")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step")
    parser.add_argument("--pool", type=int, default=6000, help="scenes held for reuse")
    parser.add_argument("--fresh", type=int, default=8, help="new scenes per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="must differ from the held-out seed")
    parser.add_argument("--save-every", type=float, default=6.0, help="minutes between evaluations")
    parser.add_argument("--overfit", type=int, default=0, metavar="N", help="train on N scenes only, to test the path")
    parser.add_argument("--resume", type=Path, help="start from these weights")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only round OUT's weights to fp16 and measure")
    args = parser.parse_args()
    if args.export:
        export(args.out, args.export)
        return
    args.stages = [(int(size), float(minutes)) for size, minutes in (s.split(":") for s in args.stages.split(","))]
    pretrain(args)


if __name__ == "__main__":
    main()
