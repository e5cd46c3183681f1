"""From the bytes of an upload to the pixels of a picture, or why not; also the process in which that happens.

A file can cost any amount of time and memory, and can crash a decoder. So it is decoded in a process of its own, which
the system ends when it has used too much; see `samtune.serve.decoder` for its other side.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import struct
import sys
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from samtune.data.pictures import FORMATS, MIN_SIDE, ORIENTATION, grey_depth, to_rgb
from samtune.errors import DataError

if TYPE_CHECKING:  # it brings torch, and this process has to start quickly
    from samtune.types import ImageArray

CPU_SECONDS = 10
"""Of the processor, for one picture; 40 million pixels take 1 to 2."""
MEMORY_BYTES = 3 << 30  # address space; 40 million pixels take a third of it
MAX_SCANS = 32
"""Of a JPEG: encoders write up to 12, and each one costs as much as the whole picture, even when it is empty."""
REQUEST = struct.Struct("<QQ")
"""What comes before the bytes of a file: their number, and how many pixels it may have."""

_PNG = b"\x89PNG\r\n\x1a\n"
_SIDES = struct.Struct(">II")  # after 16 bytes of a PNG
_PNG_END = b"IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (_PNG, b"\xff\xd8\xff", b"BM", *_TIFF)
_BITS_PER_SAMPLE = 258  # tag of a TIFF
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # of a JPEG; 0 and the restarts stand within a scan
_SCAN, _END = 0xDA, 0xD9

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


class Refused(Exception):
    """A picture that can't be used: HTTP status, a fixed word for programs, and a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)


def decode(data: bytes, *, max_pixels: int) -> tuple[ImageArray, list[str]]:
    """Decodes a file; the size of its picture is read from the header before anything is unpacked.

    Returns:
        (H, W, 3) uint8 RGB with the EXIF orientation applied, and what was done to get it.

    Raises:
        Refused: 413 too many pixels, 415 another kind of file, 422 an unusable picture.
    """
    if not data:
        raise Refused(422, "empty_image", "The file has no bytes.")
    if not data.startswith(_MAGIC) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise Refused(415, "unsupported_image", "Not one of: PNG, JPEG, WebP, BMP, TIFF.")
    if data.startswith(_PNG) and 0 in _SIDES.unpack(data[16:24].ljust(_SIDES.size, b"\1")):  # to Pillow it is damaged
        raise _too_small()
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            _check_header(picture, data, max_pixels)
            picture.load()
            pixels = to_rgb(picture)
            return pixels, [*_warnings(picture), *_deep(picture, data, pixels)]
    except (Refused, MemoryError):
        raise
    except Image.DecompressionBombError as err:
        raise _too_large(max_pixels) from err
    except DataError as err:
        raise Refused(422, "bit_depth", "Save the picture with 8 or 16 bits per channel.") from err
    except Exception as err:  # Pillow's decoders raise almost anything on damaged files
        others = ", or a TIFF of other channels than grey and RGB" if data.startswith(_TIFF) else ""
        raise Refused(422, "corrupt_image", f"The file is damaged or cut off{others}. Export it again.") from err


def _check_header(picture: Image.Image, data: bytes, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise _too_large(max_pixels)
    if min(width, height) < MIN_SIDE:
        raise _too_small()
    # A phone's MPO is a JPEG with a second view behind it: the first one is the photograph.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise Refused(422, "many_frames", "Send one picture, not several frames or pages.")
    if picture.format in ("JPEG", "MPO") and _many_scans(data):
        raise Refused(422, "many_scans", f"A JPEG has at most {MAX_SCANS} scans. Export it again.")
    if data.startswith(_PNG) and _PNG_END not in data:  # Pillow reads past a missing end
        raise SyntaxError("no IEND")


def _many_scans(data: bytes) -> bool:
    """Tells whether a JPEG has more scans than `MAX_SCANS`, up to its end: a phone's may have a video behind it."""
    at, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, at)):
        kind, at = data[marker.end() - 1], marker.end()
        if kind == _END:
            return False
        scans += kind == _SCAN
        at += int.from_bytes(data[at : at + 2])  # past its header
    return scans > MAX_SCANS


def _warnings(picture: Image.Image) -> list[str]:
    warnings = [_MODE_WARNINGS[picture.mode]] if picture.mode in _MODE_WARNINGS else []
    if picture.mode == "RGB" and "transparency" in picture.info:
        warnings.append(_MODE_WARNINGS["RGBA"])
    if picture.getexif().get(ORIENTATION, 1) != 1:
        warnings.append("the EXIF orientation was applied; answer and coordinates are those of the upright image")
    return warnings


def _deep(picture: Image.Image, data: bytes, pixels: ImageArray) -> list[str]:
    """Says how a picture of 16 bits per channel became one of 8, with the range of its values."""
    if (depth := grey_depth(picture)) is not None:
        low, high = picture.getextrema()
        return [f"16-bit grey with values from {low} to {high}: 0 to {2**depth - 1} was scaled to 0 to 255"]
    tags = getattr(picture, "tag_v2", {})
    if max(tags.get(_BITS_PER_SAMPLE, (8,))) == 16 or (data.startswith(_PNG) and data[24] == 16):
        return [f"16-bit colour was cut to its upper 8 bits, with values from {pixels.min()} to {pixels.max()}"]
    return []


def _too_large(max_pixels: int) -> Refused:
    return Refused(413, "image_too_large", f"A picture has at most {max_pixels:,} pixels. Scale it down.")


def _too_small() -> Refused:
    return Refused(422, "image_size", f"Each side needs at least {MIN_SIDE} pixels.")


def answer_all(requests: BinaryIO, answers: BinaryIO) -> None:
    """Decodes one file after the other until there are no more.

    A request is `REQUEST` and the file. An answer is a line of JSON: `shape` and `warnings`, and the pixels after it;
    or `refused`; or `memory`.
    """
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        size, max_pixels = REQUEST.unpack(head)
        data = requests.read(size)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # at its end the system ends the process
        pixels, told = None, dict[str, object]()
        try:
            pixels, warnings = decode(data, max_pixels=max_pixels)
            told = {"shape": pixels.shape, "warnings": warnings}
        except Refused as refused:
            told = {"refused": refused.args}
        except MemoryError:
            told = {"memory": True}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(told).encode() + b"\n")
        if pixels is not None:
            answers.write(pixels.data)
        answers.flush()


def main() -> None:
    """Answers on stdin and stdout; the end comes with the server's."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the server, which may still need answers
        signal.signal(number, signal.SIG_IGN)
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = sys.stdout.buffer
    answers.write(b"\n")
    answers.flush()
    with suppress(BrokenPipeError):
        answer_all(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
