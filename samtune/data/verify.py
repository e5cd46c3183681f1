"""What a check of a data set found, and how it is told: every problem at once, each with its file and reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class VerifyReport:
    """What a check found: a line per file that can't be used, and one per file that is used as it is, with warning."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def summary(self) -> list[str]:
        """Returns one line per kind of warning with its count; the kind is what follows the file's name."""
        kinds = Counter(line.split(": ", 1)[-1] for line in self.warnings)
        return [f"{count} file(s): {kind}" for kind, count in kinds.most_common()]


def list_problems(title: str, problems: Sequence[str]) -> str:
    """Words one message for many problems: a title with the count, then a line each."""
    return f"{title}: {len(problems)} problem(s)\n" + "\n".join(f"  - {line}" for line in problems)
