"""The table of models: names, what they give, and a line for a model from outside of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import toy_batch
from toy_backbone import ENTRY, ToyBackbone

from samtune.errors import CheckpointError, ConfigError
from samtune.files.merged import load_merged, save_merged
from samtune.models.hf.families import DINOS, FAMILIES
from samtune.models.sam.model import SamModel
from samtune.models.sam.specs import LITES, VITS
from samtune.models.table import MODELS, OTHERS, build_model, entry_of, names_for_maps, names_that_give
from samtune.models.timm.families import OWN
from samtune.models.timm.model import Classifier
from samtune.scoring.score import score
from samtune.selection import select
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import ContrastiveLoss, task_loss
from samtune.tuning import attach, merge


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> ToyBackbone:
    """A model from outside, by one line in the table."""
    monkeypatch.setitem(MODELS, "theirs", ENTRY)
    model = build_model("theirs", image_size=64)
    assert isinstance(model, ToyBackbone)
    return model


def test_the_table_names_what_the_families_have() -> None:
    assert sorted(names_that_give("masks")) == sorted({**LITES, **VITS, **FAMILIES})
    assert sorted(names_that_give("classes")) == sorted({**OWN, **DINOS})
    assert set(names_for_maps()) == {*names_that_give("masks"), *DINOS}
    assert entry_of("vit_base_patch16_224.augreg_in21k") is OTHERS and OTHERS.gives == "classes"
    assert isinstance(build_model("sam_tiny", checkpoint="random", image_size=64), SamModel)
    vit = build_model("vit_tiny_patch16_224", classes=3, checkpoint="random", depth=1, embed_dim=24, num_heads=2)
    assert isinstance(vit, Classifier) and vit.name == "vit_tiny_patch16_224" and vit.options["depth"] == 1


def test_the_table_imports_no_library_of_models() -> None:
    code = "import sys, samtune.models.table; assert not {'torch', 'timm', 'segment_anything'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_and_a_missing_number_of_classes() -> None:
    message = r"unknown model 'sam_vitb'. Did you mean 'sam_vit_b'\? Known: dinov2, .* A model of timm needs classes=N"
    with pytest.raises(ConfigError, match=message):
        build_model("sam_vitb")
    with pytest.raises(ConfigError, match=r"vit_mini is a classifier: give classes=N"):
        build_model("vit_mini")
    with pytest.raises(ConfigError, match=r"timm has no model 'sam_vitb'\. Similar names: sam_vit_b, "):
        build_model("sam_vitb", classes=3)


@pytest.mark.parametrize(
    ("name", "loss"), [("gps", ContrastiveLoss(cells=8, temperature=0.1, seed=0)), ("spt", task_loss(dice_bce))]
)
def test_a_model_from_outside_is_scored_selected_tuned_and_merged(
    outside: ToyBackbone, name: str, loss: object, tmp_path: Path
) -> None:
    batches = [toy_batch(seed=seed) for seed in range(2)]
    per = "sample" if name == "spt" else "batch"
    options = {"tau": 100, "rank": 2} if name == "spt" else {}
    scores = score(outside, batches, loss, per=per, squares=name == "spt")  # type: ignore[arg-type]
    base = {key: tensor.clone() for key, tensor in outside.net.state_dict().items()}
    selection = select(outside, scores, name=name, **options)
    optimizer = torch.optim.AdamW(attach(outside, selection).values(), lr=1e-2)
    for batch in batches:
        outside.train()(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned = outside.eval()(batches[0])
    merge(outside)
    info = MaskDescription.of(outside, base_hash="0", additions=(), prompt="none")
    save_merged(tmp_path / "merged.safetensors", outside, info)
    loaded, _ = load_merged(tmp_path / "merged.safetensors", MaskDescription)
    torch.testing.assert_close(loaded(batches[0]), tuned, rtol=0, atol=0 if name == "gps" else 1e-4)
    changed = {key for key, tensor in loaded.net.state_dict().items() if not torch.equal(tensor, base[key])}
    assert changed == {*selection.names(), *(f"{addition.module}.weight" for addition in selection.additions)}


def test_weights_of_another_network_are_refused(outside: ToyBackbone, tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth does not fit the model .* It is not of theirs\."):
        build_model("theirs", checkpoint=tmp_path / "odd.pth")
