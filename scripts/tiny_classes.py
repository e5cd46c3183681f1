"""Generated 64 x 64 pictures of 300 classes: glyphs, filled shapes, textures, counted objects.

They pre-train a small classifier from scratch. No picture, font or data set is read: every class is a rule, and what
varies within a class (place, size, slant, line width, colours, background, blur, noise) is drawn at random. Forty
more glyph classes are held out, to measure how features carry over to classes never trained on. Run
``python tiny_classes.py OUT.png`` for a contact sheet and the speed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SIZE = 64
FAMILIES = {"glyph": 160, "shape": 80, "texture": 40, "count": 20}
CLASSES = sum(FAMILIES.values())
HELD_OUT_GLYPHS = 40
HELD_OUT_SEED = 20261121
TURN = math.radians(20)
SUBPIXEL = 4  # fractional bits of the coordinates that OpenCV draws
MOST_ALIKE = 0.75  # correlation of two clean glyphs, blurred

FILLS = ("solid", "outline", "stripes", "bars", "checks")


def draw_pictures(
    start: int, count: int, *, seed: int, held_out: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draws pictures `start` to `start + count` of an endless list; each depends on its seed and index only.

    Args:
        start: index of the first picture.
        count: pictures.
        seed: of the list.
        held_out: draw the held-out glyph classes, numbered from 0, instead of the training classes.

    Returns:
        (count, 64, 64, 3) uint8 RGB and (count,) labels, the classes in the order of `FAMILIES`.
    """
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for i in range(count):
        rng = np.random.default_rng((seed, int(held_out), start + i))
        labels[i] = rng.integers(HELD_OUT_GLYPHS if held_out else CLASSES)
        images[i] = draw_picture(int(labels[i]) + (CLASSES if held_out else 0), rng)
    return images, labels


def draw_picture(label: int, rng: np.random.Generator) -> Bytes:
    """Draws one (64, 64, 3) picture of a class; labels from `CLASSES` on are the held-out glyphs."""
    family, member = family_of(label)
    cover = COVERS[family](member, rng)
    return _camera(_paint(cover, rng, whole=family == "texture"), rng)


def family_of(label: int) -> tuple[str, int]:
    """Returns the family of a class and its number there; held-out glyphs follow the 160 others."""
    for family, size in FAMILIES.items():
        if label < size:
            return family, label
        label -= size
    return "glyph", FAMILIES["glyph"] + label


@functools.cache
def glyph_programs() -> list[Floats]:
    """Returns the strokes of each glyph class, held-out ones last: (strokes, 4, 2) cubic control points in [-1, 1].

    A program that looks like an earlier one, blurred, is dropped, so no two classes are the same.
    """
    rng = np.random.default_rng(300)
    programs: list[Floats] = []
    looks = np.empty((0, 256), dtype=np.float32)
    while len(programs) < FAMILIES["glyph"] + HELD_OUT_GLYPHS:
        program = _random_program(rng)
        clean = _strokes(program * 24 + SIZE / 2, 4)
        look = cv2.resize(cv2.GaussianBlur(clean, (0, 0), 3), (16, 16), interpolation=cv2.INTER_AREA).ravel()
        look = look - look.mean()
        look /= np.linalg.norm(look)
        if len(programs) == 0 or (looks @ look).max() < MOST_ALIKE:
            programs.append(program)
            looks = np.vstack([looks, look])
    return programs


def _random_program(rng: np.random.Generator) -> Floats:
    """Draws 2 to 4 strokes, each straight, bent, S-shaped or a loop, often joined to the stroke before."""
    strokes: list[NDArray[np.float64]] = []
    for _ in range(rng.integers(2, 5)):
        joined = strokes and rng.random() < 0.6
        begin = strokes[-1][rng.choice([0, 3])] if joined else rng.uniform(-1, 1, 2)
        end = rng.uniform(-1, 1, 2)
        while np.linalg.norm(end - begin) < 0.8:
            end = rng.uniform(-1, 1, 2)
        side = np.array([begin[1] - end[1], end[0] - begin[0]])
        kind = rng.choice(4, p=[0.35, 0.35, 0.15, 0.15])
        bends = [(0, 0), (1, 1), (1, -1), (0.8, -0.8)][kind]
        bend = rng.uniform(0.5, 1.0) * rng.choice([-1, 1])
        inner = [begin + (end - begin) * t + side * bend * b for t, b in zip((1 / 3, 2 / 3), bends, strict=True)]
        if kind == 3:  # a loop: back to its beginning
            inner, end = [end + side * bend, end - side * bend], begin
        strokes.append(np.stack([begin, *inner, end]))
    program = np.stack(strokes)
    curves = np.einsum("tk,skd->std", _bezier(), program).reshape(-1, 2)
    low, high = curves.min(0), curves.max(0)
    return ((program - (low + high) / 2) / ((high - low).max() / 2)).astype(np.float32)


