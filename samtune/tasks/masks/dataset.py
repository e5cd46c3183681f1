"""From pairs of image and mask to augmented `Sample`s, `Batch`es of the input frame, and the loaders of a run."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels
from samtune.data.frames import Collate, augmented, resize, resize_longest, train_augmentation
from samtune.data.loaders import EpochDataset, LoaderOptions, Loaders, build_loaders
from samtune.data.pairs import Pair
from samtune.data.splits import Splits
from samtune.errors import DataError
from samtune.tasks.binary import mask_facts, read_mask
from samtune.tasks.masks.config import asked_of
from samtune.tasks.masks.splits import with_object
from samtune.tasks.prompts import box_of, components, point_in
from samtune.types import MaskArray, PixelArray, PromptMode, Sample, Size


class SegmentationDataset(EpochDataset[Sample, tuple[PixelArray, MaskArray]]):
    """Samples of a list of pairs; files are read on first use.

    Prompt "none": one item per image, its whole foreground is the target. "box" and "point": targets are connected
    components. With `augment`, an item is one image, and one component of it is drawn per epoch; without, every
    component is an item `stem#1`, `stem#2`, ... Images without any component are left out and counted.

    Where a prompt is drawn of several kinds, an item is one image in any case, and its prompt and component are drawn
    per epoch; an image without a component has no prompt.

    Args:
        image_size: longer side in pixels of the input frame.
        prompt: which prompt, and with it which target, the samples carry; or kind -> its share, of a sum of 1.
        augment: random flips, turns, colours, box jitter and point positions.
        cache: keep the scaled arrays in memory.
        pixels: what the values of files become.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        image_size: int,
        prompt: PromptMode | Mapping[PromptMode, float] = "none",
        augment: bool = False,
        seed: int = 0,
        cache: bool = False,
        pixels: Pixels = RGB,
    ) -> None:
        super().__init__(len(pairs), seed=seed, cache=cache)
        self.pairs, self.image_size, self.augment, self.pixels = list(pairs), image_size, augment, pixels
        self.shares: Mapping[PromptMode, float] = {prompt: 1.0} if isinstance(prompt, str) else prompt
        self._drawn = augment or len(self.shares) > 1
        self._transform: Any = None
        if augment:
            self._transform = train_augmentation(image_size, turns=True, channels=pixels.channels)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        which, component = self._items[index]
        image, truth = self.load(which)
        if component is not None:
            truth = components(truth)[component]
        name, mask = self.names[index], _shrink(truth, (image.shape[0], image.shape[1]))
        if not self._drawn:
            return _sample(name, image, mask, truth, *self.shares, rng=None)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if self.augment:
            image, mask = self._augmented(image, mask, rng)
        kind = self._kind(mask, rng)
        if kind != "none":
            parts = components(mask)
            mask = parts[int(rng.integers(len(parts)))]
        # What is drawn has no original frame: its truth is the target that is trained on.
        return _sample(name, image, mask, mask, kind, rng=rng)

    @cached_property
    def names(self) -> list[str]:
        """The name of each item, without reading it: the stem, with `#1`, `#2`, ... for components."""
        items = ((self.pairs[which].name, component) for which, component in self._items)
        return [name if component is None else f"{name}#{component + 1}" for name, component in items]

    @property
    def skipped(self) -> int:
        """Number of images without a component, which have no item in prompt modes "box" and "point"."""
        return len(self.pairs) - len({which for which, _ in self._items})

    def decode(self, which: int) -> tuple[PixelArray, MaskArray]:
        """Returns the image in the input frame, without padding, and the mask at the original size."""
        pair = self.pairs[which]
        image, mask = read_pixels(pair.image, self.pixels), read_mask(pair.mask)
        if image.shape[:2] != mask.shape:
            wanted, found = (f"{a.shape[1]} x {a.shape[0]}" for a in (image, mask))
            raise DataError(f"{pair.mask}: mask of {found} pixels, image of {wanted}; both must be equal")
        return resize_longest(image, self.image_size), mask

    @cached_property
    def _items(self) -> list[tuple[int, int | None]]:
        """(pair, component) per item; None = the whole mask, or a component drawn later."""
        if "none" in self.shares:
            return [(which, None) for which in range(len(self.pairs))]
        items: list[tuple[int, int | None]] = []
        for which, facts in enumerate(mask_facts([pair.mask for pair in self.pairs])):
            if isinstance(facts, DataError):
                raise facts
            if not self._drawn:
                items += [(which, part) for part in range(facts.components)]
            elif facts.components:
                items.append((which, None))
        return items

    def _augmented(self, image: PixelArray, mask: MaskArray, rng: np.random.Generator) -> tuple[PixelArray, MaskArray]:
        changed, moving = augmented(self._transform, image, mask.astype(np.uint8), seed=int(rng.integers(2**31)))
        moved = cast(MaskArray, moving > 0)
        if "none" not in self.shares and not moved.any():  # shifted out of the picture: nothing left to prompt for
            return image, mask
        return changed, moved

    def _kind(self, mask: MaskArray, rng: np.random.Generator) -> PromptMode:
        """Draws the kind of prompt of an item; an only one is not drawn, and nothing can be prompted for with none."""
        kinds, shares = list(self.shares), list(self.shares.values())
        if len(kinds) == 1:
            return kinds[0]
        drawn = kinds[int(rng.choice(len(kinds), p=shares))]
        return drawn if mask.any() else "none"


