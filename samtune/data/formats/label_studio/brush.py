"""How are Label Studio's brush strokes packed? Bits of run lengths over the four bytes of each pixel, RGBA by rows.

The stream: 32 bits with the number of values, 5 with the bits of a value less 1, 4 times 4 with the widths of lengths
less 1; then runs: a bit that is 1 for one value repeated and 0 for values in turn, two bits that choose the width, the
length less 1, and the value or values. The fourth byte of a pixel, its alpha, tells whether it is painted: > 127.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from samtune.types import MaskArray

_WIDTHS = (3, 4, 8, 16)
_LONGEST = 2**16


def unpack_brush(numbers: Sequence[int], height: int, width: int) -> MaskArray:
    """Returns the (H, W) mask of the bytes of a stroke.

    Raises:
        ValueError: bytes that are none, that end too early, or are of a picture of another size.
    """
    if not all(type(number) is int and 0 <= number < 256 for number in numbers):
        raise ValueError("a brush whose numbers are not bytes from 0 to 255")
    bits = np.unpackbits(np.array(numbers, dtype=np.uint8)).tobytes().translate(_DIGITS).decode("ascii")
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise ValueError("a brush whose bytes end too early")
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    if total != height * width * 4:
        raise ValueError(f"a brush of {total // 4} pixels, but the picture has {height * width}")
    widths = [read(4) + 1 for _ in range(4)]
    values, here = np.zeros(total, dtype=np.uint8), 0
    while here < total:
        repeated = read(1)
        end = min(here + 1 + read(widths[read(2)]), total)
        values[here:end] = read(word) & 255 if repeated else [read(word) & 255 for _ in range(end - here)]
        here = end
    return values.reshape(height, width, 4)[..., 3] > 127


def pack_brush(mask: MaskArray) -> list[int]:
    """Returns the bytes of a stroke that paints an (H, W) mask."""
    flat = np.repeat(mask.ravel(), 4)
    starts = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    parts = [f"{len(flat):032b}{7:05b}", *(f"{width - 1:04b}" for width in _WIDTHS)]
    for start, end in pairwise(starts):
        value = "1" * 8 if flat[start] else "0" * 8
        for length in _pieces(end - start):
            place = next(place for place, width in enumerate(_WIDTHS) if length <= 2**width)
            parts.append(f"1{place:02b}{length - 1:0{_WIDTHS[place]}b}{value}")
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return np.packbits(np.frombuffer(bits.encode("ascii"), dtype=np.uint8) - ord("0")).tolist()


def _pieces(length: int) -> list[int]:
    whole, rest = divmod(length, _LONGEST)
    return [_LONGEST] * whole + [rest] * (rest > 0)


_DIGITS = bytes([ord("0"), ord("1")]) + bytes(254)
