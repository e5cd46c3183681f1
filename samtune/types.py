"""The values that flow between the parts, with their shapes and frames, documented here once.

Frames of a picture:

- **original**: the file as decoded (EXIF orientation applied), H x W pixels.
- **input**: the original scaled so that its longer side is `image_size`, then padded at the right and at the bottom
  to a square S x S (Segment Anything's convention). Padding never counts in a loss or a metric.
- **low-res**: S/4 x S/4, what the mask decoder returns.

With `Tiles` the input frame shows a tile in place of the whole picture.

Coordinates are XY in pixels of the stated frame, boxes XYXY. Sizes are (height, width). Masks are bool:
True = foreground. Maps of classes are uint8: the place of a pixel's class in the list, or `IGNORE`. Maps of objects are
int32: the number of a pixel's object from 1, or 0 for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]
PromptMode = Literal["none", "box", "point"]
Role = Literal["linear", "conv", "bias", "norm", "position", "head", "decoder", "fixed"]
Granularity = Literal["batch", "sample"]
Summed = Literal["gradients", "inputs"]
"""What a scoring pass adds up."""
Resize = Literal["squash", "crop"]
"""How an image becomes a square: straight to it; or scaled by the shorter side, then the middle cut out."""
Interpolation = Literal["bicubic", "bilinear"]
MaskArray = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
ClassMap = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
ObjectMap = np.ndarray[tuple[int, int], np.dtype[np.int32]]
TargetArray = np.ndarray[tuple[int, int], np.dtype[Any]]
"""A mask, a map of classes, or a map of objects."""
IGNORE = 255
"""Of a map of classes: a pixel that counts in no loss and no metric."""
ImageArray = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
PixelArray = np.ndarray[tuple[int, int, int], np.dtype[Any]]
"""An image of any number of channels: uint8, or float32 of the same 0 to 255."""


class Tiles(NamedTuple):
    """How a model sees a picture that is too large for its input frame: by squares of it that overlap.

    Attributes:
        size: side of a tile in pixels of the picture.
        overlap: pixels that neighbours share at least, 1 to half of `size`.
        side: S of the input frame, which a tile fills; where it equals `size`, objects keep their size in pixels.
    """

    size: int
    overlap: int
    side: int


@dataclass(frozen=True)
class Prompts:
    """One prompt set per item of a batch; a network takes those of one kind, see `samtune.tasks.masks.mixed`.

    Attributes:
        boxes_input: (B, 4) float32, XYXY in the input frame, or None; NaN for an item without a box.
        points_input: (B, P, 2) float32, XY in the input frame, or None; NaN for an item without points.
        labels: (B, P) int64, 1 = foreground, 0 = background, -1 = padding; None exactly when `points_input` is.
    """

    boxes_input: Tensor | None = None
    points_input: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return next((len(t) for t in (self.boxes_input, self.points_input) if t is not None), 0)

    def to(self, device: torch.device | str) -> Prompts:
        """Returns the same prompts on `device`."""
        return Prompts(**{k: None if v is None else v.to(device) for k, v in vars(self).items()})


@dataclass(frozen=True)
class Sample:
    """One image with its target, ready for collation.

    Attributes:
        name: stem of the image file; component targets add `#1`, `#2`, ...
        image: (C, h, w) uint8, or float32 of the same 0 to 255; scaled to the input frame, not yet padded.
        mask: (h, w) bool, the target in the same frame; or uint8, a map of classes; or int32, a map of objects.
        truth: (H, W) array of the same kind, the target at the original size.
        box_input, points_input, labels: (4,) float32, (P, 2) float32 and (P,) int64, each or None; see `Prompts`.
    """

    name: str
    image: Tensor
    mask: Tensor
    truth: TargetArray
    box_input: Tensor | None = None
    points_input: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What a model and a loss see.

    Attributes:
        images: (B, C, S, S) uint8, or float32 of the same 0 to 255, zero-padded at the right and bottom; models
            normalise. C = 3 is RGB.
        masks: (B, 1, S, S) bool, target in the input frame, False in the padding; or uint8, maps of classes, `IGNORE`
            in the padding; or int32, maps of objects, 0 in the padding.
        sizes_input: the unpadded (h, w) of each item in the input frame.
        truths: (H, W) arrays of the same kind at the original size.
        prompts: None for prompt mode "none".
        tiles: None; or how one picture is answered as a whole, which then is no input frame: `images` are (1, C, H, W)
            and `masks` (1, 1, H, W) at the original size, which `sizes_input` holds.
    """

    images: Tensor
    masks: Tensor
    sizes_input: tuple[Size, ...]
    names: tuple[str, ...]
    truths: tuple[TargetArray, ...] = field(default=(), repr=False)
    prompts: Prompts | None = None
    tiles: Tiles | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with its tensors on `device`."""
        prompts = None if self.prompts is None else self.prompts.to(device)
        return replace(self, images=self.images.to(device), masks=self.masks.to(device), prompts=prompts)

    def split(self, size: int) -> list[Batch]:
        """Returns the items in order as batches of `size`; the last may be smaller."""
        return [self._only(slice(start, start + size)) for start in range(0, len(self), size)]

    def _only(self, part: slice) -> Batch:
        prompts = self.prompts and Prompts(**{k: None if v is None else v[part] for k, v in vars(self.prompts).items()})
        parts = (self.images[part], self.masks[part], self.sizes_input[part], self.names[part], self.truths[part])
        return Batch(*parts, prompts, self.tiles)

    def content(self) -> bytes:
        """Returns images, masks and prompts, for hashing."""
        prompts = [] if self.prompts is None else [v for v in vars(self.prompts).values() if v is not None]
        return b"".join(t.cpu().numpy().tobytes() for t in (self.images, self.masks, *prompts))

    def valid(self) -> Tensor:
        """Returns (B, 1, S, S) bool: True where the input frame shows the picture, False in the padding."""
        steps = torch.arange(self.images.shape[-1], device=self.images.device)
        sizes = torch.tensor(self.sizes_input, device=self.images.device)  # (B, 2)
        rows, columns = (steps < side[:, None] for side in sizes.unbind(1))
        return (rows[:, :, None] & columns[:, None, :])[:, None]


@dataclass(frozen=True)
class LabelledBatch:
    """Images with one class each.

    Attributes:
        images: (B, 3, H, W) uint8 RGB, or float32 of the same 0 to 255 once mixed; models normalise.
        labels: (B,) int64 class of each image.
        targets: (B, classes) float32 shares of each class in a mixed image, or None: the labels count.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    targets: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> LabelledBatch:
        """Returns the batch with its tensors on `device`."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), targets=targets)

    def split(self, size: int) -> list[LabelledBatch]:
        """Returns the items in order as batches of `size`; the last may be smaller."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        targets = self.targets
        return [
            LabelledBatch(self.images[p], self.labels[p], self.names[p], None if targets is None else targets[p])
            for p in parts
        ]

    def content(self) -> bytes:
        """Returns the pixels and labels, for hashing."""
        return bytes(self.images.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes())


