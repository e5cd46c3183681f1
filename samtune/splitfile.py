"""The split that a run used, kept beside its files, so that a later evaluation knows what was trained on.

`splits/train.txt`, `val.txt` and `test.txt` of a run folder have a line per image: NAME, a tab, and the SHA-256 of
the image file. Names repeat between data sets; contents do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from samtune.data import Splits
from samtune.data.labelled import ClassSplits
from samtune.data.pairs import PARTS
from samtune.download import file_sha256
from samtune.runfolder import disk_errors

FOLDER = "splits"


class ImageItem(Protocol):
    """An item of any data set: a pair of image and mask, or an image with a class."""

    @property
    def image(self) -> Path:
        """The image file."""


def save_splits(folder: Path, splits: Splits | ClassSplits) -> None:
    """Writes the lists of a run.

    Args:
        folder: the run folder.
        splits: what it trained, chose and reported on.

    Raises:
        DiskError: the folder can't be written.
    """
    for part in PARTS:
        lines = [f"{pair.name}\t{file_sha256(pair.image)}\n" for pair in getattr(splits, part)]
        with disk_errors(folder):
            (folder / FOLDER).mkdir(exist_ok=True)
            (folder / FOLDER / f"{part}.txt").write_text("".join(lines), encoding="utf-8")


def trained_on(checkpoint: Path, pairs: Sequence[ImageItem]) -> int:
    """Counts the pairs whose image files the run of a checkpoint trained on.

    Args:
        checkpoint: a file in a run folder.
        pairs: of any data folder.

    Returns:
        Their number; 0 when the file's folder has no list.
    """
    path = checkpoint.parent / FOLDER / "train.txt"
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    trained = {line.rpartition("\t")[2] for line in lines}
    return sum(file_sha256(pair.image) in trained for pair in pairs)
