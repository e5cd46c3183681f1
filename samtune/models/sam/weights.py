"""Where a Segment Anything gets its weights: the package, the official file, or a file of the user's."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from samtune.base.disk import cache_folder
from samtune.base.download import download
from samtune.errors import CheckpointError
from samtune.models.classes import has_classes
from samtune.models.sam.channels import check_channels
from samtune.models.sam.model import SamModel
from samtune.models.weights import RANDOM, load_state, read_state


class Official(NamedTuple):
    """A published file: where it is and what its bytes hash to."""

    url: str
    sha256: str


OFFICIAL = {
    name: Official(f"https://dl.fbaipublicfiles.com/segment_anything/{file}.pth", digest)
    for name, file, digest in (
        ("sam_vit_b", "sam_vit_b_01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        ("sam_vit_l", "sam_vit_l_0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        ("sam_vit_h", "sam_vit_h_4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    )
}
"""The models that segment-anything's own registry builds."""


def load_sam(model: SamModel, checkpoint: str | Path | None, *, classes: int | None, channels: int = 3) -> None:
    """Loads a checkpoint strictly, and adds channels and the tokens of classes, which a file may already have.

    Args:
        checkpoint: a file; None for the model's own weights; "random" to keep those that it was built with.
        classes: number of class tokens; None for a model that only segments.
        channels: of the pictures.

    Raises:
        ConfigError: a number of channels that no model takes.
        CheckpointError: as `load_weights` and `official_checkpoint`.
    """
    check_channels(channels)
    if checkpoint != RANDOM:
        with _file(model.name, checkpoint) as path:
            state = read_state(path)
            if classes is not None and has_classes(state):
                model.add_classes(classes)
            if channels != model.channels and _channels(model, state) == channels:
                model.add_channels(channels)
            load_state(model, state, path)
    if classes is not None and model.classes is None:
        model.add_classes(classes)
    if channels != model.channels:
        model.add_channels(channels)


def _channels(model: SamModel, state: Mapping[str, Tensor]) -> int | None:
    """Returns how many channels the stem of a checkpoint takes; None where it has no such stem."""
    stem = state.get(f"{model.stem}.weight")
    return None if stem is None or stem.dim() != 4 else int(stem.shape[1])


def _file(name: str, checkpoint: str | Path | None) -> AbstractContextManager[Path]:
    """Opens a checkpoint, or the model's own: the official file, or that of the package, fp16 on disk."""
    if checkpoint is None and name not in OFFICIAL:
        return as_file(files("samtune.models.sam") / f"{name}.safetensors")
    return nullcontext(official_checkpoint(name) if checkpoint is None else Path(checkpoint))


def official_checkpoint(name: str) -> Path:
    """Returns the official file of a model from the cache, downloading it when absent; its hash is checked always.

    Raises:
        CheckpointError: no network (the message says which file to put where), or a wrong SHA-256.
    """
    official = OFFICIAL[name]
    path = cache_folder() / official.url.rsplit("/", 1)[1]
    return download(official.url, path, sha256=official.sha256, error=CheckpointError)
