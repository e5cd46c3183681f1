"""`from samtune.predict import Predictor`: masks from a merged file; see `samtune.tasks.masks.predict`."""

from samtune.tasks.masks.predict import Predictor

__all__ = ["Predictor"]
