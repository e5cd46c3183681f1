"""Prediction from files: frames, prompts, the same masks as `evaluate`, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import write_format
from descriptions import load_masks, mask_description, read_masks
from PIL import Image
from torch.utils.data import DataLoader

from samtune.base.tensors import save_tensors
from samtune.data.formats.table import FORMATS, WRITERS
from samtune.data.frames import Collate
from samtune.data.pairs import find_pairs
from samtune.data.pictures import read_image
from samtune.errors import CheckpointError, ConfigError, DataError, DiskError
from samtune.files.merged import save_merged
from samtune.models.sam.model import SamModel
from samtune.models.table import build_model
from samtune.run.settings import load_config
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.evaluate import MaskDescription, evaluate, evaluate_file
from samtune.tasks.masks.predict import Predictor, pick_device, predict_files
from samtune.tasks.masks.task import SegmentationTask
from samtune.tasks.predict import Prediction, find_images
from samtune.tasks.prompts import PromptError
from samtune.types import Batch, ImageArray

INFO = mask_description(model="sam_tiny", image_size=64, prompt="none", base_hash="ab" * 32)


@pytest.fixture(scope="module")
def model() -> SamModel:
    torch.manual_seed(0)
    return build_model("sam_tiny", checkpoint="random", image_size=64)


@pytest.fixture(scope="module")
def predictor(model: SamModel) -> Predictor:
    return Predictor(model, INFO)


@pytest.fixture(scope="module")
def merged(model: SamModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "merged.safetensors"
    save_merged(path, model, INFO)
    return path


def predict(merged: Path, paths: list[Path], out: Path, **options: Any) -> list[Path]:
    """Predicts the files and returns the masks that were written."""
    said = predict_files(Prediction(merged, paths, out, device="cpu", **options))
    masks = sorted(out.glob("*.png"))
    assert said == f"{len(masks)} masks in {out}"
    return masks


def picture(height: int = 50, width: int = 80, seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, seed: int = 0, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed=seed, **size)).save(path)
    return path


def remember(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Keeps the batches that the model sees."""
    seen: list[Batch] = []
    forward = predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda batch: (seen.append(batch), forward(batch))[1])
    return seen


def test_a_merged_file_round_trips(model: SamModel, tmp_path: Path) -> None:
    path = tmp_path / "merged.safetensors"
    save_merged(path, model, INFO)
    loaded, info = load_masks(path)
    assert info == INFO == read_masks(path)
    assert not loaded.training and loaded.image_size == 64
    assert all(torch.equal(v, loaded.net.state_dict()[k]) for k, v in model.net.state_dict().items())


