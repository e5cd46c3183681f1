"""A model's answers to tiles are blended without seams, and a band at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from samtune.errors import NonFiniteError
from samtune.tasks.pixels import batch_of_one
from samtune.tasks.prompted import predict_batch
from samtune.tasks.tiles.blend import blended
from samtune.types import Batch, Tiles


class Brightness(nn.Module):
    """Answers each cell of 4 x 4 pixels with its mean brightness, and twice that; it notes what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, tuple[int, int]]] = []

    def forward(self, batch: Batch) -> Tensor:
        self.shown += [(batch.images.shape[-1], size) for size in batch.sizes_input]
        mean = avg_pool2d(batch.images.float().mean(dim=1, keepdim=True), 4)
        return torch.cat([mean, 2 * mean], dim=1)


def slope(height: int, width: int) -> np.ndarray:
    """A picture whose brightness rises along both sides: what cells say of it is exact between them."""
    rows, columns = np.mgrid[:height, :width]
    values = 250 * (0.5 * rows / height + 0.5 * columns / width)
    return np.repeat(values[:, :, None], 3, axis=2).astype(np.uint8)


def bands_of(image: np.ndarray, tiles: Tiles, model: nn.Module | None = None) -> list[tuple[slice, np.ndarray]]:
    batch = batch_of_one(image, tiles.side, torch.int32, tiles=tiles)
    return list(blended((model or Brightness()).eval(), batch))


def test_bands_follow_each_other_and_hold_no_more_than_a_row_of_tiles() -> None:
    bands = bands_of(slope(300, 150), Tiles(64, 16, 64))
    assert bands[0][0].start == 0 and bands[-1][0].stop == 300
    assert all(above.stop == below.start for (above, _), (below, _) in pairwise(bands))
    assert all(values.shape == (2, rows.stop - rows.start, 150) for rows, values in bands)
    assert all(rows.stop - rows.start <= 64 for rows, _ in bands) and len(bands) > 5


def test_there_are_no_seams() -> None:
    image = slope(300, 150)
    found = np.concatenate([values for _, values in bands_of(image, Tiles(64, 16, 64))], axis=1)
    inside = np.s_[3:-3, 3:-3]  # half a cell from the border, cells have no neighbour
    np.testing.assert_allclose(found[0][inside], image[:, :, 0][inside], atol=1.5)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)
    for axis in (0, 1):
        assert np.abs(np.diff(found[0], axis=axis)[inside]).max() < 1.5  # the steps of the picture itself


@pytest.mark.parametrize(("size", "side"), [(64, 128), (128, 64), (64, 64)])
def test_tiles_are_scaled_into_the_frame_all_alike(size: int, side: int) -> None:
    """Also of a picture that is smaller than a tile, whose objects keep the scale of training."""
    model = Brightness()
    (_, values), *_ = bands_of(slope(48, 40), Tiles(size, 16, side), model)
    assert model.shown == [(side, (48 * side // size, 40 * side // size))]
    assert values.shape == (2, 48, 40)


def test_grids_that_are_shifted_by_half_a_tile_agree() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((10, 10))
    rows, columns = np.mgrid[:320, :320] // 32
    image = np.repeat((coarse[rows, columns] > 0.5)[:, :, None] * np.uint8(200), 3, axis=2)

    class Threshold(Brightness):
        def forward(self, batch: Batch) -> Tensor:
            return super().forward(batch)[:, :1] - 100

    tiles, model = Tiles(64, 16, 64), Threshold().eval()
    masks = []
    for part in (image, image[32:, 32:]):
        batch = batch_of_one(part, 64, torch.bool, tiles=tiles)
        (found,) = predict_batch(model, batch, sizes_original=[part.shape[:2]])
        masks.append(found.mask)
    one, other = masks[0][32:, 32:], masks[1]
    assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.98
    truth = image[:, :, 0] > 0
    assert 2 * (masks[0] & truth).sum() / (masks[0].sum() + truth.sum()) > 0.98


def test_an_answer_that_is_no_number_names_picture_and_tile() -> None:
    class Broken(Brightness):
        def forward(self, batch: Batch) -> Tensor:
            return super().forward(batch) / (batch.images.float().amax(dim=(1, 2, 3))[:, None, None, None] > 0)

    image = slope(150, 150)
    image[:70, :70] = 0
    with pytest.raises(NonFiniteError, match=r"the image \(tile at 0, 0\)"):
        bands_of(image, Tiles(64, 16, 64), Broken())
