"""Weights: strict, explained loading of checkpoint files.

Everything of ours is safetensors; a user's `.pth` is read with `weights_only=True`, so nothing in it is executed, and
by the checksums of its parts, which PyTorch writes and does not read.
"""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from samtune.base.disk import replacing
from samtune.base.download import file_sha256
from samtune.base.tensors import PYTORCH, check_file, file_kind, load_tensors
from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone

logger = logging.getLogger(__name__)

RANDOM = "random"  # stands where a checkpoint's path does: the architecture's own initialisation

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNTERS = (torch.int64, torch.bool)  # steps of batch norms, masks in buffers

# What trainers wrap weights in: the key that holds them, and the prefix of their names.
_WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.sam.", "module.", "sam.", "model.")

_CONFIG = "config.json"
_FAMILY = (
    "Set model.name to its family, sam_hf, sam_hq, sam2, sam3, edgetam, dinov2 or dinov3: its config.json says which."
)
_SAM_1 = "It is Meta's file of a SAM 1: set model.name to sam_vit_b, sam_vit_l or sam_vit_h."
_ELSEWHERE = {
    "image_encoder.trunk.patch_embed.": "It is Meta's file of a SAM 2: set model.name to sam2.",
    "detector.backbone.vision_backbone.": "It is Meta's file of a SAM 3: set model.name to sam3.",
    "vision_encoder.": "It is of a model of transformers: give its folder, with config.json, and set model.name to its "
    "family, such as sam_hf or sam2.",
}


def load_weights(model: Backbone, path: Path) -> None:
    """Loads a checkpoint strictly, as the model's own dtype: the same names and shapes, nothing over, all finite.

    Official, MedSAM and micro-sam files all fit: known wrappings (`model_state`, `module.`, `sam.`) are taken off.

    Raises:
        CheckpointError: a missing or damaged file, another model's weights, missing or extra keys, NaN.
    """
    load_state(model, read_state(path), path)


def load_state(model: Backbone, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads what was read from a checkpoint; raises as `load_weights`."""
    state = model.in_own_layout(state, path)
    check_state(model.net.state_dict(), state, path, model.looks_like)
    model.net.load_state_dict(state)
    log_loaded(len(state), path)


def log_loaded(count: int, path: Path, more: str = "") -> None:
    """Logs that `count` tensors were loaded, which is all of them: loading is strict."""
    logger.info("loaded %d/%d tensors from %s, sha256 %s%s", count, count, path, file_sha256(path), more)


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint by name, without the wrapping of known trainers.

    Raises:
        CheckpointError: missing, damaged, no checkpoint, one that would execute code, or one of odd tensors.
    """
    if (path / _CONFIG).is_file():
        raise CheckpointError(f"{path} is a folder of transformers, and this model's checkpoint is a file. {_FAMILY}")
    try:
        check_file(path)
    except CheckpointError as err:
        raise CheckpointError(f"{err} Check model.checkpoint or --checkpoint.") from err
    state = _unwrap(load_tensors(path) if path.suffix == ".safetensors" else _read_pickle(path), path)
    if odd := [f"{name}: {kind}" for name, tensor in state.items() if (kind := _odd_kind(name, tensor))]:
        floats = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise CheckpointError(
            f"{path} holds {len(odd)} tensors that are no weights ({_few(odd)}). Allowed are dense ones of {floats}, "
            "and int64 or bool where something is counted or masked. Save the state dict again in one of these."
        )
    return state


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a checkpoint's tensors by name, without their values; nothing of what can't be read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        content = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in _unwrap(content, path).items()}
    except Exception:  # whoever reads the values says what is wrong
        return {}


