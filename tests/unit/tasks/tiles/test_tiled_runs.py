"""Jobs on pictures that are seen by tiles, from their configs to the commands that take their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from fastapi.testclient import TestClient
from object_maps import mosaic, write_object_map
from PIL import Image
from toy import ENTRY

from samtune.base.tensors import load_tensors, read_metadata, save_tensors
from samtune.config.pixels import Pixels
from samtune.data.channels.read import read_pixels
from samtune.data.facts import image_facts
from samtune.data.frames import crop_place
from samtune.data.loaders import LoaderOptions
from samtune.data.maps import build_map_data
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, DataError
from samtune.files.description import Description
from samtune.models.table import MODELS, build_model
from samtune.run.settings import load_config
from samtune.serve.app import create_app
from samtune.tasks.instances.layouts.splits import resolve_objects
from samtune.tasks.instances.objects import read_objects
from samtune.tasks.instances.predict import InstancePredictor
from samtune.tasks.instances.service import InstanceService
from samtune.tasks.masks.predict import Predictor
from samtune.tasks.predict import Prediction, refuse_format
from samtune.tasks.prompted import predict_prompted
from samtune.tasks.semantic.predict import MapPredictor
from samtune.tasks.tiles.grid import place_of
from samtune.types import IGNORE, Tiles

TILES = Tiles(64, 16, 64)
SET = ("model.name=toy", "model.checkpoint=base.pth", "train.batch=2", "track.mlflow=false", "eval.overlays=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on mosaics of 120 x 144 pixels with 36 objects, by tiles of 64, with its data."""
    place = tmp_path_factory.mktemp("tiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "toy", ENTRY)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.chdir(place)
        for part, count in {"train": 3, "val": 1, "test": 2}.items():
            for number in range(count):
                write_object_map(place / "data" / part, f"{part}{number}", mosaic(3, 3))
        torch.save(build_model("toy").net.state_dict(), place / "base.pth")
        rest = (
            "train.epochs=2",
            "train.validate_every=2",
            "data.dir=data",
            "data.tiles={size: 64, overlap: 16}",
            "eval.prompts=2",
        )
        assert run("finetune", "--config", "instances.yaml", *SET, *rest, "--run-dir", "run") == 0
        yield place


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ENTRY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    monkeypatch.chdir(made)


def test_the_run_measures_whole_pictures_and_its_file_knows_the_tiles() -> None:
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["n_images"] == 2 and metrics["metrics"]["objects_true"] == 72
    assert set(metrics["prompts"]) == {"box", "point", "points3", "none"}
    by_box = metrics["prompts"]["box"]
    assert all(0 <= one["before"] <= 1 for one in (by_box, by_box["val"], by_box["scenes"]))
    assert "with data.tiles a picture of val is a part of one" in metrics["definition"]["prompts"]
    assert Description.read(Path("run/merged.safetensors")).tiles == (64, 16)
    assert len(list(Path("run/overlays").glob("*.png"))) == 2
    steps = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    assert max(event["step"] for event in steps if event["split"] == "train") == 12  # 4 crops of each of 3, twice


def test_evaluate_and_predict_do_as_the_run(made: Path) -> None:
    assert run("evaluate", "--checkpoint", "run", "--data", "data", "--out", "measured") == 0
    measured, own = (json.loads(Path(p, "metrics.json").read_text()) for p in ("measured", "run"))
    assert measured["metrics"] == pytest.approx(own["metrics"], abs=1e-6)
    images = made / "data/test/images"
    assert run("predict", "--checkpoint", "run", images, "--out", "answers", "--overlay") == 0
    predictor = InstancePredictor.from_file("run/merged.safetensors")
    found = predictor.predict(read_image(images / "test0.png"))
    np.testing.assert_array_equal(read_objects(Path("answers/test0.png")), found.labels)
    assert found.labels.shape == (120, 144)


def without_tiles(run_folder: Path, target: Path) -> Path:
    """The file of a run as if it had been tuned on whole pictures."""
    file = run_folder / "merged.safetensors"
    save_tensors(target, load_tensors(file), read_metadata(file) | {"tiles": "null"})
    return target


def test_a_file_without_tiles_is_given_some(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, image = without_tiles(Path("run"), Path("whole.safetensors")), made / "data/test/images/test0.png"
    assert run("predict", "--checkpoint", whole, image, "--out", "by_tiles", "--tiles", "64") == 0  # a quarter: 16
    own = InstancePredictor.from_file("run/merged.safetensors").predict(read_image(image)).labels
    np.testing.assert_array_equal(read_objects(Path("by_tiles/test0.png")), own)
    large = InstancePredictor.from_file(whole, tiles=(64, 16))
    assert large.info.pixels.large and not InstancePredictor.from_file(whole).info.pixels.large
    assert run("predict", "--checkpoint", "run", image, "--out", "o", "--tiles", "64,16") == 2
    told = "was tuned by tiles of 64 pixels that share 16, and uses them. Leave it out."
    assert told in capsys.readouterr().err


def test_classes_of_whole_pictures_take_no_tiles() -> None:
    with pytest.raises(ConfigError, match="--tiles is for masks, maps of classes and objects; f takes whole images"):
        refuse_format(Prediction(Path("f"), [], Path("o"), tiles=(64, 16)))


def test_prompts_are_answered_around_them(made: Path) -> None:
    predictor = InstancePredictor.from_file("run/merged.safetensors")
    image = read_image(made / "data/test/images/test0.png")
    boxes = [[100, 80, 118, 98], [2, 2, 20, 20], [0, 0, 143, 119]]  # the last is larger than a tile
    model, info = predictor.model, predictor.info
    asked = [predict_prompted(model, image, boxes_xyxy=box, tiles=info.tiling).mask for box in boxes]
    (rows, columns), large = place_of(boxes[0], (120, 144), TILES), place_of(boxes[2], (120, 144), TILES)
    moved = [boxes[0][0] - columns.start, boxes[0][1] - rows.start, boxes[0][2] - columns.start, 98 - rows.start]
    alone = predict_prompted(model, image[rows, columns], boxes_xyxy=moved)
    np.testing.assert_array_equal(asked[0][rows, columns], alone.mask)
    asked[0][rows, columns] = False
    assert not asked[0].any() and large == (slice(0, 120), slice(0, 144))
    together = predictor.predict_in_boxes(image, boxes)
    every = np.logical_or.reduce([predict_prompted(model, image, boxes_xyxy=b, tiles=info.tiling).mask for b in boxes])
    np.testing.assert_array_equal(together.labels > 0, every)
    grid = predictor.predict_by_grid(image, 4)
    assert grid.labels.shape == (120, 144)
    assert (
        run("predict", "--checkpoint", "run", made / "data/test/images/test0.png", "--point", "30,30", "--out", "p")
        == 0
    )
    mask = np.array(Image.open("p/test0.png"))
    assert mask.shape == (120, 144) and not mask[:, 70:].any()  # beyond the part that shows the point


def test_the_server_answers_by_tiles(made: Path) -> None:
    service = InstanceService.from_file(Path("run/merged.safetensors"), device="cpu")
    path = made / "data/test/images/test1.png"
    with TestClient(create_app(InstanceService, service), base_url="http://127.0.0.1") as client:
        about = client.get("/v1/model").json()
        answer = client.post("/v1/predict", files={"image": path.read_bytes()})
    assert about["tiles"] == [64, 16] and answer.status_code == 200
    Path("served.png").write_bytes(answer.content)
    expected = service.predictor.predict(read_image(path)).labels
    np.testing.assert_array_equal(read_objects(Path("served.png")), expected)


def test_crops_depend_on_seed_epoch_and_place_only(made: Path) -> None:
    splits = resolve_objects(made / "data")
    options = LoaderOptions(batch=2, score_batch=2, tiles=TILES)
    loaders = [
        build_map_data(splits, options, read_objects, outside=0, image_size=64, augment=augment)
        for augment in ("none", "none", "turns")
    ]
    first, again, turned = (loader.train.dataset for loader in loaders)
    assert len(first) == 12 and len(loaders[0].score.dataset) == 12
    images = [first[index].image for index in range(12)]
    assert all(torch.equal(image, again[index].image) for index, image in enumerate(images))
    assert turned[0].image.shape == (3, 64, 64)
    assert any(not torch.equal(images[0], images[index]) for index in range(1, 4))  # of one picture
    first.set_epoch(1)
    assert any(not torch.equal(image, first[index].image) for index, image in enumerate(images))
    (batch, *_) = loaders[0].val
    assert batch.tiles == TILES and batch.images.shape == (1, 3, 120, 144) and batch.truths[0].shape == (120, 144)


def test_most_crops_hold_an_object_also_of_one_pixel() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((500, 400), dtype=np.int32)
    truth[333, 77] = 9
    held = [truth[crop_place(truth, TILES, rng)].any() for _ in range(200)]
    assert 0.75 < np.mean(held) < 0.95
    assert {truth[crop_place(truth, TILES, rng)].shape for _ in range(20)} == {(64, 64)}
    assert truth[:40, :50][crop_place(truth[:40, :50], TILES, rng)].shape == (40, 50)  # a small picture, whole
    rare = np.full((500, 400), IGNORE, dtype=np.uint8)
    rare[:, 200:] = 1
    rare[480:, 390:] = 2
    seen = [2 in rare[crop_place(rare, TILES, rng)] for _ in range(200)]
    assert np.mean(seen) > 0.3 and crop_place(np.zeros((99, 99), dtype=np.bool_), TILES, rng)


@pytest.mark.parametrize(
    ("config", "own", "values", "predictor"),
    [("kvasir_lite.yaml", ("data.prompt=mixed",), 255, Predictor), ("semantic.yaml", (), 1, MapPredictor)],
)
def test_masks_and_classes_by_tiles(tmp_path: Path, config: str, own: Any, values: int, predictor: Any) -> None:
    for part in ("train", "val", "test"):
        path = write_object_map(tmp_path / "data" / part, part, mosaic(3, 3))
        (tmp_path / "data" / part / "masks").mkdir()
        mask = (read_objects(path) > 0).astype(np.uint8) * values
        Image.fromarray(mask).save(tmp_path / "data" / part / "masks" / f"{part}.png")
        path.unlink()
        path.parent.rmdir()
    rest = ("train.epochs=1", f"data.dir={tmp_path / 'data'}", "data.tiles={size: 64}", "select={name: full}", *own)
    folder = tmp_path / "run"
    assert run("finetune", "--config", config, *SET, "model.image_size=64", *rest, "--run-dir", folder) == 0
    assert Description.read(folder / "merged.safetensors").tiles == (64, 16)
    metrics = json.loads((folder / "metrics.json").read_text())
    if own:
        assert {"val", "scenes"} == set(metrics["prompts"]["none"]) == set(metrics["prompts"]["box"])
    ask = ("--data", tmp_path / "data", "--out", tmp_path / "measured")
    assert run("evaluate", "--checkpoint", folder, *ask) == 0
    measured = json.loads((tmp_path / "measured/metrics.json").read_text())
    assert measured["mDice"] == pytest.approx(metrics["mDice"], abs=1e-6)
    images = tmp_path / "data/test/images"
    assert run("predict", "--checkpoint", folder, images, "--out", tmp_path / "answers") == 0
    found = predictor.from_file(folder / "merged.safetensors").predict(read_image(images / "test.png"))
    answer = np.array(Image.open(tmp_path / "answers/test.png"))
    np.testing.assert_array_equal(answer > 0, (found.mask if hasattr(found, "mask") else found.places) > 0)
    assert answer.shape == (120, 144)
    whole = without_tiles(folder, tmp_path / "whole.safetensors")
    given = ("--tiles", "64,16", "--out", tmp_path / "given")
    assert run("predict", "--checkpoint", whole, images, *given) == 0
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "given/test.png")), answer)


