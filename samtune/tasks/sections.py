"""The sections of settings that tasks with a target per pixel share, beside those of `samtune.config.sections`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from samtune.config import sections as shared
from samtune.config.pixels import FEWEST_CHANNELS, MOST_CHANNELS, RGB
from samtune.config.problems import Fault, impossible_pair, shown, told
from samtune.config.sections import LARGEST, PathText
from samtune.data.formats.table import FormatName
from samtune.models.table import is_repository, names_that_give

Bound = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class PixelModel(shared.Model):
    """`model`: a model whose output is a mask."""

    name: str = Field("sam_lite", description="architecture")
    image_size: int | None = Field(
        None, ge=64, le=4096, description="side of the square input in pixels; empty: the model's own"
    )

    channels: int = Field(
        RGB.channels,
        ge=FEWEST_CHANNELS,
        le=MOST_CHANNELS,
        description="channels of the pictures; 3: RGB, and grey, which becomes three equal ones",
    )

    @classmethod
    def fitting(cls) -> list[str]:
        """Returns the names of models that the task can tune."""
        return names_that_give("masks")

    @field_validator("name")
    @classmethod
    def _fits(cls, name: str) -> str:
        *first, last = map(repr, cls.fitting())
        if repr(name) not in (*first, last) and not is_repository(name):
            expected = f"{', '.join(first)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return name


def _names(value: object) -> object:
    """Returns the chosen names as a tuple; a single one need not be a list."""
    names = (value,) if isinstance(value, str) else value
    if names is None:
        return None
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise told(f"{shown(value)}, expected one or more names, [car, road].")
    return tuple(dict.fromkeys(names))


class TileSettings(shared.Section):
    """`data.tiles`: how pictures are seen that are too large for the input frame."""

    size: int | None = Field(
        None,
        ge=64,
        le=4096,
        description="side of a tile in pixels of the picture; model.image_size keeps objects' size; empty: no tiles",
    )
    overlap: int | None = Field(
        None, ge=1, le=2048, description="pixels that neighbouring tiles share at least; empty: a quarter of the size"
    )

    @property
    def sides(self) -> tuple[int, int] | None:
        """Size and overlap in pixels; None where a picture is seen as a whole."""
        return None if self.size is None else (self.size, self.size // 4 if self.overlap is None else self.overlap)

    def faults(self) -> Iterator[Fault]:
        """Yields tiles that are more than half of another, and an overlap of no tiles."""
        yield from super().faults()
        if self.overlap is not None and self.size is None:
            yield impossible_pair("overlap", self.overlap, "no value without data.tiles.size", "size")
        elif self.overlap is not None and self.size is not None and 2 * self.overlap > self.size:
            yield impossible_pair("overlap", self.overlap, f"at most half of data.tiles.size = {self.size}", "size")


class PixelData(shared.Data):
    """`data`: pairs of images and masks, and their split."""

    dir: PathText = Field(description="folder with images/ and masks/, or train/, val/, test/ with both")
    format: FormatName = Field("auto", description="of the annotations; pairs: masks; auto: what data.dir has, said")
    categories: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = Field(
        None, description="names of the categories of the annotations that count; empty: all"
    )
    split: Literal["auto", "folders", "files", "ratio"] = Field("auto", description="where the parts come from")
    shots: int | None = Field(None, ge=1, description="training images, drawn by run.seed; empty: all")
    range: Annotated[tuple[Bound, Bound] | None, Field(strict=False)] = Field(
        None, description="values that become black and white, [low, high]; needed beyond 8 bits; empty: 0 to 255"
    )
    tiles: TileSettings = Field(TileSettings(), description="crops of large pictures to train on, tiles to answer")

    def faults(self) -> Iterator[Fault]:
        """Yields the parts that are named where they are cut, and a range of nothing."""
        yield from super().faults()
        if self.range is not None and self.range[0] >= self.range[1]:
            yield impossible_pair("range", list(self.range), "two numbers [low, high] with low below high")
        for name in ("train", "val", "test") if self.split == "ratio" else ():
            if (value := getattr(self, name)) is not None:
                yield impossible_pair(
                    name, value, "no value with data.split: ratio, which cuts the parts itself", "split"
                )


class CachingTrain(shared.Train):
    """`train` of a task whose model can read image embeddings from disk."""

    embeddings: PathText | None = Field(
        None, description="folder of cached image embeddings; for decoder-only training without augmentation"
    )

    def views(self, data: PixelData, augment: object, still: object) -> Iterator[Fault]:
        """Yields what shows an image in more than the one view that is cached: other values than `still`, and crops."""
        if self.embeddings is None:
            return
        one = "with train.embeddings, which keeps one view of an image"
        if augment != still:
            wanted = still if isinstance(still, str) else shown(still)
            yield impossible_pair("data.augment", augment, f"{wanted} {one}", "train.embeddings")
        if data.tiles.size is not None:
            yield impossible_pair("data.tiles.size", data.tiles.size, f"no tiles {one}", "train.embeddings")


class PixelScore(shared.Score):
    """`score`: the gradient pass that selection reads."""

    loss: Literal["pixel_contrastive", "task"] | None = Field(
        None, description="what is differentiated; empty: what the selector's paper does"
    )
    cells: int = Field(128, ge=2, description="feature cells drawn per image by the contrastive loss")


class PixelEval(shared.Eval):
    """`eval`: validation, the final report and its pictures."""

    overlays: int = Field(3, ge=0, description="pictures of each of best, median and worst cases")


class PromptEval(PixelEval):
    """`eval` of a task whose model answers boxes and clicks."""

    before: bool = Field(True, description="measure the untuned model too")
    prompts: int = Field(
        32, ge=0, description="pictures of val, and of scenes, on which prompts are tried before and after; 0: none"
    )
