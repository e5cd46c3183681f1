from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from samtune.base.disk import disk_errors, free_bytes
from samtune.errors import DiskError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_what_is_free(number: int, tmp_path: Path) -> None:
    message = rf"can't write to .*/x: {os.strerror(number)}; [\d,.]+ MB are free there. Free some space"
    with pytest.raises(DiskError, match=message), disk_errors(tmp_path / "x"):
        raise OSError(number, os.strerror(number))


def test_a_folder_that_can_not_be_written_is_told() -> None:
    message = r"can't write to x: Read-only file system\. Choose a writable folder"
    with pytest.raises(DiskError, match=message), disk_errors(Path("x")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), disk_errors(Path("x")):
        raise KeyError("x")


def test_free_bytes_are_those_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.1)