def save_pth(path: Path, content: object) -> None:
    """Writes what PyTorch reads, atomically; a `DiskError` where that can't be."""
    with replacing(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as err:  # how torch reports a full disk
            raise OSError(str(err)) from err


def _read_pickle(path: Path) -> object:
    """Reads what PyTorch wrote, if it holds tensors alone and its checksums are right."""
    try:
        if problem := _pickle_problem(path):
            raise pickle.UnpicklingError(problem)
        with warnings.catch_warnings(action="ignore"):  # they tell programmers how to load it in other ways
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # bytes that are no checkpoint can fail in any way
        if code := re.search(r"GLOBAL ([\w.]+)", str(err)):
            raise CheckpointError(
                f"checkpoint {path} holds more than tensors, and reading it would execute code ({code[1]}). "
                "Save its state dict alone, or as safetensors."
            ) from err
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        if "weights_only" in str(err):  # torch's own message advises to execute what is in the file
            reason = "no pickle of tensors"
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint ({reason}). Get the file again.") from err


def _pickle_problem(path: Path) -> str | None:
    """Returns what is wrong with a file that PyTorch should have written, as far as it shows without reading it."""
    kind = file_kind(path)
    if kind not in (None, PYTORCH):
        return kind
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return "it is a program of TorchScript: save the state dict of its module"
        broken = archive.testzip()
    return None if broken is None else f"the checksum of {broken} in it is wrong"


def _odd_kind(name: str, tensor: Tensor) -> str | None:
    """Returns in a word what a tensor is that is no weight; None for one that may be."""
    if tensor.is_meta:
        return "without values (meta)"
    kind = str(tensor.dtype).removeprefix("torch.")
    if name.endswith(".freqs_cis") and tensor.dtype == torch.complex64:  # Meta's table of rotations by position
        return None
    if tensor.layout != torch.strided:
        return f"{kind}, {str(tensor.layout).removeprefix('torch.')}"
    return None if tensor.dtype in (*FLOATS, *COUNTERS) else kind


def check_state(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, guess: Callable[..., str]
) -> None:
    """Refuses a state dict that does not fit exactly; `guess` says in a sentence which model it looks like.

    Raises:
        CheckpointError: naming missing and extra tensors, wrong shapes or types (and the model they fit), or NaN.
    """
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [n for n in expected if n in state and expected[n].shape != state[n].shape]
    parts = [f"{len(missing)} missing ({_few(missing)})"] if missing else []
    parts += [f"{len(extra)} unknown ({_few(extra)})"] if extra else []
    for name in shapes[:1]:
        sizes = f"file {tuple(state[name].shape)}, model {tuple(expected[name].shape)}"
        parts.append(f"{len(shapes)} of another shape (e.g. {name}: {sizes})")
    kinds = [n for n in expected if n in state and expected[n].is_floating_point() != state[n].is_floating_point()]
    for name in kinds[:1]:
        types = f"file {state[name].dtype}, model {expected[name].dtype}".replace("torch.", "")
        parts.append(f"{len(kinds)} of another type (e.g. {name}: {types})")
    if parts:
        fit = f"{path} does not fit the model ({len(expected)} tensors): {', '.join(parts)}"
        raise CheckpointError(f"{fit}. {guess(state)}")
    check_finite(state, path)


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses weights that are not all finite, with a `CheckpointError` that names them."""
    broken = [name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{path} holds NaN or infinity in {len(broken)} tensors ({_few(broken)}). Take the weights of an earlier "
            "step, or get the file again."
        )


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Finds the state dict inside what a trainer saved."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict (name -> tensor), nor one under {', '.join(_WRAPPERS)}.")
    state = {str(name): value for name, value in content.items()}
    prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), "")
    return {name.removeprefix(prefix): value for name, value in state.items()}


def looks_elsewhere(names: Mapping[str, object]) -> str | None:
    """Returns a sentence on what has tensors of these names, where it is a model of another library that is known."""
    return next((said for start, said in _ELSEWHERE.items() if any(name.startswith(start) for name in names)), None)


def not_a_folder(path: Path) -> str:
    """Says what stands in the place of a folder of transformers: nothing, or which file, as far as that is known."""
    if not path.is_file():
        return "does not exist"
    if not (shapes := read_shapes(path)):
        return "is a file, damaged or without weights"
    sam_1 = any(name.startswith("image_encoder.blocks.") for name in shapes)
    hint = _SAM_1 if sam_1 else looks_elsewhere(shapes)
    return f"is a file ({hint.removesuffix('.')})" if hint else "is a file"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
