"""Where a path of the config or of the command line points: the working folder first, then the project."""

import re
from pathlib import Path

from samtune.errors import ConfigError


def find_path(path: str | Path) -> Path:
    """Finds a file or folder: a relative path in the working folder, then in the project root (editable install).

    `~` works. Where none exists, the path in the working folder is returned, for the caller to complain about.
    """
    path = Path(path).expanduser()
    candidates = [folder / path for folder in _folders()]
    return next((c for c in candidates if c.exists()), candidates[0])


def find_config(path: str | Path) -> Path:
    """Finds a config file: as `find_path` does, then in `configs/` of both folders.

    Raises:
        ConfigError: no such file; the message lists what `configs/` has.
    """
    folders = _folders()
    for candidate in [folder / sub / Path(path).expanduser() for sub in ("", "configs") for folder in folders]:
        if candidate.is_file():
            return candidate
    shipped = sorted({p.name for folder in folders for p in (folder / "configs").glob("*.yaml")})
    known = f"configs/ has: {', '.join(shipped)}." if shipped else "There is none in configs/ either."
    raise ConfigError(f"config file {str(path)!r} does not exist. {known}")


def safe_name(name: str) -> str:
    """Returns the name of a file for an item of this name: characters that it can't hold become "_"."""
    return re.sub(r"[^\w.#-]", "_", name)


def _folders() -> list[Path]:
    root = Path(__file__).resolve().parents[2]
    in_project = (root / "pyproject.toml").is_file() and root != Path.cwd()
    return [Path.cwd(), root] if in_project else [Path.cwd()]
