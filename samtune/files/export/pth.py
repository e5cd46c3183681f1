"""A merged model as `.pth`, which the model's own library loads strictly."""

import logging
from pathlib import Path

import torch

from samtune.errors import CheckpointError
from samtune.files.description import Description
from samtune.models.weights import RANDOM, check_state, read_state, save_pth

logger = logging.getLogger(__name__)


def export_pth(merged: Path, out: Path) -> None:
    """Writes the state dict of a merged model for stock code, and logs how that loads it.

    A Segment Anything goes into segment-anything's `sam_model_registry`, a classifier into `timm.create_model(...,
    checkpoint_path=...)`.

    Raises:
        CheckpointError: no merged file, a damaged one, or a bundle or a model, whose modules stock code lacks.
        DiskError: `out` can't be written.
    """
    description = Description.read(merged)
    if description.additions:
        raise CheckpointError(
            f"{merged} is a bundle: its {description.additions[0].kind} modules can't be merged, which stock code "
            "lacks. Tune with a method that merges, such as gps, grft, lora or ssf."
        )
    with torch.device("meta"):
        model = description.build(checkpoint=RANDOM)
    notes, state = model.stock_notes(out), read_state(merged)
    check_state(model.net.state_dict(), state, merged, model.looks_like)
    save_pth(out, state)
    for line in notes:
        logger.info("%s", line)
    if description.range is not None:
        logger.info("give it pictures whose values %g to %g became 0 to 255, cut off outside", *description.range)
    if description.classes:
        logger.info("its outputs are, in order: %s", ", ".join(description.classes))
