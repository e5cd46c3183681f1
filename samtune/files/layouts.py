"""One model, two layouts: weights, selection and description in Meta's are those in transformers', by other names.

A delta, selection or merged file that was made with segment-anything's model so serves that of transformers, and back.
Of SAM 2 and 3 runs have transformers' names, and Meta's own files take their deltas.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samtune.base.tensors import in_fp32, state_hash
from samtune.errors import CheckpointError
from samtune.files.description import Description
from samtune.models.backbone import Backbone
from samtune.models.hf.build import build_hf
from samtune.models.hf.layout import layout_of, module_renamed, renamed
from samtune.models.hf.meta import META, meta_family, meta_map_of
from samtune.models.hf.names import Layout
from samtune.models.sam.specs import VITS, SamSpec
from samtune.models.weights import RANDOM
from samtune.selection.selection import Selection

logger = logging.getLogger(__name__)

TRANSFORMERS = "sam_hf"
"""The name of SAM 1 in the layout of transformers; those of `VITS` are in Meta's."""
_OTHER: dict[Layout, Layout] = {"Meta": "transformers", "transformers": "Meta"}


def own_layout(model: str) -> Layout | None:
    """Returns the layout of a model of SAM 1; None for every other model, which has one layout only."""
    return "transformers" if model == TRANSFORMERS else "Meta" if model in VITS else None


@dataclass(frozen=True)
class Mapped:
    """Weights of a file by the names of a model in whose other layout the file is.

    Attributes:
        state: without what the model does not have.
        given: by the names of the file, with what else it holds.
        back: takes such a state to the names of the file, with what else the file holds.
    """

    state: dict[str, Tensor]
    given: Mapping[str, Tensor]
    back: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def has_layouts(description: Description, file: Path | None) -> bool:
    """Whether the base of a model, in a file or folder or under a name, may be in another layout than its own."""
    in_meta = description.model in META and not description.classes  # Meta's code has no tokens of classes
    return own_layout(description.model) is not None or (in_meta and file is not None and file.is_file())


def in_layout_of(model: str, state: Mapping[str, Tensor], source: object) -> Mapped | None:
    """Returns weights by the names of a model where they are in its other layout; logs which they are in.

    Args:
        state: of a file; its tensors are not copied.
        source: where it is, for the message.

    Returns:
        None where they are in the model's own layout, or in none that is known.

    Raises:
        CheckpointError: a file of Meta's with tensors that are in no such file.
    """
    if model in META and meta_family(state) == model:
        found_in_meta = meta_map_of(state, source)
        logger.info("%s; %s is in that of transformers: names are mapped", found_in_meta.account(source), model)
        return Mapped(found_in_meta.to_transformers(state), state, partial(found_in_meta.to_meta, original=state))
    own, found = own_layout(model), layout_of(state)
    if own is None or found is None:
        return None
    if found == own:
        logger.info("%s is in the layout of %s, as %s is", source, found, model)
        return None
    logger.info("%s is in the layout of %s, and %s in that of %s: names are mapped", source, found, model, own)
    return Mapped(renamed(state, own), state, partial(renamed, layout=found))


def in_one_layout(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], sources: tuple[object, object]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Returns two states by the names of one layout where they are in two: of SAM 1 the first's, else transformers'.

    Raises:
        CheckpointError: a file of Meta's, of which `sources` has the names, with tensors that are in no such file.
    """
    if meta_family(left) != meta_family(right):
        left, right = (
            state if meta_family(state) is None else meta_map_of(state, source).to_transformers(state)
            for state, source in zip((left, right), sources, strict=True)
        )
    own = layout_of(left)
    return left, renamed(right, own) if own is not None and layout_of(right) == _OTHER[own] else right


def twin_metadata(metadata: Mapping[str, str], description: Description, base: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the metadata of a merged model as those of the same model in its other layout.

    Args:
        base: the fp32 base in that layout.

    Raises:
        CheckpointError: a model that the other layout does not have.
    """
    if description.model in META:  # names alone tell its layouts apart
        return {**metadata, "base_hash": state_hash(base)}
    name, options = twin_of(description)
    texts = {"model": name, "options": json.dumps(options), "base_hash": state_hash(base)}
    return {**metadata, **texts}