def test_wrong_tiles_are_told_at_once() -> None:
    def told(config: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as error:
            load_config(config, ["data.dir=cells", *overrides])
        return str(error.value)

    both = told("instances.yaml", "data.tiles.size=32", "data.tiles.overlap=0", "train.objects=0")
    for line in ("data.tiles.size: 32, expected a value >= 64", "data.tiles.overlap: 0, expected", "train.objects"):
        assert line in both
    wide = told("semantic.yaml", "data.tiles={size: 256, overlap: 200}")
    assert "data.tiles.overlap: 200, expected at most half of data.tiles.size = 256" in wide
    assert "data.tiles.overlap: 20, expected no value without" in told("semantic.yaml", "data.tiles.overlap=20")
    prompted = told("kvasir_lite.yaml", "data.tiles.size=256", "data.prompt=box")
    assert "data.tiles.size: 256, expected no tiles with data.prompt: box" in prompted
    shares = told("kvasir_lite.yaml", "data.tiles.size=256", "data.prompt=mixed", "data.mix.none=0")
    assert "data.tiles.size: 256, expected no tiles with data.prompt: mixed without a share of none" in shares
    assert "data.tiles" in told("folders.yaml", "data.tiles.size=256")


def test_large_pictures_are_read_for_tiles_only(tmp_path: Path) -> None:
    Image.new("L", (6400, 6300)).save(tmp_path / "large.png")
    told = (
        r"6400 x 6300 pixels, more than 40,000,000; scale the picture down, or let the model see tiles \(data.tiles\)"
    )
    with pytest.raises(DataError, match=told):
        read_pixels(tmp_path / "large.png", Pixels())
    assert read_pixels(tmp_path / "large.png", Pixels(large=True)).shape == (6300, 6400, 3)
    (facts,) = image_facts([tmp_path / "large.png"], most=10**8)
    assert not isinstance(facts, DataError) and facts.width == 6400
    (again,) = image_facts([tmp_path / "large.png"])  # what is remembered is no way around
    assert isinstance(again, DataError) and "data.tiles" in str(again)
