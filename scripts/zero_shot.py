"""Measures untuned models by prompt on real objects that were in no pre-training: the table of the model card.

    uv run python scripts/zero_shot.py --kvasir DIR --nuclei DIR --camvid DIR [--model sam_lite --model sam_tiny]

Kvasir: the polyps of DIR/images and DIR/masks (values over 127). Nuclei: each instance of DIR/images and DIR/instances
in tiles of 256 px at native scale. CamVid: connected cars and pedestrians (classes 8 and 9 of DIR/masks) of at least
256 px in the model's frame. A picture's longer side is the model's input side, the rest is padding.

Box: the tight box. Clicks: the first in the middle of the object (the farthest from its edge), each further one in the
middle of the largest error; `sam_lite` gets its last answer as a mask prompt along, and from one click gives the one of
three masks that it expects most of. Dice in the model's frame, mean over objects. Beside the models: the ellipse in the
box, the disc around the first click of the one radius that is best on the set, and the ceiling, the truth itself in the
decoder's frame of a quarter of the side. For `sam_lite`, expected and true IoU are compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pretrain_tiny_sam import dice
from torch import Tensor

from samtune.models.sam.model import SamModel, upsample_logits
from samtune.models.segmenter import Embedded
from samtune.models.table import build_model
from samtune.types import Prompts

SIDE = 256
CLICKS = (1, 3, 5)
SMALLEST = 256  # px in the model's frame, of CamVid's components
CHUNK = 32  # objects decoded at once
Array = np.ndarray
Found = dict[str, list[float]]


def kvasir(folder: Path) -> Iterator[tuple[Array, list[Array]]]:
    """Yields (H, W, 3) RGB and the (H, W) bool polyps of at least 64 px of each picture, connected ones apart."""
    for path in sorted((folder / "images").iterdir()):
        truth = cv2.imread(str(folder / "masks" / path.name), cv2.IMREAD_GRAYSCALE) > 127
        image, parts = _framed(_rgb(path), _components(truth))
        yield image, [part for part in parts if part.sum() >= 64]


def nuclei(folder: Path) -> Iterator[tuple[Array, list[Array]]]:
    """Yields tiles of 256 px, with the nuclei of at least 16 px in each."""
    for path in sorted((folder / "images").iterdir()):
        image, instances = _rgb(path), cv2.imread(str(folder / "instances" / path.name), cv2.IMREAD_UNCHANGED)
        for y in range(0, image.shape[0] - SIDE + 1, SIDE):
            for x in range(0, image.shape[1] - SIDE + 1, SIDE):
                tile = instances[y : y + SIDE, x : x + SIDE]
                masks = [tile == number for number in np.unique(tile) if number > 0]
                yield image[y : y + SIDE, x : x + SIDE], [mask for mask in masks if mask.sum() >= 16]


def camvid(folder: Path) -> Iterator[tuple[Array, list[Array]]]:
    """Yields street scenes with their connected cars and pedestrians."""
    for path in sorted((folder / "images").iterdir()):
        classes = cv2.imread(str(folder / "masks" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        image, parts = _framed(_rgb(path), [p for number in (8, 9) for p in _components(classes == number)])
        yield image, [part for part in parts if part.sum() >= SMALLEST]


def _rgb(path: Path) -> Array:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def _components(mask: Array) -> list[Array]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    return [labels == number for number in range(1, count)]


def _framed(image: Array, masks: list[Array]) -> tuple[Array, list[Array]]:
    """Scales picture and masks so that the longer side is `SIDE`."""
    scale = SIDE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    cover = [cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) for mask in masks]
    return image, [part >= 0.5 for part in cover]


def padded(image: Array, masks: list[Array]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (1, 3, S, S) uint8, (1, 1, S, S) bool of what is picture, and (N, S, S) bool."""
    height, width = image.shape[:2]
    pixels = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    pixels[0, :, :height, :width] = torch.from_numpy(image).permute(2, 0, 1)
    valid = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    valid[..., :height, :width] = True
    truths = torch.zeros(len(masks), SIDE, SIDE, dtype=torch.bool)
    truths[:, :height, :width] = torch.from_numpy(np.stack(masks))
    return pixels, valid, truths


def middle(region: Array) -> tuple[float, float]:
    """Returns the XY of the pixel of a (S, S) bool region that is farthest from its edge, at its centre."""
    distance = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return float(x) + 0.5, float(y) + 0.5


def measure_trivial(truths: Tensor, found: Found) -> None:
    """Adds what needs no model: ellipse, disc by radius, ceiling."""
    steps = torch.arange(SIDE) + 0.5
    for truth in truths:
        ys, xs = truth.nonzero().unbind(1)
        x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
        x, y = (steps - (x0 + x1) / 2) / ((x1 - x0) / 2), (steps - (y0 + y1) / 2) / ((y1 - y0) / 2)
        found.setdefault("ellipse", []).append(float(dice((x[None] ** 2 + y[:, None] ** 2 <= 1)[None], truth[None])))
        cx, cy = middle(truth.numpy())
        distance = torch.hypot(steps[None] - cx, steps[:, None] - cy)
        radii = torch.arange(2, 96, 2)[:, None, None]
        discs = dice(distance[None] < radii, truth[None].expand(len(radii), -1, -1))
        for radius, value in zip(radii.flatten().tolist(), discs.tolist(), strict=True):
            found.setdefault(f"disc {radius}", []).append(value)
    cover = F.avg_pool2d(truths[:, None].float(), 4)
    best = F.interpolate(cover, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0] > 0.5
    found.setdefault("ceiling", []).extend(dice(best, truths).tolist())


