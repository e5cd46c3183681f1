"""Procedural scenes with exact instance maps, drawn in batches on any device.

They pre-train a tiny promptable segmenter from scratch: compact objects on textured, shaded backgrounds,
from obvious to barely visible. The only pictures used are those inside the installed wheels of
scikit-image and matplotlib. Run ``python tiny_scenes.py OUT.png`` for a contact sheet and the speed.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

HELD_OUT_SEED = 20261120
LAYERS = 6
TABLE = 720  # directions in a radius table: under one pixel of arc for the largest object at 256 px
CPU_GROUP = 8
MIN_VISIBLE = 40.0  # pixels at size 256
# Flat drawings and glyphs: they would look like unlabelled objects, not like a material.
SKIPPED = {"horse", "phantom", "logo", "logo2", "color", "text", "page", "chessboard_GRAY", "chessboard_RGB"}


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        images: (B, 3, S, S) uint8 RGB.
        instances: (B, S, S) uint8; 0 is background, 1..n the visible part of object n.
    """

    images: Tensor
    instances: Tensor


@dataclass(frozen=True)
class _Shapes:
    """Geometry of (B, LAYERS) objects, lengths in pixels, angles in radians.

    Attributes:
        centre: (B, L, 2) x and y.
        turn: (B, L) rotation.
        bend: (B, L) parabolic bending, 1 / pixels.
        table: (B, L, TABLE) boundary radius by direction from -pi to pi.
        radius: (B, L) radius of the disc of the same area.
        stroke: (B, L) true where the object is a thick curve and not a radius table.
        half: (B, L) half length of the stroke's axis.
        width: (B, L) half thickness of the stroke.
        hole: (B, L, 3) x, y and radius of a disc cut out; a radius of -1e6 cuts nothing.
    """

    centre: Tensor
    turn: Tensor
    bend: Tensor
    table: Tensor
    radius: Tensor
    stroke: Tensor
    half: Tensor
    width: Tensor
    hole: Tensor


