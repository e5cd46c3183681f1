"""Turns archives of data sets and annotations into folders that samtune reads: of classes, or images and masks."""

import io
import logging
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtune.base.disk import disk_errors
from samtune.base.download import file_sha256
from samtune.data.formats.importing import import_annotations
from samtune.data.formats.table import FORMATS
from samtune.data.splits import PARTS
from samtune.errors import ConfigError, DataError, unknown_name

_log = logging.getLogger(__name__)
_CIFAR = "cifar-100-python"
ARCHIVES = {"cifar-100": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"}
"""SHA-256 of the published archives."""


def import_data(
    name: str,
    source: str | Path,
    target: str | Path,
    *,
    classes: bool = False,
    categories: tuple[str, ...] | None = None,
) -> Path:
    """Converts a downloaded data set, or annotations of a format.

    Args:
        source: its archive or file, or the folder it was unpacked to.
        target: a new or empty folder, gets class folders, or `images/` and `masks/`, in parts where the source has any.
        classes: of annotations, maps of class numbers with a list of their names, not masks of all objects.
        categories: of annotations, those that count; None for all.

    Raises:
        ConfigError: unknown name, or choices that are not for it.
        DataError: a source that is absent or damaged, annotations that can't be used, a target that is in use.
    """
    known = [*IMPORTERS, *FORMATS]
    if name not in known:
        raise ConfigError(unknown_name("import", name, known))
    if name in IMPORTERS and (classes or categories):
        raise ConfigError(f"--classes and --category are for annotations, which {name} does not have. Leave them out.")
    source, target = Path(source), Path(target)
    if not source.exists():
        raise DataError(f"{source} does not exist; give the archive or the folder of {name}")
    used = [part for part in ("images", "masks", *PARTS) if (target / part).exists()]
    if used:
        raise DataError(f"{target} holds {', '.join(f'{part}/' for part in used)} already; choose another folder")
    published = ARCHIVES.get(name)
    if published and source.is_file() and (found := file_sha256(source)) != published:  # it may be packed anew
        text = "%s is not the published archive, but packed anew or damaged: its SHA-256 is %s, not %s"
        _log.warning(text, source, found, published)
    with disk_errors(target):
        if name in FORMATS:
            count = import_annotations(name, source, target, classes=classes, categories=categories)
        else:
            count = IMPORTERS[name](source, target)
    _log.info("%s: %d images in %s", name, count, target)
    return target


def write_class_images(images: np.ndarray, labels: list[str], folder: Path) -> None:
    """Writes (N, H, W, 3) uint8 RGB images, each with its class, as FOLDER/CLASS/NUMBER.png."""
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def _import_cifar100(source: Path, target: Path) -> int:
    """Reads `cifar-100-python`: three pickles, of which only plain values and numpy arrays are loaded."""
    names = _value(_unpickle(_bytes(source, "meta")), "fine_label_names", list)
    if not all(isinstance(name, str) and name.replace("_", "").isalnum() for name in names):
        raise DataError(f"{source}: fine_label_names are not plain words; get the archive again")
    parts = {}
    for part in ("train", "test"):  # both are read before anything is written
        found = _unpickle(_bytes(source, part))
        pixels, labels = _value(found, "data", np.ndarray), _value(found, "fine_labels", list)
        fits = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072)
        if not (labels and fits and all(type(label) is int and 0 <= label < len(names) for label in labels)):
            raise DataError(
                f"{source}: {part} is not N > 0 images as (N, 3072) bytes with N labels of 0 to {len(names) - 1} "
                f"(found: {pixels.shape} of {pixels.dtype}, {len(labels)} labels); get the archive again"
            )
        parts[part] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), [names[label] for label in labels]
    for part, (images, classes) in parts.items():
        partial = target / f"{part}.part"  # gets its name when it is complete
        shutil.rmtree(partial, ignore_errors=True)
        write_class_images(images, classes, partial)
        partial.rename(target / part)
    return sum(len(classes) for _, classes in parts.values())


IMPORTERS = {"cifar-100": _import_cifar100}
"""Name of an archive -> function of (source, target) that writes the folders and returns the number of images."""


def _bytes(source: Path, name: str) -> bytes:
    """Returns a file of the archive, or of the folder that it was unpacked to."""
    if source.is_dir():
        for path in (source / name, source / _CIFAR / name):
            if path.is_file():
                return path.read_bytes()
    else:
        try:
            with tarfile.open(source) as archive:
                found = {member.name: member for member in archive}.get(f"{_CIFAR}/{name}")
                opened = None if found is None else archive.extractfile(found)
                if opened is not None:
                    return opened.read()
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{source}: damaged archive ({error}); get it again") from error
    raise DataError(f"{source}: no {_CIFAR}/{name} in it; give cifar-100-python.tar.gz or the folder it unpacks to")


class _PlainUnpickler(pickle.Unpickler):
    """Loads numbers, text, lists, dicts and numpy arrays; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns one of three names that arrays need."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise DataError(f"names {module}.{name}, which a list of images doesn't need; don't use this file")


def _unpickle(content: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"refused to load the pickle: it {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"damaged pickle ({type(error).__name__}: {error}); get the archive again") from error


def _value(found: Any, key: str, kind: type) -> Any:
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"the pickle has no {kind.__name__} {key!r}; is it the python version of CIFAR-100?")
    return value
