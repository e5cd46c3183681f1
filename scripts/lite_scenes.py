"""Pictures with exact instance maps for pre-training `sam_lite`: cut-outs on photographs, and drawn scenes.

    apt-get download openclipart-png lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    for f in *.deb; do dpkg-deb -x $f material; done
    uv run python scripts/lite_scenes.py --material material --sheet sheet.png

Half of the pictures are collages: silhouettes with alpha (public domain drawings of openclipart, or smooth random
shapes) filled with their own drawing, with a piece of a photograph, or with the background itself in another tone, lit,
with a shadow, on a photograph. The others are `tiny_scenes`, with the same photographs as textures. A picture is
determined by its seed and number.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tiny_scenes import Scenes, generate_scenes, load_photos
from torch import Tensor

Array = np.ndarray
CUTOUTS = "usr/share/openclipart/png"
PHOTOS = "usr/share/backgrounds"
# the folders of openclipart that show objects, not letters, maps and screens
KINDS = ["animals", "buildings", "containers", "decorations", "electronics", "food", "office", "people", "plants"]
KINDS += ["recreation", "tools", "transportation", "unsorted"]
DRAWN = {"Fossa", "Infinite-Sea", "Painting-Colors", "analogpattern", "umang"}  # wallpapers that are no photographs
SMALLEST = 0.0008  # of the picture: what shows less of an object is no object
MOST = 40  # objects in a picture
MARGIN = 0.05  # of the picture around an object, for its shadow
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Material:
    """What collages are made of.

    Attributes:
        photos: (H, W, 3) uint8 RGB, longest side at most 1024 px.
        cutouts: (h, w, 4) uint8 RGBA, cut to the visible part, longest side at most 256 px.
    """

    photos: list[Array]
    cutouts: list[Array]


def load_material(folder: Path) -> Material:
    """Reads photographs and cut-outs below `folder`, and the photographs inside scikit-image, -learn and matplotlib.

    Raises:
        FileNotFoundError: the folder has no cut-outs or no photographs.
    """
    photos = [np.ascontiguousarray((p * 255).byte().permute(1, 2, 0).numpy()) for p in load_photos()]
    paths = [p for p in sorted((folder / PHOTOS).rglob("*.jpg")) if p.stem.partition("_by_")[0] not in DRAWN]
    cutouts = _load_cutouts(folder)
    if not paths or not cutouts:
        raise FileNotFoundError(f"{folder} lacks {PHOTOS}/*.jpg or {CUTOUTS}: see the head of {Path(__file__).name}.")
    for path in paths:
        photos.append(_shrink(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), 1024))
    return Material(photos, cutouts)


def _load_cutouts(folder: Path) -> list[Array]:
    """Returns the cut-outs, which `cutouts.npz` in `folder` keeps: many are posters, which take long to read."""
    kept = folder / "cutouts.npz"
    if not kept.exists():
        paths = sorted(path for kind in KINDS for path in (folder / CUTOUTS / kind).rglob("*.png"))
        with ThreadPoolExecutor() as pool:
            read = [cutout for cutout in pool.map(_read_cutout, paths) if cutout is not None]
        if not read:
            return []
        np.savez(folder / "cutouts.part.npz", *read)
        (folder / "cutouts.part.npz").replace(kept)
    with np.load(kept) as file:
        return [file[name] for name in file.files]


def _read_cutout(path: Path) -> Array | None:
    """Returns a cut-out with a silhouette of its own; None where the drawing fills its frame, or is a hair."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 4:
        return None
    ys, xs = np.nonzero(picture[..., 3] > 127)
    if len(ys) < 400:
        return None
    picture = picture[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    share = float((picture[..., 3] > 127).mean())
    if not 0.15 < share < 0.95:
        return None
    return _shrink(np.ascontiguousarray(picture[..., [2, 1, 0, 3]]), 256)


def _shrink(picture: Array, longest: int) -> Array:
    scale = longest / max(picture.shape[:2])
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def draw_scenes(count: int, *, size: int, seed: tuple[int, ...], material: Material) -> Scenes:
    """Draws pictures, fully determined by `seed`: the first half are collages, the rest `tiny_scenes`.

    Returns:
        (B, 3, S, S) uint8 and (B, S, S) uint8, every picture with an object.
    """
    rng = np.random.default_rng(seed)
    collages = [draw_collage(rng, size, material) for _ in range((count + 1) // 2)]
    parts = [
        Scenes(
            torch.from_numpy(np.stack([image for image, _ in collages])).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.stack([instances for _, instances in collages])),
        )
    ]
    if count > 1:
        picks = rng.choice(len(material.photos), 8, replace=False)
        photos = [_as_float(_shrink(material.photos[i], 512)) for i in picks]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        parts.append(generate_scenes(count // 2, size=size, generator=generator, photos=photos))
    return Scenes(torch.cat([p.images for p in parts]), torch.cat([p.instances for p in parts]))


def _as_float(photo: Array) -> Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1).float().div_(255)


def draw_collage(rng: np.random.Generator, size: int, material: Material) -> tuple[Array, Array]:
    """Draws one collage: (S, S, 3) uint8 RGB and (S, S) uint8, 0 for the background, 1 to n for its objects."""
    while True:
        canvas = _background(rng, size, material)
        instances = np.zeros((size, size), np.uint8)
        crowd = rng.random() < 0.2
        count = int(rng.integers(8, MOST) if crowd else 1 + rng.binomial(7, 0.3))
        alike = _Kind.draw(rng, size, material, canvas) if crowd else None
        side = float(np.exp(rng.uniform(math.log(0.06), math.log(0.22))))
        for index in range(1, count + 1):
            kind = alike or _Kind.draw(rng, size, material, canvas)
            share = (
                side * rng.uniform(0.7, 1.4) if crowd else float(np.exp(rng.uniform(math.log(0.08), math.log(0.85))))
            )
            window, alpha, fill = kind.place(rng, size, share)
            canvas[window] = _compose(rng, canvas[window], alpha, fill, size)
            instances[window][alpha > 0.5] = index
        image, instances = _finish(rng, canvas), _renumber(instances)
        if instances.any():
            return image, instances


def _background(rng: np.random.Generator, size: int, material: Material) -> Array:
    """Returns (S, S, 3) float32 in [0, 1]: a piece of a photograph, sometimes out of focus or in other colours."""
    canvas = _piece(rng, size, material)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.5, 6)) * size / 256)
    return _tone(rng, canvas, 0.3) if rng.random() < 0.5 else canvas


