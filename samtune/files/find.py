"""Which model does a command mean: a file, that of a run folder, or a model by its name?"""

import logging
from pathlib import Path

from samtune.base.paths import find_path
from samtune.models.table import MODELS

logger = logging.getLogger(__name__)

RUN_FILES = ("merged.safetensors", "bundle.safetensors")
"""What the model of a run folder is called."""


def find_model(given: str | Path) -> Path:
    """Finds a model: a file as `find_path` does, the model of a run folder, or a name, which stays as it is.

    Where there is none, the path that was looked for is returned, for its reader to complain about.
    """
    path = find_path(given)
    if path.is_dir():
        inside = next((path / name for name in RUN_FILES if (path / name).is_file()), path)
        if inside != path:
            logger.info("%s is a run folder: taking its %s", given, inside.name)
        return inside
    return Path(given) if not path.exists() and str(given) in MODELS else path
