"""Meta's own files of SAM 2, 2.1 and 3: where in them are the entries of the tensors that transformers has?

Names differ; SAM 3's fused queries, keys and values are three tensors in transformers, the four embeddings of points
are one, and the position of a class token that nothing reads is left out. Every tensor of transformers is made of runs
of entries of Meta's, so that weights and selections of one layout are those of the other, exactly. What only videos,
texts and detections need has no place in transformers' model of images, and stays as it is in Meta's file.

Names by the conversion scripts of transformers (convert_sam2_to_hf.py, convert_sam3_video_to_hf.py) and Meta's code.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from samtune.errors import CheckpointError
from samtune.models.hf.layout import FEATURES, SHARED
from samtune.models.hf.names import Names, decoder_pairs, prompt_pairs

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

_HEADS = ("output_hypernetworks_mlps.{}", "iou_prediction_head", "pred_obj_score_head")
_ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token", "final_attn_token_to_image")
_OUT = tuple((f"{name}.out_proj.", f"{name}.o_proj.") for name in _ATTENTIONS)
_TRUNK, _VIT = "image_encoder.trunk.", "detector.backbone.vision_backbone."
_HIERA, _SAM3 = "vision_encoder.backbone.", "vision_encoder.backbone.layers.{}."
_LEVEL = "vision_encoder.neck.fpn_layers.{}."
_FUSED, _POINTS = ".attention.qkv.", "prompt_encoder.point_embed."
_POSITIONS = "vision_encoder.backbone.embeddings.position_embeddings"


@dataclass(frozen=True)
class MetaFile:
    """What Meta's files of a family hold.

    Attributes:
        title: how people call it.
        mark: start of names that only its files have.
        names: pairs of what transformers has too.
        more: starts of the names of what transformers' model of images does not have, but not
        own: starts of names that are of it.
        kinds: in a word or two, what `more` is for.
    """

    title: str
    mark: str
    names: Names
    more: tuple[str, ...]
    kinds: str
    own: tuple[str, ...] = ()


_VIDEO = ("maskmem_tpos_enc", "no_mem_pos_enc", "mask_downsample.", "obj_ptr_", "no_obj_ptr", "no_obj_embed_spatial")
META = {
    "sam2": MetaFile(
        title="SAM 2",
        mark="image_encoder.trunk.patch_embed.",
        names=Names(
            (
                (f"{_TRUNK}blocks.{{}}.norm{{}}.", f"{_HIERA}blocks.{{}}.layer_norm{{}}."),
                (f"{_TRUNK}blocks.{{}}.mlp.layers.0.", f"{_HIERA}blocks.{{}}.mlp.proj_in."),
                (f"{_TRUNK}blocks.{{}}.mlp.layers.1.", f"{_HIERA}blocks.{{}}.mlp.proj_out."),
                (f"{_TRUNK}patch_embed.proj.", f"{_HIERA}patch_embed.projection."),
                (_TRUNK, _HIERA),
                ("image_encoder.neck.convs.{}.conv.", "vision_encoder.neck.convs.{}."),
                ("no_mem_embed", "no_memory_embedding"),
                *prompt_pairs("sam_prompt_encoder."),
                *decoder_pairs(
                    "sam_mask_decoder.",
                    _HEADS,
                    (*_OUT, ("mlp.layers.0.", "mlp.proj_in."), ("mlp.layers.1.", "mlp.proj_out.")),
                ),
            )
        ),
        more=("memory_attention.", "memory_encoder.", *_VIDEO),
        kinds="videos",
    ),
    "sam3": MetaFile(
        title="SAM 3",
        mark=f"{_VIT}trunk.patch_embed.",
        names=Names(
            (
                (f"{_VIT}trunk.pos_embed", _POSITIONS),
                (f"{_VIT}trunk.patch_embed.proj.", "vision_encoder.backbone.embeddings.patch_embeddings.projection."),
                (f"{_VIT}trunk.ln_pre.", "vision_encoder.backbone.layer_norm."),
                (f"{_VIT}trunk.blocks.{{}}.norm{{}}.", f"{_SAM3}layer_norm{{}}."),
                (f"{_VIT}trunk.blocks.{{}}.attn.qkv.", f"{_SAM3}attention.qkv."),
                (f"{_VIT}trunk.blocks.{{}}.attn.proj.", f"{_SAM3}attention.o_proj."),
                (f"{_VIT}trunk.blocks.{{}}.mlp.", f"{_SAM3}mlp."),
                (f"{_VIT}sam2_convs.{{}}.dconv_2x2_0.", f"{_LEVEL}scale_layers.0."),
                (f"{_VIT}sam2_convs.{{}}.dconv_2x2_1.", f"{_LEVEL}scale_layers.2."),
                (f"{_VIT}sam2_convs.{{}}.dconv_2x2.", f"{_LEVEL}scale_layers.0."),
                (f"{_VIT}sam2_convs.{{}}.conv_1x1.", f"{_LEVEL}proj1."),
                (f"{_VIT}sam2_convs.{{}}.conv_3x3.", f"{_LEVEL}proj2."),
                ("tracker.no_mem_embed", "no_memory_embedding"),
                *prompt_pairs("tracker.sam_prompt_encoder."),
                *decoder_pairs(
                    "tracker.sam_mask_decoder.",
                    _HEADS,
                    (*_OUT, ("mlp.lin1.", "mlp.proj_in."), ("mlp.lin2.", "mlp.proj_out.")),
                ),
            )
        ),
        more=("detector.", "tracker."),
        own=(f"{_VIT}trunk.", f"{_VIT}sam2_convs."),
        kinds="videos, texts and detections",
    ),
}


@dataclass(frozen=True)
class Run:
    """Entries of a tensor of transformers, `count` from `start`, that are those of Meta's `name` from `place` on."""

    start: int
    count: int
    name: str
    place: int


