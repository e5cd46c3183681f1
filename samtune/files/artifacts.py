"""The files of a finished run: export; what they hold, how they differ, and whether they are true."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samtune.base.disk import replacing
from samtune.base.download import file_sha256
from samtune.base.tensors import load_tensors, read_metadata
from samtune.errors import CheckpointError
from samtune.files.classifier import ClassifierInfo, read_classifier_info
from samtune.files.delta import base_of, base_state, bits_of, expect_hash
from samtune.files.merged import merged_metadata, read_merged_info, read_task
from samtune.models.sam.published import OFFICIAL
from samtune.models.timm.families import timm_name
from samtune.models.weights import read_state
from samtune.selection.selection import Selection, load_selection
from samtune.tasks.classes.views import MARGIN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffRow:
    """How one tensor differs: entries changed, of how many, by how much at most."""

    name: str
    changed: int
    total: int
    max_abs: float


@dataclass(frozen=True)
class AuditReport:
    """The answer of an audit.

    Attributes:
        ok: True when nothing outside of the selection changed.
        lines: what was compared and found, for people.
    """

    ok: bool
    lines: tuple[str, ...]


def export_checkpoint(merged: Path, out: Path, *, format: str = "pth") -> None:
    """Writes a merged model as a `.pth` for stock code, which loads it strictly.

    A Segment Anything goes into segment-anything's `sam_model_registry`, which always runs at 1024 px; a model tuned
    at another size predicts best at that size. A classifier goes into `timm.create_model(..., checkpoint_path=...)`;
    the call is logged, with how it wants its images and the order of its classes.

    Raises:
        CheckpointError: unknown format, or no merged file.
        DiskError: `out` can't be written.
    """
    if format != "pth":
        raise CheckpointError(f"unknown format {format!r}. Known: pth.")
    info = read_merged_info(merged) if read_task(merged) == "segmentation" else read_classifier_info(merged)
    if info.additions:
        raise CheckpointError(
            f"{merged} is a bundle: its {info.additions[0].kind} modules can't be merged, which stock code lacks. "
            "Tune with a method that merges, such as gps, grft, lora or ssf."
        )
    state = read_state(merged)
    with replacing(out) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as err:  # how torch reports a full disk
            raise OSError(str(err)) from err
    if isinstance(info, ClassifierInfo):
        logger.info("%s loads it", _timm_call(info, out))
        logger.info("%s", _expected_input(info))
        logger.info("its outputs are, in order: %s", ", ".join(info.classes))
        return
    logger.info("segment-anything runs at 1024 px; this model was tuned at %d px", info.image_size)
    if info.model not in OFFICIAL:
        logger.warning("segment-anything's registry has no %s: it needs a model of that shape to load it", info.model)


def inspect_file(path: Path) -> dict[str, object]:
    """Returns what a model, selection or delta file says of itself: metadata, counts, size, SHA-256."""
    facts: dict[str, object] = {"file": str(path)}
    if path.suffix == ".safetensors":
        facts |= {key: _short(value) for key, value in sorted(read_metadata(path).items())}
        state = load_tensors(path)
    else:
        state = read_state(path)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})
    facts |= {"tensors": len(state), "numbers": sum(t.numel() for t in state.values()), "types": ", ".join(dtypes)}
    return facts | {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def diff_files(a: str | Path, b: str | Path) -> list[DiffRow]:
    """Compares two models tensor by tensor, bit for bit.

    Returns:
        The tensors that differ.

    Raises:
        CheckpointError: the files are not of one architecture.
    """
    left, right = base_state(a), base_state(b)
    odd = sorted(set(left) ^ set(right)) or [n for n in left if left[n].shape != right[n].shape]
    if odd:
        raise CheckpointError(f"{a} and {b} are not of one model: they differ in {odd[0]!r} ({len(odd)} tensors).")
    rows = []
    for name, tensor in left.items():
        changed = int((bits_of(tensor) != bits_of(right[name])).sum())
        if changed:
            largest = float((tensor.float() - right[name].float()).abs().max())
            rows.append(DiffRow(name, changed, tensor.numel(), largest))
    return rows


def audit_files(base: str | Path, merged: Path, selection: Path) -> AuditReport:
    """Checks that a merged model differs from its base only where its selection allows; see `audit`.

    Raises:
        CheckpointError: a missing or damaged file, or a selection that was made for another base.
    """
    chosen = load_selection(selection)
    state = base_of(base, merged_metadata(merged), merged)
    if "base_hash" in chosen.provenance:
        expect_hash(state, chosen.provenance["base_hash"], f"{selection} belongs to another base than {base}")
    return audit(state, read_state(merged), chosen)


def audit(base: Mapping[str, Tensor], merged: Mapping[str, Tensor], selection: Selection) -> AuditReport:
    """Checks that everything outside of a selection is bit-equal.

    Args:
        base: state of the untuned model.
        merged: state of the tuned model.
        selection: what was allowed to change.

    Raises:
        CheckpointError: the selection does not fit the base.
    """
    _check_fits(selection, base)
    added = {name for name in merged if name.startswith(tuple(f"{a.name}." for a in selection.additions))}
    if set(base) != set(merged) - added:
        return AuditReport(False, (f"the files have different tensors: {sorted(set(base) ^ set(merged))[:3]}",))
    frozen = tuned = 0
    strays = []
    changes = selection.changes(base)
    for name, tensor in base.items():
        changed = bits_of(tensor) != bits_of(merged[name])
        allowed = torch.zeros_like(changed)
        if name in changes:
            where = changes[name]
            allowed[slice(None) if where is None else where] = True
        frozen += int((~allowed).sum())
        tuned += int((changed & allowed).sum())
        if bool((changed & ~allowed).any()):
            strays.append(f"{name}: {int((changed & ~allowed).sum())} entries changed outside of the selection")
    verdict = f"{frozen:,} unselected entries bit-equal to the base" if not strays else f"{len(strays)} tensors moved"
    allowed_total = sum(t.numel() for t in base.values()) - frozen
    return AuditReport(not strays, (verdict, f"{tuned:,} of {allowed_total:,} selected entries changed", *strays))


def _timm_call(info: ClassifierInfo, file: Path) -> str:
    name, options = timm_name(info.model, info.image_size)
    given = {"checkpoint_path": str(file), **options, **info.options, "num_classes": len(info.classes)}
    return f"timm.create_model({name!r}, {', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _expected_input(info: ClassifierInfo) -> str:
    side = info.image_size
    resize = {
        "squash": f"scaled to {side} x {side} px",
        "crop": f"scaled to {round(side * MARGIN)} px on the shorter side and cut to the {side} x {side} in the middle",
    }[info.resize]
    mean, std = (tuple(round(v / 255, 6) for v in values) for values in (info.pixel_mean, info.pixel_std))
    return (
        f"it takes RGB images {resize} ({info.interpolation}, antialiased), "
        f"as (value - mean) / std of values in 0 to 1, mean {mean}, std {std}"
    )


def _check_fits(selection: Selection, base: Mapping[str, Tensor]) -> None:
    hosts = {name.rpartition(".")[0] for name in base}
    unknown = [name for name in selection.names() if name not in base]
    unknown += [
        addition.module
        for addition in selection.additions
        if not any(h == addition.module or h.startswith(addition.module + ".") for h in hosts)
    ]
    if unknown:
        raise CheckpointError(f"the selection tunes {unknown[0]!r}, which the base does not have: another model's?")
    for name, indices in selection.entries.items():
        size = base[name].numel()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise CheckpointError(f"the selection points outside of {name!r} ({size} entries).")


def _short(value: str) -> str:
    return value if len(value) <= 200 else value[:200] + "..."
