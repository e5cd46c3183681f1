"""Draws the bundled sample `data/polyp_sample`: synthetic, endoscopy-like images with polyps and their masks.

    python scripts/make_polyp_sample.py --out data/polyp_sample

No real image is used, so the sample is free (CC0). It is meant to be learnable but not by colour: some polyps
are flat and of the mucosa's own colour, and bubbles, stool, folds, the dark lumen and highlights distract.
A scene is a height map (folds, domes) lit from the camera, times a colour map. Deterministic: image `i`
depends on (SEED, i) only. Frozen: changing it makes every number reported on the sample's test part
incomparable.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SEED = 20240
PARTS = {"train": 90, "val": 30, "test": 60}
SIZES = ((288, 240), (320, 256), (320, 288), (336, 272), (352, 288), (352, 320))  # width, height
Array = np.ndarray


@dataclass
class Scene:
    """What is drawn, before light falls on it.

    Attributes:
        colour: (H, W, 3) reflectance.
        relief: (H, W) height towards the camera.
        depth: (H, W) part of the light that arrives.
    """

    colour: Array
    relief: Array
    depth: Array


@dataclass(frozen=True)
class Grid:
    """Pixel coordinates of a picture in units of its shorter side, origin in the centre."""

    x: Array
    y: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return int(self.x.shape[0]), int(self.x.shape[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the whole sample into the folder given by `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets train/, val/ and test/")
    out = parser.parse_args(argv).out
    index = 0
    for part, count in PARTS.items():
        for folder in ("images", "masks"):
            (out / part / folder).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image, mask = draw_scene(index)
            name = f"scene_{index:03d}"
            save(out / part / "images" / f"{name}.jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
            save(out / part / "masks" / f"{name}.png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 9])
            index += 1


def save(path: Path, pixels: Array, options: list[int]) -> None:
    """Encodes and writes one file."""
    if not cv2.imwrite(str(path), np.ascontiguousarray(pixels), options):
        raise OSError(f"can't write {path}")


def draw_scene(index: int) -> tuple[Array, Array]:
    """Draws one picture.

    Args:
        index: number of the picture; nothing else decides what it shows.

    Returns:
        (H, W, 3) uint8 RGB and (H, W) bool, True = polyp; every picture has one.
    """
    rng = np.random.default_rng((SEED, index))
    width, height = SIZES[rng.integers(len(SIZES))]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    side = min(width, height)
    grid = Grid((x - width / 2) / side, (y - height / 2) / side)
    visible, soft_border = field_of_view(grid, rng)

    scene = Scene(mucosa_colour(grid, rng), *wall(grid, rng))
    vessels(scene.colour, grid, rng)
    mask = np.zeros(grid.shape, dtype=bool)
    count = 1 + int(rng.random() < 0.22)
    for _ in range(count):
        mask |= polyp(grid, scene, mask, visible, rng, small=count > 1)
    debris(grid, scene, rng)

    light, highlights = lit(scene.relief, grid, rng)
    picture = scene.colour * (light * scene.depth)[..., None]
    highlights *= scene.depth
    picture += highlights[..., None] * np.array([1.0, 0.98, 0.95], dtype=np.float32) * rng.uniform(0.5, 0.95)
    bubbles(picture, grid, rng)
    picture = finish(picture, soft_border, rng)
    if rng.random() < 0.12 and not mask[-grid.shape[0] // 5 :, : grid.shape[1] // 5].any():
        thumbnail(picture, rng)
    return picture, mask & visible


def smooth_noise(shape: tuple[int, int], cell: float, rng: np.random.Generator, octaves: int = 3) -> Array:
    """Returns (H, W) float32 noise of about unit variance; `cell` is its largest wavelength in pixels."""
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(octaves):
        step = max(1.5, cell / 2**octave)
        coarse = rng.normal(size=(int(shape[0] / step) + 4, int(shape[1] / step) + 4)).astype(np.float32)
        scaled = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        top, left = rng.integers(int(step) + 1, size=2)
        total += scaled[top : top + shape[0], left : left + shape[1]] * 0.55**octave
    return total


def field_of_view(grid: Grid, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns the visible region, an octagon or a rounded rectangle, as bool and as a soft factor."""
    half_y, half_x = float(-grid.y.min()), float(-grid.x.min())
    corner = rng.uniform(0.0, 0.3) if rng.random() < 0.85 else 0.0
    margin = rng.uniform(0.005, 0.03)
    inside = np.minimum(half_x - margin - np.abs(grid.x), half_y - margin - np.abs(grid.y))
    diagonal = (half_x + half_y - corner - np.abs(grid.x) - np.abs(grid.y)) / np.sqrt(2)
    distance = np.minimum(inside, diagonal)
    return distance > 0, np.clip(distance / 0.012 + 0.5, 0, 1)


