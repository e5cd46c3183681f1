"""Several classes at once: a learned mask token with its hypernetwork for each, beside Segment Anything's own."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

PREFIX = "mask_decoder.classes."
"""Of the names of what this module adds to a Segment Anything."""
KEPT = tuple(
    f"mask_decoder.{part}."
    for part in (
        "iou_token", "mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head",
        "obj_score_token", "pred_obj_score_head",
    )
)  # fmt: skip
"""What only answers to prompts need: it stays as it is, so that a file with classes still segments by prompt.

The score of an object is of SAM 2 and later ones.
"""


class ClassTokens(nn.Module):
    """A token and a hypernetwork of three layers per class, all classes in one tensor each.

    Args:
        count: number of classes n.
        width: C of the decoder's tokens; its map at stride 4 has C/8 channels.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        shapes = ((width, width), (width, width), (width // 8, width))
        self.tokens = nn.Parameter(torch.zeros(count, width))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(count, *shape)) for shape in shapes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(count, shape[0])) for shape in shapes)

    def start(self, token: Tensor, layers: Sequence[nn.Module]) -> None:
        """Starts every class as mask token 0, which segments without a prompt: all classes are equally likely then.

        Nothing is drawn: the loss tells the classes apart from the first step on.

        Args:
            token: (C,), mask token 0.
            layers: the three linear ones of its hypernetwork.
        """
        with torch.no_grad():
            self.tokens.copy_(token)
            for layer, weight, bias in zip(layers, self.weights, self.biases, strict=True):
                weight.copy_(layer.weight)
                bias.copy_(layer.bias)

    @property
    def fresh(self) -> bool:
        """Whether they are as `start` left them, and tell nothing apart yet."""
        return bool((self.tokens == self.tokens[:1]).all())

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps the (B, n, C) tokens that the decoder's transformer returns to (B, n, C/8), the weights of each mask."""
        last = len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.einsum("bnc,noc->bno", hidden, weight) + bias
            hidden = hidden if number == last else hidden.relu()
        return hidden


def has_classes(names: Iterable[str]) -> bool:
    """Whether tensors of these names, those of a file, include tokens of classes."""
    return any(name.startswith(PREFIX) for name in names)
