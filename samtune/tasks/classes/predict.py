"""Classes of images: one merged file in, names and probabilities out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from samtune import console
from samtune.base.disk import disk_errors
from samtune.base.machine import pick_device
from samtune.data.pictures import read_image
from samtune.data.verify import list_problems
from samtune.errors import DataError
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.evaluate import predict_classes
from samtune.tasks.classes.views import build_view, check_shape
from samtune.tasks.predict import checked_image, find_images
from samtune.types import ImageArray, LabelledBatch

TOP = 5


@dataclass(frozen=True)
class ClassPrediction:
    """The class of one image.

    Attributes:
        name: of the most probable class.
        probability: of that class, in [0, 1]; a softmax, not calibrated.
        ranking: (name, probability) of the five most probable classes, or of all where there are fewer.
    """

    name: str
    probability: float
    ranking: tuple[tuple[str, float], ...]


class ClassPredictor:
    """Predicts classes with one model, in fp32; every call stands alone.

    Args:
        model: in eval mode.
        info: what its file says about it.
    """

    def __init__(self, model: Backbone, info: ClassDescription) -> None:
        self.model = model
        self.info = info
        self._view = build_view(
            "none", image_size=info.image_size, resize=info.resize, interpolation=info.interpolation
        )

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
        probabilities = predict_classes(self.model, batch.to(self.model.device))[0]
        best = probabilities.topk(min(TOP, len(self.info.classes)))
        ranking = [(self.info.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return ClassPrediction(*ranking[0], tuple(ranking))


def predict_class_files(
    predictor: ClassPredictor, paths: Sequence[str | Path], out: Path
) -> dict[Path, ClassPrediction]:
    """Writes `out/predictions.csv`: file, class, probability, and the classes that come next.

    Args:
        predictor: the model.
        paths: image files, or folders of images (not searched deeper).
        out: folder, made if needed.

    Returns:
        The prediction of each file, in the order of the table.

    Raises:
        DataError: nothing to predict, or images that can't be read; all are listed, after the table of the others is
            written.
        DiskError: `out` can't be written.
    """
    images = find_images(paths)
    found, problems = {}, []
    with console.progress("predict", len(images)) as advance:
        for path in images:
            try:
                found[path] = predictor.predict(read_image(path), name=str(path))
            except DataError as err:
                problems.append(str(err))
            advance()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "probability", "next"])
            for path, prediction in found.items():
                others = "; ".join(f"{name} {share:.4f}" for name, share in prediction.ranking[1:])
                writer.writerow([path, prediction.name, f"{prediction.probability:.6f}", others])
    if problems:
        raise DataError(list_problems(f"no class for {len(problems)} of {len(images)} images", problems))
    return found
