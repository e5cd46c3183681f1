"""The table of a sweep with tasks: means of groups and of all, seeds, published rows."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_class_run, write_run, write_sweep

from samtune.compare.compare import compare
from samtune.compare.tasks import TaskComparison
from samtune.config.papers import published
from samtune.errors import ConfigError, DataError

TASKS: dict[str, dict[str, Any]] = {
    "cifar": {"title": "CIFAR-100", "group": "Natural"},
    "kitti": {"title": "KITTI", "group": "Structured"},
    "dtd": {"title": "DTD", "group": "Natural"},
}
# right answers of 100, by row, task and seed
RIGHT = {"gps": {"cifar": (60, 64), "dtd": (40, 44), "kitti": (80, 84)}, "lora": {"cifar": (70, 70), "dtd": (50, 50)}}


def settings(task: str, select: str) -> dict[str, str]:
    return {"data.name": f"vtab/{task}", "model.name": "vit_base_patch16_224.augreg_in21k", "select.name": select}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Row `lora` has not run `kitti` yet."""
    folder = write_sweep(tmp_path / "demo", {"gps": "GPS", "lora": "LoRA"}, tasks=TASKS)
    for row, tasks in RIGHT.items():
        for task, right in tasks.items():
            for seed, count in enumerate(right):
                write_class_run(
                    folder / "cells" / task / f"{row}_{seed}",
                    count,
                    images=100,
                    percent=0.2 if task == "dtd" else 0.5,
                    seed=seed,
                    lr=0.1 if task == "dtd" else 0.01,
                    settings=settings(task, row),
                )
    return folder


def table(comparison: Any, number: int = 0) -> dict[str, dict[str, str]]:
    """Row title -> column -> text."""
    head, _, *lines = comparison.to_markdown().split("\n\n")[number].splitlines()
    columns, *rows = ([cell.strip() for cell in line.strip("|").split(" |")] for line in [head, *lines])
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


def test_what_was_not_run_yet_has_its_command(sweep: Path, tmp_path: Path) -> None:
    text = f"- not complete: The other runs: `samtune sweep --config {sweep}/sweep.yaml --out {sweep} 'rows=[lora]'`."
    assert text in compare([sweep]).to_markdown()
    done = write_sweep(tmp_path / "done", {"gps": "GPS"}, tasks={"dtd": TASKS["dtd"]})
    for seed in range(2):
        write_class_run(done / "cells" / "dtd" / f"gps_{seed}", 40, images=100, percent=0.2, seed=seed, lr=0.1)
    assert "not complete" not in compare([done]).to_markdown()


def test_means_of_groups_and_of_all(sweep: Path) -> None:
    rows = table(compare([sweep]))
    assert list(rows["GPS"]) == [
        *("CIFAR-100", "DTD", "Natural (mean)", "KITTI", "Structured (mean)"),
        *("mean of tasks", "mean of groups", "trainable %"),
    ]
    assert rows["GPS"] == {
        "CIFAR-100": "62.00 ± 2.83",
        "DTD": "42.00 ± 2.83",
        "Natural (mean)": "52.00 ± 2.83",
        "KITTI": "82.00 ± 2.83",
        "Structured (mean)": "82.00 ± 2.83",
        "mean of tasks": "62.00 ± 2.83",  # (62 + 42 + 82) / 3
        "mean of groups": "67.00 ± 2.83",  # (52 + 82) / 2
        "trainable %": "0.40",
    }
    lora = rows["LoRA"]
    assert (lora["Natural (mean)"], lora["KITTI"], lora["mean of tasks"], lora["mean of groups"]) == (
        *("60.00 ± 0.00", "", ""),
        "",
    )


def test_a_missing_seed_is_told(sweep: Path) -> None:
    (sweep / "cells" / "kitti" / "gps_1" / "cell.json").unlink()
    row = table(compare([sweep]))["GPS"]
    assert row["KITTI"] == row["Structured (mean)"] == "80.00 (1 of 2 seeds)"
    assert row["mean of tasks"] == "60.00 (1 of 2 seeds)"  # of the seed that has all tasks
    assert row["CIFAR-100"] == "62.00 ± 2.83"


