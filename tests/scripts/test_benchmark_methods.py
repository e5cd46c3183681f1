"""The benchmark of methods: what it measures, what it writes, and that its references are what they say."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_methods import (
    METHODS,
    add_ratios,
    base_dtype,
    build_task,
    entry_facts,
    make_step,
    markdown,
    parse,
    saved_bytes,
    select_all,
)
from benchmark_reference import floor, masked_dense, peft_lora, peft_lora_qkv, peft_shira
from toyvit import labelled_batch, toy_classifier

from samtune.errors import ConfigError
from samtune.selection import Selection, select
from samtune.tuning import count

CONTRACT = {"method", "step_ms", "step_ratio", "memory_mb", "memory_ratio", "trainable", "bytes"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """One real run of three methods: its JSON, what it printed, and its folder."""
    from benchmark_methods import main

    folder = tmp_path_factory.mktemp("benchmark")
    files = [f"--{kind}={folder / kind}" for kind in ("json", "markdown", "picture")]
    sizes = ["--size", "32", "--batch", "1", "--repeats", "1", "--threads", "1", "--precision", "fp32"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["--model", "vit_tiny", *sizes, "--methods", "floor,masked_dense,gps", *files])
    return json.loads((folder / "json").read_text()), printed.getvalue(), folder


def test_the_json_has_the_agreed_keys(run: tuple[dict[str, Any], str, Path]) -> None:
    result, _, _ = run
    assert [row["method"] for row in result["rows"]] == ["floor", "masked_dense", "gps"]
    for row in result["rows"]:
        assert row.keys() >= CONTRACT and row["reason"] is None
        assert 0 < row["step_ms_min"] <= row["step_ms"] <= row["step_ms_max"]
    assert result["machine"]["threads"] == 1 and result["machine"]["torch"] == torch.__version__
    assert result["settings"]["size"] == 32


def test_ratios_are_to_floor_and_masked_dense(run: tuple[dict[str, Any], str, Path]) -> None:
    least, dense, gps = run[0]["rows"]
    assert least["step_ratio"] == 1 and dense["memory_ratio"] == 1
    assert gps["step_ratio"] == pytest.approx(gps["step_ms"] / least["step_ms"])
    assert gps["memory_ratio"] == pytest.approx(gps["memory_mb"] / dense["memory_mb"])


def test_costs_are_what_the_methods_hold(run: tuple[dict[str, Any], str, Path]) -> None:
    least, dense, gps = run[0]["rows"]
    assert (least["trainable"], least["bytes"]) == (0, 0)
    states = 4 * 4 * dense["trainable"] / 2**20  # a mask, a gradient and Adam's two, all dense and fp32
    assert states < dense["memory_mb"] < states + 100
    assert gps["memory_mb"] < dense["memory_mb"] / 2
    assert 4 * gps["trainable"] < gps["bytes"] < 6.5 * gps["trainable"] < dense["bytes"] / 10
    assert gps["bytes_selected"] < gps["bytes"] and 0 < gps["union"] < 0.5


def test_the_table_is_printed_and_written(run: tuple[dict[str, Any], str, Path]) -> None:
    _, printed, folder = run
    assert (folder / "markdown").read_text() == printed
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:5]] == ["floor", "masked_dense", "gps"]
    assert "weights random; images random" in printed
    assert (folder / "picture").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_method_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--methods", "gps,floorr"])
    message = capsys.readouterr().err
    assert "unknown method 'floorr'. Did you mean 'floor'?" in message and all(name in message for name in METHODS)


def test_a_bf16_base_needs_bf16_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--base", "bf16", "--precision", "fp32"])
    assert "--base bf16 needs --precision bf16" in capsys.readouterr().err


def test_a_row_may_have_a_base_of_its_own() -> None:
    bf16, fp32 = parse(["--base", "bf16"]), parse(["--precision", "fp32"])
    assert base_dtype("gps", bf16) == base_dtype("gps_bf16", parse([])) == torch.bfloat16
    assert base_dtype("gps", fp32) is None
    for args in (bf16, fp32):
        assert base_dtype("gps_int8", args) == torch.int8
    with pytest.raises(ConfigError, match="an fp32 step can't use bf16 weights"):
        base_dtype("gps_bf16", fp32)


def test_a_method_that_a_model_lacks_is_an_empty_row_with_its_reason(tmp_path: Path) -> None:
    args = parse(["--model", "sam_tiny", "--size", "64", "--batch", "1", "--methods", "vpt_deep,linear"])
    facts = select_all(args, tmp_path)
    assert "path" not in facts["vpt_deep"] and "ViT" in facts["vpt_deep"]["reason"]
    assert facts["linear"]["path"].is_file() and "reason" not in facts["linear"]
    keys = ("step_ms", "step_ratio", "memory_mb", "memory_ratio", "trainable", "bytes", "union")
    row = dict.fromkeys(keys) | {"method": "vpt_deep"} | facts["vpt_deep"]
    text = markdown({"rows": [row], "settings": {"model": "sam_tiny"}, "machine": {}})
    assert "| vpt_deep |  |" in text and f"vpt_deep is empty: {row['reason']}" in text


def test_ratios_are_left_out_without_their_reference() -> None:
    rows: list[dict[str, Any]] = [
        {"method": "gps", "step_ms": 3.0, "memory_mb": 5.0},
        {"method": "masked_dense", "step_ms": 6.0, "memory_mb": 20.0},
        {"method": "vpt_deep", "step_ms": None, "memory_mb": None},
    ]
    add_ratios(rows)
    assert [row["step_ratio"] for row in rows] == [None, None, None]
    assert [row["memory_ratio"] for row in rows] == [0.25, 1.0, None]


def test_the_union_is_over_the_columns_of_linear_layers() -> None:
    entries = {
        "a": torch.tensor([0, 4, 9]),  # (3, 4): columns 0, 0, 1
        "b": torch.tensor([0, 5, 10, 15]),  # (4, 4): all columns
        "conv": torch.tensor([0]),
    }
    facts = entry_facts(Selection(entries), {"a": (3, 4), "b": (4, 4), "conv": (2, 1, 2, 2)})
    assert facts["union"] == pytest.approx((0.5 + 1) / 2)
    assert facts["bytes_selected"] == (4 + 1) * (3 + 4 + 1)
    assert entry_facts(Selection({}, ("a",)), {"a": (3, 4)}) == {}


def test_bytes_count_places_only_where_single_entries_train() -> None:
    values = {"a": torch.zeros(3), "b": torch.zeros(50, 4)}
    shapes = {"a": (3, 4), "b": (50, 4)}
    places = {"a": torch.tensor([0, 4, 9])}
    header = saved_bytes({"a": torch.zeros(0), "b": torch.zeros(0)}, {}, shapes)
    assert saved_bytes({}, {}, shapes) == 0
    assert saved_bytes(values, {}, shapes) - header == pytest.approx(4 * 203, abs=16)
    assert saved_bytes(values, places, shapes) > saved_bytes(values, {}, shapes)
    assert saved_bytes(values, {"b": places["a"]}, shapes) == saved_bytes(values, {}, shapes)


def test_the_floor_computes_no_gradient_of_a_weight() -> None:
    model, batch = toy_classifier("vit"), labelled_batch()
    outputs: list[torch.Tensor] = []
    tuned = floor(model, None, None)
    model.net.patch_embed.proj.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    make_step(model, batch, lambda logits: logits.sum(), tuned, bf16=False)()
    assert tuned[0] == {} and all(p.grad is None for p in model.parameters())
    assert outputs[0].is_leaf and outputs[0].grad is not None


def test_masked_dense_keeps_dense_gradients_of_selected_entries_only() -> None:
    model, batch = toy_classifier("vit"), labelled_batch()
    selection = Selection({"blocks.0.attn.qkv.weight": torch.tensor([1, 40])}, ("head.weight",))
    trainable, before_step = masked_dense(model, selection, None)
    assert trainable.keys() == dict(model.net.named_parameters()).keys()
    model(batch).square().sum().backward()
    before_step()
    left = {name: p.grad.flatten().nonzero().flatten().tolist() for name, p in trainable.items() if p.grad is not None}
    assert left.pop("blocks.0.attn.qkv.weight") == [1, 40]
    assert len(left.pop("head.weight")) == model.net.get_parameter("head.weight").numel()
    assert all(places == [] for places in left.values())


@pytest.mark.parametrize(("reference", "layers"), [(peft_lora, 8), (peft_lora_qkv, 2), (peft_shira, 8)])
@pytest.mark.parametrize("base_dtype", [None, torch.bfloat16])
def test_peft_trains_its_layers_and_the_head(reference: Any, layers: int, base_dtype: torch.dtype | None) -> None:
    model, batch = toy_classifier("vit"), labelled_batch()
    tuned = reference(model, None, base_dtype)
    own = {name.partition(".lora_")[0].partition(".shira_")[0] for name in tuned[0]} - {"head.weight", "head.bias"}
    assert len(own) == layers and {"head.weight", "head.bias"} < tuned[0].keys()
    assert {p.dtype for p in tuned[0].values()} == {torch.float32}
    frozen = model.net.get_parameter("blocks.0.attn.qkv.base_layer.weight")
    assert frozen.dtype == (base_dtype or torch.float32) and not frozen.requires_grad
    before = {name: p.detach().clone() for name, p in tuned[0].items()}
    step = make_step(model, batch, lambda logits: logits.float().square().sum(), tuned, bf16=base_dtype is not None)
    step()
    step()  # LoRA's down projection moves from the second step on
    assert all(not torch.equal(p, before[name]) for name, p in tuned[0].items())


LINES = {  # row -> the lines of the count that it has on a toy, beside the head
    "full": {"selected", "bias", "norm"},
    "masked_dense": {"selected", "bias"},
    "gps": {"selected", "bias"},
    "gps_bf16": {"selected", "bias"},
    "gps_int8": {"selected", "bias"},
    "gps_k5": {"selected", "bias"},
    "gps_k10": {"selected", "bias"},
    "grft_rows": {"selected", "bias"},
    "grft_columns": {"selected", "bias"},
    "spt": {"selected"},
    "lora": {"added"},
    "adapter": {"added"},
    "adaptformer": {"added"},
    "ssf": {"added"},
    "vpt_shallow": {"added"},
    "vpt_deep": {"added"},
    "bias": {"bias", "norm"},
    "linear": set(),
    "partial": {"selected", "bias", "norm"},
}


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.select])
def test_every_row_trains_what_its_name_says(name: str) -> None:
    from samtune.scoring.score import score
    from samtune.tasks.classes.losses import head_cross_entropy

    model = toy_classifier("vit")
    scores = score(model, [labelled_batch()], head_cross_entropy, squares=True)
    options = dict(METHODS[name].select or {})
    if options["name"] == "partial":
        options["blocks"] = 1  # the toy has two
    found = count(model, select(model, scores, **options)).to_json()
    assert {line for line, number in found.items() if number} == {*LINES[name], "head", "total", "percent"}
    neurons, inputs = 32 + 2 * (96 + 32 + 128 + 32), 192 + 2 * (32 + 32 + 32 + 128)  # of all matrices
    expected = {"masked_dense": neurons, "gps": neurons, "gps_k5": 5 * neurons, "gps_k10": 10 * neurons}
    expected |= {"grft_rows": inputs, "grft_columns": neurons, "gps_bf16": neurons, "gps_int8": neurons}
    assert found["selected"] == expected.get(name, found["selected"])


def test_sam_2_of_transformers_is_measured_as_the_others() -> None:
    """Its floor goes back to the first convolution, and through the maps of higher resolution."""
    task = build_task(argparse.Namespace(model="sam2", size=64, batch=1))
    tuned = floor(task.model, None, None)
    seen: list[bool] = []

    def watch(module: object, inputs: object, output: torch.Tensor) -> None:
        output.register_hook(lambda grad: seen.append(True))

    task.model.net.get_submodule("vision_encoder.backbone.patch_embed.projection").register_forward_hook(watch)
    make_step(task.model, task.batch, task.loss, tuned, bf16=True)()
    assert tuned[0] == {} and seen == [True]


def test_tasks_are_the_same_on_every_call() -> None:
    args = argparse.Namespace(model="sam_tiny", size=64, batch=2)
    first, again = build_task(args), build_task(args)
    assert torch.equal(first.batch.images, again.batch.images) and len(first.batch) == 2
    state, other = first.model.net.state_dict(), again.model.net.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    loss = first.loss(first.model(first.batch))
    assert loss.ndim == 0 and loss.dtype == torch.float32 and bool(loss.isfinite())
