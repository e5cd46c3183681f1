"""The merged file: an ordinary model with what is needed to predict with it, in one safetensors file.

Its tensors have exactly the keys and shapes of the stock model, in fp32; its metadata is a `Description`. A model whose
added modules can't be merged (adapters) ends as a bundle: the same file with the added tensors, and the list of
additions in the metadata.
"""

import logging
from pathlib import Path
from typing import TypeVar

import torch

from samtune.base.tensors import in_fp32, save_tensors, state_hash
from samtune.errors import CheckpointError
from samtune.files.description import REMEDY, Description, model_named
from samtune.models.backbone import Backbone
from samtune.models.weights import load_weights
from samtune.selection.selection import Selection
from samtune.tuning import attach

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Description)


def save_merged(path: Path, model: Backbone, description: Description) -> None:
    """Writes a merged model in fp32, with what could not be merged; atomically, an older file is replaced."""
    save_tensors(path, in_fp32(model.net.state_dict()), description.to_metadata())


def load_merged(path: Path, kind: type[Kind], *, device: torch.device | str = "cpu") -> tuple[Backbone, Kind]:
    """Loads a merged file strictly: the model in eval mode, in fp32, and what the file says.

    Args:
        path: a file; or the name of a model that segments, a folder of transformers or a file of the model's authors,
            for that model as it is.

    Raises:
        CheckpointError: missing, damaged, no merged file or bundle of this kind, or weights that do not fit its model.
    """
    description, name = kind.read(path), model_named(path)
    if name is not None:
        model = description.build(checkpoint=path if path.exists() else None)
        described = description.model_copy(update={"base_hash": state_hash(model.net.state_dict())})
        known = (
            f"{name} of {path}, which says nothing of a run"
            if path.exists()
            else f"{name} as it was published, not tuned"
        )
        logger.info("%s: it segments what a box or points show", known)
        return model.to(device).eval(), described
    try:
        model = description.build()
    except CheckpointError as err:
        raise CheckpointError(f"{path} has {err}") from err
    if description.additions:
        _add(model, description, path)
    load_weights(model, path)
    for buffer, values in ((model.pixel_mean, description.pixel_mean), (model.pixel_std, description.pixel_std)):
        buffer.copy_(torch.tensor(values).view(-1, 1, 1))
    return model.to(device).eval(), description


def load_plain(path: Path) -> tuple[Backbone, Description]:
    """Loads a model that is merged whole, for other programs; raises as `load_merged`, and of a bundle."""
    model, description = load_merged(path, Description)
    if description.additions:
        raise CheckpointError(
            f"{path} is a bundle: its {description.additions[0].kind} modules can't be merged, which stock code "
            "lacks. Tune with a method that merges, such as gps, grft, lora or ssf."
        )
    return model, description


def _add(model: Backbone, description: Description, path: Path) -> None:
    """Puts the additions that a file lists into its model, without their values."""
    try:
        attach(model, Selection({}, additions=description.additions))
    except (LookupError, ValueError, ArithmeticError, RuntimeError) as err:  # options that are missing, or no sizes
        reason = str(err) if isinstance(err, CheckpointError) else repr(err)
        raise CheckpointError(f"{path} has impossible metadata: additions ({reason}). {REMEDY}") from err
    model.requires_grad_(False)
