"""What does a model that sees tiles see of an object in a large picture? The part around it, as large as a tile."""

from dataclasses import replace

import torch
from scipy import ndimage  # type: ignore[import-untyped]

from samtune.data.frames import resize
from samtune.tasks.tiles.blend import tile_frame
from samtune.tasks.tiles.grid import place_of
from samtune.types import ObjectMap, PixelArray, Sample, Tiles

Boxes = dict[int, tuple[int, int, int, int]]
"""Number of an object -> its XYXY box."""


def boxes_of(labels: ObjectMap) -> Boxes:
    """Returns the tight boxes of the objects of a map, in the order of their numbers."""
    spans = enumerate(ndimage.find_objects(labels), start=1)
    return {number: (s[1].start, s[0].start, s[1].stop - 1, s[0].stop - 1) for number, s in spans if s is not None}


def part_around(name: str, image: PixelArray, labels: ObjectMap, box: tuple[int, ...], tiles: Tiles) -> Sample:
    """Returns the part of an (H, W, C) picture that shows a box best, see `place_of`, in the input frame, with its map.

    Its truth is the (H, W) map there, at the picture's scale.
    """
    place = place_of(box, (labels.shape[0], labels.shape[1]), tiles)
    frame, truth = tile_frame(name, image[place], tiles.side, least=tiles.size), labels[place]
    return replace(frame, mask=torch.from_numpy(resize(truth, (frame.mask.shape[0], frame.mask.shape[1]))), truth=truth)
