"""Pre-training of the small ViT: it runs, resumes, exports, and the file in the package is a stock timm one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from pretrain_tiny_vit import ARCHITECTURE, build, main, pixels_of, rate
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_classes import draw_pictures

SHIPPED = Path(__file__).resolve().parents[2] / "samtune" / "models" / "timm" / "vit_mini.safetensors"
TINY = ["--batch", "4", "--workers", "0", "--pictures", "60", "--save-every", "0"]


def stock() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **ARCHITECTURE, num_classes=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vit")
    main(["--out", str(out), "--steps", "2", *TINY])
    return out


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_resumes_where_it_stopped(trained: Path) -> None:
    before = torch.load(trained / "state.pt", weights_only=True)
    main(["--out", str(trained), "--steps", "3", "--resume", *TINY])
    after = torch.load(trained / "state.pt", weights_only=True)
    assert (before["steps"], after["steps"]) == (2, 3) and after["seconds"] > before["seconds"]
    assert [o["state"][0].keys() for o in before["optimizers"]] == [o["state"][0].keys() for o in after["optimizers"]]
    assert not torch.equal(before["model"]["head.weight"], after["model"]["head.weight"])
    assert lines(trained)[-1]["pictures"] == 12


def test_finished_training_does_not_go_on(trained: Path) -> None:
    steps = torch.load(trained / "state.pt", weights_only=True)["steps"]
    main(["--out", str(trained), "--steps", "1", "--resume", *TINY])
    assert torch.load(trained / "state.pt", weights_only=True)["steps"] == steps


def test_export_loads_in_stock_timm_and_is_measured(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "vit.safetensors"
    main(["--out", str(trained), "--export", str(target), *TINY])
    state = load_file(target)
    stock().load_state_dict(state, strict=True)
    assert all(value.dtype == torch.float16 for value in state.values())
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    facts = lines(trained)[-1]
    assert facts.keys() == {"exported", "held_out", "transfer", "transfer_random"}


def test_plain_attention_is_timms_own_function() -> None:
    torch.manual_seed(0)
    ours = build(0).eval()
    theirs = stock().eval()
    theirs.load_state_dict(ours.state_dict())
    images = pixels_of(torch.from_numpy(draw_pictures(0, 2, seed=0)[0]))
    assert images.min() >= -1 and images.max() <= 1
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_rate_warms_up_and_ends_low() -> None:
    assert rate(0.0, 1.0) < 0.05 < 0.95 < rate(0.04, 1.0) <= 1.0
    assert rate(1.0, 1.0) == pytest.approx(0.01)


def test_shipped_weights_tell_new_pictures_apart() -> None:
    state = load_file(SHIPPED)
    with safe_open(SHIPPED, framework="pt") as file:
        assert file.metadata()["model"] == "vit_mini"
    model = stock()
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    assert sum(p.numel() for p in model.parameters()) < 2_800_000
    images, labels = draw_pictures(0, 400, seed=8, held_out=True)
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.eval()(pixels_of(torch.from_numpy(images))), dim=1)
    nearest = torch.from_numpy(labels)[(features[200:] @ features[:200].T).argmax(1)]
    assert (nearest == torch.from_numpy(labels[200:])).float().mean() > 0.2  # 40 classes: chance is 0.025
