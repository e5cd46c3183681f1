"""Segment Anything, whichever library it is of: what is encoded once, and what its mask decoder makes of it.

Kirillov et al., arXiv:2304.02643; SAM 2, arXiv:2408.00714. The decoder takes a batch of pictures with one prompt set
each. The tokens of its masks follow its IoU token, and each has a hypernetwork that turns it into the weights of a
mask on the decoder's map of highest resolution; token 0 answers every prompt, the three others an ambiguous one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samtune.models.backbone import Backbone
from samtune.models.classes import KEPT, PREFIX, ClassTokens
from samtune.types import Answering, Batch, Prompts, Role


@dataclass(frozen=True)
class Embedded:
    """What an image encoder makes of B pictures: all that the mask decoder reads of them.

    Attributes:
        image: (B, C, h, w), the image embeddings, which the decoder's tokens attend to.
        details: (B, ...) maps that go past this attention; SAM 2's are at strides 4 and 8.
    """

    image: Tensor
    details: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: slice | Tensor) -> "Embedded":
        """Returns some of the pictures, or by an int64 tensor of places also several times."""
        return Embedded(self.image[which], tuple(one[which] for one in self.details))

    def repeated(self, count: int) -> "Embedded":
        """Returns the one picture `count` times, without copies."""
        maps = (one.expand(count, *one.shape[1:]) for one in (self.image, *self.details))
        return Embedded(next(maps), tuple(maps))


class Segmenter(Backbone):
    """A Segment Anything: an image encoder before a prompt encoder and a mask decoder.

    A library's models implement `embed`, `attend` and `hypernetwork_layers`.

    Attributes:
        iou_place: of the IoU token among the decoder's tokens.
        keeps_prompts: whether, beside classes, what only answers to prompts stays as it is; a task that trains it
            says so.
        takes_masks: whether it was pre-trained with earlier answers as prompts.
    """

    net: Any
    iou_place: int = 0
    keeps_prompts: bool = True
    takes_masks: bool = True

    @property
    def classes(self) -> ClassTokens | None:
        """The tokens of the classes that it tells apart; None where it only segments."""
        return getattr(self.net.mask_decoder, "classes", None)

    def add_classes(self, count: int) -> None:
        """Puts class tokens beside SAM's own, which keep their values and their part in every other pass."""
        decoder = self.net.mask_decoder
        token = decoder.mask_tokens.weight.detach()[0]
        with token.device:
            tokens = ClassTokens(count, len(token)).to(token.dtype)
        tokens.start(token, list(self.hypernetwork_layers(decoder.output_hypernetworks_mlps[0])))
        decoder.classes = tokens

    def hypernetwork_layers(self, mlp: Any) -> Iterable[nn.Module]:
        """Returns the linear layers of a mask token's hypernetwork, in order."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Embedded:
        """Encodes the pictures of a batch, whatever it is asked for."""
        raise NotImplementedError

    def attend(
        self, embedded: Embedded, prompts: Prompts | None, masks: Tensor | None, *, further: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the decoder's transformer, and enlarges its map.

        Args:
            further: (n, C) tokens that take part beside SAM's own; without a prompt they are the last.

        Returns:
            The tokens, (B, T, C), and the map, (B, C/8, 4h, 4w).
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """Predicts (B, 1, 4h, 4w) logits, foreground where > 0: mask token 0, SAM's `multimask_output=False`.

        With classes, a batch without prompts gets (B, n, 4h, 4w) logits, one map for each.
        """
        return self.answer(self.embed(batch), batch.prompts)

    def answer(self, embedded: Embedded, prompts: Prompts | None) -> Tensor:
        """Decodes pictures to what `forward` returns."""
        if self.classes is not None and prompts is None:
            return self.decode_classes(embedded)
        return self.decode(embedded, prompts)

    def answering(self, batch: Batch) -> Answering:
        """Encodes the picture once; earlier answers are mask prompts. With classes, no prompt asks for the first."""
        embedded = self.embed(batch)

        def answer(prompts: Prompts | None, masks: Tensor | None) -> Tensor:
            if prompts is None:
                return self.decode(embedded) if self.classes is None else self.decode_classes(embedded)[:, :1]
            return self.decode(embedded.repeated(len(prompts)), prompts, masks if self.takes_masks else None)

        return answer

    def features(self, batch: Batch) -> Tensor:
        """Returns the (B, C, h, w) image embeddings that the decoder attends to."""
        return self.embed(batch).image

    def normalise(self, images: Tensor, valid: Tensor) -> Tensor:
        """Normalises (B, C, S, S) values of 0 to 255 to float32, 0 where `valid`, (B, 1, S, S) bool, is False."""
        return (images.float() - self.pixel_mean) / self.pixel_std * valid

    def decode(self, embedded: Embedded, prompts: Prompts | None = None, masks: Tensor | None = None) -> Tensor:
        """Decodes pictures, with one prompt set per item or no prompt, to (B, 1, 4h, 4w) logits.

        Args:
            masks: (B, 1, 4h, 4w) logits of an earlier answer, as a further prompt.
        """
        hidden, upscaled = self.attend(embedded, prompts, masks)
        weights = self.net.mask_decoder.output_hypernetworks_mlps[0](hidden[:, self.iou_place + 1])  # (B, C/8)
        return torch.einsum("bc,bchw->bhw", weights, upscaled)[:, None]

    def decode_classes(self, embedded: Embedded) -> Tensor:
        """Decodes pictures to (B, n, 4h, 4w), the logits of the n classes that `add_classes` added."""
        assert self.classes is not None
        hidden, upscaled = self.attend(embedded, None, None, further=self.classes.tokens)
        first = hidden.shape[1] - len(self.classes.tokens)
        return torch.einsum("bnc,bchw->bnhw", self.classes(hidden[:, first:]), upscaled)

    def decode_all(
        self, embedded: Embedded, prompts: Prompts | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decodes as `decode`, to all of SAM's masks: token 0, then the three of `multimask_output=True`.

        Args:
            masks: (B, 1, 4h, 4w) logits of an earlier answer, as a further prompt.

        Returns:
            (B, 4, 4h, 4w) logits and (B, 4), the IoU with the truth that the decoder expects of each.
        """
        decoder = self.net.mask_decoder
        hidden, upscaled = self.attend(embedded, prompts, masks)
        mlps = enumerate(decoder.output_hypernetworks_mlps, start=self.iou_place + 1)
        weights = torch.stack([mlp(hidden[:, place]) for place, mlp in mlps], dim=1)  # (B, 4, C/8)
        expected = decoder.iou_prediction_head(hidden[:, self.iou_place])
        return torch.einsum("bnc,bchw->bnhw", weights, upscaled), expected

    def role(self, name: str, owner: nn.Module) -> Role:
        """Says what a parameter is where that depends on the classes; a library's models say the rest.

        The tokens of classes are the `head`; beside them, what only answers to prompts need is `fixed`, where it is
        kept.
        """
        if name.startswith(PREFIX):
            return "head"
        if self.classes is not None and self.keeps_prompts and name.startswith(KEPT):
            return "fixed"
        return self.own_role(name, owner)

    def own_role(self, name: str, owner: nn.Module) -> Role:
        """Returns the role of a parameter of the stock network."""
        return super().role(name, owner)

    def idle(self) -> list[str]:
        """Returns what mask token 0 does not depend on: scores, and the other tokens' hypernetworks."""
        count = len(self.net.mask_decoder.output_hypernetworks_mlps)
        others = (f"output_hypernetworks_mlps.{token}." for token in range(1, count))
        prefixes = tuple(f"mask_decoder.{part}" for part in ("iou_prediction_head.", "pred_obj_score_head.", *others))
        return [name for name, _ in self.net.named_parameters() if name.startswith(prefixes)]
