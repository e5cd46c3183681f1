"""What a check of a data set found, and how it is told: every problem at once, each with its file and reason."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 3  # files of one warning that are told one by one


@dataclass(frozen=True)
class VerifyReport:
    """What a check found: a line per file that can't be used, and one per file that is used as it is, with warning."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def summary(self) -> list[str]:
        """Returns the warnings, those of one kind (what follows the file's name) in one line when they are many."""
        kinds: dict[str, list[str]] = {}
        for line in self.warnings:
            kinds.setdefault(line.split(": ", 1)[-1], []).append(line)
        told = []
        for kind, lines in kinds.items():
            example = lines[0].removesuffix(f": {kind}")
            told += lines if len(lines) <= SHOWN else [f"{len(lines)} files, such as {example}: {kind}"]
        return told


def list_problems(title: str, problems: Sequence[str]) -> str:
    """Words one message for many problems: a title with the count, then a line each."""
    return f"{title}: {len(problems)} problem(s)\n" + "\n".join(f"  - {line}" for line in problems)
