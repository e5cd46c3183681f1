"""From a checked form to the response with the mask; runs in the worker's thread."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from fastapi.responses import JSONResponse, Response
from PIL import Image

from samtune.serve.errors import RETRY, ApiError
from samtune.serve.pictures import decode_picture
from samtune.serve.upload import Upload
from samtune.tasks.masks.predict import Predictor, other_prompt
from samtune.tasks.masks.prompts import PromptError, checked_boxes, clip_boxes
from samtune.types import MaskArray, Prediction


def answer(predictor: Predictor, upload: Upload, *, max_pixels: int) -> Response:
    """Decodes, predicts and encodes.

    Args:
        predictor: the model.
        upload: the form.
        max_pixels: of the image.

    Returns:
        PNG (mode L, 0 and 255), or JSON with COCO's compressed RLE.

    Raises:
        ApiError: 413, 415 or 422 for the image, 422 for a prompt that doesn't fit it, 503 short of memory.
    """
    try:
        image, warnings = decode_picture(upload.data, max_pixels=max_pixels)
        prediction = predictor.predict(image, boxes_xyxy=upload.box, points_xy=upload.points, labels=upload.labels)
    except PromptError as err:
        raise ApiError(422, f"invalid_{err.field}", str(err), field=err.field) from err
    except (MemoryError, torch.OutOfMemoryError) as err:
        raise _out_of_memory() from err
    except RuntimeError as err:
        if "can't allocate memory" in str(err):  # torch's CPU allocator
            raise _out_of_memory() from err
        raise
    boxes = checked_boxes(upload.box)
    if boxes is not None and (clip_boxes(boxes, image.shape[:2]) != boxes).any():
        warnings.append("the box was cut to the image")
    other = other_prompt(predictor.info, box=boxes is not None, points=upload.points is not None)
    warnings += [other] if other else []
    return _as_json(prediction, warnings) if upload.format == "json" else _as_png(prediction, warnings)


def _as_png(prediction: Prediction, warnings: list[str]) -> Response:
    file = BytesIO()
    Image.fromarray(prediction.mask.astype(np.uint8) * 255).save(file, format="PNG")
    headers = {"X-Samtune-Score": f"{prediction.score:.6f}"}
    if warnings:
        headers["X-Samtune-Warnings"] = " | ".join(warnings)
    return Response(file.getvalue(), media_type="image/png", headers=headers)


def _as_json(prediction: Prediction, warnings: list[str]) -> Response:
    rle, area, bbox = encode_rle(prediction.mask)
    content = {**rle, "score": prediction.score, "area": area, "bbox": bbox, "warnings": warnings}
    return JSONResponse(content)


def encode_rle(mask: MaskArray) -> tuple[dict[str, Any], int, list[float]]:
    """Encodes a mask as COCO does.

    Args:
        mask: (H, W) bool.

    Returns:
        `{"size": [H, W], "counts": str}`, the area in pixels, and the box x, y, width, height (all 0 for an
        empty mask).
    """
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode("ascii")
    return {"size": list(mask.shape), "counts": counts}, int(coco.area(rle)), coco.toBbox(rle).tolist()


def _out_of_memory() -> ApiError:
    message = "The server is short of memory. Try again, or send a smaller picture."
    return ApiError(503, "out_of_memory", message, headers=RETRY)