def test_metadata_is_text_and_holds_the_normalisation(tmp_path: Path) -> None:
    info = mask_description(
        "sam_tiny", 64, prompt="box", base_hash="ff", pixel_mean=(1.5, 2.0, 3.0), pixel_std=(4.0, 5.0, 6.0)
    )
    metadata = info.to_metadata()
    assert metadata["format"] == "samtune-merged-2" and metadata["threshold"] == "0.5"
    assert all(isinstance(value, str) for value in metadata.values())
    assert MaskDescription.from_metadata(metadata, tmp_path) == info
    path = tmp_path / "m.safetensors"
    save_merged(path, build_model("sam_tiny", checkpoint="random", image_size=64), info)
    assert load_masks(path)[0].pixel_mean.flatten().tolist() == [1.5, 2.0, 3.0]
    assert load_masks(path)[0].pixel_std.flatten().tolist() == [4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no merged model .its format: other"),
        ({"model": None}, "lacks 'model'"),
        ({"image_size": "x"}, "damaged metadata"),
        ({"pixel_mean": "[1, 2]"}, "damaged metadata"),
        ({"pixel_mean": "3"}, "damaged metadata"),
        ({"prompt": "text"}, "prompt \"text\", expected 'none', 'box' or 'point'"),
        ({"pixel_std": "[1, 0, 1]"}, "pixel_std"),
        ({"threshold": "0.3"}, "threshold 0.3"),
    ],
)
def test_wrong_metadata_is_explained(change: dict[str, str | None], message: str) -> None:
    metadata = {k: v for k, v in (INFO.to_metadata() | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        MaskDescription.from_metadata(metadata, Path("m.safetensors"))
    assert "merged.safetensors of a run folder" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"), [({"model": "sam_huge"}, "sam_huge.*sam_vit_b"), ({"image_size": "70"}, "70")]
)
def test_a_model_that_can_not_be_built_is_explained(
    model: SamModel, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    save_tensors(tmp_path / "m.safetensors", model.net.state_dict(), INFO.to_metadata() | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Predictor.from_file(tmp_path / "m.safetensors", device="cpu")
    assert "merged.safetensors of a run folder" in str(caught.value)


def test_other_files_are_refused(model: SamModel, tmp_path: Path) -> None:
    save_tensors(tmp_path / "plain.safetensors", model.net.state_dict(), {})
    for name in ("plain.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match=r"Give the merged\.safetensors of a run folder"):
            Predictor.from_file(tmp_path / name, device="cpu")
    cut = {k: v for k, v in model.net.state_dict().items() if "neck" not in k}
    save_tensors(tmp_path / "cut.safetensors", cut, INFO.to_metadata())
    with pytest.raises(CheckpointError, match="missing"):
        Predictor.from_file(tmp_path / "cut.safetensors", device="cpu")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ConfigError, match=r"'tpu' is not available. Here there is: auto, .*cpu"):
        pick_device("tpu")


def test_masks_equal_those_of_evaluate(predictor: Predictor, merged: Path, tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(50, 80), (90, 33), (64, 64)]):
        write(tmp_path / "images" / f"{i}.png", seed=i, height=height, width=width)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(height, width, dtype=np.uint8) * 255).save(tmp_path / "masks" / f"{i}.png")
    dataset = SegmentationDataset(find_pairs(tmp_path), image_size=64)
    seen: dict[str, Any] = {}
    evaluate(
        predictor.model,
        DataLoader(dataset, collate_fn=Collate(64)),
        on_batch=lambda batch, predictions: seen.update(zip(batch.names, predictions, strict=True)),
    )
    for path in predict(merged, [tmp_path / "images"], tmp_path / "out"):
        with Image.open(path) as mask:
            assert mask.mode == "L"
            written = np.asarray(mask)
        wanted = seen[path.stem].mask
        assert set(np.unique(written)) <= {0, 255}
        assert np.array_equal(written > 0, wanted)
        again = predictor.predict(read_image(tmp_path / "images" / path.name))
        assert np.array_equal(again.probability, seen[path.stem].probability)
        assert again.score == seen[path.stem].score


def test_a_call_leaves_no_trace(predictor: Predictor) -> None:
    first = predictor.predict(picture())
    predictor.predict(picture(seed=1, height=20), boxes_xyxy=[1, 2, 9, 9])
    again = predictor.predict(picture())
    assert first.mask.shape == (50, 80)
    assert np.array_equal(first.probability, again.probability)


def test_prompts_reach_the_model_in_its_frame(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = remember(predictor, monkeypatch)
    image = picture(height=32, width=128)  # scaled by one half
    predictor.predict(image, boxes_xyxy=[10, 4, 30, 20], points_xy=[[8, 6], [100, 30]], labels=[1, 0])
    prompts = seen[0].prompts
    assert prompts is not None and prompts.boxes_input is not None and prompts.points_input is not None
    assert prompts.boxes_input.tolist() == [[5, 2, 15, 10]]
    assert prompts.points_input.tolist() == [[[4, 3], [50, 15]]]
    assert prompts.labels is not None and prompts.labels.tolist() == [[1, 0]]
    assert seen[0].sizes_input == ((16, 64),)


def test_points_are_on_the_object_by_default(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = remember(predictor, monkeypatch)
    predictor.predict(picture(), points_xy=[[8, 6], [9, 9]])
    assert seen[0].prompts is not None and seen[0].prompts.labels is not None
    assert seen[0].prompts.labels.tolist() == [[1, 1]] and seen[0].prompts.boxes_input is None


def test_a_box_is_clipped_to_the_image(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = remember(predictor, monkeypatch)
    predictor.predict(picture(height=64, width=64), boxes_xyxy=[-5, 10, 999, 20])
    assert seen[0].prompts is not None and seen[0].prompts.boxes_input is not None
    assert seen[0].prompts.boxes_input.tolist() == [[0, 10, 64, 20]]


def test_several_boxes_are_united(predictor: Predictor) -> None:
    boxes = np.array([[1, 1, 20, 20], [30, 10, 70, 45]])
    apart = [predictor.predict(picture(), boxes_xyxy=box) for box in boxes]
    both = predictor.predict(picture(), boxes_xyxy=boxes)
    assert np.array_equal(both.mask, apart[0].mask | apart[1].mask)
    assert np.array_equal(both.probability, np.maximum(apart[0].probability, apart[1].probability))
    assert both.score == pytest.approx(both.probability[both.mask].mean() if both.mask.any() else 0)


@pytest.mark.parametrize(
    ("prompts", "field", "message"),
    [
        ({"boxes_xyxy": [1, 2, 3]}, "box", "4 numbers"),
        ({"boxes_xyxy": []}, "box", "4 numbers"),
        ({"boxes_xyxy": np.zeros((0, 4))}, "box", "4 numbers"),
        ({"boxes_xyxy": [[1, 2, 3, 4], [5]]}, "box", "as many in each row"),
        ({"boxes_xyxy": ["a", 1, 2, 3]}, "box", "expected numbers"),
        ({"boxes_xyxy": [0, 0, float("nan"), 5]}, "box", "NaN"),
        ({"boxes_xyxy": [[1, 1, 5, 5], [9, 1, 3, 5]]}, "box", "box 1 is inverted"),
        ({"boxes_xyxy": [90, 1, 95, 5]}, "box", "box 0 is outside the image of 80 x 50"),
        ({"points_xy": [1, 2]}, "points", "pairs of x and y"),
        ({"points_xy": [[1, 2, 3]]}, "points", "pairs of x and y"),
        ({"points_xy": [[1, 2], [80, 2]]}, "points", "point 1 .80, 2. is outside"),
        ({"points_xy": [[-1, 2]]}, "points", "point 0 .-1, 2. is outside"),
        ({"points_xy": [[float("inf"), 2]]}, "points", "infinity"),
        ({"points_xy": [[1, 2]], "labels": [1, 0]}, "labels", "1 points need as many labels"),
        ({"points_xy": [[1, 2]], "labels": [2]}, "labels", "label 0 is 2"),
        ({"labels": [1]}, "labels", "without points"),
    ],
)
def test_wrong_prompts_are_explained(predictor: Predictor, prompts: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        predictor.predict(picture(), **prompts)
    assert caught.value.field == field and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        "a.png",
    ],
)
def test_wrong_images_are_explained(predictor: Predictor, image: Any) -> None:
    with pytest.raises(DataError, match=r"\(H, W, 3\) and dtype uint8.*read_image"):
        predictor.predict(image)


def test_files_and_folders_are_found_once(tmp_path: Path) -> None:
    b, a = write(tmp_path / "b.png"), write(tmp_path / "a.jpg")
    write(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("x")
    assert find_images([b, tmp_path]) == [b, a]


def test_wrong_paths_are_all_listed(merged: Path, tmp_path: Path) -> None:
    write(tmp_path / "set" / "images" / "a.png")
    with pytest.raises(DataError) as caught:
        predict(merged, [tmp_path / "no.png", tmp_path / "set"], tmp_path / "out")
    text = str(caught.value)
    assert "no.png: no such file" in text and f"did you mean {tmp_path / 'set' / 'images'}?" in text
    with pytest.raises(DataError, match="no path was given"):
        predict(merged, [], tmp_path / "out")


def test_one_stem_twice_stops_before_anything_is_written(merged: Path, tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.png"), write(tmp_path / "two" / "a.jpg"), write(tmp_path / "one" / "b.png")
    with pytest.raises(DataError, match=r"a\.png: .*a\.png, .*a\.jpg"):
        predict(merged, [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_never_replaced(merged: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="would be replaced"):
        predict(merged, [path], tmp_path)
    assert path.read_bytes() == before


def test_bad_images_are_listed_after_the_good_ones(merged: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    (tmp_path / "in" / "text.jpg").write_text("hello")
    with pytest.raises(DataError) as caught:
        predict(merged, [tmp_path / "in"], tmp_path / "out")
    text = str(caught.value)
    assert "no mask for 2 of 3 images" in text and "empty.png" in text and "text.jpg" in text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]


def test_a_prompt_that_does_not_fit_names_the_image(merged: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "small.png", height=20, width=20)
    with pytest.raises(DataError, match=r"small\.png: box 0 is outside"):
        predict(merged, [tmp_path / "in"], tmp_path / "out", boxes_xyxy=[(30, 10, 70, 40)])
    with pytest.raises(PromptError, match="inverted"):
        predict(merged, [tmp_path / "in"], tmp_path / "out", boxes_xyxy=[(70, 10, 30, 40)])


def test_overlays(merged: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    assert predict(merged, [tmp_path / "a.png"], tmp_path / "out", overlay=True) == [tmp_path / "out" / "a.png"]
    with Image.open(tmp_path / "out" / "overlays" / "a.png") as overlay:
        assert overlay.width > overlay.height


def test_a_folder_that_can_not_be_written(merged: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DiskError, match=r"can't write to .*out.*Choose a writable folder"):
        predict(merged, [tmp_path / "a.png"], tmp_path / "out")


@pytest.mark.parametrize(
    ("tuned", "given", "warned"),
    [
        ("none", {}, False),
        ("none", {"boxes_xyxy": [(1, 1, 9, 9)]}, True),
        ("box", {}, True),
        ("box", {"boxes_xyxy": [(1, 1, 9, 9)]}, False),
        ("point", {"points_xy": [(1, 1)]}, False),
    ],
)
def test_another_prompt_than_in_training_is_said(
    model: SamModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, tuned: Any, given: Any, warned: bool
) -> None:
    save_merged(tmp_path / "merged.safetensors", model, mask_description("sam_tiny", 64, prompt=tuned))
    write(tmp_path / "a.png")
    predict(tmp_path / "merged.safetensors", [tmp_path / "a.png"], tmp_path / "out", **given)
    assert ("tuned with prompt" in caplog.text) == warned


@pytest.mark.parametrize("form", WRITERS)
def test_masks_as_annotations_are_those_of_the_pictures(
    merged: Path, predictor: Predictor, tmp_path: Path, form: str
) -> None:
    paths = [write(tmp_path / "in" / f"{name}.png", seed=seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    said = predict_files(Prediction(merged, paths, out, device="cpu", format=form))
    assert said.startswith(f"2 masks in {out}")
    shutil.copytree(tmp_path / "in", out / "images")
    found = FORMATS[form].read(out)
    assert found.problems == () and list(found.categories.values()) == ["object"]
    for path in paths:
        image, wanted = found.images[path.stem], predictor.predict(read_image(path)).mask
        drawn = np.any([np.zeros_like(wanted), *map(image.mask, image.objects)], axis=0)
        np.testing.assert_array_equal(drawn, wanted)


def test_annotations_of_people_are_not_overwritten(merged: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "images" / "a.png")
    path.with_suffix(".json").write_text("{}")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("")
    for form, out in (("labelme", path.parent), ("yolo", tmp_path)):
        with pytest.raises(ConfigError, match=r"holds annotations of the images: 1 would be replaced, such as .*a\."):
            predict_files(Prediction(merged, [path], out, device="cpu", format=form))
    with pytest.raises(
        ConfigError, match=r"--format: unknown format 'voc'. Known: coco, cvat, index, label-studio, lab"
    ):
        predict_files(Prediction(merged, [path], tmp_path, device="cpu", format="voc"))


def test_a_mask_has_the_name_of_the_one_category(model: SamModel, tmp_path: Path) -> None:
    file = tmp_path / "merged.safetensors"
    save_merged(file, model, INFO.model_copy(update={"categories": ("car",)}))
    assert MaskDescription.read(file).categories == ("car",)
    predict_files(Prediction(file, [write(tmp_path / "a.png")], tmp_path / "out", device="cpu", format="coco"))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["categories"] == [{"id": 1, "name": "car"}]


def test_a_model_is_measured_on_what_it_was_tuned_with(model: SamModel, tmp_path: Path) -> None:
    """A folder may have annotations beside masks: `data.format` chose, and the file remembers it."""
    made = write_format("coco", tmp_path / "both")
    (tmp_path / "both" / "masks").mkdir()
    (tmp_path / "pairs" / "masks").mkdir(parents=True)
    for stem, image in made.images.items():
        whole = np.full((image.height, image.width), 255, dtype=np.uint8)
        for folder in ("both", "pairs"):
            Image.fromarray(whole).save(tmp_path / folder / "masks" / f"{stem}.png")
    shutil.copytree(tmp_path / "both" / "images", tmp_path / "pairs" / "images")
    config = load_config("polyp.yaml", ("data.format=coco", f"data.dir={tmp_path / 'both'}"))
    task: Any = SegmentationTask(config)
    info = task.describe(model, None, base_hash="ab" * 32, additions=())
    save_merged(tmp_path / "merged.safetensors", model, info)
    sizes = {}
    for folder in ("both", "pairs"):
        report = evaluate_file(Evaluation(tmp_path / "merged.safetensors", tmp_path / folder, device="cpu"))
        sizes[folder] = {row.name: row.truth_px for row in report.rows}
    drawn = {
        s: int(np.any([np.zeros((20, 30), bool), *map(i.mask, i.objects)], 0).sum()) for s, i in made.images.items()
    }
    assert sizes == {"both": drawn, "pairs": dict.fromkeys(drawn, 600)}
