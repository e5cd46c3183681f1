"""How do objects that are found part by part become one map of a picture, each once and whole?"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from samtune.tasks.tiles.blend import Bands
from samtune.tasks.tiles.grid import Floats, Place, starts
from samtune.types import Instances, ObjectMap, Size, Tiles

MOST_PIXELS = 1 << 22
"""Pixels of a strip in which objects are found together; a picture of fewer is one strip."""
SHARED = 128  # rows that neighbouring strips share, so that all but the largest objects are whole in one of them
SAME = 0.5
"""IoU in the rows that two strips share above which their objects are one."""


def join_strips(bands: Bands, size: Size, find: Callable[[Floats], Instances]) -> Instances:
    """Finds objects in strips of a picture, joins those on both sides of a border, and numbers them from 1.

    Strips share `SHARED` rows, and up to the middle of these the upper one counts. An object of the upper strip and
    one of the lower are the same where their IoU in the shared rows is more than `SAME`; also where the border cuts
    both, none has another partner, and most of the smaller is in the larger. The score of an object is the mean of
    those of its parts, by their pixels.

    Args:
        bands: (n, h, W) values of each pixel.
        size: (H, W) of the picture.
        find: tells the objects of (n, h, W) values apart; their numbers are 1 to n.
    """
    labels, known, above = np.zeros(size, dtype=np.int32), _Known(), None
    for start, end, values in _strips(bands, size):
        found = find(values)
        numbers = known.add(found.scores)[found.labels]
        border = 0
        if above is not None:
            border = SHARED // 2
            known.unite(above, numbers[:SHARED], border)
        labels[start + border : end] = numbers[border:]
        above = numbers[-SHARED:].copy()
    return known.numbered(labels)


def collect(parts: Iterable[tuple[Place, Instances]], size: Size, tiles: Tiles) -> Instances:
    """Makes one map of the objects of tiles that share pixels: each tile has those whose centre is nearest to its own.

    Args:
        parts: of each tile, in the order of `samtune.tasks.tiles.grid.starts`, its place and what was found in it.
        size: (H, W) of the picture.
    """
    labels, known = np.zeros(size, dtype=np.int32), _Known()
    for (rows, columns), found in parts:
        inside = [_nearest(part, length, tiles) for part, length in ((rows, size[0]), (columns, size[1]))]
        numbers = known.add(found.scores)
        for number in range(1, len(found) + 1):
            mask = found.labels == number
            centre = [at.mean() for at in np.nonzero(mask)]
            if all(low <= at < high for at, (low, high) in zip(centre, inside, strict=True)):
                labels[rows, columns][mask & (labels[rows, columns] == 0)] = numbers[number]
    return known.numbered(labels)


class _Known:
    """The objects of all parts, numbered from 1 as they come, and which of them are one."""

    def __init__(self) -> None:
        self.first = [0]  # of each number an earlier one that is the same object, or itself
        self.scores = [0.0]

    def add(self, scores: np.ndarray) -> np.ndarray:
        """Takes the objects of a part in, and returns the (n + 1,) int32 numbers of its own numbers; 0 stays 0."""
        start = len(self.first)
        self.first += range(start, start + len(scores))
        self.scores += scores.tolist()
        numbers: np.ndarray = np.r_[0, start : len(self.first)].astype(np.int32)
        return numbers

    def unite(self, above: ObjectMap, below: ObjectMap, border: int) -> None:
        """Takes objects for one by two (h, W) maps of the same pixels, of which `above` counts up to a row.

        See `join_strips` for the rule.
        """
        pairs = above.astype(np.int64) * len(self.first) + below
        keys, common = np.unique(pairs[(above > 0) & (below > 0)], return_counts=True)
        uppers, lowers = keys // len(self.first), keys % len(self.first)
        upper_px, lower_px = (np.bincount(one.ravel(), minlength=len(self.first)) for one in (above, below))
        alike = common / (upper_px[uppers] + lower_px[lowers] - common) > SAME
        alone = ~np.isin(uppers, uppers[alike]) & ~np.isin(lowers, lowers[alike])
        cut = np.isin(uppers, _cut(above, border)) & np.isin(lowers, _cut(below, border))
        most = common / np.minimum(upper_px[uppers], lower_px[lowers]) > SAME
        for place in np.flatnonzero(alike | (alone & cut & most)):
            one, other = sorted((self._root(int(uppers[place])), self._root(int(lowers[place]))))
            self.first[other] = one

    def numbered(self, labels: ObjectMap) -> Instances:
        """Returns a map of these numbers with those of its objects from 1 to n, in their order; it changes `labels`."""
        roots = np.array([self._root(number) for number in range(len(self.first))])
        pixels = np.zeros(len(roots), dtype=np.int64)
        for rows in labels:  # a few at a time: a large map has no room for copies
            pixels += np.bincount(rows, minlength=len(roots))
        pixels[0] = 0
        total = np.bincount(roots, pixels, minlength=len(roots))
        kept = np.flatnonzero(total)
        table = np.zeros(len(roots), dtype=np.int32)
        table[kept] = np.arange(1, len(kept) + 1)
        for rows in labels:
            rows[:] = table[roots[rows]]
        score = np.bincount(roots, pixels * np.array(self.scores), minlength=len(roots))[kept] / total[kept]
        return Instances(labels, score.astype(np.float32))

    def _root(self, number: int) -> int:
        while self.first[number] != number:
            self.first[number] = self.first[self.first[number]]
            number = self.first[number]
        return number


def _cut(labels: ObjectMap, border: int) -> np.ndarray:
    """Returns the numbers of the objects on both sides of a row."""
    return np.intersect1d(labels[:border], labels[border:])


def _strips(bands: Bands, size: Size) -> Iterator[tuple[int, int, Floats]]:
    """Yields the first row of each strip, the row after its last, and the (n, h, W) values."""
    height, width = size
    rows, start = max(3 * SHARED, MOST_PIXELS // width), 0
    held: Any = None
    for _, values in bands:
        held = values if held is None else np.concatenate([held, values], axis=1)
        while held.shape[1] >= rows and start + rows < height:
            yield start, start + rows, held[:, :rows]
            start, held = start + rows - SHARED, held[:, rows - SHARED :]
    yield start, height, held


def _nearest(part: slice, length: int, tiles: Tiles) -> tuple[float, float]:
    """Returns from where to where, counted from its first pixel, a tile's middle is the nearest along a side."""
    first = starts(length, tiles)
    place, side = first.index(part.start), part.stop - part.start
    borders = [-np.inf, *((one + other + side) / 2 - 0.5 for one, other in pairwise(first)), np.inf]
    return borders[place] - part.start, borders[place + 1] - part.start
