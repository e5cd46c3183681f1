"""The merged file: an ordinary model with what is needed to predict with it, in one safetensors file.

Its tensors have exactly the keys and shapes of the stock model, in fp32; its metadata is a `Description`. A model whose
added modules can't be merged (adapters) ends as a bundle: the same file with the added tensors, and the list of
additions in the metadata.
"""

from pathlib import Path
from typing import TypeVar

import torch

from samtune.base.tensors import in_fp32, save_tensors
from samtune.errors import CheckpointError
from samtune.files.description import Description, model_metadata
from samtune.models.backbone import Backbone
from samtune.models.weights import load_weights
from samtune.selection.selection import Selection
from samtune.tuning import attach

Kind = TypeVar("Kind", bound=Description)


def save_merged(path: Path, model: Backbone, description: Description) -> None:
    """Writes a merged model in fp32, with what could not be merged; atomically, an older file is replaced."""
    save_tensors(path, in_fp32(model.net.state_dict()), description.to_metadata())


def load_merged(path: Path, kind: type[Kind], *, device: torch.device | str = "cpu") -> tuple[Backbone, Kind]:
    """Loads a merged file strictly: the model in eval mode, in fp32, and what the file says.

    Raises:
        CheckpointError: missing, damaged, no merged file or bundle of this kind, or weights that do not fit its model.
    """
    description = kind.from_metadata(model_metadata(path), path)
    try:
        model = description.build()
    except CheckpointError as err:
        raise CheckpointError(f"{path} has {err}") from err
    if description.additions:
        attach(model, Selection({}, additions=description.additions))
        model.requires_grad_(False)
    load_weights(model, path)
    for buffer, values in ((model.pixel_mean, description.pixel_mean), (model.pixel_std, description.pixel_std)):
        buffer.copy_(torch.tensor(values).view(3, 1, 1))
    return model.to(device).eval(), description
