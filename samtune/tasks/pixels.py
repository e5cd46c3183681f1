"""What tasks with a target per pixel share: losses of small maps of logits, and the way back to the original."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate

from samtune.config.pixels import RGB, Pixels
from samtune.config.sections import Config
from samtune.data.frames import Collate, CollateWhole, resize_longest
from samtune.data.loaders import LoaderOptions
from samtune.data.pair_splits import MaskKind, resolve_parts
from samtune.data.pairs import Pair, find_pairs
from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.models.sam.cached import CachedEncoder
from samtune.models.sam.model import SamModel, upsample_logits
from samtune.scoring.contrastive import draw_order, pixel_contrastive
from samtune.scoring.score import ScoreLoss
from samtune.selection import Needs, Selection
from samtune.tasks.evaluate import check_finite
from samtune.tasks.predict import checked_image
from samtune.tasks.task import Task
from samtune.types import Batch, LogitLoss, OutputLoss, PixelArray, Sample, Size, Tiles

ConfigT = TypeVar("ConfigT", bound=Config)


class PixelTask(Task[ConfigT]):
    """A task whose model gives small maps of logits, and whose loss is of these at the size of the input frame."""

    losses: ClassVar[Mapping[str, Callable[..., Tensor]]]
    """Name of a loss in the config to its function of (logits, batch), whose options are those of the section."""
    packages = ("segment-anything", "monai")
    contrast_draws = True  # cells

    @property
    def pixels(self) -> Pixels:
        """What the values of the pictures' files become, by `model.channels` and `data.range`."""
        config: Any = self.config
        return Pixels(config.model.channels, config.data.range, large=self.tile_sides is not None)

    @property
    def tile_sides(self) -> tuple[int, int] | None:
        """What a file says of its tiles: side and overlap in pixels of a picture, by `data.tiles`."""
        config: Any = self.config
        sides: tuple[int, int] | None = config.data.tiles.sides
        return sides

    def tiled_options(self, model: Backbone) -> LoaderOptions:
        """Returns how the images are read for a model, by tiles where `data.tiles` says so."""
        return replace(self.loader_options(), tiles=self.tiling(model))

    def tiling(self, model: Backbone) -> Tiles | None:
        """Returns how a model sees pictures, by `data.tiles`; None for as a whole."""
        sides = self.tile_sides
        return None if sides is None else Tiles(*sides, model.image_size)

    def encoder(
        self, model: Backbone, selection: Selection, *, base_hash: str, autocast: torch.dtype | None
    ) -> Backbone | CachedEncoder:
        """Returns the model, or what reads its image embeddings from the folder `train.embeddings`.

        Raises:
            ConfigError: a model that keeps none, or a selection that changes them.
        """
        config: Any = self.config
        folder: Path | None = config.train.embeddings
        if folder is None:
            return model
        if not isinstance(model, SamModel):
            raise ConfigError(
                f"train.embeddings is not for {model.name}, only for sam_lite, sam_tiny and sam_vit. Leave it empty."
            )
        check_embeddings(model, selection)
        return CachedEncoder(model, folder, base_hash=base_hash, autocast=autocast)

    @abstractmethod
    def target_text(self) -> str:
        """Returns what the text of a scoring loss says of the target beside the loss's own options."""

    def training_loss(self) -> OutputLoss:
        loss = self._logit_loss()
        return lambda low, batch: loss(upsample_logits(low, batch.images.shape[-1]), batch)

    def scoring_loss(self, needs: Needs, seed: int) -> tuple[ScoreLoss, str]:
        options: Any = self.config.score
        batch = self.batch_text(needs)
        if needs.loss == "task":
            text = " ".join(f"{key}={value}" for key, value in self.loss_options().items())
            return task_loss(self._logit_loss()), f"task {text}{self.target_text()}{batch}"
        cells, temperature = options.cells, options.temperature
        text = f"pixel_contrastive cells={cells} temperature={temperature:g} seed={seed}{batch}"
        return ContrastiveLoss(cells=cells, temperature=temperature, seed=seed, prepare=self.contrasted), text

    def contrasted(self, batch: Batch) -> Batch:
        """Returns a batch with the masks or maps of classes whose cells the contrastive loss tells apart."""
        return batch

    def loss_options(self) -> dict[str, Any]:
        """Returns the name and the options of the task's loss, as the `loss` section has them."""
        section: Any = self.config
        options: dict[str, Any] = section.loss.model_dump()
        return options

    @classmethod
    def quiet(cls, *, in_grid: bool) -> tuple[str, ...]:
        return (f"eval.overlays={0 if in_grid else 3}",)

    def _logit_loss(self) -> LogitLoss:
        options = self.loss_options()
        return partial(self.losses[options.pop("name")], **options)


class PromptTask(PixelTask[ConfigT]):
    """A task of pixels whose model answers boxes and clicks too, and can be measured untuned."""

    @property
    def measures_before(self) -> bool:
        config: Any = self.config
        measured: bool = config.eval.before
        return measured

    @classmethod
    def quiet(cls, *, in_grid: bool) -> tuple[str, ...]:
        return (*super().quiet(in_grid=in_grid), "eval.prompts=0", *(["eval.before=false"] if in_grid else []))


def check_embeddings(model: SamModel, selection: Selection) -> None:
    """Raises a `ConfigError` for a selection that trains the encoder: embeddings would not stay what they are."""
    roles = model.roles()
    trained = [name for name in selection.names() if roles[name] not in ("decoder", "head")]
    if trained := [*trained, *(addition.name for addition in selection.additions)]:
        raise ConfigError(
            f"train.embeddings caches what the encoder computes, but {trained[0]} trains "
            f"({len(trained)} tensors of the encoder). Leave it empty, or use 'select={{name: linear}}'."
        )