@torch.no_grad()
def measure_model(model: SamModel, embedding: Tensor, truths: Tensor, found: Found) -> None:
    """Adds Dice by prompt of the objects of one picture, and, of a model that rates its masks, expected and true IoU.

    Args:
        embedding: (1, C, h, w) of the picture.
        truths: (N, S, S) bool.
    """
    rates = model.name != "sam_tiny"  # whose pre-training left out the IoU head, further masks and mask prompts
    each = Embedded(embedding).repeated(len(truths))
    boxes = torch.stack([_box(truth) for truth in truths])
    logits, expected = model.decode_all(each, Prompts(boxes))
    hit = _full(logits[:, 0])
    found.setdefault("box", []).extend(dice(hit, truths).tolist())
    if rates:
        found.setdefault("expected", []).extend(expected[:, 0].tolist())
        found.setdefault("iou", []).extend(_iou(hit, truths).tolist())
    points = torch.tensor([middle(truth.numpy()) for truth in truths])[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int64)
    last = None
    for click in range(1, max(CLICKS) + 1):
        logits, expected = model.decode_all(each, Prompts(None, points, labels), last)
        best = expected[:, 1:].argmax(1) + 1 if rates and click == 1 else torch.zeros(len(truths), dtype=torch.int64)
        chosen = logits[torch.arange(len(truths)), best]
        hit = _full(chosen)
        if rates and click == 1:
            found["expected"].extend(expected[torch.arange(len(truths)), best].tolist())
            found["iou"].extend(_iou(hit, truths).tolist())
        if click in CLICKS:
            found.setdefault(f"clicks {click}", []).extend(dice(hit, truths).tolist())
        last = chosen[:, None].clamp(-16, 16) if rates else None
        clicks, kinds = zip(*(_correction(h, t) for h, t in zip(hit, truths, strict=True)), strict=True)
        points = torch.cat([points, torch.tensor(clicks)[:, None]], 1)
        labels = torch.cat([labels, torch.tensor(kinds)[:, None]], 1)


def _correction(hit: Tensor, truth: Tensor) -> tuple[tuple[float, float], int]:
    """Returns the next click, in the middle of the largest connected error, and whether it adds."""
    errors = [(part, kind) for kind, e in ((1, truth & ~hit), (0, hit & ~truth)) for part in _components(e.numpy())]
    if not errors:
        return middle(truth.numpy()), 1
    part, kind = max(errors, key=lambda error: error[0].sum())
    return middle(part), kind


def _box(truth: Tensor) -> Tensor:
    ys, xs = truth.nonzero().unbind(1)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


def _full(logits: Tensor) -> Tensor:
    return upsample_logits(logits[:, None], SIDE)[:, 0] > 0


def _iou(hit: Tensor, truth: Tensor) -> Tensor:
    return (hit & truth).sum((1, 2)) / (hit | truth).sum((1, 2)).clamp(min=1)


def table(name: str, trivial: Found, models: dict[str, Found]) -> list[str]:
    """Returns the lines of one data set."""
    mean = {key: float(np.mean(values)) for key, values in trivial.items()}
    disc = max(value for key, value in mean.items() if key.startswith("disc"))
    count = len(trivial["ceiling"])
    lines = [f"{name}, {count} objects: ellipse {mean['ellipse']:.3f}, disc {disc:.3f}, ceiling {mean['ceiling']:.3f}"]
    for model, found in models.items():
        values = "  ".join(f"{key} {np.mean(found[key]):.3f}" for key in ("box", *(f"clicks {n}" for n in CLICKS)))
        share = (1 - np.mean(found["box"])) / (1 - mean["ellipse"])
        lines.append(f"  {model}: {values}  error with a box / the ellipse's {share:.2f}")
        if "expected" in found:
            expected, iou = np.array(found["expected"]), np.array(found["iou"])
            place = np.clip(np.floor(expected * 5), 0, 4)  # the head is not bounded
            bins = [(index / 5, place == index) for index in range(5)]
            shown = "  ".join(f"{low:.1f}+: {iou[at].mean():.2f} ({at.sum()})" for low, at in bins if at.any())
            both = np.corrcoef(expected, iou)[0, 1]
            lines.append(f"  true IoU by expected IoU: {shown}; correlation {both:.2f}")
    return lines


def main() -> None:
    """Prints the table; `--json` keeps the mean values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("kvasir", "nuclei", "camvid"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--checkpoint", type=Path, help="other weights of the first model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = args.model or ["sam_lite", "sam_tiny"]
    models = {name: build_model(name, image_size=SIDE, checkpoint=args.checkpoint) for name in names[:1]}
    models |= {name: build_model(name, image_size=SIDE) for name in names[1:]}
    kept = {}
    for name, read in (("kvasir", kvasir), ("nuclei", nuclei), ("camvid", camvid)):
        if (folder := getattr(args, name)) is None:
            continue
        trivial: Found = {}
        found: dict[str, Found] = {model: {} for model in models}
        for image, masks in read(folder):
            if not masks:
                continue
            pixels, valid, truths = padded(image, masks)
            measure_trivial(truths, trivial)
            for model_name, model in models.items():
                assert isinstance(model, SamModel)
                with torch.no_grad():
                    embedding = model.encode(model.normalise(pixels, valid))
                for start in range(0, len(truths), CHUNK):
                    measure_model(model, embedding, truths[start : start + CHUNK], found[model_name])
        print("\n".join(table(name, trivial, found)), flush=True)
        kept[name] = {m: {k: round(float(np.mean(v)), 4) for k, v in f.items()} for m, f in found.items()}
        kept[name]["trivial"] = {k: round(float(np.mean(v)), 4) for k, v in trivial.items() if "disc" not in k}
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