class _Dice:
    """Random draws from one generator, delivered on the device where the scenes are drawn."""

    def __init__(self, generator: torch.Generator, device: torch.device | str) -> None:
        self.generator = generator
        self.device = torch.device(device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform numbers in [low, high) of the given shape."""
        draw = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return (draw * (high - low) + low).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers of the given shape."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device).to(self.device)

    def integers(self, *shape: int, high: int) -> Tensor:
        """Draw integers in [0, high) of the given shape."""
        device = self.generator.device
        return torch.randint(high, shape, generator=self.generator, device=device).to(self.device)

    def choice(self, weights: list[float], *shape: int) -> Tensor:
        """Draw class indices with the given weights (they sum to 1)."""
        edges = torch.tensor(weights, device=self.device).cumsum(0)[:-1].contiguous()
        return torch.bucketize(self.uniform(*shape), edges, right=True)

    def direction(self, *shape: int) -> Tensor:
        """Draw unit vectors along the last dimension."""
        return F.normalize(self.normal(*shape), dim=-1)


def load_photos() -> list[Tensor]:
    """Read the freely licensed pictures that ship inside scikit-image and matplotlib.

    Returns:
        Tensors (3, H, W), float in [0, 1], longest side at most 512 pixels.

    Raises:
        FileNotFoundError: Neither package brings a usable picture.
    """
    import numpy
    from PIL import Image

    photos = []
    for package, folder in (("skimage", "data"), ("matplotlib", "mpl-data/sample_data")):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted((Path(spec.origin).parent / folder).iterdir()):
            if path.suffix.lower() not in {".png", ".jpg", ".jpeg"} or path.stem in SKIPPED:
                continue
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            if min(picture.size) >= 128:
                picture.thumbnail((512, 512))
                pixels = numpy.asarray(picture, dtype=numpy.float32) / 255
                photos.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    if not photos:
        raise FileNotFoundError("no pictures found: install scikit-image (skimage/data) or matplotlib")
    return photos


def _fractal(dice: _Dice, count: int, size: int) -> Tensor:
    """Fractal noise (count, size, size), mean about 0.5, mostly inside [0, 1].

    The planes grow by doubling, so that all octaves together cost little more than the last one.
    """
    keep = dice.uniform(count, 1, 1, 1, low=0.35, high=0.8)
    side = max(2, size // 64)
    noise, weight = dice.normal(count, 1, side, side), torch.ones_like(keep)
    while side < size:
        side = min(side * 2, size)
        noise = F.interpolate(noise, size=(side, side), mode="bicubic" if side <= 64 else "bilinear")
        weight = weight * keep
        if side <= size // 2:
            noise = noise + weight * dice.normal(count, 1, side, side)
    spread, mean = torch.std_mean(noise[..., ::4, ::4], dim=(2, 3), keepdim=True)
    return ((noise - mean) / (spread + 1e-6) * 0.22 + 0.5)[:, 0]


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Turn hue, saturation and value of one shape (all in [0, 1], hue cyclic) into (..., 3) RGB."""
    shift = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    sector = (shift + hue[..., None] * 6) % 6
    ramp = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def _palettes(dice: _Dice, count: int) -> Tensor:
    """Three related colours for each of count materials: (count, 3, 3), colours by RGB, in [0, 1]."""
    kind = dice.choice([0.42, 0.13, 0.12, 0.1, 0.23], count)
    # Warm red or pink, brown, grey, green, any: ranges of hue, saturation and value.
    low = torch.tensor([[-0.05, 0.25, 0.45], [0.05, 0.3, 0.25], [0, 0, 0.2], [0.2, 0.2, 0.2], [0, 0.1, 0.3]])
    high = torch.tensor([[0.06, 0.75, 0.95], [0.1, 0.7, 0.7], [1, 0.1, 0.9], [0.42, 0.7, 0.8], [1, 0.8, 0.9]])
    low, high = low.to(dice.device)[kind], high.to(dice.device)[kind]
    base = low + (high - low) * dice.uniform(count, 3)
    # The hue stays close within a material, brightness may differ much more.
    reach = torch.tensor([0.04, 0.2, 0.3], device=dice.device) * dice.uniform(count, 1, 1, low=0.2, high=1.6)
    hsv = base[:, None] + reach * dice.uniform(count, 3, 3, low=-1, high=1)
    return _rgb(hsv[..., 0], hsv[..., 1].clamp(0, 0.9), hsv[..., 2].clamp(0.05, 0.98))


def _photo_crop(photo: Tensor, draw: list[float], size: int) -> Tensor:
    """Cut a square out of a photo (3, H, W), scaled to (3, size, size), flipped and turned.

    Args:
        photo: Source picture.
        draw: Five numbers in [0, 1): scale, top, left, flip, turn.
        size: Side of the result in pixels.
    """
    height, width = photo.shape[1:]
    side = int(min(height, width) * (0.25 + 0.75 * draw[0]))
    top, left = int(draw[1] * (height - side)), int(draw[2] * (width - side))
    crop = photo[None, :, top : top + side, left : left + side]
    # Antialiasing is costly and pointless unless the crop shrinks.
    crop = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=side > 1.3 * size)[0]
    crop = crop.flip(-1) if draw[3] < 0.5 else crop
    return crop.rot90(int(draw[4] * 4), (1, 2))


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres x (1, 1, S) and y (1, S, 1), in pixels."""
    line = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    return line[None, None, :], line[None, :, None]


def _patterns(dice: _Dice, noise: Tensor, kind: Tensor) -> Tensor:
    """Procedural materials (n, 3, S, S), about [0, 1].

    Args:
        dice: Random source.
        noise: (n, S, S) fractal noise, about [0, 1].
        kind: (n,) 0 for noise, 1 for warped folds (straight or concentric), 2 for ramps.
    """
    count, size = noise.shape[:2]
    x, y = _grid(size, dice.device)
    centre = dice.uniform(count, 2, 1, 1, low=-0.3, high=1.3)
    axis = dice.direction(count, 2)[..., None, None]
    dx, dy = x / size - centre[:, 0], y / size - centre[:, 1]
    line = dx * axis[:, 0] + dy * axis[:, 1]
    line = torch.where(dice.uniform(count, 1, 1) < 0.4, torch.hypot(dx, dy), line)
    rate = torch.exp(dice.uniform(count, 1, 1, low=math.log(8.0), high=math.log(70.0)))
    phase = line * rate + noise * dice.uniform(count, 1, 1, low=0.5, high=7)
    grain = (noise - 0.5) * dice.uniform(count, 1, 1, low=0.05, high=0.5)
    pick = kind[:, None, None]
    tone = torch.where(pick == 1, 0.5 + 0.4 * torch.sin(phase), line + 0.5) + grain
    tone = torch.where(pick == 0, noise, tone)[:, None] * 2
    first, second, third = _palettes(dice, count)[..., None, None].unbind(1)
    out = first + (second - first) * tone.clamp(0, 1)
    out += (third - second) * tone.sub_(1).clamp_(0, 1)
    relief = dice.uniform(count, 1, 1, low=-0.4, high=0.4) * (pick == 1)
    return out.mul_((1 + relief * torch.cos(phase))[:, None]).clamp_(0, 1)


def _materials(dice: _Dice, count: int, size: int, photos: list[Tensor], noise: Tensor) -> Tensor:
    """Draw count full-frame materials (count, 3, S, S) in [0, 1]: patterns and photo crops."""
    kind = dice.choice([0.4, 0.3, 0.2, 0.1], count)
    out = noise.new_empty(count, 3, size, size)
    drawn = (kind > 0).nonzero()[:, 0]
    out[drawn] = _patterns(dice, noise[drawn], kind[drawn] - 1)
    picks, draws = dice.integers(count, high=len(photos)).tolist(), dice.uniform(count, 5).tolist()
    tints = _palettes(dice, count).mean(1)[..., None, None]
    # Half of the photos keep their colours; the others become one-hued materials or swap their channels.
    style = dice.choice([0.5, 0.35, 0.15], count).tolist()
    for row in (kind == 0).nonzero()[:, 0].tolist():
        crop = _photo_crop(photos[picks[row]].to(dice.device), draws[row], size)
        if style[row] == 1:
            crop = crop.mean(0, keepdim=True) * 0.9 / (tints[row].mean() + 0.1) * tints[row]
        out[row] = crop.roll(1, 0) if style[row] == 2 else crop
    return out.clamp_(0, 1)


def _split(dice: _Dice, canvas: Tensor, other: Tensor, noise: Tensor) -> Tensor:
    """Give about a sixth of the backgrounds (B, 3, S, S) a second region beyond a wavy line."""
    size = canvas.shape[-1]
    x, y = _grid(size, dice.device)
    rows = (dice.uniform(len(canvas)) < 0.16).nonzero()[:, 0]
    axis, shift = dice.direction(len(canvas), 2)[rows], dice.uniform(len(canvas), low=-0.25, high=0.25)[rows]
    line = (x / size - 0.5) * axis[:, 0, None, None] + (y / size - 0.5) * axis[:, 1, None, None]
    # Only the coarse part of the noise: a wavy line, not a coast.
    wave = F.interpolate(F.avg_pool2d(noise[rows, None], size // 8), size=(size, size), mode="bicubic")[:, 0]
    beyond = line + 0.3 * (wave - 0.5) > shift[:, None, None]
    canvas[rows] = torch.where(beyond[:, None], other[rows], canvas[rows])
    return canvas


def _star_table(dice: _Dice, count: int) -> Tensor:
    """Boundary radii (count, TABLE) of blobs, superellipses and polygons, of any scale."""
    theta = torch.linspace(-math.pi, math.pi, TABLE + 1, device=dice.device)[:-1].repeat(count, 1)
    order = torch.arange(2, 8, device=dice.device, dtype=torch.float32)
    size = dice.normal(count, 6) * dice.uniform(count, 1, high=0.6) / order.pow(1.3)
    waves = torch.cos(theta[..., None] * order + dice.uniform(count, 1, 6, high=2 * math.pi))
    blob = (1 + (waves * size[:, None]).sum(-1)).clamp_min(0.3)
    # Most exponents are near 2 (ellipses), the rest reach towards rectangles.
    power = torch.where(dice.uniform(count, 1) < 0.6, 2.0, dice.uniform(count, 1, low=2.5, high=12))
    aspect = torch.exp(dice.uniform(count, 1, low=-0.9, high=0))
    box = (theta.cos().abs().pow(power) + (theta.sin() / aspect).abs().pow(power)).pow(-1 / power)
    sides = dice.integers(count, 1, high=6) + 3
    index = torch.arange(9, device=dice.device)[None]
    jitter = dice.uniform(count, 9, low=-0.18, high=0.18).scatter(1, sides, 0.0)
    jitter[:, 0] = 0
    corner = (index + jitter) * 2 * math.pi / sides - math.pi
    reach = dice.uniform(count, 9, low=0.6, high=1.2)
    reach = reach.scatter(1, sides, reach[:, :1])
    corner = torch.where(index > sides, 99.0, corner)
    after = torch.searchsorted(corner.contiguous(), theta.contiguous(), right=True).clamp(1, 8)
    after = torch.minimum(after, sides)
    start, end = corner.gather(1, after - 1), corner.gather(1, after)
    # On a straight edge 1 / r is the sine-weighted mean of its values at both corners.
    inverse = (end - theta).sin() / reach.gather(1, after - 1)
    inverse += (theta - start).sin() / reach.gather(1, after)
    polygon = (end - start).sin() / inverse
    kind = dice.choice([0.6, 0.25, 0.15], count, 1)
    # Blobs are stretched too: the polar radius of a stretched circle times the wave series.
    return torch.where(kind == 0, blob * box.clamp_min(0.4), torch.where(kind == 1, box, polygon))


def _draw_shapes(dice: _Dice, batch: int, size: int) -> tuple[_Shapes, Tensor]:
    """Draw the geometry of all objects and the number of objects, (B,) in 1..LAYERS, of each scene."""
    counts = dice.choice([0.36, 0.22, 0.16, 0.12, 0.08, 0.06], batch) + 1
    most = torch.tensor([0.45, 0.3, 0.2, 0.14, 0.1, 0.08], device=dice.device).log()[counts - 1, None]
    least = math.log(0.005)
    area = torch.exp(least + (most - least) * dice.uniform(batch, LAYERS)) * size * size
    # Large objects come first, so that they do not bury small ones.
    area = area.sort(dim=1, descending=True).values
    radius = (area / math.pi).sqrt()
    table = _star_table(dice, batch * LAYERS).view(batch, LAYERS, TABLE)
    table = table * (radius / table.square().mean(-1).sqrt())[..., None]
    kind = dice.choice([0.82, 0.1, 0.08], batch, LAYERS)
    slim = dice.uniform(batch, LAYERS, low=1.5, high=6)
    width = (area / (4 * slim + math.pi)).sqrt()
    centre = dice.uniform(batch, LAYERS, 2) * size
    centre[:, 0] = size * (0.2 + 0.6 * centre[:, 0] / size)  # the first object is always well inside
    bend = dice.normal(batch, LAYERS) * torch.where(kind == 1, 0.5 / (slim * width), 0.15 / radius)
    bend = bend * ((kind == 1) | (dice.uniform(batch, LAYERS) < 0.3))
    offset = dice.direction(batch, LAYERS, 2) * (dice.uniform(batch, LAYERS, 1) * 0.8 * radius[..., None])
    cut = torch.where(kind == 2, radius * dice.uniform(batch, LAYERS, low=0.35, high=0.75), -1e6)
    hole = torch.cat([offset, cut[..., None]], -1)
    turn = dice.uniform(batch, LAYERS, high=2 * math.pi)
    return _Shapes(centre, turn, bend, table, radius, kind == 1, slim * width, width, hole), counts


def _field(shapes: _Shapes, rows: Tensor, layer: int, size: int) -> tuple[Tensor, Tensor]:
    """Place one object in each of the scenes ``rows``.

    Returns:
        Planes (n, S, S): depth inside the outline (pixels, negative outside) and relative distance from
        the middle (0 at the middle, 1 on the outline).
    """

    def pick(values: Tensor) -> Tensor:
        return values[rows, layer][..., None, None]

    grid_x, grid_y = _grid(size, rows.device)
    centre, turn, hole = pick(shapes.centre), pick(shapes.turn), pick(shapes.hole)
    dx, dy = grid_x - centre[:, 0], grid_y - centre[:, 1]
    cos, sin = turn.cos(), turn.sin()
    along = dx * cos + dy * sin
    across = dy * cos - dx * sin
    across -= pick(shapes.bend) * along.square()
    distance = torch.hypot(along, across).clamp_min_(1e-3)
    slot = (torch.atan2(across, along) + math.pi).mul_(TABLE / (2 * math.pi)).long().clamp_max_(TABLE - 1)
    reach = shapes.table[rows, layer].gather(1, slot.flatten(1)).view_as(distance)
    middle, strokes = pick(shapes.radius).clone(), shapes.stroke[rows, layer].nonzero()[:, 0]
    if len(strokes):
        width = pick(shapes.width)[strokes]
        beyond = (along[strokes].abs() - pick(shapes.half)[strokes]).clamp_min_(0)
        distance[strokes], reach[strokes] = torch.hypot(beyond, across[strokes]), width.expand_as(beyond)
        middle[strokes] = width
    depth = reach - distance
    # Level lines are round in the middle and take the outline's form outwards: no creases from corners.
    profile = distance / torch.lerp(middle, reach, (distance / reach).clamp_max_(1))
    rings = (hole[:, 2, 0, 0] > 0).nonzero()[:, 0]
    if len(rings):
        cut = hole[rings]
        inner = torch.hypot(along[rings] - cut[:, 0], across[rings] - cut[:, 1]) - cut[:, 2]
        depth[rings] = torch.minimum(depth[rings], inner)
        # Around a hole the profile must rise from the inner outline as well.
        profile[rings] = 1 - depth[rings] * 3 / middle[rings]
    return depth, profile


def _keeps_visible(before: Tensor, after: Tensor, top: int) -> Tensor:
    """Tell (n,) which label maps (n, S, S) with labels up to ``top`` may change from before to after.

    Every label must stay large enough, keep a quarter of what was visible, and some label must exist.
    """
    had, has = (
        torch.stack([(labels == i).flatten(1).sum(1, dtype=torch.int32) for i in range(1, top + 1)], 1)
        for labels in (before, after)
    )
    least = MIN_VISIBLE * (after.shape[-1] / 256) ** 2
    kept = (had == 0) | (has >= (0.25 * had).clamp_min(least))
    fine = (has == 0) | (has >= least)
    return kept.all(1) & fine.all(1) & (has > 0).any(1)


def _shade(
    dice: _Dice, profile: Tensor, radius: Tensor, noise: Tensor, strong: Tensor, light: Tensor
) -> tuple[Tensor, Tensor]:
    """Dome shading of one object per row.

    Args:
        dice: Random source.
        profile: (n, S, S) relative distance from the middle.
        radius: (n,) object radius in pixels.
        noise: (n, S, S) in about [0, 1], for bumps on the dome.
        strong: (n,) true where the shading is all that marks the object.
        light: (n, 2) unit vector towards the light.

    Returns:
        Brightness factor (n, S, S) and highlight (n, S, S) in [0, 1].
    """
    count = len(profile)

    def draw(low: float, high: float) -> Tensor:
        return dice.uniform(count, 1, 1, low=low, high=high)

    round_ = (1 - profile.square()).clamp_min(0)
    # A plateau with steep flanks, a dome, or a bell.
    height = torch.lerp(round_, round_ * (2 - round_), draw(-0.9, 0.9))
    clear = strong[:, None, None]
    rise = torch.where(clear, draw(0.4, 1.2), draw(0.3, 1.1))
    height = (height * rise + noise * draw(0, 0.25)) * radius[:, None, None]
    slope_x = F.pad(height[..., 1:] - height[..., :-1], (0, 1))
    slope_y = F.pad(height[:, 1:] - height[:, :-1], (0, 0, 0, 1))
    lift = torch.where(clear, draw(0.5, 1.5), draw(0.6, 2))
    lit = lift - slope_x * light[:, 0, None, None] - slope_y * light[:, 1, None, None]
    lit = lit * (1 + slope_x.square() + slope_y.square()).rsqrt()
    amount = torch.where(clear, draw(0.4, 1.15), draw(0, 1))
    rim = draw(-0.35, 0.5) * torch.where(clear, draw(0.3, 1), (draw(0, 1) < 0.5).float())
    factor = 1 + amount * (lit / lift - 1) * 0.8 - rim * profile.clamp(0, 1).square_().square_()
    factor.clamp_(0.25, 1.8)
    shiny, power = (dice.uniform(count) < 0.25).nonzero()[:, 0], draw(0.2, 0.9)
    gloss = torch.zeros_like(factor)
    gloss[shiny] = (lit * (1 + lift.square()).rsqrt())[shiny].clamp_(0, 1).pow(30) * power[shiny]
    return factor, gloss


def _coat(dice: _Dice, under: Tensor, pool: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the flat colours of one object per row.

    Args:
        dice: Random source.
        under: (n, 3, S, S) picture below the object.
        pool: (m, 3, S, S) materials, the first ones being the scenes' own backgrounds.
        rows: (n,) scene numbers.

    Returns:
        Colours (n, 3, S, S) and a mask (n,) of those that only shading sets off from what is below.
    """
    count = len(rows)
    kind = dice.choice([0.36, 0.38, 0.26], count)  # other material, recoloured background, relief only
    # Shading multiplies, so it cannot mark an object on black.
    kind = torch.where((kind == 2) & (under.mean((1, 2, 3)) < 0.2), 1, kind)
    other = (rows + 1 + dice.integers(count, high=len(pool) - 1)) % len(pool)
    source = pool[torch.where(kind == 0, other, rows)]
    # Always turned where foreign: it may be the second region of this very scene.
    turned = (kind == 0) | (dice.uniform(count) < 0.5)
    source[turned] = source[turned].flip(-1)
    # Continuing what is below exactly, or the same stuff from elsewhere.
    stay = (kind > 0) & (dice.uniform(count) < 0.6)
    source[stay] = under[stay]
    strength = torch.exp(dice.uniform(count, 1, low=math.log(0.15), high=math.log(0.8)))
    strength = torch.where(kind[:, None] == 2, 0.05 * dice.uniform(count, 1), strength)
    # A common brightness part keeps most shifts natural; the rest is hue.
    shift = F.normalize(dice.normal(count, 3) * 0.6 + dice.normal(count, 1), dim=1)
    mean = source.mean((2, 3))
    contrast = 1 + strength * dice.uniform(count, 1, low=-0.8, high=0.8)
    # Into the available range: a bright material can only become darker and the other way round.
    flip = torch.where((mean + shift * strength * 0.5).mean(1, keepdim=True).sub(0.5).abs() > 0.33, -1.0, 1.0)
    moved = mean + shift * flip * strength * 0.5
    source *= contrast[..., None, None]
    return source.add_((moved - mean * contrast)[..., None, None]), kind == 2