def _piece(rng: np.random.Generator, size: int, material: Material) -> Array:
    photo = material.photos[rng.integers(len(material.photos))]
    height, width = photo.shape[:2]
    side = int(rng.uniform(0.25, 1) * min(height, width))
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    piece = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    return np.ascontiguousarray(piece, np.float32) / 255


def _tone(rng: np.random.Generator, picture: Array, strength: float) -> Array:
    """Changes gain, offset and saturation of a picture by up to `strength`."""
    gain, offset = rng.uniform(1 - strength, 1 + strength, 3), rng.uniform(-strength, strength, 3) * 0.5
    grey = picture.mean(2, keepdims=True)
    mixed = grey + (picture - grey) * rng.uniform(1 - 2 * strength, 1 + strength)
    return np.clip(mixed * gain + offset, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class _Kind:
    """A shape with its filling, of which one or many objects are placed.

    Attributes:
        alpha: (h, w) float32 in [0, 1].
        own: (h, w, 3) float32 colours of the drawing, or None: `paint` fills it.
        paint: (S, S, 3) float32.
        relief: how much the object is lit as a body, from 0 to 1.
    """

    alpha: Array
    own: Array | None
    paint: Array
    relief: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, material: Material, canvas: Array) -> _Kind:
        """Draws a kind of object; `canvas` is what it will lie on."""
        own, relief = None, float(rng.random() < 0.6) * rng.uniform(0.2, 1)
        if rng.random() < 0.55:
            cutout = material.cutouts[rng.integers(len(material.cutouts))].astype(np.float32) / 255
            alpha = cutout[..., 3]
            if rng.random() < 0.5:
                own, relief = cutout[..., :3], relief * 0.5
        else:
            alpha = _blob(rng)
        choice = rng.random()
        if choice < 0.45:
            paint = _tone(rng, _piece(rng, size, material), 0.4)
        elif choice < 0.8:  # the background's own texture, in a tone that may be hard to tell from it
            paint = _tone(rng, np.ascontiguousarray(np.roll(canvas, rng.integers(size, size=2), (0, 1))), 0.35)
        else:
            paint = np.ones((size, size, 3), np.float32) * rng.random(3, np.float32)
        return cls(np.ascontiguousarray(alpha), own, paint, relief)

    def place(self, rng: np.random.Generator, size: int, share: float) -> tuple[Window, Array, Array]:
        """Places an object with a longer side of `share` of the picture's: where, (h, w) alpha, (h, w, 3) colours."""
        height, width = self.alpha.shape
        scale = share * size / max(height, width)
        turn = rng.normal(0, 0.4) if rng.random() < 0.5 else rng.uniform(-math.pi, math.pi)
        stretch = np.exp(rng.normal(0, 0.2))
        linear = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) * scale
        linear = linear @ np.diag([stretch * rng.choice([-1, 1]), 1 / stretch])
        centre = rng.uniform(0, size, 2)
        reach = np.abs(linear) @ (np.array([width, height]) / 2) + MARGIN * size
        x0, y0 = np.clip(centre - reach, 0, size - 2).astype(int)
        x1, y1 = np.clip(centre + reach, (x0 + 2, y0 + 2), size).astype(int)
        frame = (int(x1 - x0), int(y1 - y0))
        matrix = np.column_stack([linear, centre - (x0, y0) - linear @ (np.array([width, height]) / 2)])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        alpha = cv2.warpAffine(self.alpha, matrix, frame, flags=way)
        if self.own is None:
            fill = np.roll(self.paint, rng.integers(size, size=2), (0, 1))[: frame[1], : frame[0]]
        else:
            fill = cv2.warpAffine(self.own, matrix, frame, flags=way)
        return (slice(y0, y1), slice(x0, x1)), alpha, _lit(rng, alpha, fill, self.relief, share * size)


