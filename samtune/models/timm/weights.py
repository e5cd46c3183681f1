"""Weights of classifiers: timm's files and the official ones, loaded strictly but for the head.

What the official files need, beside the wrappings that every checkpoint may have:

- MAE (`mae_pretrain_vit_base.pth`): the encoder alone; a decoder and the mask token are dropped. It ends in `norm`
  over all tokens, and so does timm's `vit_base_patch16_224.mae`, whose feature is the class token. A fine-tuned MAE
  file has `fc_norm` over the mean of the patches instead, and needs `global_pool: avg`.
- MoCo-v3 (`vit-b-300ep.pth.tar`): the base encoder, without its projection head.
- Swin, ConvNeXt and DeiT-III: timm's own conversion, which also fits position tables to another image size.
- Google's ViTs (`.npz`): timm's own reader.
"""

import copy
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone
from samtune.models.timm.families import OWN, family_of, published
from samtune.models.weights import check_state, log_loaded, read_state

logger = logging.getLogger(__name__)

Head = Literal["new", "checkpoint"]
HUB_FILE = "model.safetensors"
HUB_SECONDS = 4.0  # for the hub to answer; without this question its client would try again and again for half a minute
_REMEDY = ": set model.name to such a model."
_PATCHES = "patch_embed.proj.weight"


def load_classifier_weights(model: Backbone, path: Path, *, head: Head) -> None:
    """Loads a checkpoint: everything but the head must fit, with nothing missing, nothing over, all finite.

    Args:
        model: receives the weights, as its own dtype, or stays as it was.
        path: `.safetensors`, `.pth`, `.pt`, `.pth.tar` or `.bin` of timm, of an official release or of ours, or
            `.npz` of Google (ViT only).
        head: "new" leaves the model's head alone, whatever the file has; "checkpoint" takes the file's.

    Raises:
        CheckpointError: a missing or damaged file, the weights of another model (saying what they look like), or
            a head of another number of classes.
    """
    raw = _read_npz(model, path) if path.suffix == ".npz" else read_state(path)
    state = _to_timm(model, raw, path)
    prefix = f"{model.head_module()}."
    expected = dict(model.net.state_dict())
    if head == "checkpoint":
        found, classes = state.get(f"{prefix}weight"), len(expected[f"{prefix}weight"])
        if found is None:
            raise CheckpointError(f"{path} has no head: use model.head=new.")
        if len(found) != classes:
            amounts = f"{len(found)} outputs, the data has {classes} classes"
            raise CheckpointError(f"the head of {path} has {amounts}: use model.head=new.")
    own_head = {n: t for n, t in expected.items() if n.startswith(prefix)} if head == "new" else {}
    wanted = {n: t for n, t in expected.items() if n not in own_head}
    state = {n: t for n, t in state.items() if head == "checkpoint" or not n.startswith(prefix)}
    check_state(wanted, state, path, lambda _: looks_like(raw, model))
    model.net.load_state_dict({**own_head, **state})
    log_loaded(len(state), path, f", head: {head}")


def load_published(model: Backbone, *, head: Head) -> None:
    """Loads a model's own weights, from the package or the Hugging Face hub; raises as `load_classifier_weights`."""
    own = OWN.get(model.name)
    if own and not own.source:
        with as_file(files("samtune.models.timm") / f"{model.name}.safetensors") as path:
            load_classifier_weights(model, path, head=head)
        return
    known = published(model.name) if own is None else {}
    if not known.get("hf_hub_id"):
        source = own.source if own else known.get("url") or "none is known"
        raise CheckpointError(
            f"{model.name} has no weights on the Hugging Face hub. Give a file as model.checkpoint=FILE "
            f"(the official one: {source}), or model.checkpoint=random."
        )
    path = _hub_file(model.name, known["hf_hub_id"], known.get("hf_hub_filename") or HUB_FILE)
    load_classifier_weights(model, path, head=head)


