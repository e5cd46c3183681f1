"""What a merged classifier answers: the class of an image, a table of files, and requests of a server."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from samtune.base.disk import replacing
from samtune.base.machine import pick_device
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, DataError
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.evaluate import class_logits
from samtune.tasks.classes.views import check_shape
from samtune.tasks.predict import Prediction, checked_image, find_images, predict_each, refuse_format
from samtune.tasks.service import Answer, FieldError, Service
from samtune.types import ImageArray, LabelledBatch

TOP = 5


@dataclass(frozen=True)
class ClassPrediction:
    """The most probable class of one image.

    Attributes:
        probability: of that class, in [0, 1]; a softmax, not calibrated.
        ranking: (name, probability) of the five most probable classes, or of all where there are fewer.
    """

    name: str
    probability: float
    ranking: tuple[tuple[str, float], ...]


class ClassPredictor:
    """Predicts classes with one model in eval mode, in fp32; every call stands alone."""

    def __init__(self, model: Backbone, info: ClassDescription) -> None:
        self.model, self.info, self._view = model, info, info.view()

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto") -> ClassPredictor:
        """Loads the `merged.safetensors` or `bundle.safetensors` of a classification run.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
            ConfigError: an unknown device, or one that this machine doesn't have.
        """
        return cls(*load_merged(Path(path), ClassDescription, device=pick_device(device)))

    def predict(self, image_hwc_uint8: ImageArray, *, name: str = "the image") -> ClassPrediction:
        """Predicts the class of one image, as `evaluate` does.

        Args:
            image_hwc_uint8: (H, W, 3) uint8 RGB, no side more than 100 times the other.
            name: of the image, for messages.

        Raises:
            DataError: not such an image.
            NonFiniteError: the model returns NaN or infinity.
        """
        image = checked_image(image_hwc_uint8)
        check_shape(image.shape[1], image.shape[0], name)
        pixels = self._view.drawn(self._view.fixed(Image.fromarray(image)))
        batch = LabelledBatch(pixels[None], torch.zeros(1, dtype=torch.int64), (name,))
        probabilities = class_logits(self.model, batch.to(self.model.device)).softmax(dim=1)[0]
        best = probabilities.topk(min(TOP, len(self.info.classes)))
        ranking = [(self.info.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return ClassPrediction(*ranking[0], tuple(ranking))


def predict_class_files(request: Prediction) -> str:
    """Writes `out/predictions.csv`: file, class, probability, and the classes that come next; says what was written.

    Raises:
        ConfigError: a prompt or an overlay, which are for masks.
        DataError: nothing to predict, or images that can't be read; all are listed after the others are written.
        DiskError: `out` can't be written.
    """
    refuse_format(request)
    if request.overlay or request.boxes_xyxy or request.points_xy:
        raise ConfigError(f"--overlay, --box and --point are for masks; {request.checkpoint} is a classifier.")
    predictor = ClassPredictor.from_file(request.checkpoint, device=request.device)
    table = request.out / "predictions.csv"

    def save(found: Mapping[Path, ClassPrediction]) -> None:
        with replacing(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "probability", "next"])
            for path, prediction in found.items():
                others = "; ".join(f"{name} {share:.4f}" for name, share in prediction.ranking[1:])
                writer.writerow([path, prediction.name, f"{prediction.probability:.6f}", others])

    def answer(path: Path) -> ClassPrediction:
        return predictor.predict(read_image(path), name=str(path))

    found = predict_each(find_images(request.paths), answer, what="class", finish=save)
    return f"{len(found)} classes in {table}"


class ClassService(Service):
    """Answers with the most probable classes and their probabilities, as JSON."""

    fields = ()
    media_types = ("application/json",)
    told = (
        "JSON: class and probability of the most probable class, ranking with those of the first five, and warnings: "
        "what was done to the picture."
    )
    page = files("samtune.tasks.classes") / "page.html"

    def __init__(self, predictor: ClassPredictor) -> None:
        self.predictor = predictor

    @classmethod
    def from_file(cls, path: Path, *, device: str) -> Self:
        return cls(ClassPredictor.from_file(path, device=device))

    def about(self) -> dict[str, Any]:
        info = self.predictor.info
        return {
            **{key: getattr(info, key) for key in ("task", "model", "image_size", "resize")},
            "classes": list(info.classes),
            "base_hash": info.base_hash,
            "parameters": sum(p.numel() for p in self.predictor.model.parameters()),
        }

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        try:
            prediction = self.predictor.predict(image_hwc_uint8)
        except DataError as err:
            raise FieldError("image_size", f"{err}.", field="image") from err
        ranking = [{"class": name, "probability": probability} for name, probability in prediction.ranking]
        return Answer.of_json({**ranking[0], "ranking": ranking, "warnings": warnings})