@dataclass(frozen=True)
class Prediction:
    """A mask at the original size of one image.

    Attributes:
        mask: (H, W) bool.
        probability: (H, W) float32 in [0, 1]; `mask` is probability > threshold.
        score: mean probability of the pixels of `mask`, 0.0 when it is empty; a confidence, not calibrated.
    """

    mask: MaskArray
    probability: np.ndarray
    score: float


@dataclass(frozen=True)
class Instances:
    """The objects found in one image, at its original size.

    Attributes:
        labels: (H, W) int32, of each pixel the number of its object from 1 to n, or 0: no pixel has two.
        scores: (n,) float32 in [0, 1], the confidence in each, by number; not calibrated.
    """

    labels: ObjectMap
    scores: np.ndarray[tuple[int], np.dtype[np.float32]]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Scores:
    """What a scoring pass found: for one loss, one granularity and one image set.

    Attributes:
        sums: parameter name -> signed sum of the gradients, fp32, of the parameter's shape; or, `of` inputs, weight
            name -> sum over images of the mean |input|, of the shape of `samtune.scoring.inputs.input_shapes`.
        batches: gradients that were summed, each of one `per`; for `skipped` more the loss is undefined.
        images_hash: SHA-256 over the pixels and targets, in order.
        squares: parameter name -> sum of the squared gradients; None unless asked for.
        loss: the loss with its options, as text; empty where nobody said, as `base_hash`, the weights' `state_hash`.
        seconds, memory_mib: what the pass took, and how far it raised the memory in use; None where nobody measured.
    """

    sums: dict[str, Tensor]
    batches: int
    skipped: int
    images_hash: str
    squares: dict[str, Tensor] | None = None
    per: Granularity = "batch"
    loss: str = ""
    base_hash: str = ""
    of: Summed = "gradients"
    seconds: float | None = None
    memory_mib: float | None = None


Metric = Callable[[MaskArray, MaskArray], float]
"""(prediction, truth), both (H, W) bool at the original size, to one number; NaN where undefined."""


class AnyBatch(Protocol):
    """What scoring and training ask of a batch; models, losses and reports know their own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each item."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """Returns the batch with its tensors on `device`."""

    def split(self, size: int) -> Sequence[Self]:
        """Returns the items in order as batches of `size`; the last may be smaller."""

    def content(self) -> bytes:
        """Returns pixels and targets, for hashing."""


Answering = Callable[[Prompts | None, Tensor | None], Tensor]
"""(N prompt sets about one picture or None, (N, 1, h, w) logits of earlier answers or None) to (N, 1, h, w) logits."""

LogitLoss = Callable[[Tensor, Batch], Tensor]
"""((B, 1 or classes, S, S) float32 logits in the input frame, batch) to a scalar."""

OutputLoss = Callable[[Tensor, Any], Tensor]
"""(what a model returns for a batch, that batch) to a scalar: what training minimises."""

Mix = Callable[[Any, int], Any]
"""(batch, step) to a batch with mixed images and targets."""

Batches = Iterable[AnyBatch]
