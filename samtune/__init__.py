"""samtune: adapt segmentation foundation models by tuning a small, well-chosen part of their own parameters.

Names are imported when first used, so that `import samtune` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samtune.files.audit import audit as audit
    from samtune.files.delta import apply_delta as apply_delta
    from samtune.files.delta import undo_delta as undo_delta
    from samtune.models.table import build_model as build_model
    from samtune.run.fit import fit as fit
    from samtune.run.recipe import finetune as finetune
    from samtune.run.settings import load_config as load_config
    from samtune.scoring.score import score as score
    from samtune.selection import select as select
    from samtune.tasks.instances.predict import InstancePredictor as InstancePredictor
    from samtune.tasks.masks.evaluate import evaluate as evaluate
    from samtune.tasks.masks.predict import Predictor as Predictor
    from samtune.tasks.semantic.predict import MapPredictor as MapPredictor
    from samtune.tuning import attach as attach
    from samtune.tuning import merge as merge

_HOMES = {
    "InstancePredictor": "samtune.tasks.instances.predict",
    "MapPredictor": "samtune.tasks.semantic.predict",
    "Predictor": "samtune.tasks.masks.predict",
    "apply_delta": "samtune.files.delta",
    "attach": "samtune.tuning",
    "audit": "samtune.files.audit",
    "build_model": "samtune.models.table",
    "evaluate": "samtune.tasks.masks.evaluate",
    "finetune": "samtune.run.recipe",
    "fit": "samtune.run.fit",
    "load_config": "samtune.run.settings",
    "merge": "samtune.tuning",
    "score": "samtune.scoring.score",
    "select": "samtune.selection",
    "undo_delta": "samtune.files.delta",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'samtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
