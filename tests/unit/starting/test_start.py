"""What `samtune init` finds in folders, what it writes, and where it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from class_trees import write_class_folders
from object_maps import discs, mosaic, write_object_map, write_objects
from PIL import Image

from samtune.cli.main import main
from samtune.config.pixels import Pixels
from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.coco import write_coco
from samtune.data.formats.shapes import encode_rle
from samtune.errors import ConfigError, DataError
from samtune.run.settings import load_config
from samtune.starting.choose import Machine, Setting, choose
from samtune.starting.detect import find_task
from samtune.starting.found import Found, Pictures, Share
from samtune.starting.labels import label_kind
from samtune.starting.start import run_name, start
from samtune.starting.summary import summary
from samtune.starting.write import to_yaml

NAMES = [f"n{i:02d}" for i in range(12)]
CPU = Machine("cpu", 2, 24.0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_masks(folder: Path, masks: list[np.ndarray]) -> None:
    for name, mask in zip(NAMES, masks, strict=True):
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def pieces(count: int, *, kind: type = np.uint8, first: int = 1) -> np.ndarray:
    """A (30, 40) mask of 5 x 5 squares with values from `first` on."""
    mask = np.zeros((30, 40), dtype=kind)
    for k in range(count):
        mask[6 * (k // 6) : 6 * (k // 6) + 5, 6 * (k % 6) : 6 * (k % 6) + 5] = first + k
    return mask


def found_of(**changes: object) -> Found:
    pictures = Pictures([(256, 256)] * 100, {"8-bit grey": 100}, {"png": 100}, 0, 0)
    found = Found("segmentation", "masks of two values", {"train": 80, "val": 10, "test": 10}, (), pictures)
    return replace(found, **changes)  # type: ignore[arg-type]


def chosen(found: Found, machine: Machine = CPU) -> dict[str, Setting]:
    return {setting.key: setting for setting in choose(found, folder="data/x", name="x", machine=machine)}


def test_a_folder_gets_a_config_that_loads_and_a_sheet(make_folder) -> None:
    folder = make_folder(NAMES)
    save_masks(folder, [((pieces(2 if i else 0) > 0) * 255).astype(np.uint8) for i in range(12)])
    started = start(folder)
    assert (started.config, started.sheet) == (Path("data.yaml"), Path("data.png"))
    found = started.found
    assert (found.task, found.empty, found.per_picture) == ("segmentation", 1, 2)
    assert found.sides == pytest.approx([5 / 40] * len(found.sides)) and len(found.sides) > 10
    assert [share.share for share in found.classes] == pytest.approx([50 / 1200])
    config = load_config(started.config)
    assert config.data.dir == folder and config.data.empty == "train" and config.select.name == "gps"
    text = started.config.read_text()
    assert "1 of 12 masks show no object" in text and "samtune finetune --config data.yaml" in text
    lines = text.splitlines()
    keys = [n for n, line in enumerate(lines) if line and not line.lstrip().startswith("#") and not line.endswith(":")]
    assert len(keys) > 10 and all(lines[n - 1].lstrip().startswith("#") for n in keys)  # each with its reason
    with Image.open(started.sheet) as sheet:
        colours = np.asarray(sheet)
        assert sheet.width == 4 * 286 and (colours == (240, 228, 66)).all(axis=2).any()  # outlines
    with pytest.raises(ConfigError, match=r"data\.yaml and data\.png exist already.*--overwrite"):
        start(folder)
    before = text, started.sheet.read_bytes()
    again = start(folder, overwrite=True)
    assert (again.config.read_text(), again.sheet.read_bytes()) == before


def test_maps_of_classes(make_folder) -> None:
    folder = make_folder(NAMES)
    masks = [np.kron([[0, 3], [7, 7]], np.ones((15, 20))).astype(np.uint8) for _ in NAMES]
    save_masks(folder, masks)
    started = start(folder, out=Path("new/my.yaml"))
    config = load_config(started.config)
    assert (config.task, config.data.classes) == ("semantic", {0: "class 0", 3: "class 3", 7: "class 7"})
    assert [share.share for share in started.found.classes] == [0.25, 0.25, 0.5]
    assert started.found.per_picture == 3
    assert Path("new/my.png").is_file()


def test_maps_of_objects(tmp_path: Path) -> None:
    folder = write_objects(tmp_path / "cells", {"train": 5, "val": 2, "test": 2})
    write_object_map(folder / "train", "none", np.zeros((40, 48), dtype=np.int32))
    started = start(folder)
    config = load_config(started.config)
    assert (config.task, config.data.augment, config.train.batch) == ("instances", "turns", 4)
    assert (started.found.per_picture, started.found.empty, started.found.parts["train"]) == (4, 1, 6)
    areas = sorted(np.bincount(discs().ravel())[1:].tolist())
    assert [round((side * 48) ** 2) for side in started.found.sides[::5]] == areas  # four discs in each of five
    told = "\n".join(summary(started.found))
    assert "4 in a picture (median)" in told and "covered" not in told and "1 pictures" in told
    with Image.open(started.sheet) as sheet:
        assert (np.asarray(sheet) == (220, 120, 90)).all(axis=2).mean() < 0.01  # laid over by colours


def test_annotations_as_objects(tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    write_objects(folder, {"all": 12})
    (folder / "all" / "images").rename(folder / "images")
    found = {}
    for image in sorted((folder / "images").iterdir()):
        labels = np.array(Image.open(folder / "all" / "instances" / image.name))
        numbers = [number for number in np.unique(labels).tolist() if number]
        items = [Annotation(("cell", "dirt")[n % 2], encode_rle(labels == n)[0]) for n in numbers]
        found[image.stem] = Annotated(image, image, 48, 40, items)
    write_coco(Annotations(found, {1: "cell", 2: "dirt"}), folder)
    started = start(folder, task="instances")
    text = started.config.read_text()
    assert load_config(started.config).data.format == "coco" and started.found.per_picture == 4
    assert "objects of all count alike; to take some only" in text and "# categories: [" in text


def test_folders_of_classes(tmp_path: Path) -> None:
    started = start(write_class_folders(tmp_path / "my data", classes=2, train=5, val=2, test=2, size=40))
    config = load_config("my_data.yaml")
    assert (config.task, config.model.image_size, config.select.name) == ("classification", 64, "full")
    assert [share.share for share in started.found.classes] == [0.5, 0.5]


def test_values_of_masks(make_folder) -> None:
    folder = make_folder(NAMES)
    cases = {
        "two": [((pieces(4) > 0) * 255).astype(np.uint8)] * 12,
        "classes": [pieces(4)] * 12,  # the same values in each
        "unclear": [pieces(3 + i) for i in range(12)],
        "objects": [pieces(3 + i, kind=np.uint16, first=300) for i in range(12)],
    }
    for kind, masks in cases.items():
        save_masks(folder, masks)
        assert label_kind(folder)[0] == kind
    apart = [pieces(3 + i // 3) for i in range(12)]
    for mask in apart:
        mask[-1, -1] = 255  # beside others it counts nowhere
    save_masks(folder, apart)
    assert label_kind(folder)[0] == "unclear" and "and 100% of them" in label_kind(folder)[1]
    y, x = np.mgrid[:30, :40]
    soft = np.clip(300 - ((y - 15) ** 2 + (x - 20) ** 2) * 2.0, 0, 255).astype(np.uint8)
    save_masks(folder, [soft] * 12)
    assert label_kind(folder)[0] == "two"  # its reader says what is wrong
    with pytest.raises(DataError, match=r"not a binary mask: .* save"):
        start(folder)


def test_unclear_masks_have_to_be_chosen(make_folder) -> None:
    folder = make_folder(NAMES)
    save_masks(folder, [pieces(3 + i // 3) for i in range(12)])
    with pytest.raises(DataError) as caught:
        start(folder)
    assert "values beside 0, 1 to 6 in the 12 looked at" in str(caught.value)
    assert "--task semantic: each value is a class" in str(caught.value) and "(mask > 0) * 255" in str(caught.value)
    assert find_task(folder, "semantic") == ("semantic", "asked for by --task")
    save_masks(folder, [pieces(3, kind=np.uint16, first=300)] * 12)
    with pytest.raises(DataError, match="too many for classes, so each is an object") as caught:
        start(folder)
    assert "--task semantic" not in str(caught.value)
    assert "rename masks/ to instances/, which is --task instances" in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path, make_folder, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty folder\. What is missing.*\n  - DIR/images/NAME"):
        start(empty)
    (empty / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"found notes\.txt; no picture"):
        start(empty)
    picture = make_folder(["a"]) / "images" / "a.png"
    (empty / "a.png").write_bytes(picture.read_bytes())
    with pytest.raises(DataError, match="found 1 picture without masks or classes"):
        start(empty)
    with pytest.raises(DataError, match="is a file; name the folder"):
        start(picture)
    with pytest.raises(DataError, match="does not exist"):
        start(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"Did you mean 'semantic'\?"):
        start(empty, task="semantics")
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        start(empty, out=Path("x.txt"))
    for folder, out in ((empty, empty / "images" / "x.yaml"), (Path(), None)):
        with pytest.raises(ConfigError, match=r"beside it could be taken for data\. Give --out outside"):
            start(folder, out=out, overwrite=True)
    with pytest.raises(SystemExit) as ended:
        main(["init", str(empty)])
    assert ended.value.code == DataError.exit_code and "What is missing" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.yaml"))


def test_the_command_prints_80_columns(make_folder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["init", str(make_folder(NAMES)), "--out", "my.yaml"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "next         samtune finetune --config my.yaml"
    assert max(map(len, lines)) <= 80


def test_small_objects_get_a_larger_frame() -> None:
    """A mask has a cell per 4 x 4 px: an object of 5 % has 3.2 cells at 256 px and 4 at 320."""
    sizes = [
        (0.10, CPU, 256), (0.05, CPU, 320), (0.01, CPU, 512), (0.01, Machine("cuda", 8, 80.0), 512),
    ]  # fmt: skip
    for side, machine, size in sizes:
        assert chosen(found_of(sides=[side] * 5), machine)["model.image_size"].value == size
    large = replace(found_of().pictures, sizes=[(2000, 1500)] * 100)
    gpu = chosen(found_of(sides=[0.01], pictures=large), Machine("cuda", 8, 80.0))["model.image_size"]
    assert gpu.value == 1024 and "1600 px would give 4" in gpu.why
    assert chosen(found_of())["model.image_size"].value == 256


def test_small_objects_of_large_pictures_may_get_tiles() -> None:
    large = Pictures(sizes=[(4000, 3000)] * 100, channels={}, formats={}, same=0, near=0)
    setting = chosen(found_of(sides=[0.01] * 9, pictures=large))["data.tiles"]
    assert setting.off and setting.value == {"size": 1280}  # 40 px are 4 cells of 128, at the 512 px that a CPU gets
    assert "4 cells" in setting.why
    assert "data.tiles" not in chosen(found_of(sides=[0.1] * 9, pictures=large))
    assert "data.tiles" not in chosen(found_of(sides=[0.0003] * 9, pictures=large))  # no tile would do


def test_pictures_that_only_tiles_show_get_them() -> None:
    huge = Pictures(sizes=[(8000, 6000)] * 20, channels={}, formats={}, same=0, near=0)
    parts = {"train": 16, "val": 2, "test": 2}
    found = found_of(sides=[0.004] * 9, pictures=huge, parts=parts, pixels=Pixels(large=True))
    settings = chosen(found)
    tiles, epochs = settings["data.tiles"], settings["train.epochs"]
    assert not tiles.off and tiles.value == {"size": 512} and "more than 40,000,000 pixels" in tiles.why
    assert settings["model.image_size"].value == 256  # 32 px of a tile of 512 are 4 cells
    assert epochs.value == 1 and epochs.why.startswith("2930 crops of training pictures at 256 px: about 7 min")
    assert not settings["data.cache"].value and "3,296 MiB" in settings["data.cache"].why
    assert chosen(replace(found, sides=[]))["data.tiles"].value == {"size": 256}
    assert chosen(replace(found, sides=[1e-5]))["data.tiles"].value == {"size": 64}
    assert chosen(replace(found, sides=[0.9]))["data.tiles"].value == {"size": 4096}


def test_a_folder_of_a_large_picture_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("data.pair_splits", "data.channels.check", "data.channels.read", "starting.pixels"):
        monkeypatch.setattr(f"samtune.{module}.MAX_PIXELS", 10_000)  # as if 40 million were so many
    write_objects(tmp_path / "cells")
    write_object_map(tmp_path / "cells/train", "large", mosaic(3, 3))
    with pytest.raises(SystemExit) as end:
        main(["data", "verify", "cells"])
    said = capsys.readouterr().out
    assert not end.value.code and "1 picture(s), such as" in said and "train/images/large.png, have more than" in said
    assert "set data.tiles.size" in said
    started = start(tmp_path / "cells", out=tmp_path / "cells.yaml")
    config = yaml.safe_load(started.config.read_text())
    assert config["data"]["tiles"]["size"] >= 64 and load_config(started.config, []).data.tiles.size


def test_batch_and_epochs_follow_from_machine_and_number() -> None:
    many = chosen(found_of(parts={"train": 720, "val": 100, "test": 80}))
    assert many["train.epochs"].value == 4  # 8 min of 0.15 s are 4.4 epochs
    assert (many["train.batch"].value, "train.accumulate" in many) == (8, False)
    assert chosen(found_of())["train.epochs"].value == 40 and chosen(found_of())["train.patience"].value == 20
    small = chosen(found_of(), Machine("cuda", 2, 2.0))  # half of 2 GiB holds 4 of 0.25
    assert (small["train.batch"].value, small["train.accumulate"].value) == (4, 2)
    few = chosen(found_of(parts={"train": 5, "val": 1, "test": 1}))
    assert (few["train.batch"].value, few["train.epochs"].value) == (4, 60)
    assert few["select"].value == {"name": "gps", "per_neuron": 5}


def test_text_of_a_config_and_of_a_summary() -> None:
    settings = [
        Setting("task", "x", "a"),
        Setting("m.a", 1e-3, "b"),
        Setting("s", {"n": 1}, "c"),
        Setting("m.c", True, "d"),
    ]
    text = to_yaml(settings, ["head", ""])
    assert text == "# head\n#\n# a\ntask: x\nm:\n  # b\n  a: 1.0e-3\n  # d\n  c: true\n# c\ns: {n: 1}\n"
    odd = to_yaml([Setting("a", ["p\u2028q"], "of p\u2028q\x1b")], ["p\x85q"])
    assert yaml.safe_load(odd) == {"a": ["p\u2028q"]}
    many = [f"name {i}" for i in range(2000)]
    lines = to_yaml([Setting("d.categories", many, "e", off=True)], []).splitlines()
    assert len(lines) == 3 and lines[2].startswith("  # categories: [name 0,") and lines[2].endswith("name 1999]")
    shares = [Share(f"class {i}", 1 / 40) for i in range(40)]
    pictures = Pictures([(40, 30), (80, 60)], {"8-bit grey": 1, "palette": 1}, {"png": 2}, 1, 1)
    lines = summary(found_of(task="semantic", classes=shares, pictures=pictures, empty=3, notes=["word " * 40]))
    assert max(map(len, lines)) <= 80
    joined = " ".join(" ".join(lines).split())
    for wanted in (
        "from 40 x 30 to 80 x 60", "8-bit grey 1, palette 1", "1 with the pixels of another", "no object 3 pictures",
        "40, of the pixels of train: class 0 2.5%",
    ):  # fmt: skip
        assert wanted in joined
    assert math.isclose(sum(share.share for share in shares), 1)
    assert run_name(Path("/x/_my data!")) == "my_data_" and run_name(Path("/")) == "data"
