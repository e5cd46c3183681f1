"""The errors that samtune raises for a user's mistake, each with the exit code of its command.

An exception that is not a `SamtuneError` is a bug of ours (exit code 1). Every message says what was wrong, the value,
what is allowed and what fixes it. Codes follow one table for all commands: 0 ok, 1 bug, 2 config, 3 data, 4 checkpoint,
5 non-finite numbers, 6 memory, 7 disk, 8 run folder in use, 129/130/143 interrupted.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SamtuneError(ValueError):
    """Base of every error a user can cause; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(SamtuneError):
    """Unknown key, model or method, a wrong value, an impossible pair of values."""

    exit_code = 2


class DataError(SamtuneError):
    """A missing folder, a bad pair of image and mask, an unusable split."""

    exit_code = 3


class CheckpointError(SamtuneError):
    """Weights, selection or delta that are missing, damaged or belong to something else."""

    exit_code = 4


class NonFiniteError(SamtuneError):
    """NaN or infinity where a number is needed."""

    exit_code = 5


class OutOfMemoryError(SamtuneError):
    """The job does not fit into memory."""

    exit_code = 6


class DiskError(SamtuneError):
    """A folder that can't be written, or a full disk."""

    exit_code = 7


class RunFolderError(SamtuneError):
    """A run folder that holds an earlier run or is in use."""

    exit_code = 8


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Words the message for a name that is in no table of its kind, with the nearest name, if any, and all names."""
    names = sorted(known)
    return f"unknown {kind} {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."


def did_you_mean(name: str, known: list[str]) -> str:
    """Returns a sentence, with a space before it, on the nearest name; "" when none is near."""
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
