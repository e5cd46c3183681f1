"""How do names of tensors in Meta's files and in transformers correspond? What their Segment Anythings share."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

Layout = Literal["Meta", "transformers"]
Pair = tuple[str, str]


class Names:
    """Pairs of the starts of names, in Meta's files and in transformers; "{}" stands for a number.

    The first pair that fits counts.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._to: dict[Layout, list[tuple[re.Pattern[str], str]]] = {
            "transformers": [(_pattern(meta), theirs) for meta, theirs in pairs],
            "Meta": [(_pattern(theirs), meta) for meta, theirs in pairs],
        }

    def renamed(self, name: str, layout: Layout) -> str | None:
        """Returns in `layout` what is called `name` in the other one; None where no pair fits."""
        for start, other in self._to[layout]:
            if match := start.match(name):
                return other.format(*match.groups()) + name[match.end() :]
        return None


def _pattern(start: str) -> re.Pattern[str]:
    return re.compile(re.escape(start).replace(r"\{\}", r"(\d+)"))


def prompt_pairs(prefix: str) -> Iterator[Pair]:
    """Yields the pairs of a prompt encoder, whose names begin with `prefix` in Meta's files."""
    yield f"{prefix}pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"
    yield f"{prefix}point_embeddings.{{}}.", "prompt_encoder.point_embed.{}."
    for place, name in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3")):
        yield f"{prefix}mask_downscaling.{place}.", f"prompt_encoder.mask_embed.{name}."
    yield prefix, "prompt_encoder."


def decoder_pairs(prefix: str, heads: Sequence[str], within: Sequence[Pair] = ()) -> Iterator[Pair]:
    """Yields the pairs of a mask decoder, whose names begin with `prefix` in Meta's files.

    Args:
        heads: its multilayer perceptrons of three layers.
        within: pairs inside of a layer of its transformer, and of its last attention.
    """
    layer = "transformer.layers.{}."
    yield f"{prefix}{layer}norm{{}}.", f"mask_decoder.{layer}layer_norm{{}}."
    for meta, theirs in within:
        yield f"{prefix}{layer}{meta}", f"mask_decoder.{layer}{theirs}"
        yield f"{prefix}transformer.{meta}", f"mask_decoder.transformer.{theirs}"
    yield f"{prefix}transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."
    for place, name in ((0, "upscale_conv1"), (1, "upscale_layer_norm"), (3, "upscale_conv2")):
        yield f"{prefix}output_upscaling.{place}.", f"mask_decoder.{name}."
    for head in heads:
        for place, name in enumerate(("proj_in", "layers.0", "proj_out")):
            yield f"{prefix}{head}.layers.{place}.", f"mask_decoder.{head}.{name}."
    yield prefix, "mask_decoder."
