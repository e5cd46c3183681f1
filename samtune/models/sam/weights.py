"""Where a Segment Anything gets its weights: the package, the official file, or a file of the user's."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

from samtune.base.disk import cache_folder
from samtune.base.download import download
from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone
from samtune.models.weights import RANDOM, load_weights


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


def load_sam(model: Backbone, checkpoint: str | Path | None) -> None:
    """Loads a checkpoint strictly.

    Args:
        checkpoint: a file; None for the model's own weights; "random" to keep those that it was built with.

    Raises:
        CheckpointError: as `load_weights` and `official_checkpoint`.
    """
    if checkpoint is not None:
        if checkpoint != RANDOM:
            load_weights(model, Path(checkpoint))
    elif model.name in OFFICIAL:
        load_weights(model, official_checkpoint(model.name))
    else:  # fp16 on disk, the model's dtype in memory
        with as_file(files("samtune.models.sam") / f"{model.name}.safetensors") as path:
            load_weights(model, path)


def official_checkpoint(name: str) -> Path:
    """Returns the official file of a model from the cache, downloading it when absent; its hash is checked always.

    Raises:
        CheckpointError: no network (the message says which file to put where), or a wrong SHA-256.
    """
    official = OFFICIAL[name]
    path = cache_folder() / official.url.rsplit("/", 1)[1]
    return download(official.url, path, sha256=official.sha256, error=CheckpointError)
