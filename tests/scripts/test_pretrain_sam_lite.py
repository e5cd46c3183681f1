"""Pre-training of the light SAM: prompts, losses, and a run that goes on where it was stopped, to the bit."""

from __future__ import annotations

import argparse
from pathlib import Path

import lite_scenes
import numpy as np
import pretrain_sam_lite as script
import pytest
import timm
import torch
from toy import toy_lite

from samtune.models.sam.lite import build_lite
from samtune.models.sam.model import SamModel
from samtune.models.segmenter import Embedded


@pytest.fixture
def material() -> lite_scenes.Material:
    rng = np.random.default_rng(0)
    cutout = np.zeros((60, 60, 4), np.uint8)
    cutout[10:50, 5:40] = (200, 30, 40, 255)
    return lite_scenes.Material([rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(9)], [cutout])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_prompts_lie_where_they_should() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 4:10, 20:30] = True
    masks[1, 31, 0] = True
    assert script.boxes_of(masks).tolist() == [[20, 4, 30, 10], [0, 31, 1, 32]]
    points = script.points_of(masks, generator())
    assert all(bool(mask[int(y), int(x)]) for mask, (x, y) in zip(masks, points.tolist(), strict=True))
    boxes = script.jittered(script.boxes_of(masks), generator(), 32)
    assert bool(((boxes - script.boxes_of(masks)).abs() <= 1).all()) and bool((boxes >= 0).all())
    objects = script.draw_objects(torch.tensor([[[0, 1], [2, 2]]], dtype=torch.uint8), 50, generator())
    assert {int(mask.sum()) for mask in objects} == {1, 2}  # each of both, never the background


def test_a_perfect_mask_has_no_loss_and_an_iou_of_1() -> None:
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    perfect = torch.where(masks[:, ::4, ::4], 20.0, -20.0)[:, None]
    loss, iou = script.losses_of(torch.cat([perfect, -perfect], 1), masks)
    assert iou.tolist() == [[1.0, 0.0]]
    assert loss[0, 0] < 1e-3 < 5 < loss[0, 1]


@pytest.mark.parametrize(("kind", "singles"), [("box", [False] * 3), ("point", [True, False, False])])
def test_each_round_adds_a_click_on_the_error(kind: str, singles: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = toy_lite(), []
    decode = SamModel.decode_all

    def spy(self: SamModel, embeddings: Embedded, prompts: object, masks: torch.Tensor | None) -> object:
        seen.append((prompts, masks))
        return decode(self, embeddings, prompts, masks)  # type: ignore[arg-type]

    monkeypatch.setattr(SamModel, "decode_all", spy)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, 20:40, 10:50] = True
    found = list(script.answers(model, torch.randn(2, 32, 4, 4, generator=generator()), masks, kind, generator()))
    assert [single for _, _, single in found] == singles
    assert [0 if p.points_input is None else p.points_input.shape[1] for p, _ in seen] == (
        [0, 1, 2] if kind == "box" else [1, 2, 3]
    )
    assert [m is None for _, m in seen] == [True, False, False]
    assert all((p.boxes_input is None) == (kind == "point") for p, _ in seen)


def test_a_stopped_run_goes_on_to_the_bit_and_its_statistics_stay(
    material: lite_scenes.Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = timm.create_model("tf_efficientnet_lite0").state_dict()
    monkeypatch.setattr(script, "imagenet_weights", lambda: stock)
    monkeypatch.setattr(script, "load_material", lambda _: material)
    monkeypatch.setattr(script, "held_out", lambda *_: {})
    for name, value in {"SIDE": 64, "SMALL_SIDE": 32, "SAVE_EVERY": 1, "FROZEN": 1, "OBJECTS": 2}.items():
        monkeypatch.setattr(script, name, value)

    def run(name: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        args = argparse.Namespace(out=tmp_path / name, material=tmp_path, steps=4, small=2, batch=2, lr=1e-3)
        vars(args).update(encoder_lr=1e-3, workers=0, seed=0, init=None)
        get = script.Pictures.__getitem__

        def stopping(self: script.Pictures, index: int) -> lite_scenes.Scenes:
            if self.first + index == stop:
                raise KeyboardInterrupt
            return get(self, index)

        with monkeypatch.context() as patch:
            patch.setattr(script.Pictures, "__getitem__", stopping)
            script.pretrain(args)
        return script.averaged(args.out).net.state_dict()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), run("parts").values(), strict=True))
    start = {f"image_encoder.trunk.{name}": tensor for name, tensor in stock.items()}
    moved = {name for name, tensor in whole.items() if name in start and not torch.equal(tensor, start[name])}
    assert moved and not any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    script.export(tmp_path / "whole", tmp_path / "lite.safetensors")
    loaded = build_lite("sam_lite", checkpoint=tmp_path / "lite.safetensors").net.state_dict()
    assert all(torch.allclose(loaded[name], whole[name], atol=1e-3, rtol=1e-3) for name in whole)


def test_rates_rise_stay_and_fall() -> None:
    rates = [script.rate_at(step, 3000) for step in range(3000)]
    assert rates[0] == 1 / 200 and rates[199] == rates[1500] == 1 and 0 < rates[-1] < 0.002
    assert rates[200:] == sorted(rates[200:], reverse=True)
