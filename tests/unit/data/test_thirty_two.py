"""The 32 cases of bad and odd data: `data verify` and a run tell each, with file and reason, in every layout."""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from class_trees import class_picture, write_class_folders, write_vtab
from helpers import draw
from PIL import Image

from samtune import console
from samtune.cli import files
from samtune.cli.main import explain, main
from samtune.config.pixels import Pixels
from samtune.errors import DataError
from samtune.tasks.classes.splits import resolve_classes
from samtune.tasks.masks.splits import resolve_split, verify_folder

Fault = Callable[[Path], None]
"""Spoils a folder with images/ and masks/ that has the pairs t0 to t5, or a folder of pictures that has t1."""

COUNTS = {"train": 6, "val": 2, "test": 2}
HEIGHT, WIDTH = 40, 48


@cache
def pair(seed: int) -> dict[str, bytes]:
    """The PNG files of a pair, by folder."""
    image, mask = draw(np.random.default_rng(seed), height=HEIGHT, width=WIDTH)
    written = {"images": BytesIO(), "masks": BytesIO()}
    for file, pixels in zip(written.values(), (image, mask.astype(np.uint8) * 255), strict=True):
        Image.fromarray(pixels).save(file, "PNG")
    return {sub: file.getvalue() for sub, file in written.items()}


def write_pairs(root: Path, layout: str) -> Path:
    """Writes ten pairs in a layout; returns the folder that holds those of train."""
    names = {part: [f"{part[0] if part != 'test' else 'e'}{i}" for i in range(n)] for part, n in COUNTS.items()}
    for number, (part, name) in enumerate((part, name) for part, members in names.items() for name in members):
        place = root / part if layout == "folders" else root
        for sub, content in pair(number).items():
            (place / sub).mkdir(parents=True, exist_ok=True)
            (place / sub / f"{name}.png").write_bytes(content)
    if layout == "lists":
        (root / "splits").mkdir()
        for part, members in names.items():
            (root / "splits" / f"{part}.txt").write_text("\n".join(members))
    return root / "train" if layout == "folders" else root


def picture(array: np.ndarray, path: Path, **options: object) -> None:
    for old in path.parent.glob(f"{path.stem}.*"):
        old.unlink()
    Image.fromarray(array).save(path, **options)