def twin_of(description: Description) -> tuple[str, dict[str, Any]]:
    """Returns name and options of a described SAM 1 in its other layout.

    Raises:
        CheckpointError: what it is has no such twin: class tokens, more channels, added modules, another input size,
            odd sizes.
    """
    what = f"{description.model} at {description.image_size} px"
    if description.classes or description.additions or description.channels != 3:
        raise CheckpointError(f"{what} has parts that SAM 1 does not have, so its other layout has no place for them.")
    if description.model == TRANSFORMERS:
        config = description.build().options["config"]
        for name, spec in VITS.items():
            if _numbers(config) == _numbers(config_of(spec)):
                return name, {}
        raise CheckpointError(f"{what} has sizes of no model in Meta's layout ({', '.join(VITS)}).")
    spec = VITS[description.model]
    if description.image_size != spec.image_size:
        raise CheckpointError(f"{what} can't be in transformers' layout, where it runs at {spec.image_size} px only.")
    model = build_hf(TRANSFORMERS, checkpoint=RANDOM, config=config_of(spec))
    return TRANSFORMERS, model.options


def config_of(spec: SamSpec) -> dict[str, Any]:
    """Returns the config of transformers for a SAM of these numbers, as JSON."""
    vision = {
        "hidden_size": spec.embed_dim, "num_hidden_layers": spec.depth, "num_attention_heads": spec.heads,
        "mlp_dim": 4 * spec.embed_dim, "global_attn_indexes": list(spec.global_blocks), "window_size": spec.window,
        "image_size": spec.image_size, "patch_size": 16, "output_channels": spec.prompt_dim,
        "num_pos_feats": spec.prompt_dim // 2,
    }  # fmt: skip
    prompts = {"hidden_size": spec.prompt_dim, "image_size": spec.image_size, "patch_size": 16}
    decoder = {"hidden_size": spec.prompt_dim, "mlp_dim": spec.decoder_mlp, "iou_head_hidden_dim": spec.prompt_dim}
    return {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}


def selection_for(selection: Selection, base: Mapping[str, Tensor], base_hash: str) -> Selection | None:
    """Returns a selection made on the same SAM 1 in its other layout by the names of `base`; None where it is not.

    Args:
        base: an untuned fp32 state, and `base_hash` its `state_hash`.
    """
    own = layout_of(base)
    if own is None or state_hash(renamed(base, _OTHER[own])) != selection.provenance.get("base_hash"):
        return None
    entries = renamed(selection.entries, own)
    whole = tuple(sorted(renamed(dict.fromkeys(selection.whole), own)))
    additions = tuple(
        replace(addition, module=module_renamed(addition.module, own)) for addition in selection.additions
    )
    return Selection(entries, whole, {**selection.provenance, "base_hash": base_hash}, additions)


def selection_in(state: Mapping[str, Tensor], selection: Selection, source: object) -> tuple[Selection, str]:
    """Returns a selection by the names of `state`, and the hash of that as the selection's provenance would have it.

    Args:
        state: of a base, in any layout.
        selection: of SAM 2 and 3 by transformers' names.
        source: where the base is, for messages.

    Raises:
        CheckpointError: modules that were added, by names that Meta's file does not have; a damaged file.
    """
    if meta_family(state) is None:
        found_hash = state_hash(state)
        same = selection.provenance.get("base_hash", found_hash) == found_hash
        return (None if same else selection_for(selection, state, found_hash)) or selection, found_hash
    found = meta_map_of(state, source)
    if any(not addition.merges for addition in selection.additions):
        raise CheckpointError(f"{source} is Meta's, and the selection adds modules: give the base as transformers'.")
    theirs = found.to_transformers(state)
    if unknown := sorted(set(selection.names()) - theirs.keys()):
        raise CheckpointError(f"the selection tunes {unknown[0]!r}, which {source} does not have: another model's?")
    changes = selection.changes({name: tensor.shape for name, tensor in theirs.items()})
    entries = found.entries_in_meta(
        {name: torch.arange(theirs[name].numel()) if where is None else where for name, where in changes.items()}
    )
    return Selection(entries, (), selection.provenance), state_hash(theirs)


def twin_model(description: Description, state: Mapping[str, Tensor]) -> Backbone:
    """Returns the model in transformers' layout that a merged model of Meta's layout is; raises as `twin_of`."""
    name, options = twin_of(description)
    model = build_hf(name, checkpoint=RANDOM, **options)
    model.net.load_state_dict(renamed(in_fp32(state), "transformers"))
    return model


def _numbers(config: Mapping[str, Any]) -> list[Any]:
    """Returns what of a config tells one SAM 1 from another."""
    wanted = config_of(next(iter(VITS.values())))
    return [
        list(value) if isinstance(value := config[section].get(key), list | tuple) else value
        for section, keys in wanted.items()
        for key in keys
    ]
