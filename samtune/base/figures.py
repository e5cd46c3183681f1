"""Pictures by matplotlib, apart from pyplot's global state; the same numbers give the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from samtune.base.disk import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#3f444d", "#e4e5e9"
"""Of text, and of lines behind the data."""


def new_figure(width: float, height: float, *, dpi: int = 120) -> Figure:
    """Returns an empty picture of a size in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), dpi=dpi, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def to_png(figure: Figure) -> bytes:
    """Returns the picture as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def save_figure(path: Path, figure: Figure) -> None:
    """Writes the picture as PNG; its folder is made if needed.

    Raises:
        DiskError: the file can't be written.
    """
    write_bytes(Path(path), to_png(figure))
