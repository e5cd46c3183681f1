"""The data sets of classes that samtune knows by name, and how their folders are read.

Numbers of classes: GPS (Zhang et al., CVPR 2024), table 13.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samtune.data.splits import PARTS
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.tasks.classes.layouts.folders import NamedParts, read_class_folders, read_corruptions, sort_classes
from samtune.tasks.classes.layouts.lists import VTAB_BOTH, VTAB_LISTS, read_fgvc, read_vtab
from samtune.types import Resize


@dataclass(frozen=True)
class DataSet:
    """What is known of a public data set.

    Attributes:
        folder: its folder inside of a root that holds several data sets.
        resize: as for `build_view`.
        trains: whether it has training images; the robustness sets have none.
    """

    title: str
    layout: Literal["folders", "vtab", "fgvc", "corruptions"]
    folder: str
    classes: int
    resize: Resize
    trains: bool = True


DATASETS: dict[str, DataSet] = {
    "vtab/cifar": DataSet("CIFAR-100", "vtab", "cifar", 100, "squash"),
    "vtab/caltech101": DataSet("Caltech101", "vtab", "caltech101", 102, "squash"),
    "vtab/dtd": DataSet("DTD", "vtab", "dtd", 47, "squash"),
    "vtab/oxford_flowers102": DataSet("Flowers102", "vtab", "oxford_flowers102", 102, "squash"),
    "vtab/oxford_iiit_pet": DataSet("Pets", "vtab", "oxford_iiit_pet", 37, "squash"),
    "vtab/svhn": DataSet("SVHN", "vtab", "svhn", 10, "squash"),
    "vtab/sun397": DataSet("Sun397", "vtab", "sun397", 397, "squash"),
    "vtab/patch_camelyon": DataSet("Patch Camelyon", "vtab", "patch_camelyon", 2, "squash"),
    "vtab/eurosat": DataSet("EuroSAT", "vtab", "eurosat", 10, "squash"),
    "vtab/resisc45": DataSet("Resisc45", "vtab", "resisc45", 45, "squash"),
    "vtab/diabetic_retinopathy": DataSet("Retinopathy", "vtab", "diabetic_retinopathy", 5, "squash"),
    "vtab/clevr_count": DataSet("Clevr/count", "vtab", "clevr_count", 8, "squash"),
    "vtab/clevr_dist": DataSet("Clevr/distance", "vtab", "clevr_dist", 6, "squash"),
    "vtab/dmlab": DataSet("DMLab", "vtab", "dmlab", 6, "squash"),
    "vtab/kitti": DataSet("KITTI/distance", "vtab", "kitti", 4, "squash"),
    "vtab/dsprites_loc": DataSet("dSprites/location", "vtab", "dsprites_loc", 16, "squash"),
    "vtab/dsprites_ori": DataSet("dSprites/orientation", "vtab", "dsprites_ori", 16, "squash"),
    "vtab/smallnorb_azi": DataSet("SmallNORB/azimuth", "vtab", "smallnorb_azi", 18, "squash"),
    "vtab/smallnorb_ele": DataSet("SmallNORB/elevation", "vtab", "smallnorb_ele", 9, "squash"),
    "fgvc/cub": DataSet("CUB-200-2011", "fgvc", "CUB_200_2011", 200, "crop"),
    "fgvc/nabirds": DataSet("NABirds", "fgvc", "nabirds", 555, "crop"),
    "fgvc/oxford_flowers": DataSet("Oxford Flowers", "fgvc", "OxfordFlower", 102, "crop"),
    "fgvc/stanford_cars": DataSet("Stanford Cars", "fgvc", "Stanford-cars", 196, "crop"),
    "fgvc/stanford_dogs": DataSet("Stanford Dogs", "fgvc", "Stanford-dogs", 120, "crop"),
    "cifar-100": DataSet("CIFAR-100 (full)", "folders", "cifar-100", 100, "squash"),
    "imagenet": DataSet("ImageNet-1K", "folders", "imagenet", 1000, "crop"),
    "imagenet-a": DataSet("ImageNet-A", "folders", "imagenet-a", 200, "crop", trains=False),
    "imagenet-r": DataSet("ImageNet-R", "folders", "imagenet-r", 200, "crop", trains=False),
    "imagenet-c": DataSet("ImageNet-C", "corruptions", "imagenet-c", 1000, "crop", trains=False),
}


@dataclass(frozen=True)
class Layout:
    """What a data folder holds.

    Attributes:
        parts: the published parts; "all" for one that isn't split; of ImageNet-C, CORRUPTION/SEVERITY.
        classes: their names in order; None where the training images say them.
        problems: a line for everything that is wrong, with file and line.
    """

    root: Path
    parts: NamedParts
    classes: tuple[str, ...] | None
    problems: list[str]
    notes: list[str]


def find_dataset(name: str) -> DataSet:
    """Returns a data set of the table; raises a `ConfigError` for an unknown name."""
    if name not in DATASETS:
        raise ConfigError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]


def read_layout(
    folder: str | Path, name: str | None, *, wanted: Collection[str] = (*PARTS, "all"), retrain: bool = False
) -> Layout:
    """Lists the images of a data folder, without opening one.

    Args:
        folder: a folder of class folders; of a known data set, its folder or the root it lies in.
        name: of a known data set, or None for class folders.
        wanted: parts to read; "all": of class folders that are not split.
        retrain: read train and val of VTAB-1k together, from their common list.

    Raises:
        ConfigError: unknown name.
        DataError: the folder doesn't exist.
    """
    known = None if name is None else find_dataset(name)
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; set data.dir, or see data/README.md to get one")
    if known is not None and (root / known.folder).is_dir():
        root = root / known.folder
    problems: list[str] = []
    notes: list[str] = []
    classes = None
    if known is None or known.layout == "folders":
        problems += _hint(root)
        parts = {} if problems else read_class_folders(root, wanted, problems, notes)
    elif known.layout == "vtab":
        classes = tuple(str(label) for label in range(known.classes))
        parts = read_vtab(root, known.classes, wanted, problems, retrain=retrain)
    elif known.layout == "fgvc":
        parts = read_fgvc(root, wanted, problems)
        classes = sort_classes(label for part in parts.values() for _, label in part)
    else:
        parts = read_corruptions(root, problems, notes)
    if known is not None:
        _count(known, parts, problems, notes)
    return Layout(root, parts, classes, problems, notes)


def _hint(root: Path) -> list[str]:
    """Says which name is missing where a folder of lists is read as class folders."""
    if _has(root, "train.json"):
        return [f"{root}: train.json is a list of FGVC; say which: data.name (--name) fgvc/cub, ..."]
    if _has(root, VTAB_LISTS["train"], VTAB_BOTH):
        return [f"{root}: the lists are of VTAB-1k; say which task: data.name (--name) vtab/{root.name}"]
    inside = sorted({known.folder for known in DATASETS.values() if (root / known.folder).is_dir()})
    if any(_has(root / name, "train.json", VTAB_LISTS["train"], VTAB_BOTH) for name in inside):
        return [f"{root} holds known data sets ({', '.join(inside)}); say which by data.name (--name)"]
    return []


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _count(known: DataSet, parts: NamedParts, problems: list[str], notes: list[str]) -> None:
    """Compares the number of classes with the published one; VTAB-1k's labels are checked line by line."""
    classes = len({label for part in parts.values() for _, label in part})
    if classes > known.classes:
        problems.append(f"labels out of range: {classes} classes found, but {known.title} has {known.classes}")
    elif classes < known.classes and known.layout in ("folders", "fgvc") and set(parts) & set(PARTS):
        notes.append(f"{classes} of the {known.classes} classes of {known.title} are here")
