"""From an exception to an exit code and a message for people."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

from samtune.errors import SamtuneError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def explain(error: Exception) -> tuple[int, str, str | None]:
    """Words an error that ended a command.

    Args:
        error: what was raised.

    Returns:
        The exit code (see `samtune.errors`), the message, and a hint on what to do, if there is one.
    """
    if isinstance(error, SamtuneError):
        return error.exit_code, str(error), None
    if _is_out_of_memory(error):
        return (6, f"out of memory: {error}", "Lower train.batch (and raise train.accumulate), or model.image_size.")
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f" {error.filename}" if error.filename else ""
        return 7, f"can't write or read{where}: {error.strerror}", "Free some space, or name another folder."
    bug = "This is a bug in samtune. Please report it with the command and what --debug shows."
    return 1, f"{type(error).__name__}: {error}", bug


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's can't come from a torch that was not imported
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


def exit_143(*_: object) -> NoReturn:
    """Handles SIGTERM in a command: it is interrupted."""
    sys.exit(143)


def exit_0(*_: object) -> NoReturn:
    """Handles SIGTERM in a server: asked to stop, it drains, and that is success."""
    sys.exit(0)
