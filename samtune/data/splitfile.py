"""The split that a run used, kept beside its files, so that a later evaluation knows what was trained on.

`splits/train.txt`, `val.txt` and `test.txt` of a run folder have a line per image: NAME, a tab, and the SHA-256 of
the image file. Names repeat between data sets; contents do not. A val or test part of more than 5,000 images has the
size of the file, in bytes, in place of the hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtune.base.disk import write_text
from samtune.data.cache import file_hashes
from samtune.data.splits import PARTS, Item, Splits

FOLDER = "splits"
HASHED = 5_000  # val and test images; whether one was trained on, the list of train says


def save_splits(folder: Path, splits: Splits[Any]) -> None:
    """Writes the lists of a run."""
    for part in PARTS:
        items: Sequence[Item] = getattr(splits, part)
        paths = [item.image for item in items]
        short = part != "train" and len(items) > HASHED
        marks = [str(path.stat().st_size) for path in paths] if short else file_hashes(paths)
        lines = [f"{item.name}\t{mark}\n" for item, mark in zip(items, marks, strict=True)]
        write_text(folder / FOLDER / f"{part}.txt", "".join(lines))


def trained_on(checkpoint: Path, items: Sequence[Item]) -> int:
    """Counts the items that the run of a checkpoint trained on, by its folder's list; 0 when there is none."""
    path = checkpoint.parent / FOLDER / "train.txt"
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    trained = {line.rpartition("\t")[2] for line in lines}
    return sum(content in trained for content in file_hashes([item.image for item in items]))
