"""samtune: adapt segmentation foundation models by tuning a small, well-chosen part of their own parameters.

Names are imported when first used, so that `import samtune` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samtune.artifacts import audit as audit
    from samtune.config import load_config as load_config
    from samtune.delta import apply_delta as apply_delta
    from samtune.delta import undo_delta as undo_delta
    from samtune.evaluation import evaluate as evaluate
    from samtune.models import build_model as build_model
    from samtune.predict import Predictor as Predictor
    from samtune.recipe import finetune as finetune
    from samtune.scoring import score as score
    from samtune.selection import select as select
    from samtune.training import fit as fit
    from samtune.tuning import attach as attach
    from samtune.tuning import merge as merge

_HOMES = {
    "Predictor": "samtune.predict",
    "apply_delta": "samtune.delta",
    "attach": "samtune.tuning",
    "audit": "samtune.artifacts",
    "build_model": "samtune.models",
    "evaluate": "samtune.evaluation",
    "finetune": "samtune.recipe",
    "fit": "samtune.training",
    "load_config": "samtune.config",
    "merge": "samtune.tuning",
    "score": "samtune.scoring",
    "select": "samtune.selection",
    "undo_delta": "samtune.delta",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'samtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
