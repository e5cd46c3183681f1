"""What layers take in: against hooks and unfolded patches, resumed, shared, kept, and refused where it does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_resumed_scoring import Kept
from torch import Tensor, nn
from toy import toy_batch, toy_lite, toy_model
from toy_hf import toy_hf
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.base.share import Share
from samtune.errors import ConfigError, DataError, NonFiniteError
from samtune.models.backbone import Backbone
from samtune.scoring.file import check_scores_file, load_scores, save_scores
from samtune.scoring.inputs import InputSums, input_shapes
from samtune.scoring.score import score, score_inputs
from samtune.selection import Needs, check_scores, select
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import task_loss
from samtune.types import AnyBatch, Role

SAMS: dict[str, Callable[[], Backbone]] = {"sam": toy_model, "lite": toy_lite, "sam2": lambda: toy_hf("sam2")}


def model_of(family: str) -> tuple[Backbone, list[AnyBatch]]:
    if family in SAMS:
        return SAMS[family](), [toy_batch(seed=0), toy_batch(seed=1).split(1)[0]]  # of two images and of one
    return toy_classifier(family), [labelled_batch(seed=0), labelled_batch(seed=1, size=3)]


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """Returns (positions, in) or (positions, in, kh, kw): all that one multiplication with the weight reads."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
    unfolded = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # (B, in * kh * kw, L)
    return unfolded.movedim(1, 2).reshape(-1, x.shape[1], *module.kernel_size)


def reference(model: Backbone, batches: list[AnyBatch]) -> dict[str, Tensor]:
    """Returns the mean over images, of the mean over positions of |x|: images are of one size, so all count alike."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.net.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(
                lambda m, args, _, name=f"{name}.weight": seen.setdefault(name, []).append(patches(m, args[0]).abs())
            )
    with torch.no_grad():
        for batch in batches:
            model.eval().features(batch)
    return {name: torch.cat(parts).mean(0) for name, parts in seen.items()}


@pytest.mark.parametrize("family", [*SAMS, *FAMILIES])
def test_the_means_are_those_of_unfolded_patches(family: str) -> None:
    model, batches = model_of(family)
    scores = score_inputs(model, batches)
    images = sum(len(batch) for batch in batches)
    expected = reference(model, batches)
    roles = model.roles()
    assert scores.sums.keys() == {name for name, role in roles.items() if role in ("linear", "conv")}
    assert scores.of == "inputs" and scores.squares is None and scores.batches == 2
    for name, total in scores.sums.items():
        if name in expected:  # a level of the neck that the embedding does not need is not run
            torch.testing.assert_close(total / images, expected[name], rtol=1e-4, atol=1e-6)
        else:
            assert not bool(total.any())
    assert len(expected.keys() & scores.sums.keys()) > 0.8 * len(scores.sums)


class OneLayer(Backbone):
    """A convolution, or another layer, behind the interface."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(nn.ModuleDict({"layer": layer}), name="one", image_size=8, mean=(0.0,), std=(1.0,))

    def role(self, name: str, owner: nn.Module) -> Role:
        return "conv" if name.endswith("weight") else "bias"

    def features(self, batch: Any) -> Tensor:
        return self.net.layer(batch.images)  # type: ignore[no-any-return,operator,union-attr]


class Pictures:
    names = ("a", "b")

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: Any) -> Pictures:
        return self

    def content(self) -> bytes:
        return self.images.numpy().tobytes()


CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "dilation": {"dilation": 2, "padding": 1},
    "padding": {"padding": (2, 1), "stride": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4},
    "pointwise": {"kernel_size": 1},
    "valid": {"padding": "valid"},
    "same": {"padding": "same", "kernel_size": (3, 2), "dilation": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("case", list(CONVS))
def test_the_importance_is_the_mean_product_of_each_tap(case: str) -> None:
    """|w| times the inputs is what the gradient of sum(conv(|x|, v)) by v says, whatever the geometry."""
    layer = nn.Conv2d(4, 8, **{"kernel_size": 3, **CONVS[case]})
    images = torch.randn(2, 4, 9, 8)
    scores = score_inputs(OneLayer(layer), [Pictures(images)])  # type: ignore[list-item]
    output = layer(images.abs())
    (taps,) = torch.autograd.grad(output.sum(), layer.weight)  # (8, in of a group, kh, kw)
    per_group = scores.sums["layer.weight"].view(layer.groups, 1, -1, *layer.kernel_size)
    found = per_group.expand(-1, 8 // layer.groups, -1, -1, -1).reshape(layer.weight.shape)
    torch.testing.assert_close(found, taps / output[0, 0].numel())


def test_no_graph_is_left_and_the_model_is_as_it_was() -> None:
    model = toy_model().train()
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    scores = score_inputs(model, [toy_batch()])
    assert not any(total.requires_grad for total in scores.sums.values()) and model.training
    for name, p in model.named_parameters():
        assert p.grad is None and torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]


@pytest.mark.parametrize("taken", [1, 3])
def test_a_pass_that_goes_on_has_the_same_bits(taken: int) -> None:
    batches, whole = [toy_batch(seed=seed) for seed in range(4)], Kept()
    expected = score_inputs(toy_model(), batches, keeper=whole)
    found = score_inputs(toy_model(), batches, keeper=Kept(start=whole.kept[taken - 1]))
    assert (found.batches, found.images_hash) == (expected.batches, expected.images_hash) == (4, expected.images_hash)
    assert all(torch.equal(found.sums[name], value) for name, value in expected.sums.items())


def test_processes_that_share_the_batches_have_the_sums_of_all() -> None:
    class Alone(Share):
        """One of two processes, which does not hear of the other."""

        def add(self, tensors: Sequence[Tensor]) -> None: ...

        def total(self, *values: float) -> list[float]:
            return list(values)

    batches = [toy_batch(seed=seed) for seed in range(3)]
    whole = score_inputs(toy_model(), batches)
    parts = [score_inputs(toy_model(), batches, share=Alone(number, 2)) for number in (0, 1)]
    assert [part.batches for part in parts] == [1, 2] and {part.images_hash for part in parts} == {whole.images_hash}
    for name, total in whole.sums.items():
        torch.testing.assert_close(parts[0].sums[name] + parts[1].sums[name], total, rtol=1e-5, atol=1e-7)


def test_the_number_of_images_in_a_batch_does_not_matter() -> None:
    batch = toy_batch(seed=3)
    whole, parts = score_inputs(toy_model(), [batch]), score_inputs(toy_model(), batch.split(1))
    for name, total in whole.sums.items():
        torch.testing.assert_close(total, parts.sums[name], rtol=1e-5, atol=1e-7)


def test_a_layer_that_runs_twice_has_the_mean_of_both() -> None:
    layer = nn.Linear(3, 2)

    class Twice(OneLayer):
        def features(self, batch: Any) -> Tensor:
            return layer(batch.images) + layer(torch.cat([batch.images * 3] * 2, 1))  # type: ignore[no-any-return]

    images = torch.rand(4, 1, 3)
    found = score_inputs(Twice(layer), [Pictures(images)]).sums["layer.weight"]  # type: ignore[list-item]
    torch.testing.assert_close(found, 4 * images.mean((0, 1)) * (1 + 3 + 3) / 3)


def test_a_weight_without_input_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Idle(OneLayer):
        def features(self, batch: Any) -> Tensor:
            return batch.images  # type: ignore[no-any-return]

    with caplog.at_level(logging.WARNING):
        found = score_inputs(Idle(nn.Linear(3, 2)), [Pictures(torch.rand(1, 3))])  # type: ignore[list-item]
    assert "no input was seen of 1 weights, the first of which is layer.weight" in caplog.text
    assert not bool(found.sums["layer.weight"].any())


def test_images_that_can_not_be_scored() -> None:
    with pytest.raises(DataError, match="no image can be scored"):
        score_inputs(toy_model(), [])
    bad = Pictures(torch.tensor([[1.0, torch.nan, 1.0]]))
    with pytest.raises(NonFiniteError, match=r"input of layer\.weight is not finite; check the weights and the images"):
        score_inputs(OneLayer(nn.Linear(3, 2)), [bad])  # type: ignore[list-item]


def test_a_file_keeps_them_apart_from_gradients(tmp_path: Path) -> None:
    model, batches = toy_model(), [toy_batch()]
    scores = score_inputs(model, batches)
    save_scores(scores, tmp_path / "s")
    again = load_scores(tmp_path / "s")
    assert again.of == "inputs" and all(torch.equal(again.sums[n], t) for n, t in scores.sums.items())
    check_scores(again, Needs(None), model)
    gradients = score(model, batches, task_loss(dice_bce))
    with pytest.raises(ConfigError, match="the scores are of gradients, but inputs are needed; score again"):
        select(model, gradients, name="gps", criterion="fps")
    with pytest.raises(ConfigError, match="the scores are of inputs, but gradients are needed; score again"):
        select(model, again, name="gps")
    with pytest.raises(Exception, match=r"of another loss \(not known, here contrastive"):
        check_scores_file(again, base_hash="", loss="contrastive", per="batch", squares=False)


def test_inputs_of_another_model_are_refused() -> None:
    model = toy_model()
    scores = score_inputs(model, [toy_batch()])
    name = next(iter(scores.sums))
    scores.sums[name] = scores.sums[name][:1]
    with pytest.raises(ConfigError, match=rf"the scores of '{name}' have the shape .*, the layer's input of toy has"):
        check_scores(scores, Needs(None), model)
    del scores.sums[name]
    with pytest.raises(ConfigError, match=rf"the scores have no '{name}', which toy has"):
        check_scores(scores, Needs(None), model)


def test_shapes_are_those_of_the_sums() -> None:
    model = toy_lite()
    assert {name: tuple(total.shape) for name, total in InputSums(model).sums.items()} == input_shapes(model)
