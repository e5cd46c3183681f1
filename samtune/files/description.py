"""What a model file says about itself: all that is needed to predict with it, in the metadata of one safetensors file.

Every file has the fields of `Description`; a task adds its own in a subclass. Whatever only rebuilds the model (deltas,
audits, exports) reads the common fields and needs no task.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from samtune.base.tensors import PYTORCH, file_kind, read_metadata
from samtune.config.pixels import FEWEST_CHANNELS, MOST_CHANNELS, Pixels
from samtune.config.problems import describe
from samtune.config.sections import LARGEST
from samtune.errors import CheckpointError, ConfigError
from samtune.models.backbone import Backbone
from samtune.models.hf.folder import CONFIG, family_of
from samtune.models.hf.meta import meta_family
from samtune.models.sam.specs import name_by_shapes
from samtune.models.table import build_model, build_shapes, names_that_give
from samtune.models.weights import RANDOM, looks_elsewhere, read_shapes, read_state
from samtune.selection.selection import Addition
from samtune.types import Tiles

MERGED_FORMAT, BUNDLE_FORMAT = "samtune-merged-2", "samtune-bundle-2"
OLD_FORMATS = {  # of files that say by their format what they are for
    "samtune-merged-1": "segmentation",
    "samtune-bundle-1": "segmentation",
    "samtune-classifier-1": "classification",
    "samtune-classifier-bundle-1": "classification",
}
REMEDY = "Give the merged.safetensors of a run folder; `samtune finetune` writes one."

UNTUNED = {"format": MERGED_FORMAT, "task": "segmentation", "prompt": "box"}
"""What a model that was not tuned would say: a Segment Anything answers prompts as it is."""

MAX_SIDE = 8192
"""Pixels of the side of an input frame that a file may ask for; what is larger fits no machine."""
Mean = Annotated[float, Field(ge=-1e4, le=1e4)]
Bound = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Std = Annotated[float, Field(ge=1e-4, le=1e4)]


class Description(BaseModel):
    """What a model file says about itself.

    Attributes:
        model, options: as `build_model` takes them.
        image_size: side in pixels of the input frame that it was tuned and measured at.
        channels: of its pictures; 3 is RGB.
        range: values of a file that became 0 and 255 before anything else; None for 8 bits as they are.
        tiles: side of a tile and overlap in pixels of a picture, by which it was tuned; None for pictures as a whole.
        pixel_mean: subtracted from values of 0 to 255, by channel.
        pixel_std: what the difference is divided by.
        classes: names of the outputs, in order; empty where the output is a mask.
        head_seed: what the head's initial values were drawn from; None where they came with the weights.
        base_hash: `state_hash` of the weights that it was tuned from.
        additions: modules of a bundle beside the stock model; empty for a merged model.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    task: ClassVar[str] = ""
    """Name of the task; empty where only the common fields are read."""

    model: str
    options: dict[str, Any] = {}
    image_size: int = Field(gt=0, le=MAX_SIDE)
    channels: int = Field(3, ge=FEWEST_CHANNELS, le=MOST_CHANNELS)
    range: tuple[Bound, Bound] | None = None
    tiles: tuple[int, int] | None = None
    pixel_mean: tuple[Mean, ...]
    pixel_std: tuple[Std, ...]
    classes: tuple[str, ...] = ()
    head_seed: int | None = None
    base_hash: str
    additions: tuple[Addition, ...] = ()

    @field_validator("classes")
    @classmethod
    def _once(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class twice")
        return classes

    @field_validator("pixel_mean", "pixel_std")
    @classmethod
    def _one_per_channel(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if len(values) != (count := info.data.get("channels", len(values))):
            raise PydanticCustomError("numbers_missing", "one number per channel ({count})", {"count": count})
        return values

    @field_validator("range")
    @classmethod
    def _rising(cls, values: tuple[float, float] | None) -> tuple[float, float] | None:
        if values is not None and values[0] >= values[1]:
            raise ValueError("falls: its first number must be below the second")
        return values

    @field_validator("tiles")
    @classmethod
    def _tiles_overlap(cls, values: tuple[int, int] | None) -> tuple[int, int] | None:
        if values is not None and not 2 <= 2 * values[1] <= values[0] <= MAX_SIDE:
            raise ValueError("an overlap of 1 pixel to half a tile is possible")
        return values

    @property
    def pixels(self) -> Pixels:
        """What the values of a picture's file become."""
        return Pixels(self.channels, self.range, large=self.tiles is not None)

    @property
    def tiling(self) -> Tiles | None:
        """How the model sees pictures; None for as a whole."""
        return None if self.tiles is None else Tiles(*self.tiles, self.image_size)

    def by_tiles(self, tiles: tuple[int, int] | None, path: Path) -> Self:
        """Returns it with these tiles, side and overlap in pixels; as it is for None.

        Raises:
            ConfigError: the file at `path` has tiles of its own.
        """
        if tiles is None:
            return self
        if self.tiles is not None:
            own = f"{path} was tuned by tiles of {self.tiles[0]} pixels that share {self.tiles[1]}, and uses them"
            raise ConfigError(f"--tiles: {own}. Leave it out.")
        return self.model_copy(update={"tiles": tiles})

    @classmethod
    def of(cls, model: Backbone, *, base_hash: str, additions: tuple[Addition, ...], **own: Any) -> Self:
        """Describes a merged model; `own` is what it does not know: the fields of the task, and `classes`."""
        # each as the shortest number that rounds to it: 123.675, not 123.67500305175781
        colours = [values.flatten().cpu().numpy() for values in (model.pixel_mean, model.pixel_std)]
        mean, std = (tuple(float(str(value)) for value in values) for values in colours)
        return cls(
            model=model.name,
            options=model.options,
            image_size=model.image_size,
            channels=model.channels,
            pixel_mean=mean,
            pixel_std=std,
            head_seed=model.head_seed,
            base_hash=base_hash,
            additions=additions,
            **own,
        )

    @property
    def file_name(self) -> str:
        """What such a file is called in a run folder."""
        return "bundle.safetensors" if self.additions else "merged.safetensors"

    def input_text(self) -> str:
        """Returns how the model wants its images, for the stock code that loads it; "" where that code knows."""
        return ""

    def to_metadata(self) -> dict[str, str]:
        """Returns the metadata of the file, all strings: text as it is, everything else as JSON."""
        values = self.model_dump(mode="json", exclude=None if self.additions else {"additions"})
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        return {"format": BUNDLE_FORMAT if self.additions else MERGED_FORMAT, "task": self.task, **texts}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what a model file says; raises as `model_metadata` and `from_metadata`."""
        return cls.from_metadata(model_metadata(path), path)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> Self:
        """Reads what `to_metadata` wrote, in this version or an older one.

        Raises:
            CheckpointError: no model file, one of another task, or one with missing or impossible values.
        """
        found = task_of(metadata, path)
        if cls.task and found != cls.task:
            raise CheckpointError(f"{path} is a {found} model, but a {cls.task} model is needed. {REMEDY}")
        values = {}
        for name, field in cls.model_fields.items():
            if (text := metadata.get(name)) is not None:
                plain = field.annotation is str or get_origin(field.annotation) is Literal
                values[name] = text if plain else _json(name, text, path)
        try:
            return cls.model_validate(values)
        except ValidationError as err:
            raise CheckpointError(f"{path} {_problem(dict(err.errors()[0]))}. {REMEDY}") from err

    def build(self, *, checkpoint: str | Path | None = RANDOM, **options: Any) -> Backbone:
        """Builds the stock model that the file is of; `options` go to its builder beside those of the file.

        Raises:
            CheckpointError: values that the model does not take, or weights that do not fit.
        """
        if self.classes:
            options["classes"] = len(self.classes)
        if self.channels != 3:
            options["channels"] = self.channels
        try:
            if clash := self.options.keys() & {*options, "name", "checkpoint", "image_size"}:
                raise ConfigError(f"options has {min(clash)!r}, which is no option of the builder.")
            return build_model(self.model, checkpoint=checkpoint, image_size=self.image_size, **self.options, **options)
        except CheckpointError:
            raise
        except (ValueError, TypeError) as err:  # ValueError: a ConfigError too
            raise CheckpointError(f"impossible metadata of a {self.model}: {err} {REMEDY}") from err


def model_named(path: Path) -> str | None:
    """Returns the name of a model that segments where a path is that name, or its folder, or its file; else None.

    A file is one of PyTorch, as the code of the model's authors reads it, with nothing of a run.
    """
    if (path / CONFIG).is_file():
        return family_of(path)
    if path.is_file() and path.suffix != ".safetensors":
        shapes = read_shapes(path)
        return meta_family(shapes) or name_by_shapes(shapes)
    return str(path) if str(path) in names_that_give("masks") and not path.exists() else None


def model_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a file that should be a model file, or makes those of an untuned model given instead.

    Raises:
        CheckpointError: missing, damaged or another file; the message says where to get one.
    """
    if name := model_named(path):
        model = build_shapes(name, checkpoint=path if path.exists() else RANDOM, image_size=None)  # sizes are enough
        (mean, std), side = model.colours, model.image_size
        described = Description(model=name, image_size=side, pixel_mean=mean, pixel_std=std, base_hash="")
        return {**described.to_metadata(), **UNTUNED}
    if path.is_file() and path.suffix in (".pt", ".pth") and file_kind(path) == PYTORCH:
        state = read_state(path)  # raises where it is damaged, or would execute code
        known = f"They are of no Segment Anything that is known ({len(state)} tensors, such as {min(state)})."
        raise CheckpointError(
            f"{path} holds weights alone, and nothing of a run. {looks_elsewhere(state) or known} {REMEDY}"
        )
    try:
        return read_metadata(path)
    except CheckpointError as err:
        classifier = str(path) in names_that_give("classes") and not path.exists()
        reason = f"{path} is a classifier, which has no classes before it is tuned." if classifier else err
        raise CheckpointError(f"{reason} {REMEDY}") from err


def task_of(metadata: Mapping[str, str], path: Path) -> str:
    """Returns the task that a model file is for, by its metadata; `CheckpointError` if that is no model file's."""
    found = metadata.get("format", "none")
    task = metadata.get("task") if found in (MERGED_FORMAT, BUNDLE_FORMAT) else OLD_FORMATS.get(found)
    if not task:
        part = f"It is a part of {path.parent}, a folder of transformers: give that. "
        remedy = part + REMEDY if (path.parent / CONFIG).is_file() else REMEDY
        raise CheckpointError(f"{path} is no merged model (its format: {found}, not {MERGED_FORMAT}). {remedy}")
    return task


def _json(name: str, text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:  # RecursionError: lists in lists in lists
        raise CheckpointError(f"{path} has damaged metadata ({name}: {err}). {REMEDY}") from err


def _problem(item: dict[str, Any]) -> str:
    """Words one error of pydantic as the end of a sentence about the file."""
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing" and len(item["loc"]) == 1:
        return f"lacks {name!r} in its metadata"
    word = "damaged" if item["type"].endswith(("_type", "_parsing", "too_long", "missing")) else "impossible"
    reason = item["msg"].removeprefix("Value error, ") if item["type"] == "value_error" else describe(item)
    return f"has {word} metadata: {name} {reason.rstrip('.')}"
