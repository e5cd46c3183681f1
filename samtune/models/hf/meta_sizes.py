"""Which of the published sizes is a file of Meta's? It has weights only, and no config: their shapes tell."""

from pathlib import Path
from typing import Any, NamedTuple

from samtune.errors import CheckpointError
from samtune.models.hf.meta import META, meta_family
from samtune.models.weights import read_shapes


class Hiera(NamedTuple):
    """A published encoder of SAM 2 and 2.1: the numbers of Meta's `configs/sam2.1/sam2.1_hiera_*.yaml`."""

    width: int
    blocks: tuple[int, ...]
    heads: int
    attend: tuple[int, ...]
    windows: tuple[int, ...] = (8, 4, 14, 7)
    background: int = 7


HIERAS = {
    "tiny": Hiera(96, (1, 2, 7, 2), 1, (5, 7, 9)),
    "small": Hiera(96, (1, 2, 11, 2), 1, (7, 10, 13)),
    "base_plus": Hiera(112, (2, 3, 16, 3), 2, (12, 16, 20), background=14),
    "large": Hiera(144, (2, 6, 36, 4), 2, (23, 33, 43), windows=(8, 4, 16, 8)),
}
_SAM3 = (1024, 32)  # width and blocks


def config_of_meta(name: str, checkpoint: str | Path | None) -> dict[str, Any] | None:
    """Returns the config of transformers for Meta's own file of a published SAM 2 or 3; None for anything else.

    Args:
        name: key of the family that is asked for.

    Raises:
        CheckpointError: a file of Meta's of another family, or of a size that was not published.
    """
    path = Path(str(checkpoint))
    shapes = read_shapes(path) if name in META and path.is_file() else {}
    family = meta_family(shapes)
    if family is None:
        return None
    title = META[family].title
    if family != name:
        raise CheckpointError(f"{path} is Meta's file of a {title}: set model.name to {family}.")
    stem = META[family].mark.removesuffix("patch_embed.")
    width = shapes.get(f"{stem}patch_embed.proj.weight", (0,))[0]
    blocks = len({rest.split(".")[0] for n in shapes if (rest := n.removeprefix(f"{stem}blocks.")) != n})
    if family == "sam3" and (width, blocks) == _SAM3:
        return {"vision_config": {"model_type": "sam3_vision_model"}}
    for hiera in HIERAS.values() if family == "sam2" else ():
        if (hiera.width, sum(hiera.blocks)) == (width, blocks):
            return config_of_hiera(hiera)
    sizes = [f"{h.width} and {sum(h.blocks)} ({size})" for size, h in HIERAS.items()]
    known = ", ".join(sizes) if family == "sam2" else "{} and {}".format(*_SAM3)
    raise CheckpointError(
        f"{path} is Meta's file of a {title} of width {width} with {blocks} blocks, which was not published: {known}. "
        "Give it as a folder of transformers, whose config.json has all sizes."
    )


def config_of_hiera(hiera: Hiera) -> dict[str, Any]:
    """Returns the config of transformers for a SAM 2 with this encoder."""
    widths = [hiera.width * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": hiera.width,
        "embed_dim_per_stage": widths,
        "blocks_per_stage": list(hiera.blocks),
        "num_attention_heads_per_stage": [hiera.heads * 2**stage for stage in range(4)],
        "global_attention_blocks": list(hiera.attend),
        "window_size_per_stage": list(hiera.windows),
        "window_positional_embedding_background_size": [hiera.background] * 2,
    }
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    return {"vision_config": vision}
