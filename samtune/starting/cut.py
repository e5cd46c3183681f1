"""Which seed cuts the parts that a folder lacks so that each can be used?"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from samtune.data.pair_splits import MaskKind, verify_parts
from samtune.data.splits import Splits
from samtune.errors import DataError

SEEDS = 10
AnySplits = TypeVar("AnySplits", bound=Splits[Any])


def first_seed(folder: Path, kind: MaskKind[Any], resolve: Callable[[int], AnySplits]) -> tuple[AnySplits, int]:
    """Returns the parts as the first of `SEEDS` cuts them that leaves an object, or each class, where it is needed.

    Args:
        kind: how the folder is read.
        resolve: returns the parts by a seed.

    Raises:
        DataError: as of `resolve` with seed 0, where the data itself is wrong, or no seed does.
    """
    try:
        return resolve(0), 0
    except DataError:
        if verify_parts(folder, kind).errors:
            raise
        for seed in range(1, SEEDS):
            with suppress(DataError):
                return resolve(seed), seed
        raise
