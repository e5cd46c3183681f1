"""Prediction: one merged file in, masks in the original frame out.

A `Predictor` holds a model and nothing else: every call stands alone. Masks come from `predict_batch`, as
those of `evaluate` do, so both agree on every image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image

from samtune import console
from samtune.base.disk import replacing
from samtune.base.machine import pick_device
from samtune.base.paths import find_path
from samtune.data.pictures import SUFFIXES, read_image
from samtune.data.verify import list_problems
from samtune.errors import ConfigError, DataError
from samtune.files.merged import load_merged
from samtune.models.backbone import Backbone
from samtune.tasks.masks.dataset import Collate, resize_longest
from samtune.tasks.masks.description import MaskDescription
from samtune.tasks.masks.draw import save_overlays
from samtune.tasks.masks.evaluate import predict_batch
from samtune.tasks.masks.prompts import Floats, PromptError, check_inside, checked_boxes, checked_points, clip_boxes
from samtune.types import ImageArray, MaskArray, Prediction, Sample

logger = logging.getLogger(__name__)


class Predictor:
    """Predicts masks with one model, in fp32.

    Args:
        model: in eval mode.
        info: what its file says about it.
    """

    def __init__(self, model: Backbone, info: MaskDescription) -> None:
        self.model = model
        self.info = info

    @classmethod
    def from_file(cls, path: str | Path, *, device: str = "auto") -> Predictor:
        """Loads a merged file.

        Args:
            path: the `merged.safetensors` of a run.
            device: "auto" (the first there is of cuda, mps and cpu), "cpu", "cuda" or "mps".

        Raises:
            CheckpointError: the file is missing, damaged or no merged file.
            ConfigError: an unknown device, or one that this machine doesn't have.
        """
        return cls(*load_merged(Path(path), MaskDescription, device=pick_device(device)))

    def predict(
        self,
        image_hwc_uint8: ImageArray,
        *,
        boxes_xyxy: ArrayLike | None = None,
        points_xy: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> Prediction:
        """Predicts the mask of one image.

        Several boxes make one mask: a pixel is foreground when it is for any of them, and its probability is
        the largest. Each box costs one pass through the network. Points are one prompt set, given with every
        box.

        Args:
            image_hwc_uint8: (H, W, 3) uint8 RGB.
            boxes_xyxy: (4,) or (N, 4) in pixels of the image; what sticks out of the image is cut off.
            points_xy: (P, 2) in pixels of the image.
            labels: (P,) 1 = on the object, 0 = off it; all 1 when left out.

        Returns:
            Mask and probability at the size of the image.

        Raises:
            DataError: not such an image.
            PromptError: a prompt of a wrong shape, or outside the image.
            NonFiniteError: the model returns NaN or infinity.
        """
        image = checked_image(image_hwc_uint8)
        size = (image.shape[0], image.shape[1])
        boxes = checked_boxes(boxes_xyxy)
        boxes = None if boxes is None else clip_boxes(boxes, size)
        points, signs = checked_points(points_xy, labels)
        if points is not None:
            check_inside(points, size)
        side = self.model.image_size
        small = cast(ImageArray, resize_longest(image, side))
        scale = np.array([small.shape[1] / size[1], small.shape[0] / size[0]])
        predictions = []
        for box in [None] if boxes is None else boxes:
            sample = Sample(
                name="the image",
                image=torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))),  # (3, h, w)
                mask=torch.zeros(small.shape[:2], dtype=torch.bool),
                truth=cast(MaskArray, np.zeros(size, dtype=np.bool_)),
                box_input=None if box is None else _floats(box * np.tile(scale, 2)),
                points_input=None if points is None else _floats(points * scale),
                labels=None if signs is None else torch.from_numpy(signs),
            )
            batch = Collate(side)([sample]).to(self.model.device)
            predictions += predict_batch(self.model, batch, sizes_original=[size])
        return _union(predictions)


def predict_files(
    predictor: Predictor,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    overlay: bool = False,
    box_xyxy: ArrayLike | None = None,
    points_xy: ArrayLike | None = None,
) -> list[Path]:
    """Writes the mask of each image as `out/STEM.png`: 0 and 255, at the size of the image.

    Args:
        predictor: the model.
        paths: image files, or folders of images (not searched deeper).
        out: folder for the masks, made if needed.
        overlay: also draw the outline over each image, in `out/overlays/`.
        box_xyxy: prompt for every image, as `boxes_xyxy` of `Predictor.predict`.
        points_xy: as in `Predictor.predict`, all on the object.

    Returns:
        The mask files, in the order of `paths`, those of one folder by name.

    Raises:
        DataError: nothing to predict, two images of one stem (before anything is predicted), or images that
            can't be read or that the prompt doesn't fit; all are listed, after the masks of the others are
            written.
        PromptError: a prompt of a wrong shape.
        ConfigError: a mask would replace an image.
        DiskError: `out` can't be written.
    """
    prompts = {"boxes_xyxy": box_xyxy, "points_xy": points_xy}
    checked_boxes(box_xyxy)
    checked_points(points_xy, None)
    out = Path(out)
    targets = _targets(find_images(paths), out)
    warning = other_prompt(predictor.info, box=box_xyxy is not None, points=points_xy is not None)
    if warning:
        logger.warning("%s", warning)
    written, problems = [], []
    with console.progress("predict", len(targets)) as advance:
        for path, target in targets:
            try:
                image = read_image(path)
                prediction = predictor.predict(image, **prompts)
            except DataError as err:
                problems.append(str(err))
            except PromptError as err:
                problems.append(f"{path}: {err}")
            else:
                _save_mask(target, prediction.mask)
                if overlay:
                    save_overlays(out / "overlays", [(path.stem, image, None, prediction.mask)])
                written.append(target)
            advance()
    if problems:
        raise DataError(list_problems(f"no mask for {len(problems)} of {len(targets)} images", problems))
    return written


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Lists the image files that `paths` mean: files as they are, folders by their pictures, sorted by name.

    Raises:
        DataError: a path that doesn't exist, or a folder without pictures; all are listed.
    """
    found: dict[Path, Path] = {}  # resolved -> as given: a file counts once
    problems = []
    for given in paths:
        path = find_path(given)
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
            if not files:
                hint = f"; did you mean {path / 'images'}?" if (path / "images").is_dir() else ""
                problems.append(f"{path}: no image in this folder ({' '.join(SUFFIXES)}){hint}")
        elif not path.exists():
            problems.append(f"{path}: no such file or folder")
        found |= {file.resolve(): file for file in files if file.resolve() not in found}
    if not paths:
        problems.append("no path was given; name image files, or folders of images")
    if problems:
        raise DataError(list_problems("nothing was predicted", problems))
    return list(found.values())


