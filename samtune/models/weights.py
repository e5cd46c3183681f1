"""Weights: strict, explained loading of checkpoint files.

Everything of ours is safetensors; a user's `.pth` is read with `weights_only=True`, so nothing in it is executed.
"""

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from samtune.base.download import file_sha256
from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone

logger = logging.getLogger(__name__)

RANDOM = "random"  # stands where a checkpoint's path does: the architecture's own initialisation

# What trainers wrap weights in: the key that holds them, and the prefix of their names.
_WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.sam.", "module.", "sam.", "model.")


def load_weights(model: Backbone, path: Path) -> None:
    """Loads a checkpoint strictly, as the model's own dtype: the same names and shapes, nothing over, all finite.

    Official, MedSAM and micro-sam files all fit: known wrappings (`model_state`, `module.`, `sam.`) are taken off.

    Raises:
        CheckpointError: a missing or damaged file, another model's weights, missing or extra keys, NaN.
    """
    state = read_state(path)
    check_state(model.net.state_dict(), state, path, model.looks_like)
    model.net.load_state_dict(state)
    log_loaded(len(state), path)


def log_loaded(count: int, path: Path, more: str = "") -> None:
    """Logs that `count` tensors were loaded, which is all of them: loading is strict."""
    logger.info("loaded %d/%d tensors from %s, sha256 %s%s", count, count, path, file_sha256(path), more)


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


def check_state(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, guess: Callable[..., str]
) -> None:
    """Refuses a state dict that does not fit exactly; `guess` says in a sentence which model it looks like.

    Raises:
        CheckpointError: naming missing and extra tensors, wrong shapes (and the model they fit), or NaN.
    """
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [n for n in expected if n in state and expected[n].shape != state[n].shape]
    parts = [f"{len(missing)} missing ({_few(missing)})"] if missing else []
    parts += [f"{len(extra)} unknown ({_few(extra)})"] if extra else []
    for name in shapes[:1]:
        sizes = f"file {tuple(state[name].shape)}, model {tuple(expected[name].shape)}"
        parts.append(f"{len(shapes)} of another shape (e.g. {name}: {sizes})")
    if parts:
        fit = f"{path} does not fit the model ({len(expected)} tensors): {', '.join(parts)}"
        raise CheckpointError(f"{fit}. {guess(state)}")
    broken = [n for n in expected if state[n].is_floating_point() and not bool(state[n].isfinite().all())]
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinity in {len(broken)} tensors ({_few(broken)}).")


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Finds the state dict inside what a trainer saved."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict (name -> tensor), nor one under {', '.join(_WRAPPERS)}.")
    state = {str(name): value for name, value in content.items()}
    prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), "")
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