def _paint(
    dice: _Dice,
    scene: tuple[Tensor, Tensor],
    layer: int,
    rows: Tensor,
    shapes: _Shapes,
    materials: tuple[Tensor, Tensor],
) -> None:
    """Paint one object into some scenes, in place.

    Args:
        dice: Random source.
        scene: Pictures (B, 3, S, S) in [0, 1] and labels (B, S, S) uint8.
        layer: Number of the object, from 0; its label is one more.
        rows: Scenes that have this object.
        shapes: Geometry of all objects.
        materials: Colours (B + 2, 3, S, S) and noise (B + 2, S, S), both about [0, 1].
    """
    canvas, labels = scene
    pool, noise = materials
    size = canvas.shape[-1]
    depth, profile = _field(shapes, rows, layer, size)
    old = labels[rows]
    new = torch.where(depth > 0, layer + 1, old)
    good = _keeps_visible(old, new, layer + 1) & (depth > 0).any(2).any(1)
    rows, depth, profile, new = rows[good], depth[good], profile[good], new[good]
    if len(rows) == 0:
        return
    under = canvas[rows]
    colours, strong = _coat(dice, under, pool, rows)
    light = dice.direction(len(rows), 2)
    lit = (strong | (dice.uniform(len(rows)) < 0.5)).nonzero()[:, 0]
    bumps, radius = noise[(rows[lit] + 1 + layer) % len(noise)], shapes.radius[rows[lit], layer]
    factor, gloss = _shade(dice, profile[lit], radius, bumps, strong[lit], light[lit])
    colours[lit] = colours[lit].mul_(factor[:, None]).add_(gloss[:, None])
    colours.clamp_(0, 1)
    # A contact shadow away from the light, fading with the distance from the outline.
    cast = (dice.uniform(len(rows)) < 0.35).nonzero()[:, 0]
    x, y = _grid(size, dice.device)
    centre, light = shapes.centre[rows[cast], layer][..., None, None], light[cast][..., None, None]
    dx, dy = centre[:, 0] - x, centre[:, 1] - y
    side = (dx * light[:, 0] + dy * light[:, 1]) / torch.hypot(dx, dy).add_(1)
    spread = shapes.radius[rows[cast], layer] * dice.uniform(len(cast), low=0.15, high=0.7)
    fade = (1 + depth[cast] / spread[:, None, None]).clamp_(0, 1).square_()
    dark = dice.uniform(len(cast), 1, 1, high=0.6)
    under[cast] *= (1 - dark * side.clamp_(0, 1) * fade)[:, None]
    # The soft edge is symmetric about the labelled outline.
    soft = dice.uniform(len(rows), 1, 1, low=1, high=3.5) * size / 256
    cover = (depth / soft).add_(0.5).clamp_(0, 1)[:, None]
    canvas[rows] = under.lerp_(colours, cover)
    labels[rows] = new