@functools.cache
def _bezier(steps: int = 20) -> Floats:
    """The (steps, 4) cubic Bernstein basis."""
    t = np.linspace(0, 1, steps)[:, None]
    return np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]).astype(np.float32)


def _strokes(controls: Floats, width: int) -> Floats:
    """Draws (strokes, 4, 2) control points in pixels as smooth lines; returns the (64, 64) cover in [0, 1]."""
    return _lines(np.einsum("tk,skd->std", _bezier(), controls), width, closed=False)


def _lines(points: NDArray[np.floating], width: int, *, closed: bool) -> Floats:
    canvas = np.zeros((SIZE, SIZE), dtype=np.uint8)
    fixed = (points * (1 << SUBPIXEL)).astype(np.int32)
    cv2.polylines(canvas, list(fixed), closed, 255, width, cv2.LINE_AA, SUBPIXEL)
    return canvas.astype(np.float32) / 255


def _filled(polygons: list[NDArray[np.floating]]) -> Floats:
    canvas = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [(polygon * (1 << SUBPIXEL)).astype(np.int32)], 255, cv2.LINE_AA, SUBPIXEL)
    return canvas.astype(np.float32) / 255


def _place(points: Floats, rng: np.random.Generator, *, smallest: float = 12) -> tuple[Floats, float]:
    """Scales, stretches, slants, turns and shifts points of [-1, 1] into the frame; returns them and the scale."""
    scale, aspect, slant = rng.uniform(smallest, 28), rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)
    turn = rng.uniform(-TURN, TURN)
    c, s = math.cos(turn), math.sin(turn)
    matrix = np.array([[c, s], [-s, c]]) @ np.array([[1 + min(aspect, 0), slant], [0, 1 - max(aspect, 0)]])
    room = 31 - scale
    middle = SIZE / 2 + rng.uniform(-room, room, 2)
    return (points @ (matrix.T * scale) + middle).astype(np.float32), scale


def _glyph(member: int, rng: np.random.Generator) -> Floats:
    program = glyph_programs()[member]
    jitter = rng.standard_normal(program.shape, dtype=np.float32) * 0.05
    controls, scale = _place(program + jitter, rng)
    return _strokes(controls, int(rng.integers(1, 2 + int(scale / 6))))


def _polar(radius: Callable[[NDArray[np.float64]], NDArray[np.float64]], steps: int = 40) -> Floats:
    """A closed outline by its radius at each angle, the first one up."""
    angle = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    return (radius(angle)[:, None] * np.stack([np.sin(angle), -np.cos(angle)], axis=1)).astype(np.float32)


def _star(points: int, inner: float) -> Floats:
    return _polar(lambda a: np.where(np.arange(len(a)) % 2 == 0, 1.0, inner), 2 * points)


def _corners(*flat: float) -> Floats:
    return np.array(flat, dtype=np.float32).reshape(-1, 2)


def _crescent() -> Floats:
    outer = np.linspace(0.6, 2 * math.pi - 0.6, 24)
    inner = outer[::-1]
    big = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    small = np.stack([0.3 + 0.77 * np.cos(inner), 0.75 * np.sin(inner)], axis=1)
    return np.vstack([big, small]).astype(np.float32)


