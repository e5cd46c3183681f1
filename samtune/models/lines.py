"""Pixels in lines: how a 1 x 1 convolution reaches oneDNN's code whatever the number of images and threads.

With one thread torch takes other code for fewer than 16 images, which is half as fast (docs/performance.md). To a 1 x 1
convolution each line of pixels may as well be an image.
"""

from torch import Tensor


def as_lines(x: Tensor) -> Tensor:
    """Returns (B, C, h, w) as (B * h, C, 1, w), a view of the same memory where x has its channels last there."""
    return x.movedim(1, -1).flatten(0, 1).unsqueeze(1).movedim(-1, 1)


def from_lines(x: Tensor, images: int) -> Tensor:
    """Returns (B * h, C, 1, w) as (B, C, h, w), B being `images`."""
    rows = x.movedim(1, -1).squeeze(1)  # (B * h, w, C)
    return rows.view(images, len(rows) // max(images, 1), *rows.shape[1:]).movedim(-1, 1)