def _light(dice: _Dice, canvas: Tensor, noise: Tensor) -> Tensor:
    """Apply illumination, glints, colour cast and tone curve to (B, 3, S, S) in [0, 1]."""
    batch, _, size, _ = canvas.shape

    def draw(low: float, high: float) -> Tensor:
        return dice.uniform(batch, 1, 1, 1, low=low, high=high)

    # Illumination is smooth: 32 x 32 values are enough.
    x, y = (v[None] / 32 - 0.5 for v in _grid(32, dice.device))
    slope = dice.normal(batch, 2, 1, 1) * 0.25 * draw(0, 1)
    lamp = dice.normal(batch, 2, 1, 1) * 0.25
    away = (x - lamp[:, :1]).square() + (y - lamp[:, 1:]).square()
    fall = 1 / (1 + away * draw(0, 5) * (draw(0, 1) < 0.5))
    vignette = 1 - (x.square() + y.square()) * draw(0, 1.2) * (draw(0, 1) < 0.4)
    light = (1 + slope[:, :1] * x + slope[:, 1:] * y) * fall * vignette * draw(0.95, 1.35)
    light = F.interpolate(light, size=(size, size), mode="bilinear", align_corners=False)
    cast = 1 + dice.normal(batch, 3, 1, 1) * 0.07
    canvas *= light * cast
    glint = ((noise[:, None] - draw(0.95, 1.15)) * 12).clamp(0, 1) * (draw(0, 1) < 0.3)
    canvas = canvas.add_(glint * light).clamp_(0, 1)
    # A parabola bends the tones like a gamma and costs a fraction of a power.
    bow = draw(-0.35, 0.45)
    canvas *= (1 + bow) - bow * canvas
    middle = canvas.mean((1, 2, 3), keepdim=True)
    # Pull the exposure of very dark or bright scenes towards the usable range.
    gain = (middle.clamp(0.32, 0.68) / middle.clamp_min(0.02)).clamp(0.5, 2.5)
    contrast = draw(0.8, 1.25)
    return canvas.mul_(contrast * gain).add_(middle * (1 - contrast) * gain)


