"""The delta: what turns a base into its tuned model and back, exactly.

It holds, for every tensor that changed, where and how: base bits XOR tuned bits; and it is bound to its base by a
hash. Tensors that the base does not have (adapters) are in it as they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from samtune.base.tensors import check_file, in_fp32, load_tensors, read_metadata, save_tensors, state_hash
from samtune.errors import CheckpointError
from samtune.files.description import Description
from samtune.files.layouts import Mapped, has_layouts, in_layout_of, own_layout, twin_metadata
from samtune.models.hf.folder import CONFIG, family_of
from samtune.models.hf.meta import meta_family
from samtune.models.table import build_model, entry_of, names_that_give
from samtune.models.weights import RANDOM, check_finite, read_state, save_pth
from samtune.selection.selection import Selection, pack_indices, unpack_indices

DELTA_FORMAT = "samtune-delta-1"
_REMEDY = "Give the delta.safetensors of a run folder."
_ADDED = "added/"
_METADATA = TypeAdapter(dict[str, str])
State = Mapping[str, Tensor]


def save_delta(path: Path, *, base: State, merged: State, selection: Selection, metadata: Mapping[str, str]) -> None:
    """Writes the delta from an untuned fp32 state of a model to a tuned one, which differ where `selection` says.

    Args:
        metadata: of the merged file, kept so that `apply` can write the same one.
    """
    tensors = {_ADDED + name: merged[name].float() for name in merged.keys() - base.keys()}
    for name, indices in selection.changes(base).items():
        bits = bits_of(base[name]) ^ bits_of(merged[name])
        if indices is not None:
            kind, packed = pack_indices(indices, tuple(base[name].shape))
            tensors[f"{kind}/{name}"] = packed
            bits = bits[indices]
        tensors[f"bits/{name}"] = bits
    binding = {"base_hash": state_hash(base), "merged_hash": state_hash(merged), "merged": json.dumps(dict(metadata))}
    save_tensors(path, tensors, {"format": DELTA_FORMAT, **binding})


def apply_delta(base: str | Path, delta: Path, out: Path) -> None:
    """Writes the merged model of a base and a delta, in the layout of the base.

    Args:
        out: `.safetensors`, or `.pth` and `.pt` for the code of the model's authors, without what samtune needs.
        base: a checkpoint file or folder, or a model's name for its own weights; of a classifier also "random".

    Raises:
        CheckpointError: a delta of another base, or a damaged file.
    """
    metadata = _delta_metadata(delta)
    described = _merged_metadata(metadata["merged"], delta)
    description = Description.from_metadata(described, delta)
    state, mapped = mapped_base(base, description, delta)
    expect_hash(state, metadata["base_hash"], f"{delta} belongs to another base than {base}")
    merged = _forward(state, delta)
    expect_hash(merged, metadata["merged_hash"], f"{delta} is damaged: the merged weights are not those of its run")
    if mapped is not None:  # the merged model is what its base is
        merged, described = mapped.back(merged), twin_metadata(described, description, mapped.given)
    _save(out, merged, described)


def undo_delta(merged: Path, delta: Path, out: Path) -> None:
    """Writes the base of a merged model, bit for bit, in fp32; `out` as of `apply_delta`.

    Raises:
        CheckpointError: files of two runs, or a damaged file.
    """
    state, metadata = read_weights(merged), _delta_metadata(delta)
    model = _merged_metadata(metadata["merged"], delta).get("model", "")
    mapped = in_layout_of(model, state, merged)
    tuned = state if mapped is None else mapped.state
    expect_hash(tuned, metadata["merged_hash"], f"{delta} belongs to another merged model than {merged}")
    base = _backward(tuned, delta)
    expect_hash(base, metadata["base_hash"], f"{delta} is damaged: the result is not its base")
    if mapped is not None:
        base = mapped.back(base)
    _save(out, base, {"base_hash": state_hash(base)})


def _save(out: Path, state: State, metadata: Mapping[str, str]) -> None:
    if out.suffix not in (".pth", ".pt"):
        save_tensors(out, state, metadata)
        return
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_pth(out, tensors if meta_family(state) is None else {"model": tensors})  # as Meta's own code reads it


def delta_restores(base: State, delta: Path) -> bool:
    """Says whether a delta file leads from this base to its merged model and back."""
    metadata = _delta_metadata(delta)
    merged = _forward(base, delta)
    back = _backward(merged, delta)
    return state_hash(merged) == metadata["merged_hash"] and state_hash(back) == metadata["base_hash"]


def mapped_base(base: str | Path, description: Description, source: Path) -> tuple[dict[str, Tensor], Mapped | None]:
    """Returns what `base_of` does, also of a base in the other layout of its model, and that where it is in it."""
    file, own = given_file(base), own_layout(description.model)
    elsewhere = has_layouts(description, file) and (file or own_layout(str(base)) not in (None, own))
    mapped = in_layout_of(description.model, base_state(base), base) if elsewhere else None
    return (base_of(base, description, source), None) if mapped is None else (mapped.state, mapped)


def base_of(base: str | Path, description: Description, source: Path) -> dict[str, Tensor]:
    """Returns the fp32 state that a model was tuned from.

    Args:
        base: a checkpoint file or folder, or the model's name for its own weights. It may lack a head for the
            classes, which is drawn again by the seed that the run drew it with; "random" draws all of it again.
        source: where that was read, for messages.

    Raises:
        CheckpointError: neither a file nor the model, or a file that does not fit.
    """
    file = given_file(base)
    drawn = str(base) == RANDOM and description.head_seed is not None  # one seed draws the body and the head
    if file is None and str(base) != description.model and not drawn:
        known = f"{description.model}, which {source} was tuned from"
        raise CheckpointError(f"{base} is neither a checkpoint file nor {known}.")
    if file is not None and file.is_file() and file.suffix != ".npz":  # Google's, which only the model can read
        whole = in_fp32(read_weights(file))
        if state_hash(whole) == description.base_hash:  # what `undo` wrote: with the head
            return whole
    head = {} if entry_of(description.model).gives == "masks" else {"head": "checkpoint", "seed": 0}
    if description.head_seed is not None:
        head = {"head": "new", "seed": description.head_seed}
    try:
        return in_fp32(description.build(checkpoint=file or (RANDOM if drawn else None), **head).net.state_dict())
    except CheckpointError as err:
        raise CheckpointError(
            f"{source} was tuned from {description.model}, which {base} does not give: {err}"
        ) from err


def base_state(base: str | Path) -> dict[str, Tensor]:
    """Returns the fp32 state of a checkpoint, or of a model given by name; else raises `CheckpointError`."""
    if file := given_file(base):
        return in_fp32(read_weights(file) if file.is_file() else state_of_folder(file))
    known = names_that_give("masks")  # a classifier has no head before it has classes
    if str(base) in known:
        return in_fp32(build_model(str(base)).net.state_dict())
    raise CheckpointError(f"{base} is neither a checkpoint file nor a model. Known models: {', '.join(known)}.")


def _delta_metadata(path: Path) -> dict[str, str]:
    metadata = read_metadata(path)
    found = metadata.get("format", "none")
    if found != DELTA_FORMAT:
        problem = f"{path} is no delta file (its format: {found}, not {DELTA_FORMAT})."
        raise CheckpointError(f"{problem} {_REMEDY}")
    if missing := [key for key in ("base_hash", "merged_hash", "merged") if key not in metadata]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)} in its metadata. {_REMEDY}")
    return metadata


def _merged_metadata(text: str, path: Path) -> dict[str, str]:
    """Returns the metadata of the merged file, which a delta holds as JSON."""
    try:
        return _METADATA.validate_json(text, strict=True)
    except ValidationError as err:
        reason = err.errors(include_url=False)[0]["msg"]
        raise CheckpointError(f"{path} has damaged metadata (merged: {reason}). {_REMEDY}") from err


def given_file(base: str | Path) -> Path | None:
    """Returns the file or folder of transformers that stands for weights, None for the name of a model.

    Raises:
        CheckpointError: it is another folder.
    """
    path = Path(base)
    if not (path.exists() or path.is_symlink()):
        return None
    if not (path / CONFIG).is_file():
        check_file(path)
    return path


def state_of_folder(folder: Path) -> dict[str, Tensor]:
    """Returns the weights in a folder of transformers by the names of its model, or raises a `CheckpointError`."""
    return dict(build_model(family_of(folder), checkpoint=folder).net.state_dict())


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads weights as they are in a checkpoint; a `CheckpointError` as of `read_state`, or of NaN or infinity."""
    state = read_state(path)
    check_finite(state, path)
    return state


