"""Published weights of Segment Anything: the official files, and the small model inside the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from torch import Tensor

from samtune.base.disk import cache_folder
from samtune.base.download import download
from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone
from samtune.models.weights import LoadReport, load_weights


@dataclass(frozen=True)
class Official:
    """A published file: where it is and what its bytes hash to."""

    url: str
    sha256: str


_BASE = "https://dl.fbaipublicfiles.com/segment_anything"
OFFICIAL: dict[str, Official] = {
    "sam_vit_b": Official(
        f"{_BASE}/sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "sam_vit_l": Official(
        f"{_BASE}/sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "sam_vit_h": Official(
        f"{_BASE}/sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}
"""The models that segment-anything's own registry builds."""
PACKAGED = ("sam_tiny",)
_WIDTHS = {224: "sam_tiny", 768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}


def load_published(model: Backbone) -> LoadReport:
    """Loads a model's own weights: from the package, or the official file; raises as `official_checkpoint`."""
    if model.name in PACKAGED:  # fp16 on disk, the model's dtype in memory
        with as_file(files("samtune.models.sam") / f"{model.name}.safetensors") as path:
            return load_weights(model, path)
    return load_weights(model, official_checkpoint(model.name))


def official_checkpoint(name: str) -> Path:
    """Returns the official file of a model from the cache, downloading it when absent; its hash is checked always.

    The cache is `$XDG_CACHE_HOME/samtune` (by default `~/.cache/samtune`).

    Raises:
        CheckpointError: no network (the message says which file to put where), or a wrong SHA-256, also of a
            file that was put there by hand.
    """
    official = OFFICIAL[name]
    path = cache_folder() / official.url.rsplit("/", 1)[1]
    return download(official.url, path, sha256=official.sha256, error=CheckpointError)


def looks_like(state: Mapping[str, Tensor]) -> str:
    """Says which SAM a state dict looks like, by the width of its position table."""
    table = state.get("image_encoder.pos_embed")
    if table is None or table.shape[-1] not in _WIDTHS:
        return "It does not look like a Segment Anything checkpoint."
    return f"It looks like {_WIDTHS[table.shape[-1]]}: set model.name to that."