class ContrastiveLoss:
    """The pixel-level supervised contrastive loss on image embeddings, its draw of cells seeded.

    Args:
        prepare: gives a batch the masks or maps of classes whose cells are told apart; None where it has them.
    """

    def __init__(
        self, *, cells: int, temperature: float, seed: int, prepare: Callable[[Batch], Batch] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._loss = partial(pixel_contrastive, cells=cells, temperature=temperature, generator=generator)
        self._generator, self._prepare, self._skipped = generator, prepare, 0

    def __call__(self, model: Backbone, batch: Batch) -> Tensor | None:
        """Returns a scalar in fp32, or None where no two drawn cells share a class."""
        embeddings = model.features(batch)
        for _ in range(self._skipped):  # only now their number of cells is known
            draw_order(embeddings, self._generator)
        self._skipped = 0
        return self._loss(embeddings, batch if self._prepare is None else self._prepare(batch))

    def skip(self, images: int) -> None:
        """Passes over the draws of the next images: the cells of those after them stay what they are."""
        self._skipped += images


def task_loss(loss: LogitLoss) -> ScoreLoss:
    """Returns the loss of the training, through the decoder: what GPS's release scores with, as SAM's is not random."""
    return lambda model, batch: loss(upsample_logits(model(batch), batch.images.shape[-1]), batch)


def coverage(objects: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns (B, 1, side, side) shares of each small pixel that (B, 1, S, S) bool `objects`, and `valid`, cover."""
    step = objects.shape[-1] // side
    return avg_pool2d(objects.float(), step), avg_pool2d(valid.float(), step)


def object_loss(low: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Returns (B,) Dice + binary cross-entropy of (B, 1, h, w) logits of prompted objects, in fp32, at their size.

    Args:
        target, valid: of `coverage`. Padding never counts, and an object that is empty costs nothing.
    """
    from monai.losses.dice import DiceLoss

    per_pixel = binary_cross_entropy_with_logits(low.float(), target, reduction="none") * valid
    each = per_pixel.sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3))
    dice: Tensor = DiceLoss(smooth_nr=1.0, smooth_dr=1.0, reduction="none")(low.float().sigmoid() * valid, target)
    return (each + dice.flatten()) * target.flatten(1).any(1)


def batch_of_one(
    image_hwc: PixelArray, side: int, kind: torch.dtype, pixels: Pixels = RGB, tiles: Tiles | None = None
) -> Batch:
    """Returns an image in the input frame, S = `side`, with an empty map of a kind for its target.

    Args:
        image_hwc: (H, W, 3) uint8 RGB; with other `pixels` as `samtune.data.channels.read.read_pixels` returns it.
        tiles: the batch is to be answered by tiles, and has the image as it is.

    Raises:
        DataError: not such an image.
    """
    image = checked_image(image_hwc, pixels)
    if tiles is not None:  # without a copy of what may be large
        nothing = np.broadcast_to(np.uint8(0), image.shape[:2])
        values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return CollateWhole(tiles)([Sample("the image", values, torch.zeros(1, 1, dtype=kind), nothing)])
    small = resize_longest(image, side)
    values = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))  # (C, h, w)
    target, truth = torch.zeros(small.shape[:2], dtype=kind), np.zeros(image.shape[:2], dtype=np.uint8)
    return Collate(side)([Sample("the image", values, target, truth)])


def low_logits(model: nn.Module, batch: Batch, autocast_dtype: torch.dtype | None) -> Tensor:
    """Returns the (B, C, S/4, S/4) logits of a batch in fp32.

    Args:
        model: the caller has set evaluation mode.
        batch: on the device of the model.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of an image are not finite; the message names it.
    """
    device_type = batch.images.device.type
    with torch.no_grad(), torch.autocast(device_type, autocast_dtype, enabled=autocast_dtype is not None):
        logits: Tensor = model(batch)
    logits = logits.detach().float()
    check_finite(logits, batch.names)
    return logits


def to_original(low: Tensor, side: int, size_input: Size, size_original: Size) -> Tensor:
    """Takes one (h, w) map of logits to the original frame: (H, W), bilinear and in fp32.

    It is enlarged to the input frame, S = `side`, cropped to the picture and resized to the original.
    """
    height, width = size_input
    logits_input = interpolate(low[None, None], size=(side, side), mode="bilinear", align_corners=False)
    picture = logits_input[:, :, :height, :width]  # without the padding
    return interpolate(picture, size=size_original, mode="bilinear", align_corners=False)[0, 0]


def pairs_to_measure(data_dir: Path, split: str, kind: MaskKind[Any]) -> tuple[list[Pair], str]:
    """Returns the pairs of a part of a folder, "auto" for the one to measure, and the part's name."""
    places = kind.parts(data_dir)
    if split == "auto":
        split = "test" if "test" in places or (data_dir / "splits" / "test.txt").is_file() else "all"
        if places and split == "all":
            raise ConfigError(f"{data_dir} has parts but no test/. Choose one: --split val, or --data {data_dir}/val.")
    if split == "all":
        return find_pairs(data_dir, kind.scan), "all"
    if places:
        return find_pairs(places.get(split, data_dir / split), kind.scan), split
    return getattr(resolve_parts(data_dir, kind), split), split