def build_data(
    splits: Splits[Pair],
    options: LoaderOptions,
    *,
    image_size: int,
    prompt: PromptMode | Mapping[PromptMode, float] = "none",
    augment: bool = True,
    score_prompt: PromptMode = "none",
    pixels: Pixels = RGB,
    score_empty: bool = True,
) -> Loaders:
    """Builds the loaders of `Batch`es, and logs the notes on the split.

    Args:
        image_size: side S in pixels of the input frame.
        prompt: prompt mode of train, val and test; or kind -> its share of train, and the others have `asked_of` them.
        score_prompt: of `score`, in order of the split; the contrastive loss wants the whole foreground ("none").
        pixels: what the values of files become.
        score_empty: score on images without an object too. In a contrastive loss their cells would only be more
            background, which pulls the mean over cells away from what parts object and background.

    Raises:
        DataError: no training image has an object to prompt for.
    """
    dataset_of = partial(SegmentationDataset, image_size=image_size, seed=options.seed, pixels=pixels)
    scored = options.scored(splits.train if score_empty else with_object(splits.train))
    score = dataset_of(sorted(scored, key=lambda pair: pair.name), prompt=score_prompt)
    train = dataset_of(splits.train, prompt=prompt, augment=augment, cache=options.cache)
    if not len(score) or not len(train):
        raise DataError(
            f"no training image has a foreground to prompt for: all {len(splits.train)} masks are empty, such as "
            f"{splits.train[0].mask}; add images with an object"
        )
    asked = prompt if isinstance(prompt, str) else asked_of(prompt)
    val = dataset_of(splits.val, prompt=asked, cache=options.cache)
    test = dataset_of(splits.test, prompt=asked)
    return build_loaders(splits, options, Collate(image_size), score=score, train=train, val=val, test=test)


def _sample(
    name: str,
    image: PixelArray,
    mask: MaskArray,
    truth: MaskArray,
    kind: PromptMode,
    *,
    rng: np.random.Generator | None,
) -> Sample:
    box = torch.from_numpy(box_of(mask, rng=rng)) if kind == "box" else None
    point = torch.from_numpy(point_in(mask, rng=rng))[None] if kind == "point" else None
    label = None if point is None else torch.ones(1, dtype=torch.int64)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (C, h, w)
    return Sample(name, pixels, torch.from_numpy(np.ascontiguousarray(mask)), truth, box, point, label)


def _shrink(mask: MaskArray, size: Size) -> MaskArray:
    """Scales a mask to `size`; a target too thin for the nearest filter keeps its deepest pixel."""
    small = cast(MaskArray, resize(mask, size))
    if mask.any() and not small.any():
        x, y = point_in(mask)
        small[int(y * size[0] / mask.shape[0]), int(x * size[1] / mask.shape[1])] = True
    return small
