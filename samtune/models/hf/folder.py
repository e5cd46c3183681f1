"""A folder of transformers: config.json, weights and processor, read strictly, and written as transformers reads it."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from samtune.base.disk import disk_errors, write_json, write_text
from samtune.base.machine import is_out_of_memory
from samtune.errors import CheckpointError, ConfigError
from samtune.models.hf.families import FAMILIES, Family, family_named, unknown_architecture
from samtune.models.weights import check_finite, read_shapes

logger = logging.getLogger(__name__)

CONFIG = "config.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Where the processor's settings are: of transformers 5, and of older versions."""
_SHOWN = 3


def library() -> Any:
    """Imports transformers, whose classes are asked for by name.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as err:
        raise ConfigError(
            f"this model is of transformers, which is not installed: pip install 'samtune[hf]' ({err})."
        ) from err
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from showing bars and hints inside the block: what matters, samtune says."""
    logging: Any = library().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def family_of(folder: Path) -> str:
    """Returns the name of the Segment Anything that a folder's config.json is of; else raises a `CheckpointError`."""
    config = read_json(folder / CONFIG)
    name = family_named(config.get("model_type"))
    if name in FAMILIES:
        return name
    if name is not None:
        raise CheckpointError(
            f"{folder} is a {name}, which has no head before it is tuned. Give a run's merged.safetensors or folder."
        )
    raise CheckpointError(f"{folder} is {unknown_architecture(config, _modules(folder), FAMILIES['sam_hf'])}")


def _modules(folder: Path) -> set[str]:
    """Returns the outermost modules that a folder's weights are of; of one that only wraps others, those."""
    names = [name.split(".") for path in folder.glob("*.safetensors") for name in read_shapes(path)]
    inner = [parts[1:] for parts in names if len(parts) > 1]
    wrapped = len({parts[0] for parts in names}) == 1 and len(inner) == len(names)
    return {parts[0] for parts in (inner if wrapped else names)}


def read_folder(family: Family, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns config and processor of a folder, as the JSON of transformers; no weights are read.

    Raises:
        CheckpointError: files that are missing or damaged, or another architecture, saying which.
    """
    what = f"{folder} is no folder of a {family.prefix}Model"
    remedy = f"Get all files of https://huggingface.co/{family.hub}, or of another model of that kind, into one folder."
    wanted = [CONFIG, *([] if any((folder / name).is_file() for name in PROCESSORS) else [PROCESSORS[0]])]
    missing = [name for name in wanted if not (folder / name).is_file()]
    config = {} if CONFIG in missing else _config_of(family, folder, what)
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{what}: it lacks {', '.join(missing)} (it holds: {found}). {remedy}")
    nested = config.get("tracker_config")
    return (nested if isinstance(nested, dict) else config), _read_processor(family, folder)


def _config_of(family: Family, folder: Path, what: str) -> dict[str, Any]:
    """Returns the settings of a folder's network; raises a `CheckpointError` that says `what` of another family."""
    config = read_json(folder / CONFIG)
    if (kind := config.get("model_type")) in family.types:
        return config
    if name := family_named(kind):
        wrong = f"its {CONFIG} is of the architecture {kind!r}, not {family.types[0]!r}"
        raise CheckpointError(f"{what}: {wrong}. Set model.name to {name}.")
    raise CheckpointError(f"{what}: it is {unknown_architecture(config, _modules(folder), family)}")


def load_folder(net_class: Any, config: Any, folder: Path) -> tuple[nn.Module, int]:
    """Loads the weights of a folder in fp32, strictly.

    Returns:
        The network, and how many tensors the file has beyond those of the model, which only videos need.

    Raises:
        CheckpointError: a damaged file, or tensors that are missing, unknown or of another shape.
    """
    try:
        with quiet():
            net, account = net_class.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True, use_safetensors=True,
            )  # fmt: skip
    except Exception as err:  # what is wrong with a file shows in errors of several libraries
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise CheckpointError(f"the weights in {folder} can't be read ({reason}). Get the folder again.") from err
    parts = []
    for key, said in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "unknown"),
        ("mismatched_keys", "of another shape"),
    ):
        names = sorted(str(name[0]) if isinstance(name, tuple) else str(name) for name in account[key])
        if names:
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            parts.append(f"{len(names)} {said} ({shown})")
    if parts:
        raise CheckpointError(
            f"the weights in {folder} do not fit its {CONFIG}: {', '.join(parts)}. Get the folder again."
        )
    _copy_values(net)
    return net, max(0, _stored(folder) - len(net.state_dict()))


