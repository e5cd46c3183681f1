"""Class tokens in decoders of transformers: what stays, what they see, what is written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from toy import prompts_of, toy_batch
from toy_hf import CONFIGS, SIZE, config_of, toy_hf

from samtune.base.tensors import save_tensors
from samtune.errors import CheckpointError
from samtune.models.classes import KEPT, PREFIX
from samtune.models.hf.build import build_hf
from samtune.models.hf.families import FAMILIES
from samtune.models.hf.hq import HfSamHQ
from samtune.models.hf.model import HfSam
from samtune.selection import select
from samtune.tuning import attach, merge
from samtune.types import Prompts

TAKING = [family for family in CONFIGS if family != "sam_hq"]
families = pytest.mark.parametrize("family", TAKING)


def with_classes(family: str, count: int = 3) -> HfSam:
    model = toy_hf(family)
    model.add_classes(count)
    return model


@families
def test_prompts_are_answered_bit_for_bit_as_without_classes(family: str) -> None:
    stock, ours = toy_hf(family), with_classes(family)
    with torch.no_grad():
        for kind in ("box", "points", "both"):
            batch = toy_batch(prompts=prompts_of(kind))
            assert torch.equal(ours(batch), stock(batch))
        embedded = stock.embed(toy_batch())
        assert torch.equal(ours.decode(embedded), stock.decode(embedded))
        for one, other in zip(ours.decode_all(embedded), stock.decode_all(embedded), strict=True):
            assert torch.equal(one, other)


@families
def test_a_batch_without_prompts_gets_a_map_per_class(family: str) -> None:
    model = with_classes(family, 5)
    with torch.no_grad():
        logits = model(toy_batch())
    assert logits.shape == (2, 5, SIZE // 4, SIZE // 4) and float(logits.std()) > 0
    assert torch.allclose(logits, logits[:, :1].expand_as(logits), atol=1e-5)  # all classes are equally likely


@pytest.mark.parametrize("family", ["sam2", "sam3", "edgetam"])
def test_maps_of_classes_see_the_higher_resolutions(family: str) -> None:
    model = with_classes(family)
    with torch.no_grad():
        embedded = model.embed(toy_batch())
        plain = model.decode_classes(embedded)
        assert [one.shape[-1] for one in embedded.details] == [SIZE // 4, SIZE // 8]
        for place in range(2):
            details = list(embedded.details)
            details[place] = details[place].flip(-1)
            assert not torch.allclose(model.decode_classes(replace(embedded, details=tuple(details))), plain, atol=1e-3)


def asked(prompts: Prompts) -> dict[str, Any]:
    """Prompts as transformers takes them."""
    given = {"boxes": prompts.boxes_input, "points": prompts.points_input, "labels": prompts.labels}
    return {f"input_{name}": value[:, None] for name, value in given.items() if value is not None}


@families
@pytest.mark.parametrize("again", [False, True], ids=["first", "corrected"])
def test_all_masks_and_scores_are_those_of_the_stock_forward(family: str, again: bool) -> None:
    model, prompts = toy_hf(family), prompts_of("box")
    assert prompts is not None
    batch = toy_batch(prompts=prompts)
    pixels = model.normalise(batch.images, batch.valid())
    with torch.no_grad():
        embedded = model.embed(batch)
        last = model.decode(embedded, prompts) if again else None
        low, expected = model.decode_all(embedded, prompts, last)
        torch.testing.assert_close(model.decode(embedded, prompts, last), low[:, :1], rtol=1e-5, atol=1e-5)
        for several, part in ((False, slice(1)), (True, slice(1, None))):
            stock = model.net(pixel_values=pixels, **asked(prompts), input_masks=last, multimask_output=several)
            torch.testing.assert_close(low[:, part], stock.pred_masks[:, 0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(expected[:, part], stock.iou_scores[:, 0], rtol=1e-5, atol=1e-5)


def test_some_pictures_and_one_several_times() -> None:
    model = toy_hf("sam2")
    with torch.no_grad():
        embedded = model.embed(toy_batch())
        whole = model.decode(embedded)
        assert torch.allclose(model.decode(embedded[torch.tensor([1, 0, 1])]), whole[[1, 0, 1]], atol=1e-5)
        assert torch.allclose(model.decode(embedded[1:].repeated(3)), whole[[1, 1, 1]], atol=1e-5)
    assert len(embedded[1:]) == 1 and len(embedded) == 2


@families
def test_roles_and_training(family: str) -> None:
    """The tokens train whole with every method; what only answers to prompts does not move."""
    model, stock = with_classes(family), toy_hf(family)
    roles = model.roles()
    assert {role for name, role in roles.items() if name.startswith(PREFIX)} == {"head"}
    assert {role for name, role in roles.items() if name.startswith(KEPT)} == {"fixed"}
    trainable = attach(model, select(model, None, name="full"))
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(toy_batch())[:, 0].square().mean().backward()
        optimizer.step()
    before, after = stock.net.state_dict(), merge(model).net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(KEPT))
    assert not torch.equal(before["mask_decoder.upscale_conv1.weight"], after["mask_decoder.upscale_conv1.weight"])
    tokens = after[f"{PREFIX}tokens"]
    assert not torch.equal(tokens[0], tokens[1])


def test_a_folder_leaves_the_tokens_out_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, prompts = with_classes("sam2"), prompts_of("box")
    assert prompts is not None
    with caplog.at_level(logging.INFO):
        model.save_stock(tmp_path / "hub")
    assert "7 tensors of the tuned model are left out: transformers has no place" in caplog.text
    said = (tmp_path / "hub" / "README.md").read_text()
    assert said.count(f"- `{PREFIX}") == 7 and "merged.safetensors" in said
    assert not [name for name in load_file(tmp_path / "hub" / "model.safetensors") if name.startswith(PREFIX)]
    loader: Any = getattr(transformers, f"{FAMILIES['sam2'].prefix}Model")
    theirs, account = loader.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not account["missing_keys"] and not account["unexpected_keys"]
    batch = toy_batch(prompts=prompts)
    with torch.no_grad():
        pixels = model.normalise(batch.images, batch.valid())
        stock = theirs.eval()(pixel_values=pixels, **asked(prompts), multimask_output=False).pred_masks[:, 0]
        torch.testing.assert_close(stock, model(batch), rtol=1e-5, atol=1e-5)
    toy_hf("sam2").save_stock(tmp_path / "plain")
    assert not (tmp_path / "plain" / "README.md").exists()
    with pytest.raises(CheckpointError, match=r"transformers has no class tokens, so no \.pth"):
        model.stock_notes(Path("x.pth"))


def test_files_with_and_without_classes(tmp_path: Path) -> None:
    folder, file, config = tmp_path / "base", tmp_path / "classes.safetensors", config_of("sam2")
    toy_hf("sam2").save_stock(folder)
    model = build_hf("sam2", checkpoint=folder, classes=3)
    assert model.classes is not None and model.classes.fresh
    assert torch.equal(model.classes.tokens[2], toy_hf("sam2").net.mask_decoder.mask_tokens.weight[0])
    with torch.no_grad():
        model.classes.tokens[0].fill_(0.5)
    save_tensors(file, model.net.state_dict(), {})
    again = build_hf("sam2", checkpoint=file, config=config, classes=3)
    assert again.classes is not None and torch.equal(again.classes.tokens, model.classes.tokens)
    for count, problem in ((4, "another shape"), (None, "unknown")):
        with pytest.raises(CheckpointError, match=problem):
            build_hf("sam2", checkpoint=file, config=config, classes=count)
    shapes = torch.device("meta")
    with shapes:
        assert build_hf("sam2", checkpoint="random", config=config, classes=2).classes is not None


def test_sam_hq_has_no_one_map() -> None:
    model = toy_hf("sam_hq")
    assert isinstance(model, HfSamHQ)
    with pytest.raises(NotImplementedError, match="two maps"):
        model.decode_all(model.embed(toy_batch()))