@dataclass(frozen=True)
class MetaMap:
    """Where the tensors of transformers are in one file of Meta's.

    Attributes:
        family: key of `META`.
        shapes: of the tensors of transformers.
        runs: of each of them, in its order.
        left_out: names in Meta's file that no tensor of transformers has a part of.
    """

    family: str
    shapes: dict[str, tuple[int, ...]]
    runs: dict[str, list[Run]]
    left_out: list[str]

    def account(self, source: object) -> str:
        """Returns a sentence on which tensors of Meta's file are used, and which are not."""
        known, used = META[self.family], len({run.name for runs in self.runs.values() for run in runs})
        rest = f"{len(self.left_out)} are for {known.kinds}" if self.left_out else "none is left out"
        return f"{source} is in the layout of Meta's {known.title}: {used} of its tensors are for images, {rest}"

    def to_transformers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns Meta's weights as the tensors of transformers; without a copy where it is a single run."""
        found = {}
        for theirs, runs in self.runs.items():
            parts = [state[run.name].reshape(-1)[run.place : run.place + run.count] for run in runs]
            found[theirs] = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(self.shapes[theirs])
        if FEATURES in found:
            found[SHARED] = found[FEATURES].clone()  # files hold no tensors that share memory
        return found

    def to_meta(self, state: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns `original`, a state of Meta's, with the values that `state` has of the tensors of transformers."""
        written = {run.name for runs in self.runs.values() for run in runs}
        found = {name: tensor.clone() if name in written else tensor for name, tensor in original.items()}
        for theirs, runs in self.runs.items():
            values = state[theirs].reshape(-1)
            for run in runs:
                part = found[run.name].view(-1)[run.place : run.place + run.count]
                part.copy_(values[run.start : run.start + run.count])
        return found

    def entries_in_meta(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns sorted flat indices into Meta's tensors, of those into the tensors of transformers."""
        found: dict[str, list[Tensor]] = {}
        for theirs, indices in entries.items():
            for run in self.runs[FEATURES if theirs == SHARED else theirs]:
                inside = indices[(indices >= run.start) & (indices < run.start + run.count)]
                found.setdefault(run.name, []).append(inside - run.start + run.place)
        return {name: torch.cat(parts).sort().values for name, parts in found.items()}


def meta_family(names: Mapping[str, object]) -> str | None:
    """Returns the family of a file of Meta's with tensors of these names, a key of `META`; None of any other file."""
    return next((f for f, known in META.items() if any(name.startswith(known.mark) for name in names)), None)


def meta_weights(family: str, state: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Returns the weights in a file of Meta's as the tensors of transformers; logs how many of which there are.

    Raises:
        CheckpointError: a file of another family, or tensors that no file of Meta's has.
    """
    found = meta_map_of(state, source)
    if found.family != family:
        title = META[found.family].title
        raise CheckpointError(f"{source} is Meta's file of a {title}: set model.name to {found.family}.")
    logger.info("%s", found.account(source))
    return found.to_transformers(state)


def meta_map_of(state: Mapping[str, Tensor], source: object) -> MetaMap:
    """Returns the map of weights; raises as `meta_map`."""
    return meta_map({name: tuple(tensor.shape) for name, tensor in state.items()}, source)


def meta_map(shapes: Shapes, source: object) -> MetaMap:
    """Returns where the tensors of transformers are in a file of Meta's with tensors of these shapes.

    Raises:
        CheckpointError: tensors that no file of Meta's has.
    """
    family = meta_family(shapes)
    assert family is not None
    known = META[family]
    found = MetaMap(family, {}, {}, [])
    unknown = []
    for name, shape in shapes.items():
        theirs = known.names.renamed(name, "transformers")
        if theirs is not None:
            _add(found, theirs, name, shape)
        elif is_table(name) or (name.startswith(known.more) and not name.startswith(known.own)):
            found.left_out.append(name)
        else:
            unknown.append(name)
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise CheckpointError(
            f"{source} is in the layout of Meta's {known.title}, but holds {len(unknown)} tensors that no such file "
            f"has ({shown}). Take them out, or get Meta's file again."
        )
    return found


def is_table(name: str) -> bool:
    """Whether a tensor of this name is a table of rotations by position, which is computed, not trained."""
    return name.rpartition(".")[2] in ("freqs_cis", "freqs_cis_real", "freqs_cis_imag")


def _add(found: MetaMap, theirs: str, name: str, shape: tuple[int, ...]) -> None:
    """Adds what of transformers a tensor of Meta's is: one tensor, three of a fused one, or a row of one."""
    size = prod(shape)
    if _FUSED in theirs:
        rows = shape[0] // 3
        for part, short in enumerate(("q_proj", "k_proj", "v_proj")):
            split = theirs.replace(_FUSED, f".attention.{short}.")
            found.shapes[split] = (rows, *shape[1:])
            found.runs[split] = [Run(0, size // 3, name, part * (size // 3))]
    elif theirs.startswith(_POINTS):
        row, whole = int(theirs.removeprefix(_POINTS).partition(".")[0]), f"{_POINTS}weight"
        runs = sorted([*found.runs.get(whole, []), Run(row * size, size, name, 0)], key=lambda run: run.start)
        found.runs[whole], found.shapes[whole] = runs, (len(runs), shape[-1])
    elif theirs == _POSITIONS:
        found.shapes[theirs] = (shape[0], shape[1] - 1, shape[2])
        found.runs[theirs] = [Run(0, size - shape[2], name, shape[2])]
    else:
        found.shapes[theirs], found.runs[theirs] = shape, [Run(0, size, name, 0)]