def expect_hash(state: State, wanted: str, problem: str) -> None:
    """Raises a `CheckpointError` with the problem and both hashes if a state's hash is not the wanted one."""
    found = state_hash(state)
    if found != wanted:
        raise CheckpointError(hash_problem(problem, found, wanted))


def hash_problem(problem: str, found: str, wanted: str) -> str:
    """Returns a problem with the hashes that show it."""
    return f"{problem} (hash {found[:12]}, expected {wanted[:12]})."


def _forward(base: State, delta: Path) -> dict[str, Tensor]:
    """Returns the merged state of a base."""
    packed = load_tensors(delta)
    added = {key.removeprefix(_ADDED): tensor for key, tensor in packed.items() if key.startswith(_ADDED)}
    return {**_flip(base, packed, delta), **added}


def _backward(merged: State, delta: Path) -> dict[str, Tensor]:
    """Returns the base of a merged state."""
    packed = load_tensors(delta)
    return _flip({name: tensor for name, tensor in merged.items() if _ADDED + name not in packed}, packed, delta)


def _flip(state: State, packed: State, delta: Path) -> dict[str, Tensor]:
    """Returns the state with the delta's bits flipped; doing it twice changes nothing."""
    flipped = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    try:
        for key in (k for k in packed if k.startswith("bits/")):
            name = key.removeprefix("bits/")
            bits = bits_of(flipped[name])
            where: Tensor | slice = slice(None)
            for kind in ("columns", "flat"):
                if f"{kind}/{name}" in packed:
                    where = unpack_indices(kind, packed[f"{kind}/{name}"], tuple(flipped[name].shape))
            bits[where] ^= packed[key]
    except (KeyError, IndexError, ValueError, RuntimeError) as err:  # before a hash could tell
        raise CheckpointError(f"{delta} is damaged ({err}).") from err
    return flipped


def bits_of(tensor: Tensor) -> Tensor:
    """Returns the (n,) int32 view of an fp32 tensor's bits; of complex64 an int64 one."""
    if tensor.is_complex():
        return tensor.detach().cpu().contiguous().view(-1).view(torch.int64)
    return tensor.detach().cpu().contiguous().float().view(-1).view(torch.int32)
