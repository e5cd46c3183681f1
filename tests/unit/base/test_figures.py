from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from matplotlib.figure import Figure

from samtune.base.figures import ACCENT, GRID, INK, new_axes, to_png, to_svg


def drawing() -> Figure:
    figure, axes = new_axes(5, 2)
    axes.plot([1, 2, 3], [1, 3, 2], color=ACCENT, marker="o")
    axes.set_xlabel('<a> & "$x')
    return figure


def test_a_picture_in_a_page_takes_the_colours_of_its_style() -> None:
    svg = to_svg(drawing())
    assert all(f"var({name})" in svg for name in ("--ink", "--line", "--accent"))
    assert not any(colour in svg for colour in (INK, GRID, ACCENT))
    assert "#ffffff" not in svg  # no background of its own


def test_a_picture_in_a_page_holds_nothing_that_acts_on_the_page() -> None:
    svg = to_svg(drawing())
    ET.fromstring(svg.replace("xlink:", ""))  # well-formed
    assert svg.startswith('<svg viewBox="0 0 360 144">') and "<style" not in svg
    assert "http" not in svg and "url(" not in svg and "&lt;a&gt; &amp; " in svg
    ids = re.findall(r' id="(.*?)"', svg)
    assert len(ids) == len(set(ids)) and all(re.fullmatch("m[0-9a-f]{10}", name) for name in ids)


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert to_svg(drawing()) == to_svg(drawing())
    assert to_png(drawing()) == to_png(drawing())