def other_prompt(info: MaskDescription, *, box: bool, points: bool) -> str | None:
    """Returns a warning when a model is asked in another way than it was tuned for, else None."""
    used = " and ".join(kind for kind, given in (("box", box), ("point", points)) if given) or "none"
    if info.prompt in used.split(" and "):
        return None
    return f"the model was tuned with prompt {info.prompt!r}, this prediction uses {used!r}: it may be worse"


def _floats(values: Floats) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def checked_image(image: ImageArray) -> ImageArray:
    """Returns the image if it is an (H, W, 3) uint8 array; raises a `DataError` that says what it is instead."""
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise DataError(
            f"expected an image of shape (H, W, 3) and dtype uint8, got shape {shape} and dtype {dtype}. "
            "samtune.data.pictures.read_image reads one from a file."
        )
    return image


def _union(predictions: list[Prediction]) -> Prediction:
    if len(predictions) == 1:
        return predictions[0]
    mask = cast(MaskArray, np.logical_or.reduce([p.mask for p in predictions]))
    probability = np.maximum.reduce([p.probability for p in predictions])
    return Prediction(mask, probability, float(probability[mask].mean()) if mask.any() else 0.0)


def _targets(images: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Returns (image, mask file) of each image, after making sure that no file would be lost."""
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_stem.setdefault(path.stem, []).append(path)
    clashes = [f"{stem}.png: {', '.join(map(str, p))}" for stem, p in by_stem.items() if len(p) > 1]
    if clashes:
        raise DataError(
            list_problems("several images would write one mask; rename them or predict them apart", clashes)
        )
    targets = [(path, out / f"{path.stem}.png") for path in images]
    lost = {path.resolve() for path in images} & {target.resolve() for _, target in targets}
    if lost:
        raise ConfigError(
            f"--out {out} holds the images: {len(lost)} of them would be replaced. Choose another folder."
        )
    return targets


def _save_mask(path: Path, mask: MaskArray) -> None:
    with replacing(path) as partial:
        Image.fromarray(mask.astype(np.uint8) * 255).save(partial, format="PNG")