def _lens(dice: _Dice, canvas: Tensor) -> Tensor:
    """Blur (sigma 0 to about 1.6 pixels at 256) and shift channels by a pixel in some scenes."""
    size, step = canvas.shape[-1], 1
    passes = dice.choice([0.45, 0.2, 0.15, 0.12, 0.08], len(canvas))
    for turn in range(4 if size >= 192 else 2):
        rows = (passes > turn).nonzero()[:, 0]
        part = F.pad(canvas[rows], (step,) * 4, mode="replicate")
        part = part[..., 2:] + part[..., :-2] + 2 * part[..., 1:-1]
        canvas[rows] = (part[..., 2:, :] + part[..., :-2, :] + 2 * part[..., 1:-1, :]) / 16
    for channel, way in ((0, 1), (0, -1), (2, 1), (2, -1)):
        rows = (dice.uniform(len(canvas)) < 0.07).nonzero()[:, 0]
        canvas[rows, channel] = canvas[rows, channel].roll(way, -1 if channel else -2)
    return canvas


def _border(dice: _Dice, batch: int, size: int) -> Tensor:
    """Masks (B, S, S) of an octagonal, circular or rectangular black frame, in a fifth of the scenes."""
    x, y = _grid(size, dice.device)
    kind = dice.choice([0.07, 0.06, 0.07, 0.8], batch)[:, None, None]
    middle = dice.uniform(batch, 2, 1, 1, low=-0.04, high=0.04) + 0.5
    u, v = (x / size - middle[:, 0]).abs(), (y / size - middle[:, 1]).abs()
    reach = dice.uniform(batch, 1, 1, low=0.43, high=0.52)
    octagon = torch.maximum(torch.maximum(u, v), (u + v) / 1.45) > reach
    circle = u.square() + v.square() > (reach * 1.1).square()
    bars = (u > reach) | (v > reach * dice.uniform(batch, 1, 1, low=0.85, high=1.1))
    return ((kind == 0) & octagon) | ((kind == 1) & circle) | ((kind == 2) & bars)