OUTLINES: dict[str, Floats] = {
    "disc": _polar(np.ones_like),
    "square": _corners(-0.8, -0.8, 0.8, -0.8, 0.8, 0.8, -0.8, 0.8),
    "triangle": _polar(np.ones_like, 3),
    "pentagon": _polar(np.ones_like, 5),
    "star": _star(5, 0.45),
    "thin star": _star(4, 0.3),
    "sun": _star(9, 0.6),
    "flower": _polar(lambda a: 0.72 + 0.28 * np.cos(5 * a), 60),
    "bean": _polar(lambda a: 0.75 - 0.35 * np.cos(a) + 0.25 * np.abs(np.sin(a)) - 0.2 * np.cos(2 * a)),
    "half disc": _polar(lambda a: np.minimum(1.0, 0.2 / np.maximum(-np.cos(a), 1e-3))),
    "crescent": _crescent(),
    "plus": _corners(
        *(v / 3 for v in (-1, -3, 1, -3, 1, -1, 3, -1, 3, 1, 1, 1, 1, 3, -1, 3, -1, 1, -3, 1, -3, -1, -1, -1))
    ),
    "arrow": _corners(0, -1, 0.8, 0, 0.3, 0, 0.3, 1, -0.3, 1, -0.3, 0, -0.8, 0),
    "corner": _corners(-0.7, -1, -0.1, -1, -0.1, 0.4, 0.8, 0.4, 0.8, 1, -0.7, 1),
    "tee": _corners(-0.9, -0.9, 0.9, -0.9, 0.9, -0.3, 0.3, -0.3, 0.3, 1, -0.3, 1, -0.3, -0.3, -0.9, -0.3),
    "beam": _corners(-1, -0.35, 1, -0.35, 1, 0.35, -1, 0.35),
}


