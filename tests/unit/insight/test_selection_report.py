"""The page of a selection, and its pictures."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import Checker
from PIL import Image
from toy import toy_model

from samtune.base.figures import to_png, to_svg
from samtune.errors import DiskError
from samtune.insight import pictures as pictures
from samtune.insight.distribution import Amount, Distribution, Overlap, Shared, distribution
from samtune.insight.page import save_selection_report
from samtune.insight.stability import Noise, Noisy, Stability
from samtune.selection.selection import Selection

FOUND = Distribution(
    {
        ("patch_embed", "conv"): Amount(100, 0, 10_000),
        ("block 0", "q"): Amount(200, 0, 20_000),
        ("block 0", "fc1"): Amount(700, 0, 40_000),
        ("block 1", "q"): Amount(0, 1000, 0),
    },
    whole=4321,
)
EMPTY = Distribution({}, 0)
SHARED = Overlap(
    {"patch_embed": Shared(), "block 0": Shared(30, 20, 10, 0.5), "block 1": Shared(10, 10, 10, 1.0)}, ("a.weight",)
)
NOISE = Noise({"patch_embed": Noisy(0, 0, 1000, 500), "block 0": Noisy(100, 5, 4000, 2400)}, 21)
STABLE = Stability((("seeds 0 and 1", SHARED),), (("halves by seed 0", SHARED),))
COUNTS = {"selected": 1000, "bias": 0, "decoder": 4321, "added": 1000, "total": 6321, "percent": 4.419}


def make_page(folder: Path, **changes: Any) -> tuple[str, Checker]:
    arguments: dict[str, Any] = {
        "title": "polyp",
        "distribution": FOUND,
        "overlap": SHARED,
        "noise": NOISE,
        "stability": STABLE,
        "counts": COUNTS,
        "provenance": {"method": "gps", "model": "sam_vit_b", "images_hash": "ab" * 32},
    }
    save_selection_report(folder / "selection.html", **{**arguments, **changes})
    page = (folder / "selection.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return page, checker


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Checker]:
    """The page with all its parts; pictures take time, so it is made once."""
    return make_page(tmp_path_factory.mktemp("page"))


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_all_sections_in_order(default: tuple[str, Checker]) -> None:
    page, checker = default
    assert headings(page) == [
        "What trains", "Distribution", "Overlap with another selection", "Noise of the scores", "Stability",
        "Provenance",
    ]  # fmt: skip
    assert "samtune selection report" in checker.words and "samtune run report" not in checker.words
    assert page.count("<svg ") == 5


def test_the_tables_hold_the_numbers(default: tuple[str, Checker]) -> None:
    _, checker = default
    for row in (
        ["Added modules", "1,000", "Parameters that the pretrained model does not have."],
        ["Total", "6,321", "4.42 % of the model's parameters."],
        ["block 0", "900", "0", "45.00 %", "150.00"],
        ["block 1", "0", "1,000", "50.00 %", "n/a"],
        ["q", "200", "1,000", "60.00 %", "100.00"],
        ["Total", "1,000", "1,000", "100.00 %", "142.86"],
        ["block 0", "30", "20", "10", "0.2500", "0.0101", "33.3 %"],
        ["Total", "40", "30", "20", "0.4000", "0.0219", "50.0 %"],
        ["patch_embed", "n/a", "50.0 %", "0", "1,000"],
        ["Total", "5.0 %", "58.0 %", "100", "5,000"],
        ["halves by seed 0", "0.4000", "0.0219"],
        ["images_hash", "ab" * 32],
    ):
        assert row in checker.rows, row
    assert not any(row[0] == "Biases" for row in checker.rows)  # a kind that does not train is not listed


def test_every_number_is_defined(default: tuple[str, Checker]) -> None:
    _, checker = default
    text = " ".join(checker.words)
    for words in (
        "density is its chosen entries per 10,000 entries of the weights there",
        "Tensors that train whole (4,321 parameters) are the method's choice and not counted here.",
        "entries that both selections chose, divided by the entries that either chose",
        "are left out; the other one chooses entries in 1 of these",
        "a sum of 21 gradients",
        "67.1 % of all entries would be",
        "on two halves of the images without a common one",
    ):
        assert words in text, words


def test_without_additions_there_is_no_column_for_them(tmp_path: Path) -> None:
    plain = Distribution({("block 0", "q"): Amount(1, 0, 4)}, 0)
    _, checker = make_page(tmp_path, distribution=plain, overlap=None, noise=None)
    assert ["Part", "Chosen entries", "Share", "Density (per 10,000)"] in checker.rows
    assert "Added parameters" not in checker.words


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    page, _ = make_page(tmp_path, overlap=None, noise=None, stability=None, provenance={})
    assert headings(page) == ["What trains", "Distribution"] and page.count("<svg ") == 3
    assert 'class="facts"' not in page
    page, _ = make_page(tmp_path, distribution=EMPTY, overlap=None, noise=None, stability=Stability((), ()))
    assert "Stability" not in headings(page)


def test_a_selection_without_entries_gets_a_clear_page(tmp_path: Path) -> None:
    model = toy_model()
    decoder = tuple(name for name, role in model.roles().items() if role == "decoder")
    nothing = Overlap({"block 0": Shared()})
    noise = Noise({"block 0": Noisy(0, 0, 10, 5)}, 3)
    empty = distribution(model, Selection({}, decoder))
    page, checker = make_page(tmp_path, distribution=empty, overlap=nothing, noise=noise, stability=None)
    text = " ".join(checker.words)
    assert "This selection chooses no entries and adds no parameters, so there is no distribution to show." in text
    assert "Neither selection chooses entries, so there is nothing to compare." in text
    assert "<svg" not in page and "nan" not in {word.strip(" %") for word in checker.words}
    assert ["Total", "n/a", "50.0 %", "0", "10"] in checker.rows


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&$title'
    page, checker = make_page(
        tmp_path,
        title=evil,
        distribution=Distribution({(evil, evil): Amount(1, 0, 2)}, 0),
        overlap=Overlap({evil: Shared(1, 1, 1)}, (evil,)),
        noise=Noise({evil: Noisy(1, 0, 1, 0)}, 2),
        stability=Stability(((evil, SHARED),), ()),
        provenance={"method": evil, evil: evil},
    )
    assert "<script" not in page
    assert sum(evil in words for words in checker.words) >= 9


def test_the_file_is_self_contained(default: tuple[str, Checker]) -> None:
    page, checker = default
    assert checker.links == []
    assert "<script" not in page and "@import" not in page and "url(" not in page and "http" not in page


def test_disk_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "selection.html").mkdir()
    with pytest.raises(DiskError, match=r"can't write to .*selection\.html: .*Choose a writable folder"):
        make_page(tmp_path, distribution=EMPTY, overlap=None, noise=None)


# --- pictures


def deep(blocks: int) -> Distribution:
    """Returns a distribution over a network with that many blocks, and parts around them."""
    around = {("patch_embed", "conv"): Amount(5, 0, 10), ("neck", "conv"): Amount(1, 0, 10)}
    inside = {(f"block {b}", op): Amount(b + 1, 0, 100) for b in range(blocks) for op in ("q", "fc1")}
    return Distribution(around | inside, 0)


def area(drawn: Figure, colour: str) -> int:
    """Counts the pixels of a colour."""
    wanted = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    pixels = np.asarray(Image.open(io.BytesIO(to_png(drawn))).convert("RGB")).reshape(-1, 3)
    return int((pixels == wanted).all(axis=1).sum())


@pytest.mark.parametrize("blocks", [1, 12, 40])
def test_pictures_of_any_depth_are_drawn_the_same_twice(blocks: int) -> None:
    found = deep(blocks)
    draws = [lambda: pictures.shares(found, "part"), lambda: pictures.shares(found, "operation")]
    for draw in (*draws, lambda: pictures.heat_map(found)):
        first = to_svg(draw())
        assert first == to_svg(draw()) and first.startswith("<svg ") and len(first) < 150_000


def test_the_bars_are_as_long_as_the_shares() -> None:
    """Of the entries of either selection, 25 % are in both; the bar of that part is as large as its neighbour's."""
    drawn = pictures.overlap_bars(Overlap({"block 0": Shared(50, 75, 25)}), names=("this", "other"))
    first, both, second = (area(drawn, colour) for colour in ("#0072B2", "#7b8291", "#E69F00"))
    assert first / second == pytest.approx(25 / 50, rel=0.05)
    assert both / first == pytest.approx(1, rel=0.05)


def test_noise_bars_show_chosen_and_all() -> None:
    drawn = pictures.noise_bars(Noise({"block 0": Noisy(10, 2, 100, 60)}, 10))
    assert area(drawn, "#0072B2") / area(drawn, "#E69F00") == pytest.approx(20 / 60, rel=0.1)


def test_drawing_leaves_pyplot_alone() -> None:
    import matplotlib.pyplot as plt

    pictures.heat_map(deep(2))
    assert plt.get_fignums() == []
