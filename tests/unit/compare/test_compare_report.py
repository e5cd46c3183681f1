"""The page and the picture of a comparison: what they show, and what they say where there is nothing to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_run, write_sweep
from pages import Checker
from PIL import Image

from samtune.compare.charts import draw_effects, draw_gain
from samtune.compare.compare import Compared, compare
from samtune.compare.figures import save_figures
from samtune.compare.pictures import same_images
from samtune.compare.report import save_report

NAMES = tuple(f"img {number}" for number in range(12))
ROWS = {"low": (0.5, 2.0), "high": (0.7, 3.0), "near": (0.502, 4.0)}  # mean, minutes


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Three rows with two seeds and one without runs; `low` and `high` left pictures of three images, `near` of one."""
    folder = write_sweep(tmp_path_factory.mktemp("sweep") / "demo", {name: name.upper() for name in (*ROWS, "none")})
    random = np.random.default_rng(0)
    for name, (mean, minutes) in ROWS.items():
        for seed in (0, 1):
            dice = np.clip(mean + random.normal(0, 0.03, len(NAMES)), 0, 1)
            dice[3] = 0.1 if name == "low" else 0.9
            cost = {"seconds": 60 * minutes, "memory_mib": int(100 * minutes)}
            run = write_run(folder / "cells" / f"{name}_{seed}", dice.tolist(), names=NAMES, seed=seed, **cost)
            for number in (3, 5, 6) if name != "near" else (5,):
                (run / "overlays").mkdir(exist_ok=True)
                Image.new("RGB", (1500, 20), (9 * number, 0, 0)).save(run / "overlays" / f"img_{number}.png")
    return compare([folder], against="low")


def test_a_dot_is_filled_where_the_corrected_p_is_small(compared: Compared) -> None:
    figure = draw_effects(compared)
    assert figure is not None
    (axes,) = figure.axes
    dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    filled = [dots[place].get_markerfacecolor() == dots[place].get_color() for place in (0, 1)]
    assert filled == [True, False]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["HIGH", "NEAR"]  # the row without runs has none
    found = compared.effects[1]
    assert found is not None and dots[0].get_xdata()[0] == found.images.value
    assert axes.get_xlabel() == "mDice, minus that of LOW"


def test_effects_are_among_the_pictures(compared: Compared, tmp_path: Path) -> None:
    assert [file.name for file in save_figures(compared, tmp_path)] == ["effects.png", "cost.png"]
    with Image.open(tmp_path / "effects.png") as picture:
        assert min(picture.size) > 100


def test_cost_against_gain(compared: Compared) -> None:
    figure = draw_gain(compared, "seconds")
    assert figure is not None
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [2.0, 3.0, 4.0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([score for score in compared.scores if score is not None])
    assert {text.get_text() for text in axes.texts} == {"LOW", "HIGH", "NEAR"}


def test_images_that_most_rows_show_and_that_differ_most(compared: Compared) -> None:
    images = same_images(compared.methods)
    assert [image.name for image in images[:2]] == ["img 5", "img 3"]
    assert [overlay.title for overlay in images[0].overlays] == ["LOW", "HIGH", "NEAR"] and images[0].missing == ()
    assert images[1].missing == ("NEAR",) and images[1].overlays[0].value == 0.1
    assert len(images) == 3


def test_the_page_has_it_all(compared: Compared, tmp_path: Path) -> None:
    save_report(tmp_path / "page.html", compared, command="samtune compare demo")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Checker()
    page.feed(text)
    assert page.open == []
    words = " ".join(page.words)
    for heading in ("Results", "Differences to LOW", "Image img 5: the rows differ most", "Cost against gain"):
        assert heading in words
    assert "Not among the pictures of: NEAR." in words and "samtune compare demo" in words
    assert text.count("<svg") == 3 and len(page.links) == 7
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert ["NONE", "no run"] in [row[:2] for row in page.rows]


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, (0.1, 0.2, 0.3, value)) for name, value in (("x", 0.4), ("y", 0.5))]
    save_report(tmp_path / "page.html", compare(runs), command="samtune compare x y")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "eval.overlays: 0" in text and "no history.jsonl" in text and "--against ROW" in text
    assert "<svg" not in text and "<img" not in text
