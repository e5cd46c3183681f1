"""How much room on the disk does a run need? That is known before its first step."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from samtune.base.disk import free_bytes
from samtune.errors import DiskError
from samtune.models.backbone import Backbone
from samtune.selection import Selection

PAGES = 8_000_000
"""Bytes for report, pictures and tables."""


def check_space(folder: Path, model: Backbone, selection: Selection, trained: Iterable[Tensor], *, ema: bool) -> None:
    """Refuses to start a training whose files will not fit.

    Args:
        trained: what `attach` returned.

    Raises:
        DiskError: with the bytes needed and free.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # of a run that goes on
    needed, free = needed_bytes(model, selection, trained, ema=ema) - there, free_bytes(folder)
    if needed > free:
        raise DiskError(
            f"{folder}: the run needs about {needed / 1e6:,.0f} MB on the disk, and {free / 1e6:,.0f} MB are free. "
            "Free some space, or choose another --run-dir."
        )


def needed_bytes(model: Backbone, selection: Selection, trained: Iterable[Tensor], *, ema: bool) -> int:
    """Returns the bytes of checkpoints, merged model, delta and pages, when all are there.

    A checkpoint holds what trains, two moments and perhaps an average of it; there are three, one being written, and
    two copies of the best weights.
    """
    training: int = sum(4 * tensor.numel() for tensor in trained)
    merged: int = sum(4 * tensor.numel() for tensor in model.net.state_dict().values())
    indices: int = sum(tensor.numel() * tensor.element_size() for tensor in selection.entries.values())
    delta = training + indices
    copies = 2 if model.keeps_folder else 1
    return 3 * (4 if ema else 3) * training + 2 * training + copies * merged + 2 * delta + PAGES