def mucosa_colour(grid: Grid, rng: np.random.Generator) -> Array:
    """Returns (H, W, 3) float32 reflectance of healthy mucosa."""
    red, green = rng.uniform(0.72, 0.92), rng.uniform(0.4, 0.6)
    base = red * np.array([1, green, green * rng.uniform(0.72, 1.02)], dtype=np.float32)
    tint = np.array([0.25, 1.0, 0.9], dtype=np.float32)
    broad = smooth_noise(grid.shape, 130, rng)
    fine = smooth_noise(grid.shape, 9, rng, octaves=2)
    blotch = smooth_noise(grid.shape, 45, rng)
    colour = base * (1 + 0.07 * broad + 0.05 * blotch)[..., None] ** tint
    return np.clip(colour * (1 + 0.018 * fine[..., None]), 0.02, 1).astype(np.float32)


def wall(grid: Grid, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns the relief of the bowel wall with its folds, and how much light arrives (the lumen is dark)."""
    angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.75)
    dx, dy = grid.x - away * np.cos(angle), grid.y - away * np.sin(angle)
    warp = smooth_noise(grid.shape, 170, rng, octaves=2)
    radius = np.sqrt(dx**2 + (dy * rng.uniform(0.8, 1.3)) ** 2) * (1 + 0.09 * warp)
    relief = 0.03 * smooth_noise(grid.shape, 120, rng) + 0.004 * smooth_noise(grid.shape, 22, rng)
    for _ in range(rng.integers(0, 5)):
        ring = rng.uniform(0.15, 1.1)
        # Folds of the shown side only: half a ring, fading out at its ends.
        facing = np.cos(np.arctan2(dy, dx) - angle - np.pi - rng.uniform(-1.2, 1.2))
        strength = np.clip((facing + rng.uniform(0.1, 0.9)) / 1.2, 0, 1)
        wave = 1 + 0.05 * smooth_noise(grid.shape, 130, rng, octaves=1)
        offset = (radius - ring * wave) / rng.uniform(0.03, 0.1)
        # A fold is steep on the far side: a ridge with a shadow towards the lumen.
        ridge = np.where(offset > 0, np.exp(-((offset / 2.2) ** 2)), np.exp(-(offset**2)))
        relief += rng.uniform(0.02, 0.07) * strength * ridge
    depth = np.ones(grid.shape, dtype=np.float32)
    if rng.random() < 0.65:
        reach = rng.uniform(0.12, 0.4)
        depth = 0.06 + 0.94 / (1 + np.exp(-(radius - reach) / (0.22 * reach)))
    return relief.astype(np.float32), depth.astype(np.float32)


def vessels(colour: Array, grid: Grid, rng: np.random.Generator) -> None:
    """Draws branching vessels into the reflectance."""
    height, width = grid.shape
    layer = np.zeros(grid.shape, dtype=np.float32)
    strands = [(rng.uniform(0, [width, height]), rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.2), 0)
               for _ in range(rng.integers(2, 9))]  # fmt: skip
    while strands:
        at, heading, thick, generation = strands.pop()
        points = [at]
        for _ in range(rng.integers(12, 32)):
            heading += rng.normal(0, 0.22)
            at = at + 5 * np.array([np.cos(heading), np.sin(heading)])
            points.append(at)
            if generation < 2 and rng.random() < 0.09:
                turn = rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
                strands.append((at, heading + turn, thick * 0.65, generation + 1))
        line = np.round(np.array(points) * 8).astype(np.int32)[:, None]
        cv2.polylines(layer, [line], False, 1.0, max(1, round(thick)), cv2.LINE_AA, shift=3)
    layer = cv2.GaussianBlur(layer, (0, 0), 0.9) * rng.uniform(0.08, 0.4)
    colour *= 1 - layer[..., None] * np.array([0.35, 0.8, 0.7], dtype=np.float32)


def polyp(grid: Grid, scene: Scene, taken: Array, visible: Array, rng: np.random.Generator, *, small: bool) -> Array:
    """Adds a polyp to the scene and returns its mask."""
    height, width = grid.shape
    unit = width * height / min(width, height) ** 2  # area of the picture in squares of its shorter side
    for _ in range(60):
        area = unit * np.exp(rng.uniform(np.log(0.03), np.log(0.12 if small else 0.32)))
        reach = rng.uniform(0.4, 1.0)
        centre = rng.uniform([grid.x.min(), grid.y.min()], [grid.x.max(), grid.y.max()]) * reach
        rho, inward = outline(grid, centre, area, rng)
        mask = rho < 1
        seen = (mask & visible).mean()
        if 0.028 < seen < 0.36 and seen > 0.6 * mask.mean() and not (taken & (rho < 1.15)).any():
            break
    else:
        return np.zeros(grid.shape, dtype=bool)

    flat = rng.random() < 0.35
    radius = np.sqrt(area / np.pi)
    rise = radius * (rng.uniform(0.1, 0.25) if flat else rng.uniform(0.35, 0.8))
    dome = np.clip(1 - rho**2, 0, 1) ** (rng.uniform(1.0, 1.4) if flat else rng.uniform(0.6, 1.0))
    lobes = smooth_noise(grid.shape, radius * 0.9 * min(grid.shape), rng, octaves=2)
    grain = smooth_noise(grid.shape, rng.uniform(5, 10), rng, octaves=2)
    scene.relief *= 1 - 0.8 * inward  # the dome hides the folds behind it
    scene.relief += rise * dome * (1 + 0.08 * lobes) + inward * radius * rng.uniform(0.002, 0.01) * grain
    # It stands in front of the lumen, nearer to the lamp.
    scene.depth += (1 - scene.depth) * inward * rng.uniform(0.45, 0.85)

    surface = cv2.GaussianBlur(scene.colour, (0, 0), 6) * polyp_tint(rng, flat=flat)  # vessels end at the polyp
    blotches = rng.uniform(0.02, 0.09) * smooth_noise(grid.shape, 24, rng)
    surface *= (1 + blotches + rng.uniform(0.01, 0.03) * grain)[..., None]
    scene.colour = scene.colour * (1 - inward[..., None]) + surface * inward[..., None]
    shadow = rim(grid, centre, rho, rng)[..., None]
    scene.colour *= 1 - shadow * (rng.uniform(0.03, 0.1) if flat else rng.uniform(0.06, 0.26))
    return mask


def rim(grid: Grid, centre: Array, rho: Array, rng: np.random.Generator) -> Array:
    """Returns the strength (0 to 1) of the shadow around a polyp, which lies mostly on one side of it."""
    side = np.cos(np.arctan2(grid.y - centre[1], grid.x - centre[0]) - rng.uniform(0, 2 * np.pi))
    width = rng.uniform(0.06, 0.16)
    ring = np.exp(-(np.clip((rho - 1) / width, -0.5, None) ** 2) * np.where(rho < 1, 9, 1))
    strength: Array = (ring * np.clip(0.55 + 0.45 * side, 0, 1)).astype(np.float32)
    return strength


def outline(grid: Grid, centre: Array, area: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns the distance from the centre in radii of a wobbly ellipse, and a soft inside (0 to 1)."""
    aspect, turn = rng.uniform(1.0, 1.75), rng.uniform(0, np.pi)
    dx, dy = grid.x - centre[0], grid.y - centre[1]
    along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    radius = np.sqrt(area / np.pi)
    along, across = along / (radius * np.sqrt(aspect)), across * np.sqrt(aspect) / radius
    theta = np.arctan2(across, along)
    wobble = np.zeros_like(theta)
    for k in range(2, 7):
        wobble += rng.normal(0, 0.09 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    rho = np.hypot(along, across) / (1 + wobble)
    rho = (rho * (1 + 0.03 * smooth_noise(grid.shape, 40, rng))).astype(np.float32)
    return rho, np.clip((1 - rho) / rng.uniform(0.04, 0.2) + 0.5, 0, 1).astype(np.float32)


def polyp_tint(rng: np.random.Generator, *, flat: bool) -> Array:
    """Returns the factor per channel between a polyp and the mucosa around it."""
    tints = {
        "redder": (1.04, 0.78, 0.78),
        "paler": (1.06, 1.22, 1.2),
        "browner": (0.88, 0.86, 0.72),
        "same": (1.0, 1.0, 1.0),
    }
    chosen = rng.choice(list(tints), p=[0.2, 0.25, 0.1, 0.45] if flat else [0.35, 0.2, 0.15, 0.3])
    strength = rng.uniform(0.4, 1.1)
    return (1 + strength * (np.array(tints[chosen]) - 1) + rng.normal(0, 0.02, size=3)).astype(np.float32)


def debris(grid: Grid, scene: Scene, rng: np.random.Generator) -> None:
    """Adds stool, mucus and red spots: patches of another colour that are not polyps, some of them raised."""
    kinds = {
        "stool": (0.62, 0.46, 0.14),
        "mucus": (0.85, 0.78, 0.58),
        "blood": (0.5, 0.08, 0.07),
        "red": (0.8, 0.3, 0.27),
        "dark": (0.42, 0.2, 0.16),
    }
    if rng.random() < 0.3:
        return
    for _ in range(rng.integers(1, 3)):
        kind = str(rng.choice(list(kinds), p=[0.3, 0.2, 0.08, 0.27, 0.15]))
        patch = smooth_noise(grid.shape, rng.uniform(18, 60), rng)
        x, y = rng.uniform(-0.55, 0.55, size=2)
        where = np.exp(-((grid.x - x) ** 2 + (grid.y - y) ** 2) / rng.uniform(0.006, 0.08))
        steep = rng.uniform(1.0, 4.0)
        amount = np.clip((patch * 0.6 + 2.2 * where - 1.6) * steep, 0, 1) * rng.uniform(0.35, 0.9)
        tone = np.array(kinds[kind], dtype=np.float32) * (1 + 0.12 * smooth_noise(grid.shape, 8, rng))[..., None]
        scene.colour = scene.colour * (1 - amount[..., None]) + tone * amount[..., None]
        if kind in ("stool", "mucus"):
            scene.relief += 0.01 * cv2.GaussianBlur(amount.astype(np.float32), (0, 0), 1.5)


def lit(relief: Array, grid: Grid, rng: np.random.Generator) -> tuple[Array, Array]:
    """Lights a relief from near the camera; returns the diffuse factor and the highlights."""
    side = min(grid.shape)
    smooth = cv2.GaussianBlur(relief, (0, 0), 1.0)
    slope_x = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=side / 8)
    slope_y = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=side / 8)
    lamp_x, lamp_y = rng.normal(0, 0.22, size=2)
    to_lamp = np.stack([lamp_x - 0.55 * grid.x, lamp_y - 0.55 * grid.y, np.ones_like(grid.x)])
    to_lamp /= np.linalg.norm(to_lamp, axis=0)
    normal = np.stack([-slope_x, -slope_y, np.ones_like(grid.x)])
    normal /= np.linalg.norm(normal, axis=0)
    facing = np.clip((normal * to_lamp).sum(axis=0), 0, 1)
    spread = rng.uniform(0.25, 0.9)
    falloff = 1 / (1 + spread * ((grid.x - lamp_x * 0.5) ** 2 + (grid.y - lamp_y * 0.5) ** 2))
    # Near things are brighter: height counts a little on its own.
    light = (0.3 + 0.75 * facing) * falloff * (1 + 0.6 * relief)
    wet = smooth_noise(grid.shape, 8, rng, octaves=2) + 0.6 * smooth_noise(grid.shape, 60, rng, octaves=1)
    patches = np.clip((wet + 3 * relief - rng.uniform(1.7, 2.8)) * 2.5, 0, 1)
    shine = np.clip((facing - 0.96) * 25, 0, 1) * patches
    return light.astype(np.float32), cv2.GaussianBlur(shine.astype(np.float32), (0, 0), 0.7)


