"""What kind of data is in a folder? Where that is unclear, or something is missing: what was found, what would do."""

from collections.abc import Sequence
from pathlib import Path

from samtune.data.pictures import SUFFIXES, is_picture
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.starting.labels import label_kind, twin_folder
from samtune.starting.names import find_names
from samtune.starting.readers import READERS
from samtune.tasks.semantic.layouts import has_class_folders
from samtune.tasks.table import TASKS

LAYOUTS = (
    "DIR/images/NAME.jpg with DIR/masks/NAME.png: one foreground (0 and 255), or a number per class",
    "DIR/images/NAME.jpg with DIR/masks/CLASS/NAME.png: a mask per class",
    "DIR/CLASS/NAME.jpg: pictures in a folder per class",
    "DIR/images/NAME.jpg with DIR/instances/NAME.png: a number per object, or DIR/instances/NAME/: a mask per object",
    "DIR/images/ with annotations of COCO, YOLO, LabelMe, Label Studio, CVAT or Pascal VOC (docs/formats.md)",
    "DIR/train, DIR/val and DIR/test, each of one of these kinds",
)
TWINS = (
    "images and masks: rename the two folders to images/ and masks/",
    "--task classification: the two folders are classes",
)
SHOWN = 8  # names in a folder that are told


def find_task(folder: Path, asked: str | None) -> tuple[str, str]:
    """Returns the name of the task that a folder is data of, and why.

    Args:
        asked: what the user says it is; None looks.

    Raises:
        ConfigError: an unknown name, or annotations of several formats.
        DataError: no folder, none of the layouts, bad annotations, or masks that can be read in two ways.
    """
    if asked is not None and asked not in READERS:
        raise ConfigError(f"--task: {unknown_name('task', asked, READERS)}")
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {kind}; name the folder of your data")
    if asked is not None:
        return asked, "asked for by --task"
    if TASKS["instances"].load().recognises(folder):
        return "instances", READERS["instances"].layout
    if (named := find_names(folder)) is not None:
        return "semantic" if len(named.objects) > 1 else "segmentation", named.text()
    fitting = [name for name in READERS if TASKS[name].load().recognises(folder)]
    if not fitting:
        raise DataError(_listed(f"{folder}: {_contents(folder)}. What is missing is one of these layouts", LAYOUTS))
    if fitting == ["classification"] and (masks := twin_folder(folder)) is not None:
        raise DataError(_listed(f"{folder}: {masks}. That can be read in two ways; choose one", TWINS))
    if "segmentation" not in fitting or ("semantic" in fitting and has_class_folders(folder)):
        return fitting[-1], READERS[fitting[-1]].layout
    return _of_masks(folder)


def _of_masks(folder: Path) -> tuple[str, str]:
    """Tells by their values what the masks of pairs are of."""
    kind, words = label_kind(folder)
    if kind == "two":
        return "segmentation", words
    if kind == "classes":
        return "semantic", f"{words}: classes"
    readings = [f"--task {name}: {reader.value}" for name, reader in READERS.items() if reader.value]
    apart = "objects, each told from the others: rename masks/ to instances/, which is --task instances"
    binary = "one foreground: save (mask > 0) * 255 as PNG in masks/, then --task segmentation"
    if kind == "objects":
        readings = [line for line in readings if not line.startswith("--task semantic")]
        title = f"{folder}: {words}, too many for classes, so each is an object. What can be done with them"
    else:
        title = f"{folder}: {words}. That can be read in several ways; choose one"
    raise DataError(_listed(title, [*readings, apart, binary]))


def _listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  - {line}" for line in lines)])


def _contents(folder: Path) -> str:
    """Words what is in a folder that has none of the layouts."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        return "an empty folder"
    pictures = sum(is_picture(path) for path in paths)
    if pictures:
        some = f"found {pictures} picture{'s' * (pictures != 1)} without masks or classes"
        return f"{some}; what they show has to come from you"
    names = ", ".join(ascii(path.name)[1:-1] for path in paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
    return f"found {names}; no picture ({' '.join(SUFFIXES)})"