def _blob(rng: np.random.Generator) -> Array:
    """Returns a smooth random shape, (128, 128) float32: a circle whose radius varies with the angle."""
    angle = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    radius = np.ones_like(angle)
    rough = rng.uniform(0, 0.35)
    for wave in range(2, int(rng.integers(3, 9))):
        radius += rough / wave * rng.normal() * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    radius = np.clip(radius, 0.25, None) / radius.max() * 60
    points = np.stack([64 + radius * np.cos(angle), 64 + radius * np.sin(angle) * rng.uniform(0.4, 1)], 1)
    mask = np.zeros((128, 128), np.float32)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    return cv2.GaussianBlur(mask, (0, 0), 0.7)


def _lit(rng: np.random.Generator, alpha: Array, fill: Array, relief: float, side: float) -> Array:
    """Lights an object as a body that bulges out of the picture, with a highlight now and then."""
    if relief <= 0:
        return fill
    step = max(int(side / 24), 1)  # a wide blur is as smooth at a lower resolution
    small = cv2.resize(alpha, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(side * rng.uniform(0.05, 0.2) / step, 0.8))
    depth = cv2.resize(small, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR)
    slope_y, slope_x = np.gradient(depth)
    light = rng.uniform(0, 2 * math.pi)
    lit = (slope_x * math.cos(light) + slope_y * math.sin(light)) * side * 0.35 * relief
    fill = fill * (1 + np.clip(lit, -0.7, 0.7))[..., None]
    if rng.random() < 0.3:
        fill = fill + np.clip(lit - 0.25 * relief, 0, 1)[..., None] * rng.uniform(0.5, 2)
    return fill.astype(np.float32)


def _compose(rng: np.random.Generator, canvas: Array, alpha: Array, fill: Array, size: int) -> Array:
    """Lays an object over its part of the canvas, some with a cast shadow, a soft edge, or half transparent."""
    if rng.random() < 0.3:
        shift = np.float32([[1, 0, rng.normal(0, 0.015) * size], [0, 1, rng.normal(0, 0.015) * size]])
        shadow = cv2.GaussianBlur(
            cv2.warpAffine(alpha, shift, alpha.shape[::-1]), (0, 0), rng.uniform(0.004, 0.015) * size
        )
        canvas = canvas * (1 - shadow * rng.uniform(0.2, 0.7))[..., None]
    if rng.random() < 0.3:
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.5, 2.5) * size / 256)
    if rng.random() < 0.3:  # glassy: the background shines through
        alpha = alpha * rng.uniform(0.5, 1)
    return canvas * (1 - alpha[..., None]) + fill * alpha[..., None]


def _finish(rng: np.random.Generator, canvas: Array) -> Array:
    """Adds what lenses and sensors do: a light that varies, blur, noise, compression; (S, S, 3) uint8."""
    size = len(canvas)
    if rng.random() < 0.4:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - rng.uniform(0.2, 0.8, (2, 1, 1)).astype(np.float32)
        canvas = canvas * np.clip(1 - rng.uniform(0, 1.2) * (x * x + y * y), 0.1, 1)[..., None]
    if rng.random() < 0.15:
        canvas = canvas.mean(2, keepdims=True) * np.ones(3, np.float32)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.6) * size / 256)
    canvas = np.clip(canvas, 0, 1) ** rng.uniform(0.7, 1.5)
    canvas = canvas + rng.normal(0, 1, canvas.shape).astype(np.float32) * rng.uniform(0, 0.25) ** 2
    image = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])
        image = cv2.imdecode(code, cv2.IMREAD_COLOR)
    return image


def _renumber(instances: Array) -> Array:
    """Numbers the objects that are large enough from 1, without gaps."""
    areas = np.bincount(instances.ravel(), minlength=256)
    kept = [i for i in range(1, 256) if areas[i] >= SMALLEST * instances.size]
    table = np.zeros(256, np.uint8)
    table[kept] = range(1, len(kept) + 1)
    return table[instances]


def main() -> None:
    """Writes a sheet of pictures, each beside its objects in colours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, required=True, help="folder with the unpacked packages")
    parser.add_argument("--sheet", type=Path, required=True, help="picture to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scenes = draw_scenes(48, size=256, seed=(args.seed,), material=load_material(args.material))
    colours = np.random.default_rng(0).integers(60, 255, (256, 3)).astype(np.uint8)
    colours[0] = 0
    shown = [
        np.hstack([image.permute(1, 2, 0).numpy(), colours[instances.numpy()]])
        for image, instances in zip(scenes.images, scenes.instances, strict=True)
    ]
    rows = [np.hstack(shown[i : i + 6]) for i in range(0, len(shown), 6)]
    cv2.imwrite(str(args.sheet), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
