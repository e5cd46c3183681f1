"""The score file: what a scoring pass found, kept so that a later selection can do without the pass.

On disk it is one safetensors file with `sum/NAME` and, where squares were summed, `square/NAME`, in fp32. Where the
scores come from is in the metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from safetensors import SafetensorError
from safetensors.torch import load_file

from samtune.base.tensors import read_metadata, save_tensors
from samtune.errors import CheckpointError
from samtune.types import Granularity, Scores

FORMAT = "samtune-scores-1"

_REMEDY = "Delete the file, or give another score.file."


def save_scores(scores: Scores, path: Path) -> None:
    """Writes a score file.


    Raises:
        DiskError: it can't be written.
    """
    tensors = {f"sum/{name}": tensor for name, tensor in scores.sums.items()}
    tensors |= {f"square/{name}": tensor for name, tensor in (scores.squares or {}).items()}
    metadata = {
        "format": FORMAT,
        "batches": str(scores.batches),
        "skipped": str(scores.skipped),
        "images_hash": scores.images_hash,
        "per": scores.per,
        "loss": scores.loss,
        "base_hash": scores.base_hash,
    }
    save_tensors(path, tensors, metadata)


def load_scores(path: Path) -> Scores:
    """Reads a score file; tensors are on the CPU.

    Raises:
        CheckpointError: missing, damaged, or no score file.
    """
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no score file ({FORMAT}). {_REMEDY}")
    try:
        tensors = load_file(path)
    except SafetensorError as err:
        raise CheckpointError(f"{path} is damaged ({err}). {_REMEDY}") from err
    sums = {key.removeprefix("sum/"): tensor for key, tensor in tensors.items() if key.startswith("sum/")}
    squares = {key.removeprefix("square/"): tensor for key, tensor in tensors.items() if key.startswith("square/")}
    per = next((known for known in get_args(Granularity) if known == metadata.get("per")), None)
    counts = [metadata.get(key, "") for key in ("batches", "skipped")]
    complete = len(sums) + len(squares) == len(tensors) and squares.keys() in (sums.keys(), set())
    if per is None or not complete or not all(count.isdecimal() for count in counts):
        raise CheckpointError(f"{path} is damaged (its parts don't belong together). {_REMEDY}")
    return Scores(
        sums,
        int(counts[0]),
        int(counts[1]),
        metadata.get("images_hash", ""),
        squares or None,
        per,
        metadata.get("loss", ""),
        metadata.get("base_hash", ""),
    )


def check_scores_file(
    scores: Scores, *, base_hash: str, loss: str, per: Granularity, squares: bool, images_hash: str | None = None
) -> None:
    """Refuses loaded scores that are not what a new scoring pass would find.

    Args:
        base_hash: `state_hash` of the weights to be tuned.
        loss: the scoring loss with its options, as text.
        per: what one gradient must be of.
        squares: whether squared gradients are needed; a file that has them fits where they are not.
        images_hash: of the scoring images; None where it is not known.

    Raises:
        CheckpointError: naming everything that differs, and the remedy.
    """
    problems = []
    if scores.base_hash != base_hash:
        problems.append(f"of another model (weights {_short(scores.base_hash)}, here {_short(base_hash)})")
    if scores.loss != loss:
        problems.append(f"of another loss ({scores.loss or 'not known'}, here {loss})")
    if scores.per != per:
        problems.append(f"of one gradient per {scores.per}, here per {per}")
    if images_hash is not None and scores.images_hash != images_hash:
        problems.append(f"of other images (hash {_short(scores.images_hash)}, here {_short(images_hash)})")
    if squares and scores.squares is None:
        problems.append("without squared gradients, which this method or report needs")
    if problems:
        raise CheckpointError(f"the score file does not fit: its scores are {'; '.join(problems)}. {_REMEDY}")


def _short(digest: str) -> str:
    return digest[:12] or "not known"
