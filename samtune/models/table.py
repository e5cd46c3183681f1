"""The models by name."""

from __future__ import annotations

from pathlib import Path

from samtune.models.sam.model import SamModel
from samtune.models.weights import RANDOM, load_packaged, load_weights, official_checkpoint


def build_model(name: str, *, checkpoint: str | Path | None = None, image_size: int | None = None) -> SamModel:
    """Builds a pretrained model in eval mode.

    Args:
        name: `sam_tiny`, `sam_vit_b`, `sam_vit_l` or `sam_vit_h`.
        checkpoint: a file; None for the weights inside the package (`sam_tiny`) or the official ones, downloaded
            once; "random" for segment-anything's own initialisation.
        image_size: side of the input frame in pixels, a multiple of 16; None for the stock size.

    Raises:
        ConfigError: unknown name or impossible size.
        CheckpointError: a file that is missing, damaged or belongs to another model.
    """
    model = SamModel(name, image_size).eval()
    if checkpoint == RANDOM:
        return model
    if checkpoint is not None:
        load_weights(model, Path(checkpoint))
    elif name == "sam_tiny":
        load_packaged(model, name)
    else:
        load_weights(model, official_checkpoint(name))
    return model