def _copy_values(net: nn.Module) -> None:
    """Copies all tensors of a network: those of a file lie in it at any address, and products round by that."""
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


@contextmanager
def values_of(name: str) -> Iterator[None]:
    """Turns what odd values of a config lead to, in checks of the library or in its networks, into one error."""
    try:
        with quiet():
            yield
    except Exception as err:
        if is_out_of_memory(err):
            raise
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise CheckpointError(
            f"impossible values in the config of {name} ({reason}). Get its config.json again."
        ) from err


def colours_of(name: str, processor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Returns mean and deviation of RGB values of 0 to 255, or raises a `CheckpointError`."""
    found = processor.get("image_processor") if isinstance(processor, Mapping) else None
    images: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    mean, std = images.get("image_mean"), images.get("image_std")
    if not (_are_three(mean, least=-10) and _are_three(std, least=1e-5)):
        raise CheckpointError(
            f"impossible colours in the processor of {name}: image_mean {mean!r} and image_std {std!r}, expected three "
            f"numbers each, of pixels of 0 to 1. Get its {PROCESSORS[0]} again."
        )
    return [255 * value for value in images["image_mean"]], [255 * value for value in images["image_std"]]


def _are_three(values: Any, *, least: float) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    return all(isinstance(value, int | float) and least <= value <= 10 for value in values)


def tell_loaded(state: Mapping[str, Tensor], more: int, folder: Path) -> None:
    """Checks loaded weights, and logs how many there are."""
    check_finite(state, folder)
    videos = f"; {more} more are for videos and not used" if more else ""
    logger.info("loaded %d/%d tensors from %s%s", len(state), len(state), folder, videos)


def on_meta() -> bool:
    """Whether networks are built without values here."""
    return torch.get_default_device().type == "meta"


def save_folder(net: Any, processor: Mapping[str, Any], folder: Path, *, left_out: tuple[str, ...] = ()) -> None:
    """Writes a network and its processor as `from_pretrained` reads them; an older folder is replaced at the end.

    Args:
        left_out: starts of the names of tensors of classes, which transformers has no place for. Where there are any, a
            README.md names them.
    """
    partial = folder.with_name(f"{folder.name}.part")
    state = net.state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with quiet():
                net.save_pretrained(partial, state_dict=dict(kept))  # which it empties
        except SafetensorError as err:  # how it reports a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(str(err)) from err
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors makes files that only their owner can read
        write_json(partial / PROCESSORS[0], processor)
        if len(kept) < len(state):
            text = _without([name for name in state if name not in kept])
            write_text(partial / "README.md", text)
            logger.info("%s: %s", folder, text.splitlines()[0])
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)


def _without(names: list[str]) -> str:
    """Returns what a folder says of tensors that it lacks."""
    said = (
        f"{len(names)} tensors of the tuned model are left out: transformers has no place for tokens of classes. "
        "This folder segments what a prompt shows; the merged.safetensors of its run has them too."
    )
    return "\n".join([said, "", *(f"- `{name}`" for name in names), ""])


def _read_processor(family: Family, folder: Path) -> dict[str, Any]:
    """Returns a processor's settings as transformers 5 keeps them: those of the images under `image_processor`."""
    for name in PROCESSORS:
        path = folder / name
        found = read_json(path) if path.is_file() else {}
        images = found.get("image_processor", found)
        if isinstance(images, dict) and "image_mean" in images and "image_std" in images:
            return (
                found if "image_processor" in found else {"image_processor": found, "processor_class": family.processor}
            )
    raise CheckpointError(
        f"the processor in {folder} does not say how images are normalised (image_mean, image_std). "
        f"Get {PROCESSORS[0]} of https://huggingface.co/{family.hub}."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the settings in a JSON file; else raises a `CheckpointError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} is damaged or no JSON ({err}). Get the file again.") from err
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no settings: a JSON object is needed. Get the file again.")
    return found


def _stored(folder: Path) -> int:
    """Returns the number of tensors in a folder's files."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += len(file.keys())
    return count
