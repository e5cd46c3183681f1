"""Weights of classifiers: every published layout loads whole, what does not fit is refused, the hub is asked once."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from descriptions import class_description
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.base.tensors import state_hash
from samtune.errors import CheckpointError
from samtune.files.delta import apply_delta, save_delta
from samtune.models.timm.model import Classifier, build_classifier
from samtune.selection import Selection

State = dict[str, Tensor]


def state_of(family: str) -> State:
    return dict(toy_classifier(family, seed=7).net.state_dict())


def build(family: str, checkpoint: Path | None, *, classes: int = 3, **options: Any) -> Classifier:
    name, own = FAMILIES[family]
    return build_classifier(name, classes=classes, checkpoint=checkpoint, **own | options)


def assert_body(model: Classifier, state: State, but: tuple[str, ...] = ()) -> None:
    head = f"{model.head_module()}."
    loaded = {n: t for n, t in model.net.state_dict().items() if not n.startswith((head, *but))}
    assert loaded.keys() == {n for n in state if not n.startswith((head, *but))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def without_head(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


# --- layouts


def moco(state: State) -> dict[str, Any]:
    projection = {"head.0.weight": torch.zeros(8, 32), "head.1.running_mean": torch.zeros(8)}
    both = {f"module.{part}.{n}": t for part in ("base_encoder", "momentum_encoder") for n, t in
            (without_head(state) | projection).items()}  # fmt: skip
    both |= {n: t + 1 for n, t in both.items() if n.startswith("module.momentum")}
    return {"epoch": 300, "arch": "vit_base", "state_dict": both | {"module.predictor.0.weight": torch.zeros(8, 8)}}


def mae(state: State) -> dict[str, Any]:
    decoder = {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 32)}
    return {"model": without_head(state) | decoder | {"decoder_blocks.0.norm1.weight": torch.zeros(16)}}


def swin(state: State) -> dict[str, Any]:
    """Microsoft's own: downsampling at the end of a stage, buffers kept, the head without `fc`."""
    found = {n.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): t
             for n, t in state.items()}  # fmt: skip
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)}
    return {"model": found | buffers | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}}


def convnext(state: State) -> dict[str, Any]:
    """Facebook's own names."""
    rules = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    found = {}
    for name, tensor in state.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        found[name] = tensor
    return {"model": found}


