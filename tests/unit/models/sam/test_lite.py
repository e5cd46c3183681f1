"""The light SAM: what its parameters are, its frozen statistics, and segment-anything behind its encoder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segment_anything import SamPredictor
from skimage import data
from torch import nn
from toy import prompts_of, toy_batch, toy_lite, toy_model

from samtune.base.machine import use_bf16
from samtune.base.tensors import state_hash
from samtune.errors import CheckpointError, ConfigError
from samtune.files.audit import audit
from samtune.files.export.folder import export_folder
from samtune.files.export.pth import export_pth
from samtune.files.merged import save_merged
from samtune.models.sam.lite import LiteSam, build_lite
from samtune.models.sam.model import upsample_logits
from samtune.models.sam.specs import LITES
from samtune.models.sam.vit import build_vit
from samtune.models.segmenter import Embedded
from samtune.models.table import build_model
from samtune.selection import select
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tuning import attach, merge
from samtune.types import Prompts, Scores

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def lite() -> LiteSam:
    """The full-size network, as its library starts it."""
    return build_lite("sam_lite", checkpoint="random")


def test_parameters_have_the_counts_of_efficientnet_lite0(lite: LiteSam) -> None:
    roles, sizes = lite.roles(), {name: p.numel() for name, p in lite.net.named_parameters()}
    assert set(roles) == set(sizes)
    trunk = [name for name in roles if name.startswith("image_encoder.trunk.")]
    assert sum(sizes[name] for name in trunk) == 2_958_848
    assert sum(sizes[name] for name in trunk if roles[name] == "bias") == 19_728
    assert {roles[name] for name in trunk} == {"conv", "norm", "bias"}
    assert {roles[name] for name in roles if ".bn" in name and name.endswith(".weight")} == {"norm"}
    parts = lite.parts()
    # the rows of the model card
    assert sum(sizes[name] for name in roles if parts[name] == "neck") == 249_344
    assert sum(sizes[name] for name in roles if roles[name] == "decoder") == 1_019_636
    assert sum(sizes[name] for name in roles if roles[name] == "fixed") == 3_148
    neck = {name.rpartition("neck.")[2]: roles[name] for name in roles if ".neck." in name}
    assert neck == {
        "fine.weight": "conv", "middle.weight": "conv", "coarse.weight": "conv", "smooth.weight": "conv",
        "join_norm.weight": "norm", "join_norm.bias": "bias", "smooth_norm.weight": "norm", "smooth_norm.bias": "bias",
    }  # fmt: skip
    blocks = {f"block {index}" for index in range(16)}
    assert set(lite.parts().values()) == {"stem", "neck", "prompt_encoder", "mask_decoder", *blocks}


def test_k_1_selects_one_input_of_each_neuron_and_a_depthwise_neuron_has_9_or_25(
    lite: LiteSam, caplog: pytest.LogCaptureFixture
) -> None:
    one = select(lite, None, name="gps", criterion="random")
    trunk = {name: entries for name, entries in one.entries.items() if ".trunk." in name}
    assert sum(map(len, one.entries.values())) == 19_728 + 512
    assert sum(map(len, trunk.values())) == 19_728
    caplog.set_level("INFO")
    many = select(lite, None, name="gps", criterion="random", per_neuron=16)
    shapes = {name: p.shape for name, p in lite.net.named_parameters()}
    widths = {shapes[name][1:].numel(): len(entries) // shapes[name][0] for name, entries in many.entries.items()}
    assert widths[9] == 9 and widths[25] == 16 and min(widths) == 9
    short = sum(shapes[name][0] for name in many.entries if shapes[name][1:].numel() == 9)
    assert f"{short} neurons, depthwise ones, have fewer than 16 inputs: all of theirs" in caplog.text
    with pytest.raises(ConfigError, match=r"per_neuron is 17, but the neurons of .*conv_pw.weight have 16 inputs"):
        select(lite, None, name="gps", criterion="random", per_neuron=17)


@pytest.mark.parametrize("method", ["full", "bias", "gps"])
def test_batch_statistics_never_move(method: str) -> None:
    model, base = toy_lite(), toy_lite().net.state_dict()
    selection = select(model, None, name=method, **({"criterion": "random"} if method == "gps" else {}))
    trained = attach(model, selection)
    model.train()
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for seed in range(2):
        model(toy_batch(seed=seed)).square().mean().backward()
        optimizer.step()
    state = merge(model).net.state_dict()
    assert all(torch.equal(state[name], base[name]) for name in base if name.endswith(STATISTICS))
    assert audit(base, state, selection).ok


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_moved_statistic_changes_the_hash_and_fails_the_audit(statistic: str) -> None:
    model, base = toy_lite(), toy_lite().net.state_dict()
    selection = select(model, None, name="full")
    state = {name: tensor.clone() for name, tensor in base.items()}
    name = next(name for name in state if name.endswith(statistic))
    state[name] += 1
    assert state_hash(state) != state_hash(base)
    assert not audit(base, state, selection).ok


def test_segment_anythings_predictor_takes_the_network(lite: LiteSam) -> None:
    image = torch.randint(0, 256, (256, 192, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    predictor = SamPredictor(lite.net)
    predictor.set_image(image.numpy())
    box = torch.tensor([[20.0, 30.0, 120.0, 200.0]])
    masks, scores, _ = predictor.predict(box=box[0].numpy(), multimask_output=True, return_logits=True)
    padded = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    padded[0, :, :, :192] = image.permute(2, 0, 1)
    valid = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    valid[..., :192] = True
    with torch.no_grad():
        logits, expected = lite.decode_all(Embedded(lite.encode(lite.normalise(padded, valid))), Prompts(box))
    ours = upsample_logits(logits, 256)[0, 1:, :, :192]
    torch.testing.assert_close(ours, torch.from_numpy(masks), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected[0, 1:], torch.from_numpy(scores), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "box", "points"])
def test_the_first_of_all_masks_is_the_mask(kind: str) -> None:
    model, prompts = toy_lite(), prompts_of(kind)
    with torch.no_grad():
        embedded = model.embed(toy_batch())
        logits, expected = model.decode_all(embedded, prompts)
        one = model.decode(embedded, prompts)
        corrected, _ = model.decode_all(embedded, prompts, one)
    assert logits.shape == (2, 4, 16, 16) and expected.shape == (2, 4)
    torch.testing.assert_close(logits[:, :1], one, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(corrected, logits, atol=1e-3)  # a mask prompt is read


def test_a_batch_is_its_images_and_checkpointing_changes_no_gradient() -> None:
    model, batch = toy_lite(), toy_batch()
    with torch.no_grad():
        singles = torch.cat([model(single) for single in batch.split(1)])
        torch.testing.assert_close(model(batch), singles, rtol=1e-4, atol=1e-5)
    found, calls = [], []
    model.net.get_submodule(model.block_modules()[1]).register_forward_hook(lambda *_: calls.append(1))
    for again in (False, True):
        model.checkpointing = again
        model.zero_grad()
        model(batch).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(calls) == 1 + 2
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*found, strict=True))


def test_bf16_pays_on_a_cpu_where_linear_layers_weigh_more(lite: LiteSam) -> None:
    with torch.device("meta"):
        vit = build_vit("sam_tiny", checkpoint="random")
    assert not lite.bf16_on_cpu and vit.bf16_on_cpu
    assert not use_bf16("auto", "cpu", pays_on_cpu=False) and use_bf16("bf16", "cpu", pays_on_cpu=False)


def test_a_sam_2_is_not_taken_for_a_light_sam(lite: LiteSam) -> None:
    sam2 = {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(1)}
    assert lite.looks_like(sam2) == "It is Meta's file of a SAM 2: set model.name to sam2."
    assert lite.looks_like({}) == "It does not look like a Segment Anything checkpoint."
    assert "It looks like a damaged sam_lite" in lite.looks_like(lite.net.state_dict())
    assert toy_model().looks_like(lite.net.state_dict()) == "It looks like sam_lite: set model.name to that."


def test_lora_and_spt_find_the_pointwise_convolutions() -> None:
    model = toy_lite()
    hosts = {addition.module for addition in select(model, None, name="lora", rank=2).additions}
    assert hosts == {module for modules in model.linears().values() for module in modules}
    assert set(model.linears()) == {"conv_pw", "conv_pwl"}
    squares = {name: torch.ones_like(p) for name, p in model.net.named_parameters()}
    scores = Scores(squares, 1, 0, "hash", squares, "sample")
    spt = select(model, scores, name="spt", tau=20_000, rank=2)
    assert {addition.module for addition in spt.additions} <= hosts and spt.additions


def test_columns_above_those_of_depthwise_neurons_are_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    model = build_lite("sam_lite", checkpoint="random", image_size=32)
    caplog.set_level("INFO")
    ones = {name: torch.ones_like(p) for name, p in model.net.named_parameters()}
    found = select(model, Scores(ones, 1, 0, "hash"), name="grft", pattern="columns", k=12, biases=False, decoder=False)
    assert "neurons, depthwise ones, have fewer than 12 inputs: all of theirs" in caplog.text
    depthwise = [n for n, p in model.net.named_parameters() if n in found.entries and p.shape[1:] == (1, 3, 3)]
    assert depthwise and all(len(found.entries[n]) == ones[n].numel() for n in depthwise)
    with pytest.raises(ConfigError, match="that is the largest k"):
        select(model, Scores(ones, 1, 0, "hash"), name="grft", pattern="columns", k=100)


@pytest.mark.parametrize(("size", "nearest"), [(16, 32), (100, 96), (240, 256)])
def test_sides_are_multiples_of_32(size: int, nearest: int) -> None:
    message = rf"image_size is {size}, but sam_lite needs a multiple of 32; the nearest is {nearest}"
    with pytest.raises(ConfigError, match=message):
        build_lite("sam_lite", checkpoint="random", image_size=size)


def test_other_sides_work(lite: LiteSam) -> None:
    small = build_lite("sam_lite", checkpoint="random", image_size=96)
    small.net.load_state_dict(lite.net.state_dict())  # no tensor depends on the side
    assert small.encode(torch.zeros(1, 3, 96, 96)).shape == (1, 128, 6, 6)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("vpt_deep", "needs a plain ViT.*: lora, adapter, ssf"),
        ("vpt_shallow", "needs a plain ViT"),
        ("adaptformer", "blocks with an MLP"),
    ],
)
def test_methods_of_transformers_are_refused(lite: LiteSam, method: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        select(lite, None, name=method)


def test_export_for_segment_anything_is_refused_and_names_what_works(lite: LiteSam, tmp_path: Path) -> None:
    save_merged(
        tmp_path / "merged.safetensors", lite, MaskDescription.of(lite, base_hash="0", additions=(), prompt="none")
    )
    for export in (export_pth, export_folder):  # neither sends to the other
        with pytest.raises(CheckpointError, match=r"has sam_lite, so no export.*samtune evaluate, predict and serve"):
            export(tmp_path / "merged.safetensors", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_files_of_other_models_are_refused(lite: LiteSam, tmp_path: Path) -> None:
    torch.save({n: t for n, t in lite.net.state_dict().items() if ".smooth" not in n}, tmp_path / "older.pth")
    with pytest.raises(
        CheckpointError, match=r"does not fit .*missing .*smooth.* a damaged sam_lite, or one of another"
    ):
        build_lite("sam_lite", checkpoint=tmp_path / "older.pth")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        build_model("sam_tiny", checkpoint=tmp_path / "older.pth")
    wide = LiteSam("wide", LITES["sam_lite"]._replace(width=64))
    torch.save(wide.net.state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="of another shape"):
        build_lite("sam_lite", checkpoint=tmp_path / "narrow.pth")


def test_the_shipped_file_is_small_and_its_statistics_are_exact() -> None:
    path = Path(str(files("samtune.models.sam") / "sam_lite.safetensors"))
    assert path.stat().st_size <= 12e6
    dtypes = {name: tensor.dtype for name, tensor in load_file(path).items()}
    assert {dtypes[name] for name in dtypes if "running_" in name} == {torch.float32}
    model = build_lite("sam_lite")
    assert {dtypes[name] for name, _ in model.net.named_parameters()} == {torch.float16}
    assert not model.training and model.image_size == 256


# outline of a coin of scikit-image's photograph, from the watershed of its edges, XY in pixels of the crop below; of
# the 24 coins a box finds 23 with an IoU above 0.8, one click ten
COIN = [
    (61, 64), (57, 70), (56, 78), (64, 90), (68, 92), (84, 91), (91, 86), (94, 79), (94, 69), (89, 62), (79, 58),
    (73, 58),
]  # fmt: skip


def test_the_shipped_weights_find_a_coin_from_a_box_and_from_one_click() -> None:
    crop = data.coins()[52:202, 78:228]
    truth = cv2.fillPoly(np.zeros(crop.shape, np.uint8), [np.array(COIN)], 1) > 0
    predictor = SamPredictor(build_lite("sam_lite").net)
    predictor.set_image(np.stack([crop] * 3, axis=-1))
    boxed, _, _ = predictor.predict(box=np.array([56, 58, 95, 93]), multimask_output=False)
    clicked, expected, _ = predictor.predict(point_coords=np.array([[75, 75]]), point_labels=np.array([1]))
    for mask in (boxed[0], clicked[expected.argmax()]):
        assert (mask & truth).sum() / (mask | truth).sum() > 0.8
