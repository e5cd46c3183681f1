"""The score file: what a scoring pass found, kept so that a later selection can do without the pass.

It is a safetensors file with `sum/NAME` and, where asked for, `square/NAME`, in fp32; the metadata say where from.
"""

from pathlib import Path
from typing import Any, get_args

import torch

from samtune.base.tensors import load_tensors, read_metadata, save_tensors
from samtune.errors import CheckpointError
from samtune.types import Granularity, Scores, Summed

FORMAT = "samtune-scores-1"
_REMEDY = "Delete the file, or give another score.file."
_COUNTS = ("batches", "skipped")  # fields of `Scores` that are kept in the metadata
_COSTS = ("seconds", "memory_mib")  # where they are known
_TEXTS = {"images_hash": "", "per": "", "loss": "", "base_hash": "", "of": "gradients"}  # and what none of it means


def save_scores(scores: Scores, path: Path) -> None:
    """Writes a score file.

    Raises:
        DiskError: it can't be written.
    """
    tensors = {f"sum/{name}": tensor for name, tensor in scores.sums.items()}
    tensors |= {f"square/{name}": tensor for name, tensor in (scores.squares or {}).items()}
    about = {key: str(getattr(scores, key)) for key in (*_COUNTS, *_TEXTS)}
    about |= {key: str(value) for key in _COSTS if (value := getattr(scores, key)) is not None}
    save_tensors(path, tensors, {"format": FORMAT, **about})


def load_scores(path: Path) -> Scores:
    """Reads a score file; tensors are on the CPU.

    Raises:
        CheckpointError: missing, damaged, or no score file.
    """
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no score file ({FORMAT}). {_REMEDY}")
    tensors = load_tensors(path)
    if odd := [key for key, t in tensors.items() if t.dtype != torch.float32 or not bool(t.isfinite().all())]:
        raise CheckpointError(f"{path} has scores that are not finite float32 numbers ({odd[0]}). {_REMEDY}")
    sums = {key.removeprefix("sum/"): tensor for key, tensor in tensors.items() if key.startswith("sum/")}
    squares = {key.removeprefix("square/"): tensor for key, tensor in tensors.items() if key.startswith("square/")}
    counts = {key: metadata.get(key, "") for key in _COUNTS}
    texts = {key: metadata.get(key, absent) for key, absent in _TEXTS.items()}
    complete = len(sums) + len(squares) == len(tensors) and squares.keys() in (sums.keys(), set())
    known = texts["per"] in get_args(Granularity) and texts["of"] in get_args(Summed)
    if not known or not complete or not all(map(str.isdecimal, counts.values())):
        raise CheckpointError(f"{path} is damaged (its parts don't belong together). {_REMEDY}")
    fields: dict[str, Any] = texts | {key: int(count) for key, count in counts.items()}
    fields |= {key: float(metadata[key]) for key in _COSTS if key in metadata}
    return Scores(sums, squares=squares or None, **fields)


def check_scores_file(
    scores: Scores, *, base_hash: str, loss: str, per: Granularity, squares: bool, images_hash: str | None = None
) -> None:
    """Refuses loaded scores that are not what a new scoring pass would find.

    Args:
        base_hash: `state_hash` of the weights to be tuned.
        loss: the scoring loss with its options, as text.
        squares: whether squared gradients are needed; a file that has them fits where they are not.
        images_hash: of the scoring images; None where it is not known.

    Raises:
        CheckpointError: naming everything that differs, and the remedy.
    """
    problems = []
    if scores.base_hash != base_hash:
        problems.append(f"of another model (weights {scores.base_hash[:12] or 'not known'}, here {base_hash[:12]})")
    if scores.loss != loss:
        problems.append(f"of another loss ({scores.loss or 'not known'}, here {loss})")
    if scores.per != per:
        problems.append(f"of one gradient per {scores.per}, here per {per}")
    if images_hash is not None and scores.images_hash != images_hash:
        problems.append(f"of other images (hash {scores.images_hash[:12] or 'not known'}, here {images_hash[:12]})")
    if squares and scores.squares is None:
        problems.append("without squared gradients, which this method or report needs")
    if problems:
        raise CheckpointError(f"the score file does not fit: its scores are {'; '.join(problems)}. {_REMEDY}")
