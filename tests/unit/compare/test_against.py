"""Rows tested against one of them: pairing by image and seed, corrections, what can't be tested, and who is ROW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import NAMES, write_class_run, write_run, write_sweep
from scipy import stats

from samtune.compare.compare import compare
from samtune.errors import ConfigError, DataError
from samtune.metrics.bootstrap import paired_bootstrap

LOW, HIGH, ODD = (0.4, 0.5, 0.6, 0.7), (0.5, 0.7, 0.9, 0.75), (0.41, 0.48, 0.66, 0.7)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Row `low` has seeds 0 and 1, `high` 0, 1 and 2, `same` seed 0 with the values of `low`, `none` no run."""
    folder = write_sweep(
        tmp_path / "demo", {"low": "Low", "high": "High", "same": "Same", "none": "None"}, seeds=(0, 1, 2)
    )
    for name, dice in {
        "low_0": LOW,
        "low_1": ODD,
        "high_0": HIGH,
        "high_1": HIGH,
        "high_2": LOW,
        "same_0": LOW,
    }.items():
        write_run(folder / "cells" / name, dice, seed=int(name[-1]))
    return folder


def against(comparison: Any, title: str, metric: str = "mDice") -> dict[str, Any]:
    rows = json.loads(json.dumps(comparison.to_json()))["rows"]
    return next(row for row in rows if row["title"] == title)[metric]["against"]


def lines(text: str, title: str) -> list[list[str]]:
    """Cells of the lines of a row, table by table."""
    starts = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [[cell.strip() for cell in line.strip("|").split(" |")[1:]] for line in starts]


def test_images_are_averaged_over_the_seeds_of_both_rows(sweep: Path) -> None:
    found = against(compare([sweep], against="low"), "High")
    theirs = [(a + b) / 2 for a, b in zip(LOW, ODD, strict=True)]
    assert (found["difference"], *found["ci95"]) == pytest.approx(paired_bootstrap(theirs, HIGH))
    assert found["p"] == 2 / 2**4  # all four images are better
    assert (found["seeds"], found["seeds_left_out"]) == ([0, 1], [2])
    by_seed = [np.mean(HIGH) - np.mean(LOW), np.mean(HIGH) - np.mean(ODD)]
    test = stats.ttest_1samp(by_seed, 0.0)
    assert found["over_seeds"]["p"] == pytest.approx(test.pvalue)
    assert found["over_seeds"]["ci95"] == pytest.approx(list(test.confidence_interval()))


def test_p_values_are_corrected_for_the_rows_that_were_tested(sweep: Path) -> None:
    write_run(sweep / "cells" / "none_0", ODD, seed=0)
    comparison = compare([sweep], against="low")
    high, none = against(comparison, "High"), against(comparison, "None")
    assert high["p_holm"] == pytest.approx(2 * high["p"])  # `same` differs from `low` nowhere and has no test
    assert none["p_holm"] == pytest.approx(max(none["p"], 2 * high["p"]))
    assert against(comparison, "High", "mIoU")["p"] == high["p"]


def test_the_tables_say_what_was_tested_and_what_could_not_be(sweep: Path) -> None:
    text = compare([sweep], against="low").to_markdown()
    assert "| mDice - Low |" in text and "first row" not in text
    (result, test, *_), (_, same, *_), (none, none_test, *_) = (lines(text, t) for t in ("High", "Same", "None"))
    assert result[-1].startswith("+0.156 (+0.0") and result[-1].endswith(", p 0.12")
    assert test[:2] == ["0.12", "0.12"] and test[-1] == "0, 1; left out: 2"
    assert same[0] == "equal on every image" and same[3] == "one seed" and same[-1] == "0; left out: 1"
    assert none[-1] == "no run" and none_test[0] == "no run"
    assert lines(text, "Low")[0][-1] == "" and len(lines(text, "Low")) == 3  # not tested against itself
    assert "- p (Holm): The same, corrected for the number of rows by Holm's method." in text
    assert "of this row minus Low, paired by image" in text


