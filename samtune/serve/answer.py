"""From a checked form to the response, in the worker's thread."""

import torch
from fastapi.responses import Response

from samtune.serve.decoder import Decoder
from samtune.serve.gate import RETRY, ApiError
from samtune.serve.upload import Upload
from samtune.tasks.service import Service


def answer(service: Service, decoder: Decoder, upload: Upload, *, max_pixels: int) -> Response:
    """Decodes the picture and lets the service answer.

    Raises:
        ApiError: 413, 415 or 422 for the image, 503 short of memory.
        FieldError: of the service.
    """
    if not service.pixels.plain:
        message = f"The model takes {service.pixels}, and requests grey or RGB of 8 bits. Use samtune predict."
        raise ApiError(422, "unsupported_pixels", message, field="image")
    try:
        image, warnings = decoder.decode(upload.data, max_pixels=max_pixels)
        found = service.answer(image, upload.values, warnings)
    except (MemoryError, RuntimeError) as err:  # torch.OutOfMemoryError is one, and its CPU allocator raises another
        if not isinstance(err, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        message = "The server is short of memory. Try again, or send a smaller picture."
        raise ApiError(503, "out_of_memory", message, headers=RETRY) from err
    return Response(found.content, media_type=found.media_type, headers=dict(found.headers))
