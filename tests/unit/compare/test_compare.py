"""The table of runs: means and intervals, differences, empty rows, and what can't be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runs import COUNTS, NAMES, write_class_run, write_run, write_sweep

from samtune.compare.compare import Comparison, compare
from samtune.errors import ConfigError, DataError
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap

LOW, HIGH = (0.4, 0.5, 0.6, 0.7), (0.6, 0.6, 0.9, 0.9)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Row `one` has two seeds, row `two` one of two, row `none` no run."""
    folder = write_sweep(tmp_path / "demo", {"two": "Two | random", "one": "One", "none": "None"})
    write_run(folder / "cells" / "one_0", LOW, seconds=60.0, memory_mib=500)
    write_run(folder / "cells" / "one_1", HIGH, seconds=120.0, memory_mib=1500)
    write_run(folder / "cells" / "two_0", LOW, lr=1e-2, edge=True)
    return folder


def row_of(markdown: str, title: str, table: int = 0) -> list[str]:
    lines = markdown.split("\n\n")[table].splitlines()
    return next(
        [cell.strip() for cell in line.strip("|").split(" |")[1:]] for line in lines if line.startswith(f"| {title}")
    )


def test_means_spread_and_intervals(sweep: Path) -> None:
    row = compare([sweep]).rows[1]
    mean, deviation = row.spread("mDice")
    assert mean == pytest.approx(0.65) and deviation == pytest.approx(0.1 * 2**0.5)
    both = [(a + b) / 2 for a, b in zip(LOW, HIGH, strict=True)]
    assert list(row.per_image("mDice").values()) == pytest.approx(both)
    assert row.ci95("mDice") == pytest.approx(bootstrap_ci(both))
    assert row.spread("mIoU")[0] == pytest.approx(0.325)


def test_the_difference_is_paired_by_name(sweep: Path) -> None:
    write_run(sweep / "cells" / "none_0", LOW[::-1], names=NAMES[::-1], seconds=1.0)  # the images of `two`, reversed
    two, one, none = compare([sweep]).rows
    both = [(a + b) / 2 for a, b in zip(LOW, HIGH, strict=True)]
    assert one.minus(two, "mDice") == pytest.approx(paired_bootstrap(LOW, both))
    assert none.minus(two, "mDice") == (0, 0, 0)


def test_markdown(sweep: Path) -> None:
    comparison = compare([sweep])
    text = comparison.to_markdown()
    assert comparison.first.title == "Two | random" and comparison.best.title == "One"
    assert row_of(text, "Before (untuned)") == ["0.200", "", "0.100", "", "", ""]
    one, two = row_of(text, "One"), row_of(text, "Two")
    assert one[0] == "0.650 ± 0.141" and two[0] == "0.550 (1 of 2 seeds)"
    assert one[4].startswith("+0.100 (+0.0") and one[5] == ""
    assert two[4] == "" and two[5].startswith("-0.100 (")
    assert [row_of(text, "None", table) for table in range(3)] == [[""] * 6, [""] * 7, [""] * 4]
    assert row_of(text, "One", 1) == ["7", "5", "0", "1,000", "0", "0", "1,012"]
    assert row_of(text, "One", 2) == ["0.001", "1.5 min", "1,500 MiB", "1,234 B"]
    assert row_of(text, "Two", 2)[0] == "0.01 (edge of the grid)"
    assert r"Two \| random" in text
    assert "- ci95: 95 % percentile bootstrap interval" in text


def test_json_has_the_same_numbers(sweep: Path) -> None:
    content = json.loads(json.dumps(compare([sweep]).to_json()))
    two, one, none = content["rows"]
    assert (content["first"], content["best"], content["before"]) == (
        "Two | random",
        "One",
        {"mDice": 0.2, "mIoU": 0.1},
    )
    assert one["seeds"] == [0, 0] and one["seeds_wanted"] == 2
    assert one["mDice"]["mean"] == pytest.approx(0.65) and len(one["mDice"]["minus_first"]) == 3
    assert one["trainable"] == COUNTS and one["saved_bytes"] == 1234
    assert two["edge"] is True and two["lr"] == 0.01
    assert none["runs"] == [] and "mDice" not in none


