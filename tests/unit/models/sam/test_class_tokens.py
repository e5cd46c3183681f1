"""Class tokens beside Segment Anything's own: prompts answer as before, bit for bit, and every selector trains them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import prompts_of, toy_batch, toy_lite, toy_model

from samtune.errors import CheckpointError
from samtune.models.classes import KEPT, PREFIX
from samtune.models.sam.model import SamModel
from samtune.models.sam.vit import build_vit
from samtune.models.sam.weights import load_sam
from samtune.selection import SELECTORS, select
from samtune.tuning import attach, merge
from samtune.types import Batch


def with_classes(count: int = 3) -> SamModel:
    model = toy_model()
    model.add_classes(count)
    return model


def batch_of(kind: str) -> Batch:
    return toy_batch(prompts=prompts_of(kind))


@pytest.mark.parametrize("kind", ["box", "point", "points", "both"])
def test_prompts_are_answered_bit_for_bit_as_without_classes(kind: str) -> None:
    with torch.no_grad():
        assert torch.equal(with_classes()(batch_of(kind)), toy_model()(batch_of(kind)))


def test_the_masks_without_a_prompt_stay_too() -> None:
    stock, ours = toy_model(), with_classes()
    with torch.no_grad():
        features = stock.embed(toy_batch())
        assert torch.equal(ours.decode(features), stock.decode(features))
        for one, other in zip(ours.decode_all(features), stock.decode_all(features), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("model", [toy_model, toy_lite])
def test_a_batch_without_prompts_gets_a_map_per_class(model: type) -> None:
    tuned = model()
    tuned.add_classes(5)
    with torch.no_grad():
        logits = tuned(toy_batch())
    assert logits.shape == (2, 5, 16, 16)
    assert torch.allclose(logits, logits[:, :1].expand_as(logits), atol=1e-5)  # all classes are equally likely


def test_the_tokens_see_each_other_and_their_own_weights() -> None:
    """Each class by its own hypernetwork: against a loop over segment-anything's MLP."""
    model = with_classes(2)
    tokens = model.classes
    assert tokens is not None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.normal_(0, 0.1, generator=generator)
        hidden = torch.randn(2, 2, 32, generator=generator)
        mlp = model.net.mask_decoder.output_hypernetworks_mlps[0]
        for index in range(2):
            for layer, weight, bias in zip(mlp.layers, tokens.weights, tokens.biases, strict=True):
                layer.weight.copy_(weight[index])
                layer.bias.copy_(bias[index])
            assert torch.allclose(tokens(hidden)[:, index], mlp(hidden[:, index]), atol=1e-6)


def test_roles() -> None:
    roles = with_classes().roles()
    assert {role for name, role in roles.items() if name.startswith(PREFIX)} == {"head"}
    assert {role for name, role in roles.items() if name.startswith(KEPT)} == {"fixed"}
    assert {role for name, role in toy_model().roles().items() if name.startswith(KEPT)} == {"decoder"}


SCORED, OF_OTHERS = ("gps", "grft", "spt"), ("mlp", "vpt_shallow", "vpt_deep")  # a head of classifiers, plain ViTs


@pytest.mark.parametrize("name", [name for name in SELECTORS if name not in SCORED + OF_OTHERS])
def test_selectors_train_the_tokens_whole_and_leave_sams_own(name: str) -> None:
    model = with_classes()
    chosen = select(model, None, name=name).names()
    assert {n for n in model.roles() if n.startswith(PREFIX)} <= set(chosen)
    assert not [n for n in chosen if n.startswith(KEPT)]


def test_training_moves_no_token_of_sams_own() -> None:
    model, stock = with_classes(), toy_model()
    trainable = attach(model, select(model, None, name="full"))
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(toy_batch())[:, 0].square().mean().backward()
        optimizer.step()
    before, after = stock.net.state_dict(), merge(model).net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(KEPT))
    classes = model.classes
    assert classes is not None
    assert not torch.equal(classes.tokens[0], classes.tokens[1])
    with torch.no_grad():
        assert bool(model(batch_of("box")).isfinite().all())


def test_files_with_and_without_classes(tmp_path: Path) -> None:
    stock = toy_model()
    torch.save(stock.net.state_dict(), tmp_path / "stock.pth")
    model = toy_model(seed=1)
    load_sam(model, tmp_path / "stock.pth", classes=3)
    assert model.classes is not None
    assert torch.equal(model.classes.tokens[2], stock.net.mask_decoder.mask_tokens.weight[0])
    with torch.no_grad():
        model.classes.tokens.fill_(0.5)
    torch.save(model.net.state_dict(), tmp_path / "classes.pth")
    again = toy_model(seed=2)
    load_sam(again, tmp_path / "classes.pth", classes=3)
    assert again.classes is not None and bool((again.classes.tokens == 0.5).all())
    with pytest.raises(CheckpointError, match="another shape"):
        load_sam(toy_model(), tmp_path / "classes.pth", classes=4)
    with pytest.raises(CheckpointError, match="unknown"):
        load_sam(toy_model(), tmp_path / "classes.pth", classes=None)


def test_segment_anything_does_not_load_them() -> None:
    with torch.device("meta"):
        model = build_vit("sam_tiny", checkpoint="random", classes=2)
    with pytest.raises(CheckpointError, match="no class tokens"):
        model.stock_notes(Path("x.pth"))
