"""A merged model of transformers as its folder: config, weights and processor, which `from_pretrained` loads."""

import logging
from pathlib import Path

from samtune.errors import CheckpointError
from samtune.files.layouts import own_layout, twin_model
from samtune.files.merged import load_plain

logger = logging.getLogger(__name__)


def export_folder(merged: Path, out: Path) -> None:
    """Writes a merged model to a new or empty folder; one of SAM 1 in the layout of transformers.

    Raises:
        CheckpointError: no merged file, a damaged one, a bundle, or a model that transformers does not have.
        DiskError: `out` can't be written.
    """
    model, description = load_plain(merged)
    if not model.keeps_folder and own_layout(model.name) is None:
        model.stock_notes(out)  # which raises where no other library has the model either
        raise CheckpointError(f"{merged} is of {model.name}, which is no model of transformers. Use --format pth.")
    if out.name in ("", ".."):
        raise CheckpointError(f"{out} is no new folder: give the name of one.")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} holds something already: give a new folder, so that nothing is lost.")
    stock = model if model.keeps_folder else twin_model(description, model.net.state_dict())
    stock.save_stock(out)
    if description.range is not None:
        logger.info("give it pictures whose values %g to %g became 0 to 255, cut off outside", *description.range)