def test_each_base_model_has_a_before_row(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", {"one": "One", "two": "Two", "three": "Three"}, seeds=[0])
    tiny = {"model.name": "sam_tiny", "model.checkpoint": "None"}
    write_run(folder / "cells" / "one_0", LOW, settings=tiny)
    write_run(folder / "cells" / "two_0", LOW, settings=tiny | {"model.checkpoint": "random"}, before=0.05)
    write_run(folder / "cells" / "three_0", LOW, settings=tiny | {"model.name": "sam_vit_b"}, before=0.4)
    comparison = compare([folder])
    text = comparison.to_markdown()
    assert row_of(text, "Before (untuned): sam_tiny |")[:1] == ["0.200"]
    assert row_of(text, "Before (untuned): sam_tiny, checkpoint=random")[:1] == ["0.050"]
    assert row_of(text, "Before (untuned): sam_vit_b")[:3] == ["0.400", "", "0.200"]
    content = comparison.to_json()
    assert content["before"] is None and list(content["before_by_model"])[1:] == [
        "sam_tiny, checkpoint=random",
        "sam_vit_b",
    ]


def test_run_folders_are_rows_of_their_own(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, dice, lr=0.5) for name, dice in (("x", LOW), ("y", HIGH))]
    comparison = compare(runs)
    text = comparison.to_markdown()
    assert [row.title for row in comparison.rows] == [str(run) for run in runs]
    assert row_of(text, str(runs[0]))[0] == "0.550"
    assert row_of(text, str(runs[1]), 2) == ["0.5", "1,234 B"]  # no history.jsonl
    assert {"mDice", "mIoU"} <= comparison.to_json()["rows"][0].keys()


def test_a_run_folder_knows_its_time_and_memory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x", LOW)
    events = [
        {"split": "select", "step": 0, "seconds": 12.34, "memory_mib": 1234.5},
        {"split": "train", "step": 1, "loss": 0.5},
        {"split": "fit", "step": 9, "seconds": 93.04, "memory_mib": 447.4},
        {"split": "test", "step": 9, "mDice": 0.5, "seconds": 2.5, "memory_mib": 190.0},
    ]
    (run / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"split": "te')
    assert row_of(compare([run]).to_markdown(), str(run), 2) == [
        "0.001",
        "12.3 s",
        "1,234 MiB",
        "1.6 min",
        "447 MiB",
        "2.5 s",
        "190 MiB",
        "1,234 B",
    ]


def test_an_evaluation_without_config_or_delta_is_a_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", LOW)
    for name in ("config.yaml", "delta.safetensors"):
        (folder / name).unlink()
    text = compare([folder]).to_markdown()
    assert row_of(text, str(folder), 2) == [""]


@pytest.mark.parametrize("tasks", [None, {"polyps": {"title": "Polyps"}}])
def test_images_without_an_object_are_in_json_too(tmp_path: Path, tasks: dict[str, dict[str, str]] | None) -> None:
    folder = write_sweep(tmp_path / "demo", {"one": "One", "two": "Two"}, **({} if tasks is None else {"tasks": tasks}))
    cells = folder / "cells" / ("" if tasks is None else "polyps")
    with_empty = write_run(cells / "one_0", (float("nan"), 0.5, 0.6, 0.7), seed=0, settings={})
    for cell in ("one_1", "two_0", "two_1"):
        write_run(cells / cell, LOW, seed=int(cell[-1]), settings={})
    file = with_empty / "per_image.csv"
    file.write_text(file.read_text().replace("nan,nan,1.0,1.0,0,0", "nan,nan,1.0,1.0,0,8"))  # a false mask of 8 px
    comparison = compare([folder])
    found = [row["left_out"] for row in comparison.to_json()["rows"]]
    text = "1 image without an object, in no mean: 100.0% of them with a false mask, 8 px on average"
    numbers = {"empty_images": 1, "empty_false": 1.0, "empty_false_px": 8.0, "empty_false_area": None}
    assert found == [[{"run": str(with_empty), **numbers, "text": [text]}], []]
    assert f"| One, seed 0 | {text} |" in comparison.to_markdown()


def test_an_image_undefined_for_all_seeds_is_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    folder = write_sweep(tmp_path / "demo", {"one": "One"})
    write_run(folder / "cells" / "one_0", (nan, nan, 0.6, 0.7), seed=0)
    write_run(folder / "cells" / "one_1", (nan, 0.5, 0.8, 0.7), seed=1)
    row = compare([folder]).rows[0]
    assert list(row.per_image("mDice").values())[1:] == pytest.approx([0.5, 0.7, 0.7])
    assert row.ci95("mDice") == pytest.approx(bootstrap_ci([0.5, 0.7, 0.7]))


def test_an_empty_sweep(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", {"one": "One"})
    with pytest.raises(DataError, match=r"demo: no cell is finished yet. Run `samtune sweep` first"):
        compare([folder])


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not hold metrics.json and per_image.csv .* Name a run folder"):
        compare([tmp_path])


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: 1"), ("cell.json", "{"), ("sweep.yaml", "- x")])
def test_a_damaged_file_is_told(tmp_path: Path, name: str, text: str) -> None:
    folder = write_run(tmp_path / "x", LOW)
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=r"x: a file of the run or sweep is damaged .* Run it again"):
        compare([folder])


def test_other_test_images_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "x", LOW), write_run(tmp_path / "y", LOW, names=("a", "b", "c", "z"))]
    with pytest.raises(DataError, match=r"x and .*y were measured on different test images: 'd' is in one of them"):
        compare(runs)


