from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from samtune.errors import CheckpointError, DiskError
from samtune.run.checkpoints import store as checkpoint
from samtune.run.checkpoints.store import Checkpoints

VALUES = {"values": {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float64)}}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    found = Checkpoints(tmp_path / "checkpoints", {"base": "abc"})
    for step in (9, 10):
        found.save("step", step, VALUES, {"step": step})
    return found


def test_what_is_saved_is_read_back(saved: Checkpoints) -> None:
    found = saved.load("step-000010")
    assert found.state == {"step": 10}
    assert torch.equal(found.tensors["values"]["a"], VALUES["values"]["a"])
    assert found.tensors["values"]["b"].dtype == torch.float64
    assert (saved.folder / "LATEST").read_text() == "step-000010\n"
    assert saved.names("step") == ["step-000010", "step-000009"]
    assert saved.newest("step", lambda one: one.state["step"]) == 10


def test_a_step_that_is_reached_again_gets_a_name_of_its_own(saved: Checkpoints) -> None:
    assert saved.save("step", 9, VALUES, {"step": 9}) == "step-000009-2"
    assert saved.names("step") == ["step-000009-2", "step-000010", "step-000009"]  # the newest first, then by number


def test_kinds_are_apart_and_what_is_not_kept_goes(saved: Checkpoints) -> None:
    best = saved.save("best", 3, VALUES, {})
    (saved.folder / "step-000011.part").mkdir()
    saved.keep({"step-000010", best}, ("step", "best"))
    assert sorted(path.name for path in saved.folder.iterdir()) == ["LATEST", "best-000003", "step-000010"]


def test_a_write_that_fails_changes_nothing(saved: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint._write

    def full(path: Path, content: bytes) -> None:
        if path.name == "state.json":
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoint, "_write", full)
    before = sorted(path.name for path in saved.folder.iterdir())
    with pytest.raises(DiskError, match="No space left on device"):
        saved.save("step", 11, VALUES, {})
    assert sorted(path.name for path in saved.folder.iterdir()) == before


def test_what_belongs_to_something_else_is_refused(saved: Checkpoints) -> None:
    other = Checkpoints(saved.folder, {"base": "xyz"})
    with pytest.raises(CheckpointError, match=r"step-000010 belongs to another base \(abc, here xyz\)"):
        other.load("step-000010")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*000010 .*000009 .*Start anew"):
        other.newest("step", id)


def test_none_is_no_error(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", {}).newest("step", id) is None


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"about": {}, "sha256": []}'])
def test_a_manifest_of_another_form_is_refused(text: str, saved: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    (saved.folder / "step-000010" / "manifest.json").write_text(text)
    with caplog.at_level(logging.WARNING, "samtune"):
        assert saved.newest("step", lambda one: one.name) == "step-000009"
    assert "step-000010/manifest.json is damaged" in caplog.text


def test_tensors_that_are_none_are_refused(saved: Checkpoints) -> None:
    """Written so: the hash is right."""
    import hashlib

    folder = saved.folder / "step-000010"
    (folder / "values.safetensors").write_bytes(b"nothing")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["values.safetensors"] = hashlib.sha256(b"nothing").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="step-000010 can't be read"):
        saved.load("step-000010")
