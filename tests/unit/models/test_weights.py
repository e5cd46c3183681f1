"""Checkpoints: what fits loads completely, and what does not is refused with the reason."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy import toy_model

from samtune.errors import CheckpointError
from samtune.models.sam import weights as published_weights
from samtune.models.sam.weights import OFFICIAL, Official, load_sam, official_checkpoint
from samtune.models.table import build_model
from samtune.models.weights import load_weights, read_state

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    """The weights that the files hold; models to load into have another seed."""
    return dict(toy_model(seed=7).net.state_dict())


def assert_loaded(path: Path, state: State) -> None:
    model = toy_model()
    load_weights(model, path)
    loaded = model.net.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["plain.pth", "plain.pt", "plain.safetensors"])
def test_loads_plain_files_and_says_so(
    name: str, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    with caplog.at_level(logging.INFO):
        assert_loaded(path, state)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"loaded {len(state)}/{len(state)} tensors from {path}, sha256 {sha256}" in caplog.text


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (None, "module."),  # DataParallel, as in some MedSAM files
        ("model_state", "sam."),  # micro-sam
        ("model", ""),  # MedSAM's training checkpoints
        ("model", "module."),
        ("state_dict", "model."),  # Lightning
        ("model_state_dict", "module.sam."),
    ],
)
def test_takes_off_the_wrapping_of_known_trainers(key: str | None, prefix: str, state: State, tmp_path: Path) -> None:
    content: dict[str, object] = {prefix + name: tensor for name, tensor in state.items()}
    if key is not None:
        content = {key: content, "epoch": 3, "optimizer": {"lr": 1e-4}}
    torch.save(content, tmp_path / "wrapped.pth")
    assert_loaded(tmp_path / "wrapped.pth", state)


def test_fp16_file_is_loaded_as_fp32(state: State, tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    assert_loaded(tmp_path / "half.safetensors", {name: tensor.float() for name, tensor in half.items()})


def test_packaged_weights_come_from_the_package(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        published_weights, "files", lambda package: tmp_path if package == "samtune.models.sam" else None
    )
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "toy.safetensors")
    model = toy_model()
    load_sam(model, None, classes=None)
    assert all(torch.equal(tensor, state[name].half().float()) for name, tensor in model.net.state_dict().items())


# --- what does not fit


def refused(path: Path, match: str) -> None:
    """A refused file leaves the model as it was."""
    model, before = toy_model(), toy_model().net.state_dict()
    with pytest.raises(CheckpointError, match=match):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", r"none\.pth does not exist\. Check model\.checkpoint or --checkpoint")
    refused(tmp_path, r"is a folder, and a file is needed\. It holds: .* Check model\.checkpoint")


def test_missing_and_unknown_tensors_are_named(state: State, tmp_path: Path) -> None:
    del state["image_encoder.pos_embed"]
    for number in range(4):
        state[f"head.{number}.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    refused(
        tmp_path / "odd.pth",
        r"1 missing \(image_encoder\.pos_embed\), 4 unknown \(head\.0\.weight, head\.1\.weight, head\.2\.weight, "
        r"\.\.\.\)\. It does not look like a Segment Anything checkpoint",
    )


def test_one_tensor_too_many_is_refused(state: State, tmp_path: Path) -> None:
    torch.save({**state, "prompt_generator.weight": torch.zeros(1)}, tmp_path / "more.pth")
    refused(tmp_path / "more.pth", rf"does not fit the model \({len(state)} tensors\): 1 unknown \(prompt_generator")


@pytest.mark.parametrize(
    ("width", "name"), [(224, "sam_tiny"), (768, "sam_vit_b"), (1024, "sam_vit_l"), (1280, "sam_vit_h")]
)
def test_checkpoint_of_another_model_is_recognised(width: int, name: str, state: State, tmp_path: Path) -> None:
    state["image_encoder.pos_embed"] = torch.zeros(1, 4, 4, width)
    torch.save(state, tmp_path / "other.pth")
    refused(
        tmp_path / "other.pth",
        rf"1 of another shape \(e\.g\. image_encoder\.pos_embed: file \(1, 4, 4, {width}\), model \(1, 4, 4, 32\)\)"
        rf"\. It looks like {name}: set model\.name to that",
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(broken: float, state: State, tmp_path: Path) -> None:
    name = "image_encoder.neck.0.weight"
    state[name] = state[name].clone()
    state[name][0, 0] = broken
    torch.save(state, tmp_path / "broken.pth")
    refused(tmp_path / "broken.pth", rf"NaN or infinity in 1 tensors \({name}\)")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_truncated_files(name: str, share: float, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, r"is damaged or no (checkpoint|safetensors file) .*Get (or make )?the file again")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"hello, I am text\n", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n\x1a\n"],
    ids=["text", "html", "lfs pointer", "image"],
)
def test_other_files_are_not_said_to_execute_code(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content * 20)
    with pytest.raises(CheckpointError, match=r"is damaged or no (checkpoint|safetensors file)") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value) and "execute" not in str(caught.value)


@pytest.mark.parametrize("start", list(b"(].}q)RbcK\x80U"))
def test_random_bytes_are_refused_in_words(start: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(start)
    noise = torch.randint(0, 128, (300,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    (tmp_path / "noise.pth").write_bytes(bytes([start]) + noise)
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "noise.pth")


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_not_executed(as_zip: bool, state: State, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({**state, "extra": Evil(mark)}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"more than tensors, and reading it would execute code .*state dict"):
        read_state(path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"weights": {"a": torch.zeros(1)}}, torch.zeros(3)])
def test_file_without_a_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"holds no state dict \(name -> tensor\), nor one under model_state, "):
        read_state(tmp_path / "odd.pth")


# --- official files


@pytest.fixture
def published(file_server, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the toy's weights behind the address of `sam_vit_b`; returns where it is to be stored."""
    torch.save(state, tmp_path / "published.pth")
    file_server.content = (tmp_path / "published.pth").read_bytes()
    sha256 = hashlib.sha256(file_server.content).hexdigest()
    monkeypatch.setitem(OFFICIAL, "sam_vit_b", Official(file_server.url, sha256))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samtune" / "file.bin"


