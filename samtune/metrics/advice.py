"""When is a result poor, or too uncertain to choose by? Sentences that say so, with what helps, if it is."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from samtune.metrics.bootstrap import paired_bootstrap

Points = Sequence[tuple[float, float]]
"""(epoch, value), by rising epoch; values are finite."""

FEW_IMAGES = 10
WIDE = 0.1  # of an interval of a number in [0, 1]
FALL = 0.03  # of a number in [0, 1] on val that is more than its ups and downs
AFTER = 3  # epochs after the best one that have to agree
CELLS = 4.0
"""Side of an object in cells of the mask below which the cells themselves cost Dice: a disc that is averaged to them
and enlarged again keeps 0.96 at 3.5 cells, 0.93 at 2.7, 0.83 at 1.8, 0.57 at 1.3."""
STRIDE = 4  # pixels of the input frame per cell
STEP, LARGEST = 32, 4096  # of model.image_size, as every model takes it
SMALLEST_TILE = 64  # pixels


def not_better(
    values: Sequence[float],
    trivial: Mapping[str, Sequence[float]],
    *,
    images: Sequence[str],
    name: str,
    words: Mapping[str, str],
) -> list[str]:
    """Compares a model with the best of the answers that need none, by the paired bootstrap over images.

    Args:
        values: `name` of each row of a report, in [0, 1], with its image in `images`.
        trivial: a key for each such answer -> its values for the same rows.
        words: a few words for a key; the key itself where they are missing.
    """
    means = {key: float(np.nanmean(found)) for key, found in trivial.items() if not np.isnan(found).all()}
    if not means:
        return []
    best = max(means, key=lambda key: means[key])
    gain, low, high = paired_bootstrap(trivial[best], values, images=images)
    if math.isnan(gain) or low > 0:
        return []
    verdict = "worse than" if high < 0 else "not clearly better than"
    reached = f"reaches {name} {means[best]:.3f} on the same images"
    return [
        f"the model is {verdict} {words.get(best, best)}, which {reached} without a model: the difference is "
        f"{gain:+.3f} (95 % interval {low:+.3f} to {high:+.3f}). More epochs, another train.lr, select={{name: full}} "
        "or a larger model.image_size may help; the worst pictures show what is missed."
    ]


def uncertain(interval: tuple[float, float], *, n_images: int, name: str) -> list[str]:
    """Says when a 95 % interval (low, high) of `name`, in [0, 1], is of few images, or too wide to choose by."""
    if n_images < FEW_IMAGES:
        measured = f"{n_images} image{'s' * (n_images != 1)}"
        return [f"{measured} can't tell how far to trust {name}, whatever the interval says: measure on 30 or more."]
    width = interval[1] - interval[0]
    if not width > WIDE:
        return []
    return [
        f"the 95 % interval of {name} is {width:.2f} wide on {n_images} images, too wide to choose between models that "
        "differ by less: measure on more images, or pair the runs by `samtune compare`."
    ]


def parted(losses: Points, values: Points, *, name: str) -> list[str]:
    """Says when val fell for good while the training loss went on falling.

    Args:
        losses: of the training.
        values: `name` on val, in [0, 1]; higher is better.
    """
    if not values:
        return []
    loss_at = dict(losses)
    best_epoch, best = max(values, key=lambda point: point[1])
    after = [value for epoch, value in values if epoch > best_epoch][-AFTER:]
    if len(after) < AFTER or best_epoch not in loss_at:
        return []
    end, (first, last) = fmean(after), (loss_at[best_epoch], losses[-1][1])
    if best - end < FALL or last > 0.9 * first:
        return []
    return [
        f"train and val part ways: after epoch {best_epoch:g} {name} on val fell from {best:.3f} to {end:.3f} while "
        f"the training loss went from {first:.3g} to {last:.3g}, so the model learns its images by heart. The weights "
        f"of epoch {best_epoch:g} were kept. More training images, data.augment or a smaller selection help."
    ]


def resolving_size(side: float) -> int:
    """Returns the smallest side in pixels of an input frame whose mask has `CELLS` x `CELLS` cells for an object.

    Args:
        side: of the object, as a part of the longer side of its picture, > 0.
    """
    return STEP * math.ceil(STRIDE * CELLS / side / STEP)


def tile_size(side: float, image_size: int) -> int:
    """Returns the largest side in pixels of a tile whose mask has `CELLS` x `CELLS` cells for an object.

    Args:
        side: of the object in pixels of its picture.
        image_size: side in pixels of the input frame, which a tile fills.
    """
    return int(side * image_size / (STRIDE * CELLS)) // STEP * STEP


def too_small(objects: Sequence[tuple[float, float]], *, image_size: int, tiled: bool = True) -> list[str]:
    """Says when objects are smaller than what the cells of a mask resolve, and which input frame or tile would do.

    Args:
        objects: of each its side and that of what the input frame shows, the picture or a tile, in pixels.
        image_size: side in pixels of the input frame; a mask has a cell for 4 x 4 of its pixels.
        tiled: whether tiles are possible.
    """
    sides = [side / whole for side, whole in objects]
    if not sides or (cells := median(sides) * image_size / STRIDE) >= CELLS:
        return []
    wanted, tile = resolving_size(median(sides)), tile_size(median(side for side, _ in objects), image_size)
    possible = tiled and SMALLEST_TILE <= tile < median(whole for _, whole in objects)
    remedies = [f"model.image_size={wanted}"] * (wanted <= LARGEST) + [f"data.tiles.size={tile}"] * possible
    remedy = f"no model.image_size would do (up to {LARGEST}): take pictures of a higher resolution"
    if remedies:
        remedy = f"{' or '.join(remedies)} would do"
    grid = image_size // STRIDE
    return [
        f"half of the objects are smaller than {cells:.1f} x {cells:.1f} of the {grid} x {grid} cells of a mask at "
        f"model.image_size={image_size}; below {CELLS:g} x {CELLS:g} the cells themselves cost Dice: {remedy}."
    ]