def _shape(member: int, rng: np.random.Generator) -> Floats:
    outline, fill = list(OUTLINES.values())[member // len(FILLS)], FILLS[member % len(FILLS)]
    polygon, scale = _place(outline, rng, smallest=13)
    if fill == "outline":
        return _lines(polygon[None], int(rng.integers(1, 2 + int(scale / 9))), closed=True)
    cover = _filled([polygon])
    if fill == "solid":
        return cover
    turn, cycles = rng.uniform(-TURN, TURN), rng.uniform(8, 14)
    if fill == "checks":
        pattern = np.sign(_wave(turn, cycles, rng) * _wave(turn + math.pi / 2, cycles, rng))
    else:
        pattern = np.sign(_wave(turn + (math.pi / 2 if fill == "stripes" else 0), cycles, rng))
    weak = rng.uniform(0, 0.5)
    return cover * (weak + (1 - weak) * (pattern > 0))


@functools.cache
def _grid() -> tuple[Floats, Floats]:
    """Columns and rows from -0.5 to 0.5."""
    steps = ((np.arange(SIZE) + 0.5) / SIZE - 0.5).astype(np.float32)
    x, y = np.meshgrid(steps, steps)
    return x, y


def _wave(turn: float, cycles: float, rng: np.random.Generator) -> Floats:
    """A plane wave in [-1, 1]; at `turn` 0 it varies along the columns."""
    x, y = _grid()
    k = 2 * math.pi * cycles
    return np.sin(x * np.float32(k * math.cos(turn)) + y * np.float32(k * math.sin(turn)) + rng.uniform(0, 7))


def _cloud(rows: float, columns: float, rng: np.random.Generator) -> Floats:
    """Smooth noise in [0, 1] with about that many bumps along each side."""
    shape = (max(2, round(rows)), max(2, round(columns)))
    field = cv2.resize(rng.random(shape, dtype=np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def _bricks(cycles: float, rng: np.random.Generator) -> Floats:
    x, y = _grid()
    row = y * cycles + rng.random()
    column = x * cycles / 2 + rng.random() + 0.5 * (np.floor(row) % 2)
    return ((row % 1 > 0.2) & (column % 1 > 0.1)).astype(np.float32)


def _texture(member: int, rng: np.random.Generator) -> Floats:
    """Waves (12), smooth noise (12), checks, dots and plaids (4 each), rings (2), bricks (2)."""
    vary, turn = rng.uniform(0.88, 1.14), rng.uniform(-TURN, TURN) * 0.8
    if member < 12:
        wave = _wave(turn + math.pi / 4 * (member % 4), (4, 8, 15)[member // 4] * vary, rng)
        return wave * 0.5 + 0.5 if rng.random() < 0.5 else (wave > 0).astype(np.float32)
    if member < 24:
        many = (6, 11, 20, 36)[member % 4] * vary
        return _cloud(*((many, many), (many, 3), (3, many))[member // 4 - 3], rng)
    if member < 36:
        cycles = (3, 5, 8.5, 14)[member % 4] * vary
        a, b = _wave(turn, cycles, rng), _wave(turn + math.pi / 2, cycles, rng)
        return ((a * b > 0).astype(np.float32), (a + b > 0.9).astype(np.float32), 0.5 + (a + b) / 4)[member // 4 - 6]
    if member < 38:
        x, y = _grid()
        radius = np.hypot(x - rng.uniform(-0.25, 0.25), y - rng.uniform(-0.25, 0.25))
        return 0.5 + 0.5 * np.sin(radius * 2 * math.pi * (5, 10)[member - 36] * vary + rng.uniform(0, 7))
    return _bricks((5, 9)[member - 38] * vary, rng)


def _count(member: int, rng: np.random.Generator) -> Floats:
    """1 to 8 objects scattered, 3 to 6 in a row or a column, 4 to 7 on a circle."""
    outline = OUTLINES[("disc", "square", "triangle")[rng.integers(3)]]
    if member < 8:
        number, cell = member + 1, 20
        cells = rng.permutation(9)[:number]
        middles = np.stack([cells % 3, cells // 3], axis=1) * cell + 12 + rng.uniform(-4, 4, (number, 2))
        radius = rng.uniform(3, 6)
    else:
        number = 3 + (member - 8) % 4 + (member >= 16)
        reach, turn = rng.uniform(20, 27), rng.uniform(-TURN, TURN) + math.pi / 2 * (member // 4 == 3)
        along = np.linspace(-1, 1, number)
        angles = turn + np.arange(number) * 2 * math.pi / number
        line = np.stack([along * math.cos(turn), along * math.sin(turn)], axis=1)
        ring = np.stack([np.sin(angles), -np.cos(angles)], axis=1)
        middles = SIZE / 2 + (ring if member >= 16 else line) * reach + rng.uniform(-3, 3, 2)
        radius = rng.uniform(2.5, 0.75 * reach / (number - 1) if member < 16 else 5)
    sizes = radius * rng.uniform(0.8, 1.2, number)
    return _filled([outline * size + middle for size, middle in zip(sizes, middles, strict=True)])


COVERS: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "glyph": _glyph,
    "shape": _shape,
    "texture": _texture,
    "count": _count,
}


def _paint(cover: Floats, rng: np.random.Generator, *, whole: bool) -> Floats:
    """Colours a (64, 64) cover over a background; returns (64, 64, 3) in [0, 1].

    Args:
        cover: foreground in [0, 1].
        rng: source of randomness.
        whole: the cover fills the frame and gets a plain background, not one that looks like another class.
    """
    channels = 1 if rng.random() < 0.35 else 3
    colours = rng.random((3, channels), dtype=np.float32)
    while abs(colours[0].mean() - colours[1].mean()) < 0.25:
        colours[:2] = rng.random((2, channels), dtype=np.float32)
    ink, ground, other = colours
    kind = rng.random()
    picture = np.broadcast_to(ground, (SIZE, SIZE, channels))
    if kind > 0.45 and not whole:
        if kind < 0.7:
            x, y = _grid()
            turn = rng.uniform(0, 2 * math.pi)
            field = 0.5 + x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
        elif kind < 0.9:
            many = rng.uniform(3, 24)
            field = _cloud(many, many, rng)
        else:
            field = _wave(rng.uniform(0, math.pi), rng.uniform(3, 16), rng) * 0.5 + 0.5
        picture = picture + (field * rng.uniform(0.1, 0.45)).astype(np.float32)[..., None] * (other - ground)
    picture = picture + cover[..., None].astype(np.float32) * (ink - picture)
    return picture if channels == 3 else np.repeat(picture, 3, axis=2)


def _camera(picture: Floats, rng: np.random.Generator) -> Bytes:
    """Blurs, coarsens or adds noise to some pictures; returns uint8."""
    kind = rng.random()
    if kind < 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.2))
    elif kind < 0.4:
        coarse = int(rng.integers(20, 48))
        small = cv2.resize(picture, (coarse, coarse), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        picture = picture + rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.1))
    return (picture * 255).clip(0, 255).astype(np.uint8)


def _main(path: str) -> None:
    """Writes a contact sheet, one picture of each class row by row, and prints the speed."""
    import time

    cv2.setNumThreads(1)
    sheet = [draw_picture(label, np.random.default_rng((HELD_OUT_SEED, label))) for label in range(CLASSES + 40)]
    rows = [np.hstack(sheet[i : i + 20]) for i in range(0, len(sheet), 20)]
    cv2.imwrite(path, cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    start = time.perf_counter()
    draw_pictures(0, 2000, seed=1)
    print(f"{2000 / (time.perf_counter() - start):.0f} pictures/s, contact sheet in {path}")


if __name__ == "__main__":
    import sys

    _main(sys.argv[1] if len(sys.argv) > 1 else "tiny_classes.png")
