"""Weights: strict, explained loading, official downloads, hashes, and merged files.

Everything of ours is safetensors; a user's `.pth` is read with `weights_only=True`, so nothing in it is executed.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from samtune.base.disk import cache_folder
from samtune.base.download import download, file_sha256
from samtune.errors import CheckpointError

logger = logging.getLogger(__name__)

Guess = Callable[[Mapping[str, Tensor]], str]
"""Says in a sentence which model a state dict looks like."""

RANDOM = "random"  # stands where a checkpoint's path does: the architecture's own initialisation


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
# What trainers wrap weights in: the key that holds them, and the prefix of their names.
_WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.sam.", "module.", "sam.", "model.")


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        loaded: tensors loaded, which is all of them: loading is strict.
        source: the file.
        sha256: of the file.
    """

    loaded: int
    source: Path
    sha256: str

    def __str__(self) -> str:
        return f"loaded {self.loaded}/{self.loaded} tensors from {self.source}, sha256 {self.sha256}"


def load_weights(model: nn.Module, path: Path, *, guess: Guess | None = None) -> LoadReport:
    """Loads a checkpoint strictly: the same names and shapes, nothing missing, nothing over, all finite.

    Official, MedSAM and micro-sam files all fit: known wrappings (`model_state`, `module.`, `sam.`) are taken off.

    Args:
        model: receives the weights, as its own dtype.
        path: `.safetensors`, `.pth` or `.pt`.
        guess: says which model a state dict that does not fit looks like; None where a SAM is expected.

    Returns:
        The account of what was loaded.

    Raises:
        CheckpointError: a missing or damaged file, another model's weights, missing or extra keys, NaN.
    """
    state = read_state(path)
    check_state(model.state_dict(), state, path, guess or looks_like_sam)
    model.load_state_dict(state)
    report = LoadReport(len(state), path, file_sha256(path))
    logger.info("%s", report)
    return report


def load_packaged(model: nn.Module, name: str) -> LoadReport:
    """Loads the weights that come inside the package (fp16 on disk, the model's dtype in memory)."""
    with as_file(files("samtune.models.sam") / f"{name}.safetensors") as path:
        return load_weights(model, path)


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


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint by name, without the wrapping of known trainers.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or one that would execute code.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist. Check model.checkpoint or --checkpoint.")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # bytes that are no checkpoint can fail in any way
        if code := re.search(r"GLOBAL ([\w.]+)", str(err)):
            raise CheckpointError(
                f"checkpoint {path} holds more than tensors, and reading it would execute code ({code[1]}). "
                "Save its state dict alone, or as safetensors."
            ) from err
        # torch's own message advises to execute what is in the file
        reason = "no pickle of tensors" if isinstance(err, pickle.UnpicklingError) else err
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint ({reason}). Get the file again.") from err
    return _unwrap(content, path)


def looks_like_sam(state: Mapping[str, Tensor]) -> str:
    """Says which SAM a state dict looks like, by the width of its position table."""
    table = state.get("image_encoder.pos_embed")
    widths = {224: "sam_tiny", 768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}
    if table is None or table.shape[-1] not in widths:
        return "It does not look like a Segment Anything checkpoint."
    return f"It looks like {widths[table.shape[-1]]}: set model.name to that."


def check_state(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    path: Path,
    guess: Guess = looks_like_sam,
) -> None:
    """Refuses a state dict that does not fit exactly.

    Args:
        expected: of the model.
        state: of the file.
        path: the file, for messages.
        guess: says which model a state dict looks like.

    Raises:
        CheckpointError: naming missing and extra tensors, wrong shapes (and the model they fit), or NaN.
    """
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    shapes = [n for n in expected if n in state and expected[n].shape != state[n].shape]
    if missing or extra or shapes:
        parts = [f"{len(missing)} missing ({_few(missing)})"] if missing else []
        parts += [f"{len(extra)} unknown ({_few(extra)})"] if extra else []
        parts += [
            f"{len(shapes)} of another shape (e.g. {n}: file {tuple(state[n].shape)}, model {tuple(expected[n].shape)})"
            for n in shapes[:1]
        ]
        raise CheckpointError(
            f"{path} does not fit the model ({len(expected)} tensors): {', '.join(parts)}. {guess(state)}"
        )
    broken = [n for n in expected if state[n].is_floating_point() and not bool(state[n].isfinite().all())]
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinity in {len(broken)} tensors ({_few(broken)}).")


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Finds the state dict inside what a trainer saved."""
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict (name -> tensor), nor one under {', '.join(_WRAPPERS)}.")
    state = {str(name): value for name, value in content.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