def _overlay(dice: _Dice, batch: int, size: int) -> Tensor:
    """Masks (B, S, S) of small boxes or rows of glyph-like specks, in a twentieth of the scenes."""
    x, y = _grid(size, dice.device)
    corner = dice.uniform(batch, 2, 1, 1, high=0.85) * size
    extent = dice.uniform(batch, 2, 1, 1, low=0.04, high=0.25) * size
    u, v = x - corner[:, 0], y - corner[:, 1]
    box = (u > 0) & (u < extent[:, 0]) & (v > 0) & (v < extent[:, 1] * 0.5)
    pitch = max(2, size // 85)
    dots = dice.uniform(batch, 1, size // pitch, size // pitch)
    specks = F.interpolate(dots, size=(size, size))[:, 0] < 0.5
    text = specks & ((y // pitch) % 6 < 4) & ((x // pitch) % 4 < 3)
    text = text | (dice.uniform(batch, 1, 1) < 0.4)
    return box & text & (dice.uniform(batch, 1, 1) < 0.05)


def _renumber(labels: Tensor) -> Tensor:
    """Close the gaps in the label numbers of (B, S, S) maps."""
    flat = labels.flatten(1).long()
    present = torch.zeros(len(flat), LAYERS + 1, device=flat.device, dtype=torch.long)
    present.scatter_(1, flat, 1)
    present[:, 0] = 0
    return (present.cumsum(1) * present).gather(1, flat).view_as(labels).to(torch.uint8)


def _draw_group(dice: _Dice, batch: int, size: int, photos: list[Tensor]) -> Scenes:
    """Draw scenes that share materials, see ``generate_scenes``."""
    total = batch + 2  # spare materials, so that single scenes find foreign textures too
    noise = _fractal(dice, total, size)
    pool = _materials(dice, total, size, photos, noise)
    pool[:batch] = _split(dice, pool[:batch], pool[2:], noise[2:])
    canvas = pool[:batch].clone()
    labels = torch.zeros(batch, size, size, dtype=torch.uint8, device=dice.device)
    shapes, counts = _draw_shapes(dice, batch, size)
    for layer in range(LAYERS):
        rows = (counts > layer).nonzero()[:, 0]
        if len(rows):
            _paint(dice, (canvas, labels), layer, rows, shapes, (pool, noise))
    canvas = _lens(dice, _light(dice, canvas, noise[2:]))
    frame, marks = _border(dice, batch, size), _overlay(dice, batch, size)
    hidden = frame | marks
    hidden &= _keeps_visible(labels, torch.where(hidden, 0, labels), LAYERS)[:, None, None]
    ink = torch.where(frame[:, None], 0.02, dice.uniform(batch, 3, 1, 1).round())
    canvas = torch.where(hidden[:, None], ink, canvas)
    # Sensor noise is shared by a few scenes of the batch at different strengths: drawing it is slow.
    grain = dice.normal(-(-batch // 4), 3, size, size).repeat(4, 1, 1, 1)[:batch]
    canvas += grain.mul_(dice.uniform(batch, 1, 1, 1, high=0.2).square())
    images = canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return Scenes(images, _renumber(torch.where(hidden, 0, labels).to(torch.uint8)))


def generate_scenes(
    batch: int, *, size: int, generator: torch.Generator, photos: list[Tensor], device: torch.device | str = "cpu"
) -> Scenes:
    """Draw a batch of scenes, fully determined by the state of the generator.

    Args:
        batch: Number of scenes.
        size: Side of the square scenes in pixels, a multiple of 64 for the best textures.
        generator: Random source; its device may differ from ``device``.
        photos: Pictures (3, H, W) in [0, 1], see ``load_photos``.
        device: Where the scenes are drawn and returned.

    Returns:
        Images and instance maps; every scene has at least one object of 40 pixels (at 256) or more.
    """
    dice = _Dice(generator, device)
    # On a CPU small groups stay in the cache, which is much faster.
    group = CPU_GROUP if dice.device.type == "cpu" else batch
    parts = [_draw_group(dice, min(group, batch - i), size, photos) for i in range(0, batch, group)]
    return Scenes(torch.cat([p.images for p in parts]), torch.cat([p.instances for p in parts]))


def _contact_sheet(scenes: Scenes, columns: int) -> Tensor:
    """Tile scenes (3, H, W) uint8: each row of pictures once plain and once with yellow outlines."""
    labels = scenes.instances.int()
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    yellow = torch.tensor([255, 255, 0], dtype=torch.uint8)[:, None, None]
    drawn = torch.where(edge[:, None], yellow, scenes.images)
    rows = []
    for start in range(0, len(drawn), columns):
        for part in (scenes.images[start : start + columns], drawn[start : start + columns]):
            rows.append(torch.cat(list(part), dim=2))
    return torch.cat(rows, dim=1)


def _main(path: str) -> None:
    """Write a contact sheet of 48 held-out scenes and print the speed on one thread."""
    import time

    from PIL import Image

    torch.set_num_threads(1)
    photos = load_photos()
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    sheet = _contact_sheet(generate_scenes(48, size=256, generator=generator, photos=photos), 8)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
    print(f"{len(photos)} photos, contact sheet in {path}")
    for size in (256, 128):
        start = time.perf_counter()
        for _ in range(4):
            scenes = generate_scenes(32, size=size, generator=generator, photos=photos)
        speed = 128 / (time.perf_counter() - start)
        objects = scenes.instances.amax((1, 2)).float().mean()
        print(f"{size} px: {speed:.0f} images/s, {objects:.2f} objects per scene")


if __name__ == "__main__":
    import sys

    _main(sys.argv[1] if len(sys.argv) > 1 else "tiny_scenes.png")