def _hub_file(name: str, repo: str, filename: str) -> Path:
    """Returns a file of the Hugging Face hub, from its cache or downloaded into it.

    Raises:
        CheckpointError: it is not in the cache, and there is no network, `HF_HUB_OFFLINE` is set, or the hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, _, revision = repo.partition("@")
    version = revision or None
    try:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repo, filename, revision=version, local_files_only=True))
        get_hf_file_metadata(hf_hub_url(repo, filename, revision=version), timeout=HUB_SECONDS)
        return Path(hf_hub_download(repo, filename, revision=version))
    except Exception as err:  # the client's errors are of the HTTP library that its version uses
        reason = (str(err).strip().splitlines() or ["no details"])[0]
        raise CheckpointError(
            f"can't get the weights of {name} from the Hugging Face hub ({type(err).__name__}: {reason}). "
            f"On a machine with network, get {filename} of https://huggingface.co/{repo}; "
            "model.checkpoint=FILE takes it."
        ) from err


def looks_like(state: Mapping[str, Tensor], model: Backbone) -> str:
    """Says which classifier a state dict looks like that does not fit `model`."""
    found = _family_text(state)
    if found.endswith(_REMEDY) and found == _family_text(model.net.state_dict()):
        return f"It looks like a damaged {model.name}, or one of other model.options."
    return found


def _family_text(state: Mapping[str, Tensor]) -> str:
    state = {name.removeprefix("base_encoder."): tensor for name, tensor in state.items()}
    if "fc_norm.weight" in state and "norm.weight" not in state:
        return "It takes the mean of the patches: set model.options={global_pool: avg}."
    if any(name.endswith("relative_position_bias_table") for name in state):
        return _word("Swin", width=len(state.get("patch_embed.proj.bias", ())))
    for name in ("stem.0.bias", "downsample_layers.0.0.bias"):
        if name in state:
            return _word("ConvNeXt", width=len(state[name]))
    if "conv_stem.weight" in state and "conv_head.weight" in state:
        return _word("EfficientNet", width=len(state["conv_head.weight"]))
    if "pos_embed" in state and _PATCHES in state:
        blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
        patch = state[_PATCHES].shape[-1]
        return _word("ViT", width=state["pos_embed"].shape[-1], depth=len(blocks), patch=patch)
    if any(name.startswith("image_encoder.") for name in state):
        return "It looks like a Segment Anything, which is no classifier."
    return "It does not look like a ViT, Swin, ConvNeXt or EfficientNet."


def _to_timm(model: Backbone, raw: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Gives the tensors of an official file timm's names, and position tables the model's size."""
    state = dict(raw)
    stem = "base_encoder."
    if any(name.startswith(stem) for name in state):
        head = f"{stem}head."
        state = {n.removeprefix(stem): t for n, t in state.items() if n.startswith(stem) and not n.startswith(head)}
    if any(name.startswith("decoder_") for name in state):
        state = {n: t for n, t in state.items() if not n.startswith("decoder_") and n != "mask_token"}
    try:
        found: dict[str, Tensor] = family_of(model.net, model.name).from_official(dict(state), model.net)
    except Exception as err:  # timm's conversion looks up names and shapes of the model in the file
        raise CheckpointError(f"{path} does not fit the model ({err!r}). {looks_like(raw, model)}") from err
    if _PATCHES in found and state[_PATCHES].ndim == 4:
        found[_PATCHES] = state[_PATCHES]  # timm would resample patches of another size; they have to fit
    for name in sorted(found.keys() & state.keys()):
        if found[name].numel() != state[name].numel():
            logger.info("%s: resampled %s to %s", name, tuple(state[name].shape), tuple(found[name].shape))
    return found


def _read_npz(model: Backbone, path: Path) -> dict[str, Tensor]:
    """Reads Google's layout into timm's names: whatever timm's reader leaves untouched in a copy is missing."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist. Check model.checkpoint or --checkpoint.")
    if not family_of(model.net, model.name).plain_tokens:
        raise CheckpointError(f"{path} is of a ViT, but {model.name} is none: set model.name to one.")
    empty: Any = copy.deepcopy(model.net)
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(torch.nan)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
            head = {name.rpartition("head/")[2]: arrays[name] for name in arrays.files if re.search(r"\bhead/", name)}
    except Exception as err:  # bytes that are no archive can fail in any way
        raise CheckpointError(f"checkpoint {path} is damaged or no .npz of arrays ({err}). Get it again.") from err
    facts = _npz_facts(shapes)
    looks = _word("ViT", **facts) if facts else "It does not look like a ViT of Google's."
    patches = empty.patch_embed.proj.weight
    # timm's reader would ignore further blocks and resample patches
    if facts != {"width": len(patches), "depth": len(empty.blocks), "patch": patches.shape[-1]}:
        raise CheckpointError(f"{path} does not fit the model. {looks}")
    try:
        with torch.no_grad():
            empty.load_pretrained(str(path))
    except Exception as err:  # timm's reader looks up names in the file and copies shapes as they are
        raise CheckpointError(f"{path} does not fit the model ({err!r}). {looks}") from err
    prefix = f"{model.head_module()}."
    state = {n: t for n, t in empty.state_dict().items() if not n.startswith(prefix) and not bool(t.isnan().all())}
    if "kernel" in head:
        state[f"{prefix}weight"] = torch.from_numpy(head["kernel"].T.copy())
        state[f"{prefix}bias"] = torch.from_numpy(head["bias"])
    return state


def _npz_facts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns width, depth and patch size of a file in Google's layout, nothing where it has another."""
    kernel = next((shape for name, shape in shapes.items() if name.endswith("embedding/kernel")), None)
    if kernel is None:
        return {}
    depth = len({match[1] for name in shapes if (match := re.search(r"/encoderblock_(\d+)/", name))})
    stacked = [s[0] for n, s in shapes.items() if n.endswith("Transformer/encoderblock/LayerNorm_0/scale")]
    return {"width": kernel[-1], "depth": stacked[0] if stacked else depth, "patch": kernel[0]}


def _word(family: str, **facts: int) -> str:
    details = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"It looks like {'an' if family[0] in 'AEIOU' else 'a'} {family} of {details}{_REMEDY}"
