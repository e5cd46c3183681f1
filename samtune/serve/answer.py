"""From a checked form to the response; runs in the worker's thread."""

from __future__ import annotations

import torch
from fastapi.responses import Response

from samtune.serve.errors import RETRY, ApiError
from samtune.serve.pictures import decode_picture
from samtune.serve.upload import Upload
from samtune.tasks.service import Service


def answer(service: Service, upload: Upload, *, max_pixels: int) -> Response:
    """Decodes the picture and lets the service answer.

    Args:
        service: of the model.
        upload: the form.
        max_pixels: of the image.

    Raises:
        ApiError: 413, 415 or 422 for the image, 503 short of memory.
        FieldError: of the service.
    """
    try:
        image, warnings = decode_picture(upload.data, max_pixels=max_pixels)
        found = service.answer(image, upload.values, warnings)
    except (MemoryError, torch.OutOfMemoryError) as err:
        raise _out_of_memory() from err
    except RuntimeError as err:
        if "can't allocate memory" in str(err):  # torch's CPU allocator
            raise _out_of_memory() from err
        raise
    return Response(found.content, media_type=found.media_type, headers=dict(found.headers))


def _out_of_memory() -> ApiError:
    message = "The server is short of memory. Try again, or send a smaller picture."
    return ApiError(503, "out_of_memory", message, headers=RETRY)
