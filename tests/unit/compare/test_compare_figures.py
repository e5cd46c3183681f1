"""Pictures of a comparison: what is drawn, from which numbers, and what is left out."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from fake_runs import write_class_run, write_run, write_sweep
from PIL import Image
from safetensors.numpy import save_file

from samtune.compare import figures as compare_figures
from samtune.compare.compare import compare
from samtune.compare.figures import draw_costs, draw_features, draw_shots, save_figures

SHOTS = (1, 2, 4)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two rows, three numbers of shots, two seeds; features of the first seed; the second row's test is not known."""
    tasks = {f"shots_{k}": {"title": f"{k} images"} for k in SHOTS}
    folder = write_sweep(tmp_path / "demo", {"a": "A", "b": "B"}, tasks=tasks)
    random = np.random.default_rng(0)
    for row, extra in (("a", 0), ("b", 20)):
        for shots in SHOTS:
            for seed in (0, 1):
                run = write_class_run(
                    folder / "cells" / f"shots_{shots}" / f"{row}_{seed}",
                    40 + 10 * shots + 2 * seed + extra // 2,
                    images=100,
                    seed=seed,
                    seconds=60.0 + extra,
                    memory_mib=100 * shots,
                    test_seconds=3.0 if row == "a" else None,
                    settings={"data.shots": str(shots)},
                )
                labels = np.repeat(np.arange(12), 3)
                features = random.normal(size=(36, 4)) + labels[:, None]
                save_file({"features": features.astype(np.float16), "labels": labels}, run / "features.safetensors")
    return folder


def test_all_pictures_of_a_sweep(sweep: Path, tmp_path: Path) -> None:
    saved = save_figures(compare([sweep]), tmp_path / "out")
    assert [path.name for path in saved] == ["cost.png", "few_shot.png", "tsne.png"]
    for path in saved:
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(2**24)) > 10


def test_cost_bars_are_means_and_peaks(sweep: Path) -> None:
    figure = draw_costs(compare([sweep]).methods)
    panels = {axis.get_title(): [bar.get_width() for bar in axis.patches] for axis in figure.axes}
    assert panels == {
        "training time": pytest.approx([1.0, 80 / 60]),
        "training memory": [400, 400],
        "test time": [3.0, 0.0],
    }
    labels = [text.get_text().strip() for text in figure.axes[2].texts]
    assert labels == ["3", ""]  # what is not known is no zero


def test_lines_of_few_shots(sweep: Path) -> None:
    figure = draw_shots(compare([sweep]).methods)
    (axis,) = figure.axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert lines == {"A": ([1, 2, 4], [51.0, 61.0, 81.0]), "B": ([1, 2, 4], [61.0, 71.0, 91.0])}
    assert axis.get_xscale() == "log" and len(axis.collections) == 2


def test_maps_have_ten_classes_at_most_and_one_task(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_figures, "TSNE_POINTS", 25)
    methods = compare([sweep]).methods
    figure = draw_features(methods)
    maps = [axis for axis in figure.axes if axis.collections]
    assert [axis.get_title() for axis in maps] == ["A", "B"]
    assert {len(axis.collections[0].get_offsets()) for axis in maps} == {25}
    assert len(figure.legends[0].get_texts()) <= 10
    again = draw_features(methods)
    first, second = (figure.axes[0].collections[0].get_offsets() for figure in (figure, again))
    assert np.array_equal(first, second)  # seeded


def test_runs_without_data_have_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "x", (0.1, 0.2, 0.3, 0.4))
    with caplog.at_level(logging.INFO, logger="samtune.compare.figures"):
        assert save_figures(compare([run]), tmp_path / "out") == []
    assert caplog.messages == [
        f"{name}.png is not drawn: the runs have no data for it" for name in ("cost", "few_shot", "tsne")
    ]