def test_official_file_is_downloaded_once(published: Path, file_server, state: State) -> None:
    assert official_checkpoint("sam_vit_b") == published
    assert official_checkpoint("sam_vit_b") == published
    assert len(file_server.requests) == 1
    assert_loaded(published, state)


def test_official_file_with_another_hash_is_refused(
    published: Path, file_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OFFICIAL, "sam_vit_b", Official(file_server.url, "0" * 64))
    with pytest.raises(CheckpointError, match=r"SHA-256 is [0-9a-f]{64}, but the published hash is 0{64}"):
        official_checkpoint("sam_vit_b")
    assert not published.exists()


def test_offline_it_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "samtune" / "sam_vit_b_01ec64.pth"
    message = rf"can't download {OFFICIAL['sam_vit_b'].url}.* get the file on another machine and put it at {place}"
    with pytest.raises(CheckpointError, match=message):  # the tests forbid the network
        build_model("sam_vit_b", image_size=64)


def test_cache_is_below_the_home_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    place = tmp_path / ".cache" / "samtune" / "sam_vit_l_0b3195.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"whatever")
    sha256 = hashlib.sha256(b"whatever").hexdigest()
    monkeypatch.setitem(OFFICIAL, "sam_vit_l", Official(OFFICIAL["sam_vit_l"].url, sha256))
    assert official_checkpoint("sam_vit_l") == place


def test_a_file_put_into_the_cache_by_hand_is_verified(published: Path, file_server) -> None:
    published.parent.mkdir(parents=True)
    published.write_bytes(b"another file")
    with pytest.raises(
        CheckpointError, match=r"file\.bin: SHA-256 is [0-9a-f]{64}, but the published hash is .*delete"
    ):
        official_checkpoint("sam_vit_b")
    assert published.read_bytes() == b"another file" and file_server.requests == []


def test_published_hashes_are_whole() -> None:
    assert set(OFFICIAL) == {"sam_vit_b", "sam_vit_l", "sam_vit_h"}
    for official in OFFICIAL.values():
        assert len(official.sha256) == 64 and official.url.startswith("https://")
