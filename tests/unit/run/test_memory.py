from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import toy_batch, toy_model

from samtune.base.machine import forget_peak, peak_mib
from samtune.models.backbone import Backbone
from samtune.models.table import build_model
from samtune.run.memory import StepMemory, step_memory
from samtune.selection import select
from samtune.tuning import attach
from samtune.types import Batch


def weighed(images: int, *, full: bool = False) -> StepMemory:
    model = toy_model()
    selection = select(model, None, name="full" if full else "linear")
    trainable = attach(model, selection)
    batch = toy_batch(sizes=((64, 64),) * images)
    return step_memory(model, trainable, lambda: model(batch).float().mean(), images=images, ema=False)


def test_what_is_saved_grows_with_the_batch_and_what_stays_does_not() -> None:
    two, four = weighed(2, full=True), weighed(4, full=True)
    assert 1.8 < four.saved / two.saved < 2.2
    assert four.fixed == two.fixed


def test_a_frozen_encoder_saves_less_and_keeps_less() -> None:
    assert weighed(2).saved < 0.5 * weighed(2, full=True).saved
    assert weighed(2).fixed < weighed(2, full=True).fixed


def test_what_a_frozen_encoder_passes_on_counts_though_nothing_of_it_is_saved() -> None:
    model = build_model("sam_lite", checkpoint="random", image_size=64).train()
    trainable = attach(model, select(model, None, name="linear"))
    batch = toy_batch(sizes=((64, 64),) * 2)
    step = step_memory(model, trainable, lambda: model(batch).float().mean(), images=2, ema=False)
    widest = 2 * 96 * 32 * 32 * 4  # the first block's 96 maps at stride 2, in fp32, of 2 images
    assert 2 * widest <= step.growth < 3 * widest  # what a norm reads, and what it writes


def test_a_card_takes_what_it_says_it_takes() -> None:
    step = StepMemory(fixed=2 * 10**9, saved=8 * 10**9, passing=10**9, images=8)
    assert not step.fits(8) and step.fits(16)
    most = step.most(8)
    assert 0 < most < 8
    assert step.needed(most) <= 8e9 < step.needed(most + 1)
    assert f"8 GB no (train.batch={most} would)" in str(step) and "16 GB yes" in str(step)
    assert StepMemory(fixed=10**11, saved=1, passing=1, images=1).most(24) == 0


def test_the_worst_moment_of_a_pass_is_what_is_alive_at_once() -> None:
    model = toy_model()
    attach(model, select(model, None, name="linear"))
    mega = torch.zeros(2**20, dtype=torch.uint8)  # made outside, so it is nobody's growth

    def forward() -> torch.Tensor:
        first = mega + 1
        second = first + 1
        del first
        third = second + mega  # two of what this pass made are there at once, never three
        view = third.view(2, -1)
        view += 1
        return view.sum()

    step = step_memory(model, {}, forward, images=1, ema=False)
    assert 2 * 2**20 <= step.passing < 2.1 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a moment")
@pytest.mark.parametrize(("name", "method"), [("sam_lite", "full"), ("sam_lite", "gps"), ("sam_tiny", "full")])
def test_the_growth_with_images_is_what_a_cpu_measures(name: str, method: str) -> None:
    """To 20 %; of a frozen encoder of convolutions a CPU takes more, for copies that autograd does not see."""
    model = build_model(name, checkpoint="random", image_size=128).train()
    options: dict[str, Any] = {"criterion": "random"} if method == "gps" else {}
    trainable = attach(model, select(model, None, name=method, **options))
    expected, measured, cpu = [], [], torch.device("cpu")
    for images in (4, 20):
        empty = torch.zeros(images, 1, 128, 128, dtype=torch.bool)
        batch = Batch(torch.randint(256, (images, 3, 128, 128)).byte(), empty, ((128, 128),) * images, ("",) * images)
        forward = partial(_mean_answer, model, batch)
        step = step_memory(model, trainable, forward, images=images, ema=False)
        before = forget_peak(cpu)
        forward().backward()
        measured.append(peak_mib(cpu) - before)
        expected.append(step.growth / 2**20)
        for parameter in trainable.values():
            parameter.grad = None
    assert expected[1] - expected[0] == pytest.approx(measured[1] - measured[0], rel=0.2)


def _mean_answer(model: Backbone, batch: Batch) -> Tensor:
    return model(batch).float().mean()
