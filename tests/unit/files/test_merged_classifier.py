"""Merged files of classifiers: stock timm loads them, and they say what it takes to predict with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from descriptions import class_description, load_classes, load_masks, mask_description, read_classes, read_masks
from safetensors.torch import load_file
from toyvit import FAMILIES, SIZE, labelled_batch, toy_classifier

from samtune.base.tensors import read_metadata, save_tensors
from samtune.errors import CheckpointError
from samtune.files.merged import save_merged
from samtune.models.table import build_model
from samtune.models.timm.families import timm_name
from samtune.models.timm.model import Classifier, build_classifier
from samtune.selection import select
from samtune.tasks.classes.description import ClassDescription, check_classes
from samtune.tasks.table import task_of_file
from samtune.tuning import attach, merge

CLASSES = ("cat", "dog", "Größe, é")


def describe(model: Classifier, **values: Any) -> ClassDescription:
    return class_description(model, classes=CLASSES, resize="squash", base_hash="ab" * 32, **values)


def listed(value: Any) -> Any:
    return json.loads(json.dumps(value))


def addition(**values: Any) -> str:
    """The metadata of one adapter, but for `values`."""
    options = {"dim": 32, "width": 2}
    return json.dumps([{"kind": "adapter", "module": "blocks.0.mlp", "rows": None, "options": options} | values])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = toy_classifier("vit")
    path = tmp_path / "merged.safetensors"
    save_merged(path, model, describe(model))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_timm_loads_it_and_computes_the_same(family: str, tmp_path: Path) -> None:
    model = toy_classifier(family)
    info = describe(model)
    path = tmp_path / info.file_name
    save_merged(path, model, info)

    name, options = FAMILIES[family]
    stock_options = {("img_size" if k == "image_size" else k): v for k, v in options.items()}
    if family == "convnext":
        del stock_options["img_size"]
    stock = timm.create_model(name, num_classes=3, **stock_options).eval()
    stock.load_state_dict(load_file(path), strict=True)
    batch = labelled_batch()
    mean, std = (torch.tensor(stock.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = model(batch)
    torch.testing.assert_close(stock((batch.images / 255 - mean) / std), expected)

    loaded, found = load_classes(path)
    assert torch.equal(loaded(batch), expected) and not loaded.training
    assert found == info.model_copy(update={"options": listed(info.options)}) == read_classes(path)
    assert (loaded.name, loaded.image_size, loaded.interpolation) == (name, SIZE, "bicubic")
    assert torch.equal(loaded.pixel_mean, model.pixel_mean) and torch.equal(loaded.pixel_std, model.pixel_std)
    assert task_of_file(path).name == "classification"
    again = build_classifier(name, classes=9, checkpoint=path, **options)  # a merged file is a checkpoint too
    assert torch.equal(again.features(batch), model.features(batch))


def test_vit_mini_in_stock_timm(tmp_path: Path) -> None:
    model = build_classifier("vit_mini", classes=3, checkpoint="random")
    save_merged(tmp_path / "merged.safetensors", model, describe(model))
    name, options = timm_name("vit_mini")
    stock = timm.create_model(name, num_classes=3, **options)
    stock.load_state_dict(load_file(tmp_path / "merged.safetensors"), strict=True)
    assert load_classes(tmp_path / "merged.safetensors")[0].image_size == 64


def test_metadata_is_text(saved: Path) -> None:
    metadata = read_metadata(saved)
    assert metadata["format"] == "samtune-merged-2" and "additions" not in metadata
    assert json.loads(metadata["classes"]) == list(CLASSES) and metadata["head_seed"] == "0"
    assert metadata["resize"] == "squash" and metadata["interpolation"] == "bicubic"


def test_the_files_normalisation_counts(tmp_path: Path) -> None:
    model = toy_classifier("vit")
    colours = {"pixel_mean": (1.5, 2.0, 3.0), "pixel_std": (4.0, 5.0, 6.0)}
    info = describe(model).model_copy(update=colours | {"interpolation": "bilinear", "head_seed": None})
    save_merged(tmp_path / "merged.safetensors", model, info)
    loaded, found = load_classes(tmp_path / "merged.safetensors")
    assert loaded.pixel_mean.flatten().tolist() == [1.5, 2.0, 3.0]
    assert loaded.pixel_std.flatten().tolist() == [4.0, 5.0, 6.0]
    assert found.interpolation == "bilinear" and found.head_seed is None


def test_a_bundle_keeps_its_additions(tmp_path: Path) -> None:
    model = toy_classifier("vit")
    selection = select(model, None, name="adapter", width=2)
    trainable = attach(model, selection)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(0.1)
    merge(model)
    info = describe(model, additions=selection.additions)
    path = tmp_path / info.file_name
    assert path.name == "bundle.safetensors"
    save_merged(path, model, info)
    assert read_metadata(path)["format"] == "samtune-bundle-2" and task_of_file(path).name == "classification"
    loaded, found = load_classes(path)
    assert found.additions == selection.additions
    assert torch.equal(loaded(labelled_batch()), model(labelled_batch()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no merged model .its format: other"),
        ({"format": None}, "no merged model .its format: none"),
        ({"model": None}, "lacks 'model'"),
        ({"classes": None}, "lacks 'classes'"),
        ({"image_size": "x"}, "damaged metadata"),
        ({"classes": "{"}, "damaged metadata"),
        ({"classes": "3"}, "damaged metadata"),
        ({"options": "[1]"}, "damaged metadata"),
        ({"head_seed": "[]"}, "damaged metadata"),
        ({"pixel_mean": "[1, 2]"}, "damaged metadata"),
        ({"classes": "[]"}, "impossible metadata: classes"),
        ({"classes": '["a", "b", "a"]'}, "a class twice"),
        ({"image_size": "0"}, "impossible metadata: image_size 0, expected a value > 0"),
        ({"resize": "pad"}, "impossible metadata: resize .pad., expected 'squash' or 'crop'"),
        ({"interpolation": "nearest"}, "interpolation .nearest., expected 'bicubic' or 'bilinear'"),
        ({"image_size": "1000000"}, "impossible metadata: image_size 1000000, expected a value <= 8192"),
        ({"pixel_std": "[1, 0, 1]"}, "impossible metadata: pixel_std.1 0, expected a value >= 0.0001"),
        ({"pixel_std": "[1, Infinity, 1]"}, "pixel_std.1 Infinity, expected a finite number"),
        ({"pixel_mean": "[1e300, 1, 1]"}, "pixel_mean.0 1e.300, expected a value <= 10000"),
        ({"additions": "[[[]]]"}, r"damaged metadata: additions\.0"),
        ({"additions": "[" * 5000}, "damaged metadata .additions: maximum recursion depth"),
        ({"additions": addition(module=[1])}, r"damaged metadata: additions\.0\.module"),
        ({"additions": addition(options={"dim": [32]})}, r"damaged metadata: additions\.0\.options\.dim"),
        ({"additions": addition(kind="nope")}, "impossible metadata: additions .unknown kind of addition 'nope'"),
        ({"additions": addition(module="nope")}, "additions .the selection adds to 'nope'"),
        ({"additions": addition(options={})}, "impossible metadata: additions .KeyError"),
        ({"model": "vit_huge_of_nobody"}, "impossible metadata .*timm has no model"),
        ({"image_size": "31"}, r"impossible metadata .*model\.image_size is 31"),
        ({"options": '{"colour": 1}'}, r"impossible metadata .*timm can't build"),
        ({"options": '{"seed": "x"}'}, r"impossible metadata .*invalid literal for int"),
        ({"options": '{"seed": 1, "classes": 4}'}, r"impossible metadata .*options has 'classes'"),
        ({"classes": '["a", "b"]'}, r"2 of another shape|another shape"),
        ({"model": "vit_small_patch16_224", "options": "{}"}, "It looks like a ViT of width 32, depth 2, patch 8"),
    ],
)
def test_wrong_metadata_is_explained(change: dict[str, str | None], message: str, saved: Path) -> None:
    metadata = {k: v for k, v in (read_metadata(saved) | change).items() if v is not None}
    save_tensors(saved, load_file(saved), metadata)
    with pytest.raises(CheckpointError, match=message):
        load_classes(saved)


def test_the_two_kinds_are_told_apart(saved: Path, tmp_path: Path) -> None:
    sam = tmp_path / "sam.safetensors"
    info = mask_description(model="sam_tiny", image_size=64, prompt="none", base_hash="0")
    save_merged(sam, build_model("sam_tiny", checkpoint="random", image_size=64), info)
    assert (task_of_file(sam).name, task_of_file(saved).name) == ("segmentation", "classification")
    for load in (load_masks, read_masks):
        with pytest.raises(CheckpointError, match="is a classification model, but a segmentation model is needed"):
            load(saved)
    with pytest.raises(CheckpointError, match="is a segmentation model, but a classification model is needed"):
        load_classes(sam)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("dog", "cat", CLASSES[2]), "is for 3 other classes: output 0 is 'cat', where the data has 'dog'. Use model"),
        (("cat", "dog", "bird"), "output 2 is 'Größe, é', where the data has 'bird'"),
        (("cat", "dog"), "output 2 is 'Größe, é', where the data has none"),
        ((*CLASSES, "bird"), "output 3 is none, where the data has 'bird'"),
    ],
)
def test_a_head_for_other_classes(classes: tuple[str, ...], message: str, saved: Path) -> None:
    check_classes(saved, CLASSES)
    with pytest.raises(CheckpointError, match=message):
        check_classes(saved, classes)


def test_other_checkpoints_say_nothing_of_classes(tmp_path: Path) -> None:
    save_tensors(tmp_path / "timm.safetensors", {"a": torch.zeros(1)}, {"format": "pt"})
    for name in ("timm.safetensors", "official.pth", "google.npz"):
        check_classes(tmp_path / name, ("cat",))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        check_classes(tmp_path / "gone.safetensors", ("cat",))


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "plain.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("plain.safetensors", "text.safetensors", "missing.safetensors"):
        for read in (task_of_file, load_classes):
            with pytest.raises(CheckpointError, match=r"Give the merged\.safetensors of a run folder"):
                read(tmp_path / name)