def test_notes_say_which_mean_is_whose(sweep: Path) -> None:
    text = compare([sweep]).to_markdown()
    assert "- mean of tasks: Mean over all tasks" in text and "what GPS and GRFT print" in text
    assert "- mean of groups: Mean of the means of the groups: what SPT prints" in text
    assert "[paper]" not in text


def test_costs_and_chosen_values(sweep: Path) -> None:
    comparison = compare([sweep])
    assert table(comparison, 2)["GPS"] == {
        "chosen": "by task",
        "training": "1.0 min",
        "its memory": "500 MiB",
        "saved": "1,234 B",
    }
    assert table(comparison, 1)["GPS"]["total"] == "1,012"


def test_json_has_the_same_numbers(sweep: Path) -> None:
    content = json.loads(json.dumps(compare([sweep], paper="vtab").to_json()))
    gps, lora = content["rows"]
    assert gps["values"]["mean of groups"]["mean"] == pytest.approx(67)
    assert gps["values"]["KITTI"]["std"] == pytest.approx(statistics.stdev((80, 84)))
    assert lora["values"]["KITTI"] == {"mean": None, "std": None, "seeds": 0, "seeds_wanted": 2}
    assert content["tasks"][1] == {"name": "kitti", "title": "KITTI", "group": "Structured"}
    assert {row["backbone"] for row in content["published"]} == {"vit_base"}


def test_published_rows_follow_the_same_selector(sweep: Path) -> None:
    comparison = compare([sweep], paper="vtab")
    rows = table(comparison)
    titles = list(rows)
    assert titles[0] == "GPS" and titles[1] == "[GPS, Tab. 3] GPS"
    lora = titles.index("LoRA")
    keys = {f"[{row.paper}, {row.table}] {row.title}": row.key for row in published("vtab")}
    assert {keys[title] for title in titles[1:lora]} == {"gps"}
    assert len(titles) == 2 + len(published("vtab"))
    theirs = next(row for row in published("vtab") if (row.paper, row.key) == ("GPS", "gps"))
    mean = statistics.fmean(theirs.values[f"vtab/{task}"] for task in TASKS)
    assert rows["[GPS, Tab. 3] GPS"]["mean of tasks"] == f"{mean:.2f}"
    assert rows["[GPS, Tab. 3] GPS"]["CIFAR-100"] == f"{theirs.values['vtab/cifar']:.2f}"
    assert "- [paper]: Numbers that others published, for vit_base" in comparison.to_markdown()


def test_a_benchmark_without_these_data(sweep: Path) -> None:
    with pytest.raises(DataError, match=r"--paper fgvc: no task has a data.name of its tables, such as fgvc/"):
        compare([sweep], paper="fgvc")
    with pytest.raises(ConfigError, match="unknown benchmark 'vtap'"):
        compare([sweep], paper="vtap")


def test_a_row_may_leave_out_tasks(sweep: Path) -> None:
    content = json.loads((sweep / "sweep.yaml").read_text())
    content["cells"]["lora"]["only"] = ["cifar", "dtd"]
    (sweep / "sweep.yaml").write_text(json.dumps(content))
    comparison = compare([sweep])
    assert isinstance(comparison, TaskComparison)
    assert list(comparison.methods[1].rows) == ["cifar", "dtd"]
    assert table(comparison)["LoRA"]["CIFAR-100"] == "70.00 ± 0.00"


def test_tasks_and_single_runs_are_not_mixed(sweep: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "x", (0.1, 0.2, 0.3, 0.4))
    with pytest.raises(DataError, match="a sweep with tasks and runs of one task have no table in common"):
        compare([sweep, run])


def test_segmentation_tasks_are_in_percent_too(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", {"gps": "GPS"}, tasks={"a": {"title": "A"}, "b": {"title": "B"}}, seeds=[0])
    for task, dice in (("a", 0.5), ("b", 0.7)):
        write_run(folder / "cells" / task / "gps_0", [dice] * 4, seed=0)
    row = table(compare([folder]))["GPS"]
    assert row == {"A": "50.00", "B": "70.00", "mean of tasks": "60.00", "trainable %": "1.00"}
