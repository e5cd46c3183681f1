"""A merged model as `.pth`, which the model's own library loads strictly."""

import logging
from pathlib import Path

from samtune.files.merged import load_plain
from samtune.models.weights import save_pth

logger = logging.getLogger(__name__)


def export_pth(merged: Path, out: Path) -> None:
    """Writes the state dict of a merged model for stock code, and logs how that loads it.

    A Segment Anything goes into segment-anything's `sam_model_registry`, a classifier into `timm.create_model(...,
    checkpoint_path=...)`.

    Raises:
        CheckpointError: no merged file, a damaged one, or a bundle or a model, whose modules stock code lacks.
        DiskError: `out` can't be written.
    """
    model, description = load_plain(merged)
    notes = model.stock_notes(out)
    save_pth(out, dict(model.net.state_dict()))
    for line in notes:
        logger.info("%s", line)
    if description.range is not None:
        logger.info("give it pictures whose values %g to %g became 0 to 255, cut off outside", *description.range)
    if description.classes:
        logger.info("its outputs are, in order: %s", ", ".join(description.classes))