def test_runs_without_a_common_seed_are_compared_by_image(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, dice) for name, dice in (("x", LOW), ("y", HIGH))]
    (runs[1] / "config.yaml").write_text("run: {seed: 5}\ntrain: {lr: 0.1}\n")
    comparison = compare(runs, against=str(runs[0]))
    found = against(comparison, str(runs[1]))
    assert found["difference"] == pytest.approx(np.mean(HIGH) - np.mean(LOW)) and found["seeds"] == []
    assert found["over_seeds"]["why"] == "no seed in common"
    assert lines(comparison.to_markdown(), str(runs[1]))[1][-1] == "none in common"


@pytest.mark.parametrize("name", ["high", "High"])
def test_a_row_has_a_short_name_and_a_title(sweep: Path, name: str) -> None:
    assert compare([sweep], against=name).to_json()["against"] == "High"


def test_a_run_folder_names_its_row(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep)
    assert compare([sweep], against="cells/high_2").to_json()["against"] == "High"


def test_an_unknown_row(sweep: Path) -> None:
    known = r"There are: low \(Low\), high \(High\), same \(Same\), none \(None\)"
    with pytest.raises(ConfigError, match=rf"--against hihg: there is no such row. Did you mean 'high'\? {known}"):
        compare([sweep], against="hihg")


def test_a_row_without_runs(sweep: Path) -> None:
    with pytest.raises(DataError, match=r"--against none: this row has no run yet. .* name one of: low, high, same"):
        compare([sweep], against="none")


def test_a_name_of_two_rows(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", LOW) for parent in "xy"]
    with pytest.raises(ConfigError, match="--against run: 2 rows have this name"):
        compare(runs, against="run")


def test_images_of_one_name_and_one_image(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, dice, names=NAMES[:1]) for name, dice in (("x", LOW[:1]), ("y", HIGH[:1]))]
    found = against(compare(runs, against="x"), str(runs[1]))
    assert (found["p"], found["why"]) == (None, "one image")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks, two rows, two seeds; row `lora` has no run of the second task, `off` has no task."""
    titles = {"one": {"title": "One"}, "two": {"title": "Two"}}
    folder = write_sweep(tmp_path / "demo", {"gps": "GPS", "bias": "Bias", "lora": "LoRA", "off": "Off"}, tasks=titles)
    right = {
        "gps": {"one": (60, 64), "two": (80, 82)},
        "bias": {"one": (70, 75), "two": (81, 82)},
        "lora": {"one": (60, 64)},
    }
    for row, found in right.items():
        for task, counts in found.items():
            for seed, count in enumerate(counts):
                write_class_run(folder / "cells" / task / f"{row}_{seed}", count, images=100, seed=seed)
    content = json.loads((folder / "sweep.yaml").read_text())
    content["cells"]["off"]["only"] = []
    (folder / "sweep.yaml").write_text(json.dumps(content))
    return folder


def test_tasks_and_their_mean_have_differences(tasks: Path) -> None:
    comparison = compare([tasks], against="gps")
    rows = {row["title"]: row["values"] for row in comparison.to_json()["rows"]}
    bias = {name: value["against"] for name, value in rows["Bias"].items()}
    assert [bias[name]["difference"] for name in ("One", "Two", "mean of tasks")] == pytest.approx([10.5, 0.5, 5.5])
    assert bias["mean of tasks"]["over_seeds"]["difference"] == pytest.approx((10 + 11 + 1 + 0) / 4)
    assert bias["mean of tasks"]["p"] < 0.01 < bias["Two"]["p"] == 1.0  # one image of 100 differs, in one seed
    assert rows["GPS"]["One"]["against"] is None
    text = comparison.to_markdown()
    _, gain, test, *_ = lines(text, "Bias")
    assert gain[0].startswith("+10.50 (+") and gain[2].startswith("+5.50 (+") and test[-1] == "0, 1"
    _, gain, test, *_ = lines(text, "LoRA")
    assert gain == ["+0.00 (+0.00 to +0.00), equal on every image", "no run", "no run"] and test[0] == "no run"
    assert lines(text, "Off")[0] == ["", "", "", ""] and lines(text, "Off")[1] == ["no run"] * 3
