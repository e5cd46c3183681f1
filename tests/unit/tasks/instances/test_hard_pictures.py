"""Pictures of thousands of objects, of one pixel, of none; annotations without shapes; and a sweep over instances."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from object_maps import SIZE, discs, write_object_map, write_objects
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor
from toy import toy_model

from samtune.base.children import Children
from samtune.cli import main as cli
from samtune.compare.compare import compare
from samtune.data.formats.shapes import encode_rle
from samtune.run.recipe import finetune
from samtune.run.settings import load_config
from samtune.sweep import trial
from samtune.sweep.run import run_sweep
from samtune.sweep.settings import load_sweep
from samtune.tasks.instances.draw import numbered
from samtune.tasks.instances.layouts.splits import kind_of, verify_folder
from samtune.tasks.instances.objects import cut_out, read_objects
from samtune.tasks.instances.outputs import annotated, told
from samtune.tasks.instances.prompts.practice import draw_objects
from samtune.tasks.instances.prompts.prompting import boxed_instances
from samtune.tasks.instances.separate import crops
from samtune.tasks.prompts import PromptError
from samtune.types import Instances, Prompts

MANY = 3025


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path)


def many(side: int = 440) -> np.ndarray:
    """A picture of 55 x 55 squares of 5 pixels."""
    rows, columns = np.mgrid[:side, :side]
    labels = rows // 8 * 55 + columns // 8 + 1
    labels[(rows % 8 > 4) | (columns % 8 > 4)] = 0
    return np.asarray(labels, dtype=np.int32)


def instances(labels: np.ndarray) -> Instances:
    return Instances(labels, np.linspace(1, 0.5, labels.max()).astype(np.float32))


def test_a_picture_of_three_thousand_objects_is_read_shown_and_told(tmp_path: Path) -> None:
    labels, started = many(), time.process_time()
    for number in range(3):
        Path("images").mkdir(exist_ok=True)
        Path("instances").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*labels.shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/a{number}.png")
        Image.fromarray(labels.astype(np.uint16)).save(f"instances/a{number}.png")
    report = verify_folder(tmp_path, name=None)
    assert report.errors == () and any("3,025 objects; AP counts the 1,000" in line for line in report.warnings)
    assert read_objects(Path("instances/a0.png")).max() == MANY
    tracemalloc.start()
    answer = told(instances(labels))
    assert len(annotated(Path("a.png"), instances(labels), "cell").objects) == len(answer) == MANY
    assert numbered(pixels, labels).shape == pixels.shape
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # of whole masks, 3,025 would take 586 MB
    assert time.process_time() - started < 30
    drawn = draw_objects(torch.from_numpy(labels[:440, :440])[None, None], 8)
    assert drawn.objects.shape == (8, 1, 440, 440)


def test_run_lengths_of_a_part_are_those_of_the_whole() -> None:
    labels = discs()
    labels[12, 12] = 0  # a hole
    labels[0, 0] = labels[-1, -1] = 5  # the first pixel and the last
    labels[:, -1] = 5
    for number, place, mask in crops(labels):
        assert encode_rle(mask, place, labels.shape) == encode_rle(labels == number), number
    nothing = np.zeros((0, 0), dtype=bool)
    assert encode_rle(nothing, (slice(0, 0), slice(0, 0)), SIZE) == encode_rle(np.zeros(SIZE, dtype=bool))


def test_objects_in_json_can_be_read_by_pycocotools_and_have_the_colours_of_the_picture() -> None:
    found = told(instances(discs()))
    for one in found:
        mask = coco.decode({"size": one["size"], "counts": one["counts"].encode()})
        np.testing.assert_array_equal(mask > 0, discs() == one["object"])
        assert one["area"] == mask.sum() and len(one["colour"]) == 3
    assert len({one["colour"] for one in found}) == 4
    json.dumps(found)


def test_many_boxes_of_one_picture_need_no_mask_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 masks of 600 x 600 pixels are 72 MB."""
    model, picture = toy_model(), np.zeros((600, 600, 3), dtype=np.uint8)
    corners = np.random.default_rng(0).uniform(0, 540, (200, 2))

    def decode_all(embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        assert prompts.boxes_input is not None
        low = torch.full((len(embeddings), 4, 16, 16), -1.0)
        centres = (prompts.boxes_input[:, :2] + prompts.boxes_input[:, 2:]) / 8
        for one, (x, y) in zip(low, centres.long(), strict=True):
            one[:, y, x] = 1.0
        return low, torch.ones(len(embeddings), 4)

    monkeypatch.setattr(model, "decode_all", decode_all)
    tracemalloc.start()
    found = boxed_instances(model, picture, np.concatenate([corners, corners + 50], axis=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) > 80 and peak < 30e6


def test_cutting_out() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:4, 5:8] = True
    place, part = cut_out(mask)
    assert place == (slice(2, 4), slice(5, 8)) and part.all() and part.base is None
    tile, there = np.zeros((20, 30), dtype=bool), slice(10, 19)
    place, part = cut_out(mask, corner=(10, 20))
    tile[place] |= part
    np.testing.assert_array_equal(tile[there, 20:29], mask[:9, :9])
    place, part = cut_out(np.zeros((9, 9), dtype=bool))
    assert part.size == 0 and mask[place].size == 0


def test_a_box_outside_and_a_box_of_one_pixel() -> None:
    model, picture = toy_model(), np.zeros((40, 48, 3), dtype=np.uint8)
    with pytest.raises(PromptError, match="box 1 is outside the image of 48 x 40 pixels"):
        boxed_instances(model, picture, [[1, 1, 9, 9], [60, 60, 70, 70]])
    found = boxed_instances(model, picture, [[3, 3, 4, 4], [-5, -5, 10, 10]])
    assert found.labels.shape == (40, 48) and found.labels.max() == len(found) <= 2


def test_no_object_anywhere_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        write_object_map(tmp_path, f"a{number}", np.zeros(SIZE, dtype=np.int32))
    (line,) = verify_folder(tmp_path, name=None).errors
    assert "all 4 maps are without an object" in line and "nothing to learn" in line


@pytest.mark.parametrize("shape", [{}, {"segmentation": []}, {"segmentation": None}])
def test_coco_without_segmentations(tmp_path: Path, shape: dict[str, Any]) -> None:
    Path("images").mkdir()
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save("images/a.png")
    item = {"id": 3, "image_id": 1, "category_id": 1, "bbox": [4, 4, 10, 10], "area": 100, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIZE[1], "height": SIZE[0]}],
        "annotations": [item | shape],
        "categories": [{"id": 1, "name": "cell"}],
    }
    Path("annotations.json").write_text(json.dumps(content))
    _, (line,) = kind_of(tmp_path).scan(tmp_path)
    assert "annotation 3: a box without a segmentation" in line
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "verify", str(tmp_path)])
    assert caught.value.code == 3