def test_other_images_of_the_same_names_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, LOW) for name in "xy"]
    for run in runs:
        (run / "splits").mkdir()
        (run / "splits" / "test.txt").write_text(f"a\t{run.name}\n")
    with pytest.raises(DataError, match=r"the files differ, though their names do not"):
        compare(runs)


def test_accuracies_are_in_percent(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", {"one": "One", "two": "Two"})
    for name, right in (("one_0", 4), ("one_1", 6), ("two_0", 8), ("two_1", 8)):
        write_class_run(folder / "cells" / name, right, seed=int(name[-1]), test_seconds=2.0, test_memory_mib=64.0)
    comparison = compare([folder])
    assert isinstance(comparison, Comparison) and comparison.best.title == "Two" and comparison.before == {}
    text = comparison.to_markdown()
    assert text.startswith(
        "| demo | top1 | 95 % interval | top5 | 95 % interval | top1 - first row | top1 - best row |"
    )
    assert row_of(text, "One")[0] == "50.00 ± 14.14" and row_of(text, "One")[2] == "100.00 ± 0.00"
    assert row_of(text, "Two")[4].startswith("+30.00 (+")
    assert row_of(text, "Two", 2) == ["0.001", "1.0 min", "500 MiB", "2.0 s", "64 MiB", "1,234 B"]
    assert comparison.to_json()["rows"][0]["top1"]["mean"] == pytest.approx(0.5)


def test_segmentation_and_classification_have_no_table_in_common(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "x", LOW), write_class_run(tmp_path / "y", 3)]
    with pytest.raises(DataError, match=r"x and .*y are of different kinds: segmentation and classification"):
        compare(runs)


def test_published_rows_need_tasks(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="--paper vtab: published rows go below a sweep with `tasks:`"):
        compare([sweep], paper="vtab")


def test_chosen_values_beside_the_learning_rate(tmp_path: Path) -> None:
    values = {"train.lr": 0.01, "select.k": 2}
    run = write_run(tmp_path / "x", LOW, lr=0.01, values=values)
    assert row_of(compare([run]).to_markdown(), str(run), 2)[0] == "0.01, select.k=2"
