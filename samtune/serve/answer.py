"""From a checked form to the response, in the worker's thread; its picture may be anything."""

from io import BytesIO

import torch
from fastapi.responses import Response
from PIL import Image

from samtune.data.pictures import FORMATS, ORIENTATION, to_rgb
from samtune.errors import DataError
from samtune.serve.gate import RETRY, ApiError
from samtune.serve.upload import Upload
from samtune.tasks.service import Service
from samtune.types import ImageArray

MIN_SIDE = 8
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (_PNG, b"\xff\xd8\xff", b"BM", *_TIFF)

_MODE_WARNINGS = {
    "1": "a black-and-white image: the model is made for colours",
    "L": "a grey image: the model is made for colours",
    "LA": "a grey image with transparency, which was dropped",
    "P": "palette colours were converted to RGB",
    "PA": "palette colours were converted to RGB, transparency was dropped",
    "RGBA": "transparency was dropped",
    "CMYK": "CMYK colours were converted to RGB without a colour profile",
    "YCbCr": "YCbCr colours were converted to RGB",
    "LAB": "Lab colours were converted to RGB",
}


def answer(service: Service, upload: Upload, *, max_pixels: int) -> Response:
    """Decodes the picture and lets the service answer.

    Raises:
        ApiError: 413, 415 or 422 for the image, 503 short of memory.
        FieldError: of the service.
    """
    try:
        image, warnings = decode_picture(upload.data, max_pixels=max_pixels)
        found = service.answer(image, upload.values, warnings)
    except (MemoryError, RuntimeError) as err:  # torch.OutOfMemoryError is one, and its CPU allocator raises another
        if not isinstance(err, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        message = "The server is short of memory. Try again, or send a smaller picture."
        raise ApiError(503, "out_of_memory", message, headers=RETRY) from err
    return Response(found.content, media_type=found.media_type, headers=dict(found.headers))


def decode_picture(data: bytes, *, max_pixels: int) -> tuple[ImageArray, list[str]]:
    """Decodes a file; the size of its picture is read from the header before anything is unpacked.

    Returns:
        (H, W, 3) uint8 RGB with the EXIF orientation applied, and what was done to get it.

    Raises:
        ApiError: 413 too many pixels, 415 another kind of file, 422 an unusable picture.
    """
    if not data:
        raise _refused("empty_image", "The file has no bytes.")
    if not data.startswith(_MAGIC) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise _refused("unsupported_image", "Not one of: PNG, JPEG, WebP, BMP, TIFF.", 415)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            _check_header(picture, data, max_pixels)
            warnings = _warnings(picture)
            picture.load()
            return to_rgb(picture), warnings
    except (ApiError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise _too_large(max_pixels) from err
    except DataError as err:
        raise _refused("bit_depth", "Save the picture with 8 bits per channel.") from err
    except Exception as err:  # Pillow's decoders raise almost anything on damaged files
        raise _refused("corrupt_image", "The file is damaged or cut off. Export it again.") from err


def _check_header(picture: Image.Image, data: bytes, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise _too_large(max_pixels)
    if min(width, height) < MIN_SIDE:
        raise _refused("image_size", f"Each side needs at least {MIN_SIDE} pixels.")
    # A phone's MPO is a JPEG with a second view behind it: the first one is the photograph.
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        raise _refused("many_frames", "Send one picture, not several frames or pages.")
    deep_png = data.startswith(_PNG) and data[24] == 16  # Pillow would cut 16-bit colour down silently
    if deep_png or picture.mode.startswith(("I", "F")):
        raise _refused("bit_depth", "Save the picture with 8 bits per channel.")
    if data.startswith(_PNG) and _PNG_END not in data:  # Pillow reads past a missing end
        raise SyntaxError("no IEND")


def _warnings(picture: Image.Image) -> list[str]:
    warnings = [_MODE_WARNINGS[picture.mode]] if picture.mode in _MODE_WARNINGS else []
    if picture.mode == "RGB" and "transparency" in picture.info:
        warnings.append(_MODE_WARNINGS["RGBA"])
    if picture.getexif().get(ORIENTATION, 1) != 1:
        warnings.append("the EXIF orientation was applied; answer and coordinates are those of the upright image")
    return warnings


def _refused(code: str, message: str, status: int = 422) -> ApiError:
    return ApiError(status, code, message, field="image")


def _too_large(max_pixels: int) -> ApiError:
    return _refused("image_too_large", f"A picture has at most {max_pixels:,} pixels. Scale it down.", 413)