class InThisProcess(Children):
    """Runs in this process what a sweep starts."""

    def run(self, command: list[str], log: Path, threads: int) -> int:
        config, folder = command.index("--config"), command.index("--run-dir")
        log.write_text(" ".join(command))
        finetune(load_config(command[config + 1], command[config + 2 : folder]), run_dir=Path(command[folder + 1]))
        return 0


def test_a_sweep_over_instances_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "Children", InThisProcess)
    data = write_objects(tmp_path / "data", {"train": 3, "val": 1, "test": 1})
    own = f"data: {{dir: {data}}}\nmodel: {{name: sam_lite, image_size: 64}}\ntrack: {{mlflow: false}}\n"
    Path("base.yaml").write_text(f"task: instances\n{own}train: {{batch: 3, objects: 2, epochs: 1}}\n")
    rows = {
        "full": {"title": "Full", "overrides": {"select": {"name": "full"}}},
        "linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}}},
    }
    how = {"name": "demo", "config": "base.yaml", "dir": "out", "steps": 2, "seeds": [0]}
    Path("sweep.yaml").write_text(json.dumps({**how, "cells": rows}))
    result = run_sweep(load_sweep("sweep.yaml"))
    assert not result.failed
    said = json.loads((tmp_path / "out/cells/full_0/metrics.json").read_text())
    assert said["prompts"] is not None and "scenes" not in said["prompts"]["box"]  # which a sweep leaves out
    text = compare([tmp_path / "out"]).to_markdown()
    assert all(word in text for word in ("AP50", "PQ", "mDice", "Full", "Linear"))
    cell = json.loads((tmp_path / "out/cells/linear_0/cell.json").read_text())
    assert 0 <= cell["choice"] <= 1
