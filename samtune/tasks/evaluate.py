"""What the evaluations of all tasks share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samtune.errors import NonFiniteError


def check_finite(logits: Tensor, names: Sequence[str]) -> None:
    """Refuses logits of which an image has NaN or infinity.

    Args:
        logits: (B, ...), an image per row.
        names: of the images.

    Raises:
        NonFiniteError: naming these images.
    """
    finite = logits.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        bad = [name for name, good in zip(names, finite, strict=True) if not good]
        raise NonFiniteError(
            f"the logits of {', '.join(bad)} are not finite. "
            "The weights are damaged or the training diverged; lower the learning rate, or run in fp32."
        )
