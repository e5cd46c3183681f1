"""Charts by matplotlib, apart from pyplot's global state; the same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from samtune.base.disk import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, ACCENT, CARD = "#3f444d", "#e4e5e9", "#0a6f63", "#fefefe"
"""Of text, of lines behind the data, of data that stand alone, and of what the picture lies on; in a page, the style's
own (see `to_svg`)."""

_STYLE = {INK: "var(--ink)", GRID: "var(--line)", ACCENT: "var(--accent)", CARD: "var(--card)"}
_FONT = 9.5  # points


def new_figure(width: float, height: float, *, dpi: int = 120) -> Figure:
    """Returns an empty picture of a size in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), dpi=dpi, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns an empty chart in the look of the pages; its size is in inches, a page is about 10 wide."""
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, labelcolor=INK, labelsize=_FONT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=_FONT)
    return figure, axes


def to_svg(figure: Figure) -> str:
    """Returns the picture as an `<svg>` element for an HTML page, on no background.

    Text stays text. `INK`, `GRID`, `ACCENT` and `CARD` become variables of the page's style (`--ink`, ...), so that
    the picture is dark where the page is. Nothing is cut at the edge of the axes.
    """
    import matplotlib

    for artist in figure.findobj():
        artist.set_clip_on(False)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "samtune", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r"^.*?<svg[^>]*?( viewBox=\"[^\"]*\")[^>]*>", r"<svg\1>", svg, flags=re.DOTALL)  # XML's head
    svg = re.sub(r"\s*<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # names of groups, the same in every picture
    for colour, variable in _STYLE.items():
        svg = svg.replace(colour, variable)
    return svg


def to_png(figure: Figure) -> bytes:
    """Returns the picture as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def save_figure(path: Path, figure: Figure) -> None:
    """Writes the picture as PNG; its folder is made if needed."""
    write_bytes(Path(path), to_png(figure))
