"""SAM-HQ of transformers, whose masks are sums of two."""

from typing import Any

from torch import Tensor, nn

from samtune.models.hf.model import HfSam
from samtune.models.segmenter import Embedded
from samtune.types import Prompts


class HfSamHQ(HfSam):
    """SAM-HQ: its decoder also reads the first global block, and adds the mask of a token of its own.

    That decoder is called as it is: its masks are of two maps, so class tokens have no one map to be masks of; and
    transformers 5.23 makes one of the two of the embeddings from before its attention, rows and columns exchanged.
    """

    takes_classes = False

    def __init__(self, net: nn.Module, **about: Any) -> None:
        super().__init__(net, **about)
        for mlp in self.net.mask_decoder.output_hypernetworks_mlps[1:]:
            mlp.register_forward_hook(_detached)  # no gradient at all: with one of zeros, weight decay would move them

    def encode(self, pixels: Tensor) -> Embedded:
        """Maps (B, 3, S, S) pixels to image embeddings, and the (B, h, w, D) output of the first global block."""
        found = self.net.vision_encoder(pixels)
        return Embedded(found.last_hidden_state, (found.intermediate_embeddings[0],))

    def attend(self, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Raises NotImplementedError: there is no one map."""
        raise NotImplementedError("the masks of SAM-HQ are of two maps")

    def decode(self, embedded: Embedded, prompts: Prompts | None = None, masks: Tensor | None = None) -> Tensor:
        """Decodes to (B, 1, 4h, 4w): both masks count, as in SAM-HQ's own default."""
        kind = embedded.image.dtype
        sparse, dense, positions = self._embed_prompts(prompts, masks, len(embedded))
        found = self.net.mask_decoder(
            image_embeddings=embedded.image,
            image_positional_embeddings=positions.to(kind),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense.to(kind),
            multimask_output=False,
            hq_token_only=False,
            intermediate_embeddings=list(embedded.details),
        )[0]
        return found[:, 0]  # type: ignore[no-any-return]  # of one prompt set


def _detached(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.detach()