LAYOUTS: dict[str, tuple[str, str, Callable[[State], Any]]] = {
    "timm": ("vit", "model.bin", lambda state: state),
    "trainer": ("vit", "last.pt", lambda state: {"state_dict": {f"module.{n}": t for n, t in state.items()}}),
    "mae": ("vit", "mae_pretrain.pth", lambda state: {"model": without_head(state)}),
    "mae with decoder": ("vit", "mae_full.pth", mae),
    "moco-v3": ("vit", "vit-b-300ep.pth.tar", moco),
    "swin": ("swin", "swin_22k.pth", swin),
    "timm's swin": ("swin", "swin.pth", lambda state: state),
    "convnext": ("convnext", "convnext_22k.pth", convnext),
    "timm's convnext": ("convnext", "convnext.pth", lambda state: state),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_load_whole(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family, name, pack = LAYOUTS[layout]
    state = state_of(family)
    torch.save(pack(state), tmp_path / name)
    with caplog.at_level(logging.INFO):
        model = build(family, tmp_path / name, classes=12)
    assert_body(model, state)
    loaded = len(model.net.state_dict()) - 2
    assert f"loaded {loaded}/{loaded} tensors from {tmp_path / name}, sha256 " in caplog.text
    assert "head: new" in caplog.text
    fresh = build_classifier(FAMILIES[family][0], classes=12, checkpoint="random", **FAMILIES[family][1])
    weight = f"{model.head_module()}.weight"
    assert torch.equal(model.net.get_parameter(weight), fresh.net.get_parameter(weight))  # whatever the weights are


@pytest.mark.parametrize("layout", ["timm", "swin", "convnext"])
def test_the_head_of_a_checkpoint(layout: str, tmp_path: Path) -> None:
    family, name, pack = LAYOUTS[layout]
    state = state_of(family)
    path = tmp_path / name
    torch.save(pack(state), path)
    model = build(family, path, head="checkpoint")
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.net.state_dict().items())
    assert model.head_seed is None
    batch = labelled_batch()
    assert torch.equal(model(batch), toy_classifier(family, seed=7)(batch))
    with pytest.raises(CheckpointError, match=r"has 3 outputs, the data has 12 classes: use model\.head=new\."):
        build(family, path, classes=12, head="checkpoint")


@pytest.mark.parametrize("layout", ["mae", "moco-v3"])
def test_files_without_a_head(layout: str, tmp_path: Path) -> None:
    _, name, pack = LAYOUTS[layout]
    torch.save(pack(state_of("vit")), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"has no head: use model\.head=new"):
        build("vit", tmp_path / name, head="checkpoint")


def test_another_image_size_resamples_positions_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(state_of("vit"), path)
    with caplog.at_level(logging.INFO):
        model = build("vit", path, image_size=64)
    assert_body(model, state_of("vit"), but=("pos_embed",))
    assert "pos_embed: resampled (1, 17, 32) to (1, 65, 32)" in caplog.text
    assert torch.equal(model.net.get_parameter("pos_embed")[:, 0], state_of("vit")["pos_embed"][:, 0])
    save_file(state_of("swin"), path)
    swin = build("swin", path, image_size=24)
    assert_body(swin, state_of("swin"), but=("layers.1.blocks", "layers.0.blocks"))


# --- Google's files


def google(state: State, *, depth: int = 2, heads: int = 2, classes: int | None = 3) -> dict[str, np.ndarray]:
    """The arrays of a ViT as Google saves them: names and axes of Flax."""
    arrays = {n: t.numpy() for n, t in state.items()}
    width = arrays["cls_token"].shape[-1]
    found = {
        "cls": arrays["cls_token"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
    }
    if classes is not None:
        found |= {"head/kernel": arrays["head.weight"].T, "head/bias": arrays["head.bias"]}
    for index in range(depth):
        block, to = f"blocks.{index % 2}", f"Transformer/encoderblock_{index}"
        attention = f"{to}/MultiHeadDotProductAttention_1"
        for number, part in enumerate(("query", "key", "value")):
            rows = slice(number * width, (number + 1) * width)
            found[f"{attention}/{part}/kernel"] = arrays[f"{block}.attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = arrays[f"{block}.attn.qkv.bias"][rows].reshape(heads, -1)
        found[f"{attention}/out/kernel"] = arrays[f"{block}.attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = arrays[f"{block}.attn.proj.bias"]
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            found[f"{to}/{name}/scale"] = arrays[f"{block}.{norm}.weight"]
            found[f"{to}/{name}/bias"] = arrays[f"{block}.{norm}.bias"]
        for layer in (0, 1):
            found[f"{to}/MlpBlock_3/Dense_{layer}/kernel"] = arrays[f"{block}.mlp.fc{layer + 1}.weight"].T
            found[f"{to}/MlpBlock_3/Dense_{layer}/bias"] = arrays[f"{block}.mlp.fc{layer + 1}.bias"]
    return found


@pytest.mark.parametrize("head", ["new", "checkpoint"])
def test_googles_arrays(head: Any, tmp_path: Path) -> None:
    state = state_of("vit")
    np.savez(tmp_path / "B_16.npz", **google(state))
    model = build("vit", tmp_path / "B_16.npz", head=head)
    assert_body(model, state)
    assert torch.equal(model.net.get_parameter("head.weight"), state["head.weight"]) == (head == "checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "It looks like a ViT of width 32, depth 3, patch 8: set model.name"),
        ({"depth": 1}, "It looks like a ViT of width 32, depth 1, patch 8: set model.name"),
        ({"classes": None, "head": "checkpoint"}, "has no head"),
        ({"patch_size": 4}, "width 32, depth 2, patch 8"),
        ({"drop": "Transformer/encoder_norm/scale"}, "does not fit the model .*encoder_norm"),
        ({"drop": "embedding/kernel"}, "does not look like a ViT of Google's"),
        ({"nan": "Transformer/encoder_norm/scale"}, r"NaN or infinity in 1 tensors \(norm\.weight\)"),
    ],
)
def test_googles_arrays_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    layout = {k: v for k, v in change.items() if k in ("depth", "classes")}
    arrays = google(state_of("vit"), **layout)
    arrays.pop(change.get("drop", ""), None)
    if "nan" in change:
        arrays[change["nan"]] = arrays[change["nan"]].copy()
        arrays[change["nan"]][0] = np.nan
    np.savez(tmp_path / "B_16.npz", **arrays)
    with pytest.raises(CheckpointError, match=message):
        build("vit", tmp_path / "B_16.npz", **{k: v for k, v in change.items() if k in ("head", "patch_size")})


def test_a_delta_of_googles_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "B_16.npz", **google(state_of("vit"), classes=None))
    model = build("vit", tmp_path / "B_16.npz")
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    with torch.no_grad():
        model.net.get_parameter("norm.bias").add_(1)
    info = class_description(model, classes=("a", "b", "c"), resize="squash", base_hash=state_hash(base))
    chosen, delta = Selection({}, ("norm.bias",)), tmp_path / "delta.safetensors"
    save_delta(delta, base=base, merged=model.net.state_dict(), selection=chosen, metadata=info.to_metadata())
    apply_delta(tmp_path / "B_16.npz", delta, tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.net.state_dict().items())


def test_npz_that_is_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **google(state_of("vit")))
    with pytest.raises(CheckpointError, match="is of a ViT, but convnext_tiny is none"):
        build("convnext", tmp_path / "vit.npz")
    np.savez(tmp_path / "code.npz", **{"embedding/kernel": np.array([print], dtype=object)})
    (tmp_path / "text.npz").write_text("hello")
    for name in ("code.npz", "text.npz"):
        with pytest.raises(CheckpointError, match=r"damaged or no \.npz of arrays"):
            build("vit", tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        build("vit", tmp_path / "none.npz")


# --- what does not fit


def other_width(state: State) -> State:
    name, options = FAMILIES["vit"]
    model = build_classifier(name, classes=3, checkpoint="random", **options | {"embed_dim": 64})
    return dict(model.net.state_dict())


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("vit", other_width, "It looks like a ViT of width 64, depth 2, patch 8: set model.name to such a model"),
        ("vit", lambda s: {k: v for k, v in s.items() if k != "cls_token"}, r"1 missing \(cls_token\)"),
        ("vit", lambda s: s | {"prompt": torch.zeros(1)}, r"1 unknown \(prompt\)\. It looks like a damaged vit_tiny_"),
        ("vit", lambda s: s | {"norm.bias": torch.full((32,), torch.nan)}, r"NaN or infinity in 1 .* \(norm\.bias"),
        ("vit", lambda s: {k.replace("norm.", "fc_norm.") if k[:4] == "norm" else k: v for k, v in s.items()},
         r"mean of the patches: set model\.options=\{global_pool: avg\}"),
        ("vit", lambda _: state_of("swin"), "It looks like a Swin of width 16"),
        ("vit", lambda _: convnext(state_of("convnext")), "It looks like a ConvNeXt of width 8"),
        ("swin", lambda _: state_of("vit"), "It looks like a ViT of width 32"),
        ("swin", lambda _: state_of("convnext"), "It looks like a ConvNeXt of width 8"),
        ("convnext", lambda _: state_of("vit"), "It looks like a ViT of width 32"),
        ("convnext", lambda _: swin(state_of("swin")), "It looks like a Swin of width 16"),
        ("convnext", lambda _: {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 4)}, "looks like a Segment Anything"),
        ("swin", lambda _: {"weight": torch.zeros(2)}, "does not look like a ViT, Swin, ConvNeXt or EfficientNet"),
    ],
)  # fmt: skip
def test_weights_of_another_model(family: str, change: Callable[[State], Any], message: str, tmp_path: Path) -> None:
    torch.save(change(state_of(family)), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        build(family, tmp_path / "other.pth")


def test_patches_are_not_resampled(tmp_path: Path) -> None:
    torch.save(state_of("vit"), tmp_path / "vit.pth")
    with pytest.raises(
        CheckpointError, match=r"patch_embed\.proj\.weight: file \(32, 3, 8, 8\), model \(32, 3, 4, 4\)"
    ):
        build("vit", tmp_path / "vit.pth", patch_size=4)


# --- the hub


class Hub:
    """A stand-in for the hub: what is asked for, and the file that it has."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves `Hub.files` on 127.0.0.1, where HF_ENDPOINT would point."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found.requests.append((self.command, self.path))
            body = found.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"etag"')
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(found.files.get(self.path, b""))

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{http.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)  # the library reads its variables when it is imported
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found
        http.shutdown()


ADDRESS = "/timm/vit_tiny_patch16_224.augreg_in21k/resolve/main/model.safetensors"
NAME = "vit_tiny_patch16_224.augreg_in21k"


def published(**options: Any) -> Classifier:
    return build_classifier(NAME, classes=5, **FAMILIES["vit"][1] | options)


def test_published_weights_are_downloaded_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of("vit")
    hub.files[ADDRESS] = save(state)
    assert_body(published(), state)
    assert_body(published(), state)
    assert [kind for kind, path in hub.requests if path == ADDRESS].count("GET") == 1
    asked = len(hub.requests)
    assert_body(published(), state)
    assert len(hub.requests) == asked  # what is in the cache needs no network
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert_body(published(), state)
    assert hub.requests == []


MESSAGE = (
    rf"can't get the weights of {NAME} from the Hugging Face hub \(.+\)\. On a machine with network, get "
    rf"model\.safetensors of https://huggingface\.co/timm/{NAME}; model\.checkpoint=FILE takes it\."
)


def test_hub_without_the_file(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=MESSAGE):
        published()


def test_offline_says_what_to_get(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=MESSAGE):
        published()
    assert hub.requests == []


def test_no_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"  # nothing listens there
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=MESSAGE):
        published()
    assert time.monotonic() - began < 5  # the library would try again for 23 s, with a line for each time
    assert capfd.readouterr() == ("", "") and caplog.text == ""


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtune.models.timm.weights.HUB_SECONDS", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        template = f"http://127.0.0.1:{silent.getsockname()[1]}" + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=MESSAGE):
            published()
        assert time.monotonic() - began < 5


def test_hub_with_the_wrong_file(hub: Hub) -> None:
    hub.files[ADDRESS] = save(state_of("swin"))
    with pytest.raises(CheckpointError, match="It looks like a Swin"):
        published()