def noise() -> np.ndarray:
    return np.random.default_rng(9).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def mask(place: Path) -> np.ndarray:
    return np.array(Image.open(place / "masks" / "t1.png"))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def cut(path: Path) -> None:
    picture(noise(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    for old in path.parent.glob(f"{path.stem}.*"):
        old.unlink()
    make(path)


def huge_header(path: Path) -> None:
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def gif_as_png(path: Path) -> None:
    Image.fromarray(noise()).save(path, "GIF")


def bad_name(path: Path) -> None:
    path.unlink()
    odd = os.fsencode(path.parent) + b"/t1\xff.png"
    try:
        shutil.copy(path.with_name("t0.png"), odd)
    except OSError:
        pytest.skip("the file system refuses such names")


def forbidden(path: Path) -> None:
    """The tests may run as root, who may read all: `no_permission` refuses this name."""
    path.with_suffix(".forbidden").touch()


def emptied(place: Path) -> None:
    for path in place.rglob("*.*"):
        if path.suffix != ".txt":
            path.unlink()


def no_foreground(place: Path) -> None:
    for path in (place / "masks").iterdir():
        picture(np.zeros((HEIGHT, WIDTH), np.uint8), path)


def absent_name(place: Path) -> None:
    with (place / "splits" / "train.txt").open("a") as file:
        file.write("\ngone\n")


def copied(place: Path) -> None:
    """Puts t1 into test too: under another name, and in its list."""
    folders = place.name == "train"
    target = place.parent / "test" if folders else place
    for sub in ("images", "masks"):
        shutil.copy(place / sub / "t1.png", target / sub / "e9.png")
    if not folders:
        with (place / "splits" / "test.txt").open("a") as file:
            file.write("\ne9\n")


def brighter(place: Path) -> None:
    copied(place)
    path = (place.parent / "test" if place.name == "train" else place) / "images" / "e9.png"
    picture(np.array(Image.open(path)) // 2 + 9, path)


@dataclass(frozen=True)
class Case:
    """A fault, what is said of it (the file, then the reason), and the layouts in which it can be."""

    fault: Fault
    said: str
    layouts: tuple[str, ...] = ("folders", "lists", "ratio")


PUBLISHED = ("folders", "lists")

IMAGE_ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated JPEG": (lambda p: replaced(p.with_suffix(".jpg"), cut), "t1.jpg: damaged file"),
    "truncated PNG": (cut, "t1.png: damaged file"),
    "zero bytes": (lambda p: p.write_bytes(b""), "t1.png: empty file (zero bytes)"),
    "text as JPEG": (
        lambda p: replaced(p.with_suffix(".jpg"), lambda q: q.write_text("hi")),
        "t1.jpg: not a PNG, JPEG",
    ),
    "GIF as PNG": (lambda p: replaced(p, gif_as_png), "t1.png: not a PNG, JPEG"),
    "no permission": (forbidden, "t1.png: permission denied; make it readable"),
    "dangling link": (lambda p: replaced(p, lambda q: q.symlink_to("gone.png")), "t1.png: dangling link to gone.png"),
    "folder as PNG": (lambda p: replaced(p, lambda q: q.mkdir()), "t1.png: a folder"),
    "name not UTF-8": (bad_name, "t1\\udcff.png': name is not UTF-8"),
    "1 x 1": (lambda p: picture(np.zeros((1, 1, 3), np.uint8), p), "t1.png: 1 x 1 pixels; at least 8 x 8"),
    "1600 megapixels": (lambda p: replaced(p, huge_header), "t1.png: 40000 x 40000 pixels, more than "),
}

MASK_ERRORS = {
    "missing image": Case(lambda p: (p / "images/t1.png").unlink(), "masks/t1.png: orphan mask, no image named t1.*"),
    "missing mask": Case(lambda p: (p / "masks/t1.png").unlink(), "images/t1.png: no mask named t1.*"),
    "orphan mask": Case(
        lambda p: picture(mask(p), p / "masks/more.png"), "masks/more.png: orphan mask, no image named more.*"
    ),
    "duplicate stem": Case(
        lambda p: Image.fromarray(noise()).save(p / "images/t1.bmp"), "t1.png: duplicate stem 't1', t1.bmp has it too"
    ),
    "case-different extension": Case(
        lambda p: shutil.copy(p / "images/t1.png", p / "images/t1.PNG"),
        "t1.png: duplicate stem 't1', t1.PNG has it too",
    ),
    "transposed mask": Case(
        lambda p: picture(mask(p).T, p / "masks/t1.png"), "masks/t1.png: size mismatch, mask 40 x 48, image 48 x 40"
    ),
    "mask of another size": Case(
        lambda p: picture(np.tile(mask(p), (2, 2)), p / "masks/t1.png"), "t1.png: size mismatch, mask 96 x 80"
    ),
    "EXIF orientation on one": Case(
        lambda p: picture(noise(), p / "images/t1.png", exif=turned()),
        "images/t1.png: EXIF orientation 6, but 1 in its mask",
    ),
    "mask of 3 classes": Case(
        lambda p: picture(mask(p) // 255 + np.eye(HEIGHT, WIDTH, dtype=np.uint8), p / "masks/t1.png"),
        "masks/t1.png: mask with 3 classes, looks like instance or class labels: values 0 to 2",
    ),
    "empty folder": Case(emptied, "images/ and masks/ hold no image file"),
    "all masks empty": Case(no_foreground, "0.png: nothing to learn"),
    "list names an absent file": Case(absent_name, "train.txt: names gone, which is not in images/", ("lists",)),
    "same image in two parts": Case(copied, "e9.png (test) is the same image as", PUBLISHED),
} | {name: Case(lambda p, make=make: make(p / "images/t1.png"), said) for name, (make, said) in IMAGE_ERRORS.items()}

MASK_WARNINGS = {
    "JPEG mask": Case(
        lambda p: picture(mask(p), p / "masks/t1.jpg", quality=100), "masks/t1.jpg: JPEG mask, foreground is > 127"
    ),
    "palette mask": Case(
        lambda p: Image.fromarray(mask(p)).convert("P").save(p / "masks/t1.png"), "masks/t1.png: palette mask"
    ),
    "RGB mask": Case(
        lambda p: picture(np.stack([mask(p)] * 3, -1), p / "masks/t1.png"), "t1.png: RGB mask of equal channels"
    ),
    "RGBA mask": Case(
        lambda p: Image.fromarray(mask(p)).convert("RGBA").save(p / "masks/t1.png"),
        "masks/t1.png: RGBA mask of equal channels",
    ),
    "EXIF orientation on both": Case(
        lambda p: [
            picture(a, p / sub / "t1.png", exif=turned()) for sub, a in (("images", noise()), ("masks", mask(p)))
        ],
        "images/t1.png: EXIF orientation 6 on image and mask, applied to both",
    ),
    "all-black mask": Case(lambda p: picture(mask(p) * 0, p / "masks/t1.png"), "t1.png: mask is all background"),
    "all-white mask": Case(lambda p: picture(mask(p) | 255, p / "masks/t1.png"), "t1.png: mask is all foreground"),
    "constant image": Case(
        lambda p: picture(np.full((HEIGHT, WIDTH, 3), 7, np.uint8), p / "images/t1.png"), "t1.png: constant image"
    ),
    "inverted mask": Case(lambda p: picture(255 - mask(p), p / "masks/t1.png"), "masks/t1.png: mask looks inverted"),
    "near-duplicates across parts": Case(brighter, "t1.png (train) and", PUBLISHED),
    "upper-case extension": Case(
        lambda p: [(p / sub / "t1.png").rename(p / sub / "t1.PNG") for sub in ("images", "masks")], ""
    ),
}


def each(cases: dict[str, Case]) -> list:
    return [
        pytest.param(layout, case, id=f"{layout}-{name}") for name, case in cases.items() for layout in case.layouts
    ]


@pytest.fixture(autouse=True)
def no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses to open pictures beside which there is a file `STEM.forbidden`."""
    real = Image.open

    def opened(path: Path, **options: object) -> Image.Image:
        if Path(path).with_suffix(".forbidden").exists():
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Image, "open", opened)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `samtune data verify`, without parsing; returns its exit code, stdout and stderr."""

    def run(folder: Path, name: str | None = None) -> tuple[int, str, str]:
        code = 0
        try:
            files.verify(folder, name)
        except DataError as error:
            code, message, hint = explain(error)
            console.print_error(message, hint=hint)
        return (code, *capsys.readouterr())

    return run


def test_the_exit_code_is_3(tmp_path: Path) -> None:
    MASK_ERRORS["zero bytes"].fault(write_pairs(tmp_path, "ratio"))
    with pytest.raises(SystemExit) as ended:
        main(["data", "verify", str(tmp_path)])
    assert ended.value.code == 3


@pytest.mark.parametrize("layout", ["folders", "lists", "ratio"])
def test_good_pairs_are_silent(tmp_path: Path, verify, layout: str) -> None:
    write_pairs(tmp_path, layout)
    assert verify(tmp_path) == (0, f"{tmp_path}: no errors, 0 warning(s)\n", "")


@pytest.mark.parametrize(("layout", "case"), each(MASK_ERRORS))
def test_errors_of_pairs(tmp_path: Path, verify, layout: str, case: Case) -> None:
    case.fault(write_pairs(tmp_path, layout))
    code, out, err = verify(tmp_path)
    assert code == 3 and case.said in err and "no errors" not in out and "Traceback" not in err
    with pytest.raises(DataError) as told:
        resolve_split(tmp_path, pixels=Pixels(large=True))  # by tiles: the check allows as many pixels
    assert case.said in str(told.value)
    lines = [line.removeprefix("  - ") for line in str(told.value).splitlines()[1:]]
    assert lines == err.splitlines()[1:]  # a run refuses what the check does, in the same words


@pytest.mark.parametrize(("layout", "case"), each(MASK_WARNINGS))
def test_warnings_of_pairs(tmp_path: Path, verify, layout: str, case: Case) -> None:
    case.fault(write_pairs(tmp_path, layout))
    code, out, err = verify(tmp_path)
    assert (code, err) == (0, "")
    told = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len(told) == bool(case.said) and all(case.said in line for line in told)
    own = ("cut from train", "measured apart")  # of a run
    notes = [note for note in resolve_split(tmp_path).notes if not any(text in note for text in own)]
    assert notes == [line.removeprefix("warning: ") for line in told]


def test_pairs_that_we_split_have_equal_images_on_one_side(tmp_path: Path, verify) -> None:
    place = write_pairs(tmp_path, "ratio")
    for sub in ("images", "masks"):
        shutil.copy(place / sub / "t1.png", place / sub / "e9.png")
    assert verify(tmp_path)[0] == 0
    for seed in range(5):
        splits = resolve_split(tmp_path, seed=seed)
        parts = [{pair.name for pair in part} for part in (splits.train, splits.val, splits.test)]
        assert sum({"t1", "e9"} <= part for part in parts) == 1


@pytest.fixture(scope="module")
def class_trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of classes in each layout, to be copied."""
    trees = {layout: tmp_path_factory.mktemp(layout) for layout in ("folders", "lists", "ratio")}
    for layout, root in trees.items():
        write_class_tree(root, layout)
    return trees


@pytest.fixture
def class_tree(class_trees: dict[str, Path], tmp_path: Path) -> Callable[[str], tuple[list[object], Path]]:
    """Copies a tree; returns the arguments of `data verify`, and a folder that has t0.png and t1.png."""

    def copy(layout: str) -> tuple[list[object], Path]:
        shutil.copytree(class_trees[layout], tmp_path, dirs_exist_ok=True)
        places = {"folders": "train/class_1", "lists": "cifar/images/train800", "ratio": "class_1"}
        named = ["vtab/cifar"] if layout == "lists" else []
        return [tmp_path, *named], tmp_path / places[layout]

    return copy


def write_class_tree(root: Path, layout: str) -> None:
    if layout == "lists":
        place = write_vtab(root) / "cifar" / "images" / "train800"
        (place / "000001.jpg").unlink()
        (place / "000000.jpg").unlink()
        text = (root / "cifar" / "train800.txt").read_text().replace("000001.jpg", "t1.png")
        (root / "cifar" / "train800.txt").write_text(text.replace("000000.jpg", "t0.png"))
        class_picture(0, 0).save(place / "t0.png")
        class_picture(1, 1).save(place / "t1.png")
        return
    if layout == "folders":
        place = write_class_folders(root) / "train" / "class_1"
    else:
        write_class_folders(root / "all", train=6, val=0, test=0)
        for path in (root / "all" / "train").iterdir():
            path.rename(root / path.name)
        shutil.rmtree(root / "all")
        place = root / "class_1"
    for number in (0, 1):
        (place / f"00{number}.png").rename(place / f"t{number}.png")


LISTED = {  # what a list says of a file that is none
    "dangling link": "names images/train800/t1.png, which is not in",
    "folder as PNG": "names images/train800/t1.png, which is not in",
    "name not UTF-8": "names images/train800/t1.png, which is not in",
}
CLASS_ERRORS = {
    name: (make, {"folder as PNG": "t1.png: is a directory"}.get(name, said), LISTED.get(name))
    for name, (make, said) in IMAGE_ERRORS.items()
}


def resolve(arguments: list[object]):
    folder, *named = arguments
    return resolve_classes(folder, name=str(named[0]) if named else None)


@pytest.mark.parametrize("layout", ["folders", "lists", "ratio"])
@pytest.mark.parametrize("name", CLASS_ERRORS)
def test_errors_of_classes(tmp_path: Path, verify, class_tree, layout: str, name: str) -> None:
    make, said, listed = CLASS_ERRORS[name]
    arguments, place = class_tree(layout)
    make(place / "t1.png")
    if layout == "lists" and "JPEG" in name:
        lists = tmp_path / "cifar" / "train800.txt"
        lists.write_text(lists.read_text().replace("t1.png", "t1.jpg"))
    said = (listed or said) if layout == "lists" else said
    code, _, err = verify(*arguments)
    assert code == 3 and said in err and "Traceback" not in err
    with pytest.raises(DataError) as told:
        resolve(arguments)
    assert said in str(told.value) and "1 problem(s)" in str(told.value)


@pytest.mark.parametrize("layout", ["folders", "ratio"])
def test_layouts_of_classes(tmp_path: Path, verify, class_tree, layout: str) -> None:
    arguments, place = class_tree(layout)
    shutil.copy(place / "t1.png", place.with_name("class_2") / "other.png")
    (place.with_name("class_3")).mkdir()
    said = ["class_3: empty class folder, no picture in it", "other.png (class class_2) is the same image as"]
    if layout == "folders":
        shutil.copy(place / "t0.png", tmp_path / "test" / "class_1" / "again.png")
        said.append("again.png (test) is the same image as")
    code, _, err = verify(*arguments)
    assert code == 3 and all(line in err for line in said) and len(err.splitlines()) == 1 + len(said)
    with pytest.raises(DataError) as told:
        resolve(arguments)
    assert all(line in str(told.value) for line in said) and f"{len(said)} problem(s)" in str(told.value)


def test_a_list_of_classes_names_an_absent_file(tmp_path: Path, verify, class_tree) -> None:
    arguments, place = class_tree("lists")
    (place / "t1.png").unlink()
    code, _, err = verify(*arguments)
    assert code == 3 and "train800.txt:2: names images/train800/t1.png, which is not in" in err


@pytest.mark.parametrize("layout", ["folders", "lists", "ratio"])
@pytest.mark.parametrize(
    ("pixels", "said"),
    [(noise()[..., 0].astype(np.uint16) * 16, "16-bit image, scaled to 8 bits as one of 12 bits"),
     (np.full((40, 40, 3), 7, np.uint8), "constant image")],
    ids=["16-bit", "constant"],
)  # fmt: skip
def test_warnings_of_classes(tmp_path: Path, verify, class_tree, layout: str, pixels: np.ndarray, said: str) -> None:
    arguments, place = class_tree(layout)
    picture(pixels, place / "t1.png")
    code, out, err = verify(*arguments)
    assert (code, err) == (0, "") and f"warning: {place / 't1.png'}: {said}" in out
    assert any(said in note for note in resolve(arguments).notes)


@pytest.mark.parametrize("layout", ["folders", "lists"])
def test_near_duplicates_of_classes(tmp_path: Path, verify, class_tree, layout: str) -> None:
    arguments, place = class_tree(layout)
    target = tmp_path / "test" / "class_1" / "006.png" if layout == "folders" else place.parent / "test" / "000001.jpg"
    Image.fromarray(np.array(Image.open(place / "t1.png")) // 2 + 9).save(target)
    code, out, err = verify(*arguments)
    said = (
        f"1 near-duplicate pair(s) across parts, which may flatter the scores: {place / 't1.png'} (train) and {target}"
    )
    assert (code, err) == (0, "") and said in out
    assert any(said in note for note in resolve(arguments).notes)


@pytest.mark.slow
def test_a_thousand_images_take_seconds_and_then_none(tmp_path: Path) -> None:
    """1,000 JPEG pictures of 640 x 512 with PNG masks: 30 s of computing, 15 on two cores; half a second when known."""
    image, truth = draw(np.random.default_rng(0), height=512, width=640)
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    for number in range(1000):
        shift, light = (number % 25 * 20, number // 25 * 16), np.uint8(number % 7)
        Image.fromarray(np.roll(image, shift, (0, 1)) + light).save(tmp_path / "images" / f"{number}.jpg", quality=90)
        rolled = np.roll(truth.astype(np.uint8) * 255, shift, (0, 1))
        Image.fromarray(rolled).save(tmp_path / "masks" / f"{number}.png", compress_level=1)
    seconds = []
    for _ in range(2):
        start = time.process_time()  # of all threads, whatever else the machine does
        assert verify_folder(tmp_path).errors == ()
        seconds.append(time.process_time() - start)
    assert seconds[0] < 30 and seconds[1] < 0.5, seconds