def bubbles(picture: Array, grid: Grid, rng: np.random.Generator) -> None:
    """Draws clusters of bubbles: thin bright rings with a glint."""
    if rng.random() < 0.65:
        return
    height, width = grid.shape
    centre, spread = rng.uniform(0, [width, height]), rng.uniform(8, 45)
    for _ in range(rng.integers(3, 26)):
        at = np.round((centre + rng.normal(0, spread, size=2)) * 8).astype(int)
        radius = rng.uniform(1.5, 8)
        layer = np.zeros(grid.shape, dtype=np.float32)
        spot = (int(at[0]), int(at[1]))
        cv2.circle(layer, spot, round(radius * 8), rng.uniform(0.1, 0.35), 1, cv2.LINE_AA, shift=3)
        glint = (spot[0] - round(radius * 3), spot[1] - round(radius * 3))
        cv2.circle(layer, glint, round(max(0.7, radius * 0.18) * 8), rng.uniform(0.4, 0.8), -1, cv2.LINE_AA, shift=3)
        picture += layer[..., None]


def finish(picture: Array, soft_border: Array, rng: np.random.Generator) -> Array:
    """Applies exposure, gamma, blur, sensor noise and the black border; returns (H, W, 3) uint8."""
    inside = picture[soft_border > 0.9]
    picture = picture * (rng.uniform(0.42, 0.62) / max(float(inside.max(axis=-1).mean()), 1e-3))
    picture = np.clip(picture, 0, None) / (1 + 0.12 * np.clip(picture - 0.7, 0, None))
    picture *= 1 + rng.normal(0, 0.035, size=3).astype(np.float32)
    picture = np.clip(picture, 0, 1) ** rng.uniform(0.8, 1.0)
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), rng.uniform(0.45, 1.1))
    picture = picture + rng.normal(0, rng.uniform(0.004, 0.014), size=picture.shape)
    picture = picture * soft_border[..., None] + 0.012 * (1 - soft_border[..., None])
    pixels: Array = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return pixels


def thumbnail(picture: Array, rng: np.random.Generator) -> None:
    """Draws the green position thumbnail that some endoscopes leave in the lower left corner."""
    height, width = picture.shape[:2]
    picture[-height // 5 :, : width // 5] = 5
    picture[-height // 6 : -height // 40, width // 60 : width // 6] = (8, rng.integers(60, 105), 30)


if __name__ == "__main__":
    main()
