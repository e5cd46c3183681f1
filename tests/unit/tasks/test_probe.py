"""Prompts before and after tuning: what is asked, on which pictures, and when a prompt counts as lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import toy_model

from samtune.models.sam.model import SamModel
from samtune.models.table import build_model
from samtune.tasks.masks.report import Report, Row
from samtune.tasks.probe.answers import prompted_dice, spread
from samtune.tasks.probe.kept import kept_sections, lost, measure_kept, object_batches
from samtune.tasks.probe.scenes import scene_batches
from samtune.types import Answering, Batch, Prompts, Sample

SIDE = 64


class Perfect(torch.nn.Module):
    """Answers with what the truth shows at the prompt; a first click is answered with a hole, on the side it is not."""

    image_size, channels, device = SIDE, 3, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Prompts | None] = []

    def answering(self, batch: Batch) -> Answering:
        labels = batch.masks[0, 0]

        def answer(prompts: Prompts | None, masks: Tensor | None) -> Tensor:
            self.asked.append(prompts)
            if prompts is None:
                return (labels > 0)[None, None].float() * 2 - 1
            points = prompts.points_input
            if points is None:
                assert prompts.boxes_input is not None
                x0, y0, x1, y1 = prompts.boxes_input.round().long().unbind(1)
                inside = [labels[b : d + 1, a : c + 1] for a, b, c, d in zip(x0, y0, x1, y1, strict=True)]
                numbers = [int(one[one > 0].mode().values) for one in inside]
            else:
                numbers = [int(labels[int(p[0, 1]), int(p[0, 0])]) for p in points]
            found = torch.stack([(labels == number) for number in numbers])[:, None]
            if points is not None and points.shape[1] == 1:
                found[..., : SIDE // 2] = False
            return found.float() * 2 - 1

        return answer


def batch_of(labels: np.ndarray) -> Batch:
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    return Batch(image, torch.from_numpy(labels)[None, None], ((SIDE, SIDE),), ("a",), (labels,))


def squares(*corners: tuple[int, int], size: int = 12) -> np.ndarray:
    labels = np.zeros((SIDE, SIDE), dtype=np.int32)
    for number, (y, x) in enumerate(corners, start=1):
        labels[y : y + size, x : x + size] = number
    return labels


def test_each_kind_of_prompt_is_measured() -> None:
    model: Any = Perfect()
    found = measure_kept(model, [batch_of(squares((4, 4), (40, 40))), batch_of(squares())], pictures=0, unprompted=True)
    assert found == {"val": {"box": 1.0, "point": 0.5, "points3": 1.0, "none": 1.0}}
    clicks = [one.points_input for one in model.asked if one is not None and one.points_input is not None]
    assert [one.shape[1] for one in clicks] == [1, 2, 3]
    second = clicks[1][0, 1].tolist()  # of the object that was missed: in its middle
    assert 4 <= second[0] < 16 and 4 <= second[1] < 16


def test_without_a_way_to_answer_no_prompt() -> None:
    model: Any = Perfect()
    found = measure_kept(model, [batch_of(squares((4, 4)))], pictures=0, unprompted=False)
    assert set(found["val"]) == {"box", "point", "points3"} and None not in model.asked


def test_no_object_at_all_and_no_picture() -> None:
    model: Any = Perfect()
    assert measure_kept(model, [batch_of(squares())], pictures=0, unprompted=True) == {}
    assert measure_kept(model, [], pictures=0, unprompted=True) == {}


def test_at_most_eight_objects_of_a_picture_count() -> None:
    model: Any = Perfect()
    corners = [(y, x) for y in range(0, 60, 12) for x in range(0, 60, 12)]
    measure_kept(model, [batch_of(squares(*corners, size=8))], pictures=0, unprompted=False)
    assert {len(one) for one in model.asked} == {8}
    assert spread(list(range(25)), 3) == [0, 12, 24] and spread([1, 2], 8) == [1, 2]


def test_an_object_of_one_pixel_is_asked_for() -> None:
    model: Any = Perfect()
    found = measure_kept(model, [batch_of(squares((5, 50), size=1))], pictures=0, unprompted=True)
    assert found["val"]["box"] == 1.0 and found["val"]["points3"] == 1.0


def test_masks_become_objects_in_the_input_frame() -> None:
    mask = squares((4, 4), (40, 40)) > 0
    mask[0, 60] = True  # a speck is no object
    sample = Sample("a", torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), torch.from_numpy(mask), mask)
    (batch,) = object_batches([sample], SIDE)  # type: ignore[arg-type]
    assert len(np.unique(batch.truths[0])) == 3 and batch.masks.dtype == torch.int32
    assert batch.truths[0][0, 60] == 0


@pytest.mark.parametrize(("side", "channels"), [(64, 3), (96, 5), (256, 1)])
def test_scenes_are_the_same_each_time(side: int, channels: int) -> None:
    first, again = (list(scene_batches(2, side, channels)) for _ in range(2))
    assert len(first) == 2
    for one, other in zip(first, again, strict=True):
        assert one.content() == other.content() and one.images.shape == (1, channels, side, side)
        assert one.images.dtype == torch.uint8 and 0 < one.images.float().std() < 128
        assert 1 <= len(np.unique(one.truths[0])) - 1 <= 5
    assert first[0].content() != first[1].content()


def test_an_untuned_model_answers_boxes_in_scenes() -> None:
    model = build_model("sam_lite")
    found = measure_kept(model, [], pictures=2, unprompted=True)["scenes"]
    assert found["box"] > 0.7 and found["points3"] > 0.7


def test_a_picture_is_embedded_once_and_answers_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = toy_model(), 0
    batch, real = batch_of(squares((4, 4), (40, 40))), SamModel.features

    def counted(self: SamModel, one: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return real(self, one)

    monkeypatch.setattr(type(model), "features", counted)
    with torch.no_grad():
        answer = model.answering(batch)
        prompts = Prompts(boxes_input=torch.tensor([[4.0, 4, 15, 15], [40, 40, 51, 51]]))
        low, plain = answer(prompts, None), answer(None, None)
    assert calls == 1 and low.shape == (2, 1, 16, 16) and plain.shape == (1, 1, 16, 16)
    with torch.no_grad():
        slow = super(SamModel, model).answering(batch)(prompts, None)
    torch.testing.assert_close(low, slow, atol=1e-5, rtol=1e-4)


def test_sam_tiny_never_saw_an_earlier_answer() -> None:
    model = build_model("sam_tiny")
    batch = next(scene_batches(1, 256, 3))
    prompts = Prompts(boxes_input=torch.tensor([[10.0, 10, 90, 90]]))
    with torch.no_grad():
        answer = model.answering(batch)
        first = answer(prompts, None)
        assert torch.equal(answer(prompts, first), first)
    assert build_model("sam_lite").takes_masks


def test_one_row_per_picture_of_a_batch() -> None:
    model = toy_model()
    two = [squares((4, 4)), squares()]
    masks = torch.from_numpy(np.stack(two))[:, None]
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    batch = Batch(images, masks, ((SIDE, SIDE),) * 2, ("a", "b"), tuple(two))
    (count, dice), none = prompted_dice(model, batch)
    assert count == 1 and set(dice) == {"box", "point", "points3"} and none == (0, {})


BEFORE = {"val": {"none": 0.2, "box": 0.8, "point": 0.7}, "scenes": {"box": 0.9}}


def test_what_was_lost_is_said_in_one_sentence_with_its_remedy() -> None:
    now = {"val": {"none": 0.05, "box": 0.65, "point": 0.65}, "scenes": {"box": 0.5}}
    (line,) = lost(now, BEFORE, "data.prompt=mixed keeps them.")
    assert line == (
        "prompts were lost in tuning: mDice fell by its box from 0.800 to 0.650 on val; by its box from 0.900 to 0.500 "
        "on scenes. data.prompt=mixed keeps them."
    )


def test_a_small_fall_is_no_loss_and_nothing_is_lost_without_a_measurement() -> None:
    assert lost({"val": {"none": 0.0, "box": 0.71, "point": 0.9}, "scenes": {"box": 0.9}}, BEFORE, "") == []
    assert lost({}, BEFORE, "") == [] and lost(BEFORE, {}, "") == []


def report_of(kept: Any) -> Report:
    rows = (Row("a", 0.5, 0.4, 0.5, 0.5, 10, 10, {"truth_share": 0.1}),)
    return Report(rows, "test", {"mDice": "", "ci95": "", "prompts": "How."}, kept=kept)


def test_the_table_is_in_metrics_and_read_back(tmp_path: Path) -> None:
    now = {"val": {"none": 0.9, "box": 0.7}, "scenes": {"box": 0.5}}
    report_of(now).save(tmp_path, before=report_of(BEFORE))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["prompts"] == {
        "none": {"val": {"mDice": 0.9, "before": 0.2}},
        "box": {"val": {"mDice": 0.7, "before": 0.8}, "scenes": {"mDice": 0.5, "before": 0.9}},
    }
    assert Report.load(tmp_path).kept == now
    assert report_of({}).to_json()["prompts"] is None


def test_the_section_of_the_page() -> None:
    (section,) = kept_sections({"val": {"none": 0.9, "box": 0.7}, "scenes": {"box": 0.5}}, BEFORE)
    (table,) = section.tables
    assert list(table.columns) == ["Prompt", "Val, before", "Val, after", "Scenes, before", "Scenes, after"]
    assert [list(row) for row in table.rows] == [
        ["no prompt", "20.0", "90.0", "n/a", "n/a"],
        ["its box", "80.0", "70.0", "90.0", "50.0"],
    ]
    assert kept_sections({}, BEFORE) == []
