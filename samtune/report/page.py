"""A page is data: sections of charts, tables, pictures and code. `templates/` turns it into one HTML file.

It works offline and can be mailed: styles and pictures are inside, charts are SVG in the page's colours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from samtune.base.disk import write_text
from samtune.base.figures import to_svg
from samtune.errors import DiskError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["name", "number", "bar", "words"]
"""How a cell is shown: what its row is about; a number; a bar as long as a percentage says; a sentence."""

Trend = Literal["up", "down", "unsure"]
"""Whether the interval of a change is above 0, below it, or holds it or is not known."""


@dataclass(frozen=True)
class Card:
    """One headline number; numbers are in [0, 1], None where there is none.

    Attributes:
        value: the number as text, in percent.
        now: the number, for the bar; without it there is no bar.
        change: difference to `before`, the number before tuning, as text.
        trend: where the interval of the change lies.
        words: what else there is to say, a few words each.
    """

    label: str
    value: str
    now: float | None = None
    interval: tuple[float, float] | None = None
    before: float | None = None
    change: str = ""
    trend: Trend = "unsure"
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A picture that is drawn in the page's colours.

    Attributes:
        about: what it shows, for readers who can't see it.
        wide: over the whole page; others stand two in a row.
    """

    heading: str
    figure: Figure
    about: str
    note: str = ""
    wide: bool = False

    @property
    def svg(self) -> str:
        """The picture as an `<svg>` element."""
        return to_svg(self.figure)


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        columns: heading -> how its cells are shown; the first one is the "name".
        rows: a text for each column; of a "bar" a percentage without its sign, or "".
        total: the last row is a sum and set apart.
    """

    columns: Mapping[str, Kind]
    rows: Sequence[Sequence[str]]
    total: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG file with its caption; with a `width` it is shown no wider, in a tenth of the bytes (as JPEG)."""

    caption: str
    file: Path
    width: int | None = None

    @property
    def source(self) -> str:
        """The file as a `data:` URL; a `DiskError` if it can't be read."""
        try:
            content = self.file.read_bytes()
            kind, content = ("png", content) if self.width is None else ("jpeg", _shrunk(content, self.width))
        except OSError as err:
            reason = err.strerror or "it is no picture"
            raise DiskError(f"can't read the picture {self.file}: {reason}. Save the overlays first.") from err
        return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in the order of the attributes, `lines` after the note; `folded` code is hidden."""

    heading: str
    note: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""
    folded: bool = False
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """What is written to one file.

    Attributes:
        kind: what it reports on, one word.
        facts: a few words each, such as {"Model": "sam_vit_b"}.
        footer: where the numbers come from.
    """

    kind: str
    title: str
    facts: Mapping[str, str]
    cards: Sequence[Card]
    sections: Sequence[Section]
    footer: str


def save_page(path: Path, page: Page) -> None:
    """Writes a page as one HTML file.

    Raises:
        DiskError: a picture can't be read or the file can't be written.
    """
    loader, strict = PackageLoader("samtune.report"), StrictUndefined
    templates = Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    write_text(path, templates.get_template("page.html").render(page=page))


def _shrunk(content: bytes, width: int) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((width, small.height))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def percent(value: float | None) -> str:
    """Words a fraction in percent, without the sign; None is undefined."""
    return "n/a" if value is None else f"{100 * value:.1f}"
